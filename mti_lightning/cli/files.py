"""The configurations that `--config` names: files, or those that are shipped."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Final

import yaml  # type: ignore[import-untyped]  # its types would be one more thing to install

from mti_lightning.errors import InputError, nearest
from mti_lightning.files import at_home, read_text

_FLAG = "--config="
# Keys whose value may be a file with more of the configuration.
_PARTS = (
    *("model", "data", "trainer", "init_args", "dict_kwargs", "config", "backbone", "arguments"),
    *("attribution", "image", "views", "tension", "chart", "optimizer", "callbacks", "logger"),
    *("strategy", "plugins", "profiler", "accelerator"),
)
MOST_BYTES: Final = 2**20
MOST_VALUES: Final = 100_000


def shipped() -> dict[str, Path]:
    """Return the configurations that come with the package, by their names."""
    package = Path(__file__).parents[1]
    places = (package / "configs", package.parent / "configs")  # of a wheel; of a clone
    folder = next(filter(Path.is_dir, places))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def locate(arguments: Sequence[str]) -> list[str]:
    """Put the paths of shipped configurations where their names stand and no such file is there."""
    located, known = list(arguments), shipped()
    for place, flag, value in _given(arguments):
        if (path := known.get(value.removesuffix(".yaml"))) and not at_home(value).is_file():
            located[place] = f"{flag}{path}"
        elif value.startswith("~"):
            located[place] = f"{flag}{at_home(value)}"
    return located


def check(arguments: Sequence[str]) -> None:
    """Make sure that all configurations can be read, and those that are named in them.

    Raises:
        InputError: If one cannot, with the line where that is.
    """
    given, seen = files(arguments), set[Path]()
    waiting = [*given, *(p for option in _options(arguments) for p in _parts(*option, Path()))]
    while waiting:
        if (path := waiting.pop()) in seen:
            continue
        seen.add(path)
        root = read(path) if path in given else compose(path)
        for key, node in nested_values(root) if root is not None else ():
            if node.id == "scalar":
                waiting += _parts(key, node.value, path.parent)


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield options and their values."""
    for option, following in pairwise([*arguments, ""]):
        key, has_value, value = option.removeprefix("--").partition("=")
        if option.startswith("--"):
            yield key, value if has_value else following


def _parts(key: str, value: str, folder: Path) -> list[Path]:
    """Return the file with more of a configuration that a value names, if it does."""
    if key.rpartition(".")[2] in _PARTS:
        with suppress(OSError, ValueError):  # it may be too long for a name
            for path in (Path(value), folder / value):
                if path.exists() and not path.is_dir():
                    return [path]
    return []


def files(arguments: Sequence[str]) -> list[Path]:
    """Return the files that arguments name as configurations."""
    return [at_home(value) for _, _, value in _given(arguments) if not _is_text(value)]


def compose(path: Path) -> yaml.Node | None:
    """Read YAML, with the place of each value; None where there is nothing in it.

    Raises:
        InputError: If it is not there, or none, or stands for more than anyone writes.
    """
    try:
        root: yaml.Node | None = yaml.compose(read_text(path, MOST_BYTES), yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}, line {line}: {error.problem or 'no YAML'}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = nearest(path.name, [*beside, *shipped()])
        raise InputError(f"config {str(path)!r} does not exist{near}") from error
    except IsADirectoryError as error:
        raise InputError(f"config {str(path)!r} is a folder; give a file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config {str(path)!r} is no text in UTF-8; save it as that") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"config {str(path)!r} cannot be read: {reason}") from error
    if _values(root, {}) > MOST_VALUES:
        raise InputError(
            f"config {str(path)!r} stands for more than {MOST_VALUES} values, as anchors within "
            "anchors do; write out what is meant"
        )
    return root


def read(path: Path) -> yaml.MappingNode:
    """Read a configuration, with the place of each value.

    Raises:
        InputError: If it is not there, or holds none.
    """
    root = compose(path)
    if not isinstance(root, yaml.MappingNode):
        raise InputError(
            f"config {str(path)!r} holds no keys; it begins with name: or trainer:, for example"
        )
    return root


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Return how many values a node stands for, where each use of an anchor counts."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES  # of one that holds itself
        held = [node.value] if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            held = [*zip(*node.value, strict=True)]
        known[id(node)] = 1 + sum(_values(child, known) for part in held for child in part)
    return known[id(node)]


def nested_values(root: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    """Yield every value, and every item of a list, with its key; an anchor's only once."""
    waiting, seen = [("", root)], {id(root)}
    while waiting:
        key, node = waiting.pop()
        children = [(key, item) for item in node.value] if node.id == "sequence" else []
        if node.id == "mapping":
            children = [(name.value, value) for name, value in node.value]
        fresh = [(name, child) for name, child in children if id(child) not in seen]
        seen |= {id(child) for _, child in fresh}
        yield from fresh
        waiting += reversed(fresh)


def class_paths(arguments: Sequence[str], package: str) -> set[str]:
    """Return what arguments and configurations name by its path in a package."""
    given = [argument.rpartition("=")[2] for argument in arguments]
    for path in files(arguments):
        given += [node.value for _, node in nested_values(read(path)) if node.id == "scalar"]
    return {text for text in given if re.fullmatch(rf"{package}(\.\w+)+", text)}


def typed_packages(arguments: Sequence[str]) -> set[str]:
    """Return the packages of what arguments themselves name by its path, as my_package.Mine."""
    given = [argument.rpartition("=")[2] for argument in arguments]
    return {
        text.partition(".")[0] for text in given if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", text)
    }


def _given(arguments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield where a configuration's path stands, what is before it there, and the path."""
    for place, option in enumerate(arguments):
        if option in ("--config", "-c") and arguments[place + 1 :]:
            yield place + 1, "", arguments[place + 1]
        elif option.startswith(_FLAG):
            yield place, _FLAG, option.removeprefix(_FLAG)


def _is_text(value: str) -> bool:
    """Return whether a value is itself a configuration, as in `--config '{name: mine}'`."""
    try:
        return isinstance(yaml.safe_load(value), dict)
    except yaml.YAMLError:
        return False
