"""`mti plugins`: what is installed, and whether it passes the conformance kit."""

from collections.abc import Sequence

from mti_lightning.cli.parser import Parser
from mti_lightning.errors import InputError


def run(args: Sequence[str]) -> None:
    """Run `mti plugins` and `mti plugins check NAME`."""
    parser = Parser(
        prog="mti plugins",
        description="Without arguments: the plugins that are installed, and whether they pass the "
        "conformance kit. mti plugins check NAME: each check of one, by its name, its "
        "distribution's or its model's.",
    )
    parser.add_argument("action", nargs="?", choices=["check"], help="check, or nothing.")
    parser.add_argument("plugin", nargs="?", help="What to check.")
    given = parser.parse_args(list(args))
    if given.action and given.plugin is None:
        raise InputError("mti plugins check: name a plugin; mti plugins lists them")
    from mti_lightning.attribution.methods import Attribution
    from mti_lightning.cli import plugin_report
    from mti_lightning.log import show
    from mti_lightning.objectives.base import Objective
    from mti_lightning.registry import find_plugins

    show()
    plugins = find_plugins(Attribution, Objective)
    if given.action is None:
        for line in plugin_report.overview(plugins):
            print(line, flush=True)
        return
    failed = False
    for plugin in plugin_report.find(given.plugin, plugins):
        print(plugin, flush=True)
        for check in plugin_report.run_checks(plugin):
            failed |= not check.ok
            print(plugin_report.check_line(check), flush=True)
    if failed:
        raise SystemExit(1)
