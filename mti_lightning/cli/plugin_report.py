"""What plugins are installed, and whether they pass the conformance kit."""

from collections.abc import Iterator, Sequence

from mti_lightning.errors import InputError, nearest
from mti_lightning.registry import ATTRIBUTIONS, OBJECTIVES, SKIP, Plugin
from mti_lightning.testing import Check, attribution_checks, backbone_checks, objective_checks


def overview(plugins: Sequence[Plugin]) -> Iterator[str]:
    """Yield a table of plugins, a line as soon as its plugin is checked."""
    if not plugins:
        yield "no plugins are installed"
        return
    rows = [("name", "kind", "distribution", "offers")]
    rows += [(p.name, _kind(p), p.origin, ", ".join(p.offers) or "-") for p in plugins]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for place, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([*cells, _verdict(plugins[place - 1]) if place else "checks"])


def find(name: str, plugins: Sequence[Plugin]) -> list[Plugin]:
    """Return the plugins of a name, which may be that of a distribution or of a model, too.

    Raises:
        InputError: If there are none.
    """
    names = {plugin: {plugin.name, *plugin.offers, _distribution(plugin)} for plugin in plugins}
    found = [plugin for plugin in plugins if name in names[plugin]]
    if not found:
        known = {one for of_plugin in names.values() for one in of_plugin}
        there = f"; there are {', '.join(plugin.name for plugin in plugins)}" if plugins else ""
        raise InputError(f"there is no plugin {name!r}{nearest(name, known) or there}")
    return found


def run_checks(plugin: Plugin) -> list[Check]:
    """Run the conformance kit on a plugin: a method or objective by its defaults, or its models."""
    if plugin.skipped or plugin.cause:
        return [Check("loads", False, plugin.cause or f"it is skipped by {SKIP}={plugin.skipped}")]
    loads = Check("loads", True)
    if plugin.entry_point.group == OBJECTIVES:
        return [loads, *objective_checks(plugin.entry_point.load())]
    if plugin.entry_point.group != ATTRIBUTIONS:
        return [loads] + [
            Check(f"{model}: {check.name}", check.ok, check.cause)
            for model in plugin.offers
            for check in backbone_checks(model)
        ]
    try:
        method = plugin.entry_point.load()()
    except Exception as error:  # noqa: BLE001  a plugin's; the others are still to be listed
        return [loads, Check("default arguments", False, f"{error}; give each a default")]
    return [loads, *attribution_checks(method)]


def check_line(check: Check) -> str:
    """Return a check's result in one line."""
    return f"{'ok' if check.ok else 'failed':6}  {check.name}" + (
        f": {check.cause}" if check.cause else ""
    )


def _kind(plugin: Plugin) -> str:
    kinds = {ATTRIBUTIONS: "method", OBJECTIVES: "objective"}
    return kinds.get(plugin.entry_point.group, "model")


def _distribution(plugin: Plugin) -> str:
    return plugin.entry_point.dist.name if plugin.entry_point.dist else ""


def _verdict(plugin: Plugin) -> str:
    if plugin.skipped:
        return "skipped"
    checks = run_checks(plugin)
    failed = [check for check in checks if not check.ok]
    if not failed:
        return f"ok ({len(checks)})"
    more = f"; and {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"failed {failed[0].name}: {failed[0].cause}{more}"
