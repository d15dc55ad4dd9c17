"""Plugins: found through entry points, checked before any work.

Loading an entry point imports its class, and an imported class can be named in a configuration by
its short name. Saved configurations hold full class paths and do not need the discovery.
"""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from typing import Any, final

import timm

from mti_lightning.errors import InputError, nearest
from mti_lightning.log import say

BACKBONES = "mti_lightning.backbones"
ATTRIBUTIONS = "mti_lightning.attributions"
SKIP = "MTI_LIGHTNING_SKIP"


@final
@dataclass(frozen=True)
class Plugin:
    """An entry point, and what came of loading it.

    `cause` is what is wrong with it, in one line; `offers` the names of its timm models or of its
    attribution method. A plugin that is `skipped` was not loaded.
    """

    entry_point: EntryPoint
    cause: str = ""
    offers: tuple[str, ...] = ()
    skipped: bool = False

    @property
    def name(self) -> str:
        return self.entry_point.name

    @property
    def origin(self) -> str:
        """Its distribution and version."""
        source = self.entry_point.dist
        return f"{source.name} {source.version}" if source else "an unknown distribution"

    def __str__(self) -> str:
        return f"{self.name} ({self.entry_point.value}, from {self.origin})"


def load_plugins(attribution_base: type) -> dict[str, list[str]]:
    """Import every installed plugin: modules that register timm models, and attribution methods.

    Those whose names are in the environment variable MTI_LIGHTNING_SKIP, parted by commas, are left
    out, and the log says so.

    Args:
        attribution_base: What attribution methods derive from.

    Returns:
        For each group the names that were loaded.

    Raises:
        InputError: If plugins are broken: all of them, in one message. If one that is to be skipped
            is not installed.
    """
    plugins = find_plugins(attribution_base)
    if broken := [f"{plugin}: {plugin.cause}" for plugin in plugins if plugin.cause]:
        raise InputError(
            f"broken plugins, to be repaired, uninstalled or left out by {SKIP}=NAME,...: "
            + "; ".join(broken)
        )
    loaded: dict[str, list[str]] = {}
    for plugin in plugins:
        if plugin.skipped:
            say(f"plugin {plugin} is left out by {SKIP}")
        else:
            loaded.setdefault(plugin.entry_point.group, []).append(plugin.name)
    return loaded


def find_plugins(attribution_base: type) -> list[Plugin]:
    """Load every installed plugin but those to be skipped, and say of each what is wrong with it.

    Raises:
        InputError: If one that is to be skipped is not installed.
    """
    skipped = _skipped()
    found = [
        entry_point
        for group in (BACKBONES, ATTRIBUTIONS)
        for entry_point in sorted(entry_points(group=group), key=lambda found: found.name)
    ]
    names = {entry_point.name for entry_point in found}
    for name in skipped - names:
        raise InputError(f"{SKIP}: there is no plugin {name!r}{nearest(name, names)}")
    plugins: list[Plugin] = []
    for entry_point in found:
        if entry_point.name in skipped:
            plugins.append(Plugin(entry_point, skipped=True))
            continue
        plugin = _load(entry_point, attribution_base)
        key = entry_point.group, entry_point.name
        for other in plugins:
            if (other.entry_point.group, other.name) == key and not plugin.cause:
                plugin = Plugin(entry_point, f"{other.origin} has a plugin of this name")
        plugins.append(plugin)
    return plugins


def note_skipped(message: str) -> str:
    """Return, where a message is of a method or model that is not there, what was skipped."""
    skipped = sorted(_skipped())
    missing = re.search(r"attribution: |there is no class|timm has no model", message)
    return f"; {SKIP} leaves out {', '.join(skipped)}" if missing and skipped else ""


def check_skipped(class_path: str) -> None:
    """Refuse a class that was to be left out, and was named by its full path.

    Raises:
        InputError: If it was.
    """
    if class_path.rpartition(".")[2] in _skipped():
        raise InputError(f"{class_path} is a plugin that {SKIP} leaves out; take the name off it")


def origin_of(module: str) -> str:
    """Return the distribution and version that a module comes from."""
    package = module.partition(".")[0]
    for group in (BACKBONES, ATTRIBUTIONS):  # editable distributions do not list their modules
        for entry_point in entry_points(group=group):
            if entry_point.module.partition(".")[0] == package:
                return Plugin(entry_point).origin
    names = packages_distributions().get(package, [])
    return f"{names[0]} {version(names[0])}" if names else f"module {module}"


def layers_of_interest(model: str) -> tuple[str, ...]:
    """Return the layers that the module of a timm model names for it, in a constant `LAYERS`."""
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        return ()
    module = sys.modules[timm.model_entrypoint(architecture).__module__]
    named: Mapping[str, Iterable[str]] = vars(module).get("LAYERS", {})
    return tuple(named.get(architecture, ()))


def _skipped() -> set[str]:
    return {name.strip() for name in os.environ.get(SKIP, "").split(",")} - {""}


def _load(entry_point: EntryPoint, base: type) -> Plugin:
    try:
        with warnings.catch_warnings():
            # timm lets a model take the name of another.
            warnings.filterwarnings("error", "Overwriting .* in registry")
            plugin = entry_point.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001  a plugin may fail in any way
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if taken := re.search(r"Overwriting (\S+) in registry", cause):
            cause = f"timm has a model {taken[1]!r} already; register yours by another name"
        return Plugin(entry_point, cause)
    if entry_point.group == ATTRIBUTIONS:
        return Plugin(entry_point, _unfit(plugin, base, entry_point.name), (entry_point.name,))
    models = _models(entry_point.module.partition(".")[0])
    cause = "" if models else f"importing {entry_point.module} registers no model with timm"
    return Plugin(entry_point, cause, models)


def _models(package: str) -> tuple[str, ...]:
    """Return the timm models whose functions lie in a package."""
    names: Iterable[str] = timm.list_models()
    modules = {name: timm.model_entrypoint(name).__module__ for name in names}
    return tuple(name for name, module in modules.items() if module.partition(".")[0] == package)


def _unfit(plugin: Any, base: type, name: str) -> str:
    """Return what keeps an object from being an attribution method; nothing if it will do."""
    if not (inspect.isclass(plugin) and issubclass(plugin, base)):
        return f"{plugin!r} is no subclass of {base.__name__}"
    if missing := ", ".join(sorted(getattr(plugin, "__abstractmethods__", ()))):
        return f"{plugin.__name__} does not define {missing}"
    if plugin.__name__ != name:
        return f"its class is called {plugin.__name__}; entry point and class need the same name"
    below: list[type] = base.__subclasses__()
    if any(cls.__name__ == name and cls.__module__ == base.__module__ for cls in below):
        return f"mti_lightning itself has a class {name}; call it something else"
    if "<locals>" in plugin.__qualname__ or "._" in f".{plugin.__module__}":
        where = f"{plugin.__module__}.{plugin.__qualname__}"
        return f"configurations cannot name {where}; put it in a public module"
    return ""
