"""Which of a sweep's features is meant by a name."""

from collections.abc import Mapping, Sequence

from mti_lightning.errors import InputError
from mti_lightning.features.classes import ClassNames
from mti_lightning.features.feature import Feature


def column_of(
    given: str | None, names: Sequence[str], classes: Mapping[str, Sequence[str]], where: str
) -> int:
    """Return a feature's column; of None the only one's. A class may be named, as `fc:star`.

    Args:
        given: What names the feature.
        names: All features.
        classes: For those that stand for classes the names of these.
        where: The sweep, as an error calls it.

    Raises:
        InputError: If there is no such feature, or none is named where there are several.
    """
    feature = _by_class(given, classes, where) if given and given not in names else given
    if feature is None and len(names) == 1:
        return 0
    if feature not in names:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        told = "name a feature" if feature is None else f"there is no feature {feature!r}"
        raise InputError(f"{told} of {where}; it has {shown}")
    return names.index(feature)


def _by_class(given: str, classes: Mapping[str, Sequence[str]], where: str) -> str:
    """Return the feature of the class that is named in place of its channel, if one is."""
    layer, _, name = given.partition(":")
    channels = {
        Feature.parse(feature).channel: feature
        for feature in classes
        if feature.startswith(f"{layer}:")
    }
    if not channels or name.lstrip("-").isdecimal():
        return given
    names = {channel or 0: tuple(classes[feature]) for channel, feature in channels.items()}
    return channels[ClassNames(names, where).index(name)]
