"""Plugins: found through entry points, checked before any work.

Loading an entry point imports its class, and an imported class can be named in a configuration by its short name. Saved
configurations hold full class paths and do not need the discovery.
"""

import inspect
from importlib.metadata import EntryPoint, entry_points

from mti_lightning.errors import InputError

BACKBONES = "mti_lightning.backbones"
ATTRIBUTIONS = "mti_lightning.attributions"


def load_plugins(attribution_base: type) -> dict[str, list[str]]:
    """Import every installed plugin: modules that register models with timm, and attribution methods.

    Args:
        attribution_base: What attribution methods derive from.

    Returns:
        For each group the names that were loaded.

    Raises:
        InputError: If plugins are broken: all of them, in one message.
    """
    loaded: dict[str, list[str]] = {}
    broken: list[str] = []
    for group in (BACKBONES, ATTRIBUTIONS):
        for entry_point in sorted(entry_points(group=group), key=lambda found: found.name):
            try:
                plugin = entry_point.load()
            except Exception as error:  # noqa: BLE001  a plugin may fail in any way
                broken.append(_report(entry_point, f"{type(error).__name__}: {error}"))
                continue
            if group == ATTRIBUTIONS and not (inspect.isclass(plugin) and issubclass(plugin, attribution_base)):
                broken.append(_report(entry_point, f"{plugin!r} is no subclass of {attribution_base.__name__}"))
            elif inspect.isabstract(plugin):
                missing = ", ".join(sorted(plugin.__abstractmethods__))
                broken.append(_report(entry_point, f"{plugin.__name__} does not define {missing}"))
            else:
                loaded.setdefault(group, []).append(entry_point.name)
    if broken:
        raise InputError("broken plugins, to be repaired or uninstalled: " + "; ".join(broken))
    return loaded


def _report(entry_point: EntryPoint, cause: str) -> str:
    source = entry_point.dist
    origin = f"{source.name} {source.version}" if source else "an unknown distribution"
    return f"{entry_point.name} ({entry_point.value}, from {origin}): {cause}"
