"""Whether units named as inhibitors keep classes and channels silent, on EfficientNet-Lite0.

Composites of cut-outs (see `benchmarks.real_truth`) are swept for classes that the network sees in
them, and for channels of later layers before their activation function. For each feature the units
of a layer are ranked on some composites, and the eight that inhibit most are silenced on others, as
`mti inhibitors` does. Columns: how many features; rank correlation between halves of the pictures
that units were ranked on, and correlation of predicted and real changes over units, medians (and
minima); the mean change of the response where all eight are silenced, in what share of the features
it is upward, the same of eight random active units, and in what share of the features that is less
than a tenth; the change with the eight scaled by 0.5, 1.5 and 2; what share of the eight is
confirmed.

`--false` counts how many units are confirmed where names tell nothing of the network that is
tested: they are those of other units, or of a network before its weights behind the layer were
shuffled.

`--parts` takes composites whose part B inhibits the class of A, names the eight units that inhibit
most from B's place, and tells what share of them is active there where B is shown without A: at
least half as much as where both are. Beside it: of all units, and of the eight, and of all, where A
is shown without B. Every other composite is left out: what active means was tried on them.

A run that was stopped goes on from its `--work` folder. Needs what `benchmarks.real_truth` needs.
"""

import argparse
import pickle
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.transforms.functional import to_pil_image

from benchmarks.real_truth import (
    AT_ONCE,
    BEHIND,
    INSTALLED,
    Composites,
    backgrounds,
    compose,
    cut_outs,
    effects,
    fitted,
    named_alike,
)
from mti_lightning import (
    ActGrad,
    Attribution,
    Backbone,
    BoundFeature,
    Feature,
    IntGrad,
    Layer,
    PictureFolder,
    Sweep,
    SweepStore,
    attribute,
)
from mti_lightning.files import replacing
from mti_lightning.inhibitors.result import Inhibitors
from mti_lightning.inhibitors.study import find_inhibitors
from mti_lightning.sweep.measures import Array

NETWORK: Final = "efficientnet_lite0_in1k"
NAMED: Final = 8


class Misled(SweepStore):
    """A sweep that has the contributions of another, in another order of units."""

    source: SweepStore
    order: Array

    def contributions(self, feature: int, pictures: Array) -> Array:
        """Return what each unit is said to add."""
        said: Array = self.source.contributions(feature, pictures)[:, self.order]
        return said


def composites(
    network: Backbone, given: Path, count: int, folder: Path
) -> tuple[Composites, list[int]]:
    """Return composites, as files in a folder, too, and the classes of the cut-outs."""
    kept, pictures = folder / "made.pt", folder / "pictures"
    if not kept.exists():
        pictures.mkdir(parents=True, exist_ok=True)
        photographs = backgrounds(given)
        stamps, names = named_alike([network], [*cut_outs(given)], photographs)
        made = compose(stamps, names, photographs, count, seed=1)
        for place, picture in enumerate(made.shown[0]):
            to_pil_image(picture).save(pictures / f"{place:04d}.png")
        torch.save((made.shown, made.masks, made.classes, names), kept)
    *of, names = torch.load(kept)
    return Composites(*of), names


