"""What is known of each feature in each picture, put together."""

from collections.abc import Sequence

from torch import Tensor

from mti_lightning.attribution.signs import at_scale, signed_map
from mti_lightning.explanation.choose import Answers, on_grid
from mti_lightning.explanation.result import Inversion, Part
from mti_lightning.objectives.inversion import SignedInversion
from mti_lightning.rendering import Rendering


def put_together(
    objective: SignedInversion,
    seen: Tensor,
    renderings: Sequence[Rendering],
    answers: Answers,
) -> list[Part]:
    """Put together what is known of each feature in each picture."""
    made = {(r.entry.feature, r.entry.source, r.entry.sign): r for r in renderings}
    layout = objective.layout
    parts = []
    for place, feature in enumerate(objective.features):
        of_feature = [objective.bound_features[place]] * len(seen)
        _, attribution, response = objective.attribute(seen, of_feature)
        excited, inhibited = objective.tension.split(attribution, layout)
        tension = objective.tension(attribution, layout)
        signed = signed_map(attribution, layout.channel_dim)
        maps = on_grid(at_scale(signed, objective.tension.scale, layout), layout)[:, 0]
        for source in range(len(seen)):
            numbers = {
                "response": float(response[source]),
                "excitation": float(excited[source]),
                "inhibition": float(inhibited[source]),
                "tension": float(tension[source]),
            }
            positive, negative = (_inversion(made.get((place, source, s))) for s in ("+", "-"))
            parts.append(
                Part(
                    feature,
                    objective.class_names[place],
                    source,
                    numbers,
                    *answers.place(feature, source),
                    maps[source].float().cpu().numpy(),
                    positive,
                    negative,
                )
            )
    return parts


def _inversion(rendering: Rendering | None) -> Inversion | None:
    if rendering is None:
        return None
    measures = rendering.measures
    return Inversion(rendering.image, measures["response"], measures["cosine"])
