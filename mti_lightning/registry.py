"""Plugins: found through entry points, checked before any work.

Loading an entry point imports its class, and an imported class can be named in a configuration by
its short name. Saved configurations hold full class paths and do not need the discovery: the
shortest path that a class can be imported by, so that they outlive a move within its package.
"""

import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from types import ModuleType
from typing import Any, final
from weakref import WeakKeyDictionary

import timm

from mti_lightning.errors import InputError, nearest
from mti_lightning.log import log_info

BACKBONES = "mti_lightning.backbones"
ATTRIBUTIONS = "mti_lightning.attributions"
OBJECTIVES = "mti_lightning.objectives"
_GROUPS = (BACKBONES, ATTRIBUTIONS, OBJECTIVES)
SKIP = "MTI_LIGHTNING_SKIP"
# Of this package itself; by name, as plugins are: they are built on what is built on this module.
_OWN_BACKBONES = "mti_lightning.vetoed_shapes.backbone"
# What timm gained by importing the module of an entry point, which happens but once.
_GAINED: WeakKeyDictionary[ModuleType, set[str]] = WeakKeyDictionary()


@final
@dataclass(frozen=True)
class Plugin:
    """An entry point, and what came of loading it.

    `cause` is what is wrong with it, in one line; `offers` the names of its timm models, of its
    attribution method or of its objective. A plugin that is `skipped`, by its own name or
    another's, was not loaded.
    """

    entry_point: EntryPoint
    cause: str = ""
    offers: tuple[str, ...] = ()
    skipped: str = ""

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


def load_plugins(
    attribution_base: type, objective_base: type | None = None
) -> dict[str, list[str]]:
    """Import every installed plugin: modules that register timm models, methods, objectives.

    Those whose names are in the environment variable MTI_LIGHTNING_SKIP, parted by commas, are left
    out, and the log says so. With models goes whatever else names their module: its import would
    register them all the same.

    Args:
        attribution_base: What attribution methods derive from.
        objective_base: What objectives derive from; without it they are left alone.

    Returns:
        For each group the names that were loaded.

    Raises:
        InputError: If plugins are broken: all of them, in one message. If one that is to be skipped
            is not installed.
    """
    plugins = find_plugins(attribution_base, objective_base)
    if broken := [f"{plugin}: {plugin.cause}" for plugin in plugins if plugin.cause]:
        raise InputError(
            f"broken plugins, to be repaired, uninstalled or left out by {SKIP}=NAME,...: "
            + "; ".join(broken)
        )
    loaded: dict[str, list[str]] = {}
    for plugin in plugins:
        if plugin.skipped:
            said = f"plugin {plugin} is left out by {SKIP}"
            if plugin.skipped != plugin.name:
                said += f"={plugin.skipped}, which is of the same module"
            elif _is_backbone(plugin.entry_point) and plugin.entry_point.module in sys.modules:
                said += ", but something else imported its module: its models are there"
            log_info(said)
        else:
            loaded.setdefault(plugin.entry_point.group, []).append(plugin.name)
    return loaded


def find_plugins(attribution_base: type, objective_base: type | None = None) -> list[Plugin]:
    """Load every installed plugin but those to be skipped, and say of each what is wrong with it.

    Raises:
        InputError: If one that is to be skipped is not installed.
    """
    register_own_backbones()
    skipped = _skipped()
    bases = {ATTRIBUTIONS: attribution_base, OBJECTIVES: objective_base}
    found = [
        entry_point
        for group in _GROUPS
        for entry_point in sorted(entry_points(group=group), key=lambda found: found.name)
    ]
    names = {entry_point.name for entry_point in found}
    for name in skipped - names:
        raise InputError(f"{SKIP}: there is no plugin {name!r}{nearest(name, names)}")
    modules = {one.module: one.name for one in found if _is_backbone(one) and one.name in skipped}
    plugins: list[Plugin] = []
    for entry_point in found:
        base = bases.get(entry_point.group)
        if base is None and not _is_backbone(entry_point):
            continue
        own = entry_point.name if entry_point.name in skipped else ""
        if by := own or modules.get(entry_point.module, ""):
            plugins.append(Plugin(entry_point, skipped=by))
            continue
        plugin = _load(entry_point, base or object)
        key = entry_point.group, entry_point.name
        for other in plugins:
            if (other.entry_point.group, other.name) == key and not plugin.cause:
                plugin = Plugin(entry_point, f"{other.origin} has a plugin of this name")
        plugins.append(plugin)
    return plugins


def register_own_backbones() -> None:
    """Register this package's own models with timm, if that is still to be done."""
    import_module(_OWN_BACKBONES)


def public_path(cls: type) -> str:
    """Return the shortest path that a class can be imported by, as configurations record it."""
    parts = cls.__module__.split(".")
    modules = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    for module in modules:
        if getattr(sys.modules.get(module), cls.__qualname__, None) is cls:
            return f"{module}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def current_path(class_path: str) -> str:
    """Return where a class of this package is now that an earlier version recorded elsewhere."""
    package, name = _package(class_path), class_path.rpartition(".")[2]
    own = package == _package(__name__) and name in import_module(package).__all__
    return f"{package}.{name}" if own else class_path


