"""Plugins: found through entry points, checked before any work.

Loading an entry point imports its class, and an imported class can be named in a configuration by
its short name. Saved configurations hold full class paths and do not need the discovery.
"""

import inspect
import warnings
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version

from mti_lightning.errors import InputError

BACKBONES = "mti_lightning.backbones"
ATTRIBUTIONS = "mti_lightning.attributions"


def load_plugins(attribution_base: type) -> dict[str, list[str]]:
    """Import every installed plugin: modules that register timm models, and attribution methods.

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
        origins: dict[str, str] = {}
        for entry_point in sorted(entry_points(group=group), key=lambda found: found.name):
            name, origin = entry_point.name, _origin(entry_point)
            cause = _check(entry_point, attribution_base if group == ATTRIBUTIONS else None)
            if origins.setdefault(name, origin) != origin:
                cause = cause or f"{origins[name]} has a plugin of this name"
            if cause:
                broken.append(f"{name} ({entry_point.value}, from {origin}): {cause}")
            else:
                loaded.setdefault(group, []).append(name)
    if broken:
        raise InputError("broken plugins, to be repaired or uninstalled: " + "; ".join(broken))
    return loaded


def _origin(entry_point: EntryPoint) -> str:
    source = entry_point.dist
    return f"{source.name} {source.version}" if source else "an unknown distribution"


def origin_of(module: str) -> str:
    """Return the distribution and version that a module comes from."""
    names = packages_distributions().get(module.partition(".")[0], [])
    return f"{names[0]} {version(names[0])}" if names else f"module {module}"


def _check(entry_point: EntryPoint, base: type | None) -> str:
    """Load a plugin and return what is wrong with it, in one line; nothing if it will do."""
    try:
        with warnings.catch_warnings():
            # timm lets a model take the name of another.
            warnings.filterwarnings("error", "Overwriting .* in registry")
            plugin = entry_point.load()
    except Exception as error:  # noqa: BLE001  a plugin may fail in any way
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    if base and not (inspect.isclass(plugin) and issubclass(plugin, base)):
        return f"{plugin!r} is no subclass of {base.__name__}"
    if inspect.isabstract(plugin):
        missing = ", ".join(sorted(plugin.__abstractmethods__))
        return f"{plugin.__name__} does not define {missing}"
    return ""
