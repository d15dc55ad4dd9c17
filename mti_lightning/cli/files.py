"""The configurations that `--config` names: files, or those that are shipped."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import yaml  # type: ignore[import-untyped]  # its types would be one more thing to install

from mti_lightning.errors import InputError, nearest
from mti_lightning.files import at_home

_FLAG = "--config="
# Keys at which a class may stand, by its path or as the value of `class_path`.
_CLASSES = (
    *("class_path", "model", "data", "attribution", "image", "optimizer", "lr_scheduler"),
    *("callbacks", "logger", "strategy", "plugins", "profiler", "accelerator"),
)
_ENDINGS = ("yaml", "yml", "json")
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
    """Make sure that all configurations can be read.

    Raises:
        InputError: If one cannot, with the line where that is.
    """
    for path in files(arguments):
        read(path)


def files(arguments: Sequence[str]) -> list[Path]:
    """Return the files that arguments name as configurations."""
    return [at_home(value) for _, _, value in _given(arguments) if not _is_text(value)]


def read(path: Path) -> yaml.MappingNode:
    """Read a configuration, with the place of each value.

    Raises:
        InputError: If it is not there, or holds none.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
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
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"config {str(path)!r} cannot be read: {reason}") from error
    if _values(root, {}) > MOST_VALUES:
        raise InputError(
            f"config {str(path)!r} stands for more than {MOST_VALUES} values, as anchors within "
            "anchors do; write out what is meant"
        )
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


def check_classes(arguments: Sequence[str]) -> None:
    """Make sure that configurations name no class whose module would be imported for them.

    To import a module is to run it. What is there is this package, its plugins, what they use, and
    in Python whatever was imported.

    Raises:
        InputError: If one does, with the line where that is.
    """
    waiting, seen = files(arguments), set[Path]()
    while waiting:
        if (path := waiting.pop()) in seen:
            continue
        seen.add(path)
        for key, node in nested_values(read(path)):
            if node.id != "scalar" or key not in _CLASSES:
                continue
            package, _, name = node.value.partition(".")
            if name in _ENDINGS and Path(node.value).is_file():
                waiting.append(Path(node.value))  # a part of the configuration
            elif name and package.isidentifier() and package not in sys.modules:
                raise InputError(
                    f"{path}, line {node.start_mark.line + 1}: {key}: {node.value} is none of this "
                    "package's, its plugins' or Lightning's classes, and a configuration imports "
                    "no others; make it a plugin (mti plugins)"
                )


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