def known_class(class_path: str, base: type) -> type[Any]:
    """Return a class that a file names, without importing anything for it.

    Args:
        class_path: As configurations record it.
        base: What it has to derive from: this package's public classes do, those of plugins and
            whatever else was imported before.

    Raises:
        InputError: If there is no such class.
    """
    import_module(_package(__name__)).__all__  # noqa: B018  all of them are imported by it
    known = {public_path(cls): cls for cls in _below(base) if not inspect.isabstract(cls)}
    if (path := current_path(class_path)) not in known:
        raise InputError(
            f"{class_path} is none of {', '.join(sorted(known))}; one of your own has to be "
            "imported first, in Python: what a file names is not imported"
        )
    return known[path]


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
    package = _package(module)
    for group in _GROUPS:  # editable distributions do not list their modules
        for entry_point in entry_points(group=group):
            if _package(entry_point.module) == package:
                return Plugin(entry_point).origin
    names = packages_distributions().get(package, [])
    return f"{names[0]} {version(names[0])}" if names else f"module {module}"


def layers_of_interest(model: str) -> tuple[str, ...]:
    """Return the layers that the module of a timm model names for it, in a constant `LAYERS`.

    Raises:
        InputError: If the constant is something else.
    """
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        return ()
    module = timm.model_entrypoint(architecture).__module__
    named: object = vars(sys.modules[module]).get("LAYERS", {})
    own = [name for name, other in _modules_of_models().items() if other == module]
    what, form = (
        f"LAYERS of {module} ({origin_of(module)})",
        f"{{{architecture!r}: ['LAYER', ...]}}",
    )
    if not isinstance(named, Mapping):
        raise InputError(f"{what} is a {type(named).__name__}; give a dict such as {form}")
    for name, layers in named.items():
        if name not in own:
            near = nearest(str(name), own) or f"; there are {', '.join(own)}"
            raise InputError(f"{what} names {name!r}, which is no model registered there{near}")
        listed = isinstance(layers, Iterable) and not isinstance(layers, str)
        if not (listed and all(isinstance(layer, str) for layer in layers)):
            raise InputError(f"{what} gives {layers!r} for {name}; give a list of names: {form}")
    return tuple(named.get(architecture, ()))


def _skipped() -> set[str]:
    return {name.strip() for name in os.environ.get(SKIP, "").split(",")} - {""}


def _load(entry_point: EntryPoint, base: type) -> Plugin:
    before = _modules_of_models() if _is_backbone(entry_point) else {}
    imported = entry_point.module in sys.modules
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
    if not _is_backbone(entry_point):
        return Plugin(entry_point, _unfit(plugin, base, entry_point.name), (entry_point.name,))
    models, module = _modules_of_models(), sys.modules[entry_point.module]
    package = _package(module.__name__)
    if not imported:
        new = models.keys() - before.keys()
        _GAINED[module] = {name for name in new if _package(models[name]) != _package(__name__)}
    # Its own ones, and those of a package that it imports.
    gained = {name for name, other in models.items() if _package(other) == package}
    gained |= _GAINED.get(module, set())
    nothing = f"importing {entry_point.module} registers no model with timm"
    # Where something else imported it before nobody saw what timm gained.
    cause = nothing if module in _GAINED and not gained else ""
    return Plugin(entry_point, cause, tuple(name for name in models if name in gained))


def _is_backbone(entry_point: EntryPoint) -> bool:
    return entry_point.group == BACKBONES


def _package(module: str) -> str:
    return module.partition(".")[0]


def _modules_of_models() -> dict[str, str]:
    """Return every model's name with the module in which its function lies."""
    names: Iterable[str] = timm.list_models()
    return {name: timm.model_entrypoint(name).__module__ for name in names}


def _below(base: type) -> list[type]:
    found: list[type] = base.__subclasses__()
    return found + [cls for other in found for cls in _below(other)]


def _unfit(plugin: Any, base: type, name: str) -> str:
    """Return what keeps an object from being a method or an objective; nothing if it will do."""
    if not (inspect.isclass(plugin) and issubclass(plugin, base)):
        return f"{plugin!r} is no subclass of {base.__name__}"
    if missing := ", ".join(sorted(getattr(plugin, "__abstractmethods__", ()))):
        return f"{plugin.__name__} does not define {missing}"
    if plugin.__name__ != name:
        return f"its class is called {plugin.__name__}; entry point and class need the same name"
    own = _package(base.__module__)
    if any(cls.__name__ == name and _package(cls.__module__) == own for cls in _below(base)):
        return f"mti_lightning itself has a class {name}; call it something else"
    if "<locals>" in plugin.__qualname__ or "._" in f".{plugin.__module__}":
        where = f"{plugin.__module__}.{plugin.__qualname__}"
        return f"configurations cannot name {where}; put it in a public module"
    return ""