def sweep(
    backbone: Backbone,
    features: Sequence[str],
    layer: str,
    of: Path,
    to: Path,
    method: Attribution | None = None,
) -> SweepStore:
    """Sweep a folder of pictures."""
    options = {"store": str(to), "calibrate": 64, "rivals": 0, "units": True, "block": 16}
    module = Sweep(backbone, features, layer, method, **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    data = PictureFolder(str(of))
    Trainer(accelerator="cpu", **quiet).predict(module, datamodule=data, return_predictions=False)
    return SweepStore(to)


def shuffled(backbone: Backbone, layer: str, path: Path) -> Backbone:
    """Return the network with the numbers of each weight behind a layer in another order."""
    state, draw = dict(backbone.network.state_dict()), torch.Generator().manual_seed(0)
    names = [*state]
    last = max(place for place, name in enumerate(names) if name.startswith(f"{layer}."))
    for name in names[last + 1 :]:
        value = state[name]
        if value.ndim > 1:
            order = torch.randperm(value.numel(), generator=draw)
            state[name] = value.flatten()[order].view_as(value)
    torch.save(state, path)
    return Backbone(NETWORK, str(path))


def inhibitors(store: SweepStore, tested: int, named: str = "") -> Iterator[Inhibitors]:
    """Find the inhibitors of each feature of a sweep, those not yet found before."""
    for place, feature in enumerate(store.features):
        kept = store.path.with_suffix(f".{named}{place}.pkl")
        if not kept.exists():
            found = find_inhibitors(store, feature, NAMED, most=tested)
            with replacing(kept) as part:
                part.write_bytes(pickle.dumps(found))
        found = pickle.loads(kept.read_bytes())
        yield found


def told(found: Sequence[Inhibitors]) -> str:
    """Return a row of the table."""
    change = np.stack([(one.doses - one.response).mean(1) for one in found])  # [features, scales]
    random = np.array([one.random.mean for one in found])
    named = change[:, 0]
    agreeing = [[one.ranking.stability for one in found], [one.agreement for one in found]]
    confirmed = np.mean([unit.is_confirmed for one in found for unit in one.units])
    cells = [
        str(len(found)),
        *(f"{np.median(values):.2f} ({np.min(values):.2f})" for values in agreeing),
        f"{named.mean():+.3f}",
        f"{(named > 0).mean():.0%}",
        f"{random.mean():+.3f}",
        f"{(random < 0.1 * named).mean():.0%}",
        ", ".join(f"{value:+.3f}" for value in change[:, [1, 3, 4]].mean(0)),
        f"{confirmed:.0%}",
    ]
    return " | ".join(cells)


def false_alarms(store: SweepStore, other: SweepStore, order: Array, tested: int) -> str:
    """Return what share is confirmed in one sweep of the units that another one names."""
    misled = Misled(other.path)
    misled.source, misled.order = store, order
    every = inhibitors(misled, tested, "misled.")
    found = [unit.is_confirmed for one in every for unit in one.units]
    return f"{np.mean(found):.3f} of {len(found)}"


def of_parts(network: Backbone, layer: Layer, made: Composites) -> str:
    """Return how active the units are that are named from the place of what inhibits."""
    made = made.rows((effects(network, made)[:, 1] < -0.5).nonzero()[1::2, 0])
    grid = network.layout(layer).grid
    assert grid is not None
    places = adaptive_avg_pool2d((made.masks[:, 1:] > 64).float(), grid)
    places = places / places.sum((2, 3), keepdim=True)
    whole, b_alone, a_alone = (fitted(network, shown) for shown in made.shown)

    def at_b(pictures: Tensor) -> Tensor:  # [N, C]
        parts = zip(pictures.split(AT_ONCE), places.split(AT_ONCE), strict=True)
        with torch.no_grad():
            found = [(network.run(p, [layer])[layer] * at).sum((2, 3)) for p, at in parts]
        return torch.cat(found)

    usual = at_b(whole)
    active = [at_b(shown) * usual.sign() >= usual.abs() / 2 for shown in (b_alone, a_alone)]
    named = []
    for start in range(0, len(whole), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        classes = made.classes[part, 0].tolist()
        asked = [BoundFeature(Feature("classifier", one), network) for one in classes]
        found = attribute(network, whole[part], asked, layer, IntGrad(8))[1]
        named.append((found * places[part]).sum((2, 3)).argsort(1)[:, :NAMED])
    shares = [
        share.float().mean() for one in active for share in (one.gather(1, torch.cat(named)), one)
    ]
    return " | ".join([str(len(whole)), *(f"{share:.0%}" for share in shares)])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="+", default=["blocks.6", "blocks.5", "blocks.4"])
    parser.add_argument("--pictures", type=int, default=280)
    parser.add_argument("--tested", type=int, default=40, help="Of them, for silencing.")
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--channels", type=int, default=0, help="Of a later layer, for classes.")
    parser.add_argument("--once", action="store_true", help="Name units by act×grad.")
    parser.add_argument("--false", action="store_true", help="Count false alarms.")
    parser.add_argument("--parts", action="store_true", help="Name units from a part's place.")
    parser.add_argument("--folder", type=Path, default=INSTALLED, help="What holds the pictures.")
    parser.add_argument("--work", type=Path, default=Path("tb_logs/inhibitors"))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    import_module("mti_efficientnet_lite")  # registers the network
    network, folder = Backbone(NETWORK), given.work
    made, names = composites(network, given.folder, given.pictures, folder)
    asked = sorted({*names}, key=lambda name: (-names.count(name), name))[: given.classes]
    pictures = folder / "pictures"
    for layer in given.layers:
        if given.channels and layer not in BEHIND:
            continue  # behind the last stage there are only classes
        if given.parts:
            print(f"| {layer} | {of_parts(network, Layer.parse(layer), made)} |", flush=True)
            continue
        features = [f"classifier:{name}" for name in asked]
        if given.channels:
            target = BEHIND[layer][0]
            every = network.layout(Layer.parse(target)).channels
            chosen = [index * every // given.channels for index in range(given.channels)]
            features = [f"{target}:{channel}@mean" for channel in chosen]
        kept, how = f"{layer}_{len(features)}", (ActGrad(), "_once") if given.once else (None, "")
        store = sweep(network, features, layer, pictures, folder / f"{kept}{how[1]}.zarr", how[0])
        if not given.false:
            found = [*inhibitors(store, given.tested)]
            print(f"| {layer} | {told(found)} |", flush=True)
            continue
        units = np.arange(store.units)
        order = np.random.default_rng(0).permutation(units)
        alarms = false_alarms(store, store, order, given.tested)
        print(f"| {layer} | other units | {alarms} |", flush=True)
        other = shuffled(network, layer, folder / "shuffled.pth")
        of_other = folder / f"{layer}_shuffled.zarr"
        mixed = sweep(other, features, layer, pictures, of_other)
        alarms = false_alarms(store, mixed, units, given.tested)
        print(f"| {layer} | shuffled weights | {alarms} |", flush=True)


if __name__ == "__main__":
    main()
