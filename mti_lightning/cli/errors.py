"""An error of the command line in one line: the place, what is wrong there, what would do."""

import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import yaml  # type: ignore[import-untyped]  # its types would be one more thing to install

from mti_lightning.cli.files import files, nested_values, read
from mti_lightning.errors import MtiError, nearest
from mti_lightning.files import FULL, unwritable

_MOST_LISTED = 30
TRACEBACK: Final = "MTI_LIGHTNING_TRACEBACK"  # in the environment: where errors are from


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what it comes from, what that comes from, and so on.

    Each once: of an error that is kept and raised again, as a full disk's by TensorBoard's thread,
    what came of it may be the cause.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def own_error(error: BaseException | None) -> MtiError | None:
    """Find this package's error among the causes: jsonargparse wraps what a constructor raises."""
    return next((one for one in _causes(error) if isinstance(one, MtiError)), None)


def told_in_a_line(error: BaseException) -> str | None:
    """Say what ended a command, where it is an error of this package's or of a disk."""
    if (own := own_error(error)) is not None:
        return str(own)
    for cause in _causes(error):
        if _is_of_memory(cause):
            return f"there is not enough memory: {_first_line(cause)}"
        if isinstance(cause, OSError) and cause.strerror:
            named = isinstance(cause.filename, str | bytes)
            where = os.fsdecode(cause.filename) if named else "a file of this run"
            if cause.errno in FULL:
                return unwritable(Path(where), cause)
            return f"{where}: {cause.strerror}"
    return None


def unexpected(error: BaseException) -> str:
    """Say what another library raises at what it was given, and where, innermost first."""
    *_, error = _causes(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{'/'.join(Path(last.filename).parts[-2:])}, line {last.lineno}"
    kind = type(error).__name__
    return f"{_first_line(error)} ({kind} in {where}; {TRACEBACK}=1 shows how it comes there)"


def _first_line(error: BaseException) -> str:
    """Return the first line that says something: what follows in PyTorch's are its own frames."""
    return next(filter(None, map(str.strip, str(error).splitlines())), "it fails")[:300]


def _is_of_memory(error: BaseException) -> bool:
    """Return whether there is not enough memory, for Python, NumPy, or PyTorch on any device."""
    told = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in told)
    )


def name_neighbours(message: str, known: Sequence[str]) -> str:
    """Where jsonargparse does not know a key, say which of the parser's own are near it."""
    match = re.match(
        r"(?:Option|(?P<owner>Group|Subcommand) '(?P<group>[\w.]+)' does not accept option) "
        r"'(?P<key>[^']+)'|unrecognized arguments: (?P<option>[^\s=]+)",
        message,
    )
    if match is None:
        return message
    key = (match["option"] or match["key"]).removeprefix("--")
    key = f"{match['group']}.{key}" if match["owner"] == "Group" else key
    stem, dot, leaf = key.rpartition(".")
    siblings = [name.removeprefix(stem + dot) for name in known if name.startswith(stem + dot)]
    would_do = nearest(leaf, siblings) or nearest(key.partition(".")[0], _roots(known))
    if not would_do and siblings and len(siblings) < _MOST_LISTED:
        would_do = f"; there are {', '.join(name for name in siblings if 'help' not in name)}"
    return f"unknown {key}{would_do}"


def _roots(names: Sequence[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def in_one_line(message: str, classes: Mapping[str, Sequence[str]]) -> str:
    """Turn jsonargparse's nested report into `key.subkey: what is wrong`.

    Args:
        message: The report.
        classes: For a key, the names of the classes that can stand there.
    """
    keys: list[str] = []
    reasons: list[str] = []
    depth, value = -1, ""
    for line in _without_files(message).splitlines():
        indent = len(line) - len(line.lstrip())
        text = re.sub(r"^(- )?(Type typing\.Callable.* callable class: )?", "", line.strip())
        if keys and indent <= depth and reasons:
            break  # how else the outer value could have been read
        if match := re.fullmatch(r'Parser key "(.+?)":(.*)', text):
            keys, depth, reasons, text = [*keys, match[1]], indent, [], match[2].strip()
        if match := re.fullmatch(r"Given value: (.*)", text):
            value = match[1]
        elif re.match(r"Not a valid subclass|Problem .* 'lightning\.Lightning\w*Module'", text):
            reasons = [f"give class_path and init_args{_one_of(classes.get(keys[-1], ()))}"]
            break
        elif text and not re.match(
            r"Does not validate|Subtypes:|Errors:|Given value|Problem with|Expected a path",
            text,
        ):
            reasons.append(_plain(text, classes.get(keys[-1] if keys else "", ())))
    telling = [reason for reason in reasons if not reason.startswith("expected")]
    expected = [reason.removeprefix("expected ") for reason in reasons if reason not in telling]
    what = "; ".join(dict.fromkeys(telling)) or f"expected {' or '.join(expected)}"
    if not telling and value and "got " not in what:
        what += f", got {value}"
    elif what.startswith("there is no class") and {*expected} - {"null"}:
        what = f"expected {' or '.join(expected)}, got {value}"  # it was none
    what = re.sub(r"\. Got value: .*", "", what)
    if match := re.fullmatch(r"unknown ([\w./-]+)(.*)", what):
        return f"{'.'.join([*keys, match[1]])}: there is no such key{match[2]}"
    return f"{'.'.join(keys)}: {what}" if keys else what


def _without_files(message: str) -> str:
    """Say what a group of keys takes: jsonargparse takes a lone value for a file of them."""

    def told(match: re.Match[str]) -> str:
        keys = f"{{name: {match[2]}}}" if match[1] == "backbone" else "its keys"
        return f'Parser key "{match[1]}": give {keys}; {match[2]!r} alone is no value for it'

    return re.sub(
        r"""Parser key "([\w.]+)":\s+Unable to load config '(.*)'\s+- Parser key .*""",
        told,
        message,
    )


def _plain(text: str, classes: Sequence[str]) -> str:
    if match := re.search(r"Importing '(.+?)' is not allowed, denied by", text):
        return (
            f"{match[1]!r} is none of this package's, its plugins' or Lightning's classes, and a "
            "configuration imports no others; make it a plugin (mti plugins)"
        )
    text = re.sub(
        r"^Type typing\.Callable.* callable class: (.*?)(\. Got value: .*)?$", r"\1", text
    )
    if re.fullmatch(r"'\w+' object has no attribute 'keys'", text):
        return "give init_args as keys"
    if match := re.fullmatch(r"Expected a dot import path string: (.*)", text):
        return f"there is no class {match[1]!r}{nearest(match[1], classes) or _one_of(classes)}"
    if match := re.fullmatch(r"the following arguments are required: (.*)", text):
        return f"{re.sub(r'^(fit|predict|validate)[.]', '', match[1])} is missing"
    text = text.replace("<class 'collections.abc.Sequence'>", "list")
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", text)
    text = re.sub(r"(?:typing\.)?Literal\[(.*?)\]", r"one of \1", text).replace("NoneType", "null")
    text = re.sub(r"^Expected (?:a |an )?", "expected ", text)
    return re.sub(r"\. Got value: (.*)$", r", got \1", text)


def _one_of(names: Sequence[str]) -> str:
    return f"; known are {', '.join(names)}" if names else ""


def add_place(message: str, arguments: Sequence[str]) -> str:
    """Name the configuration file and line that an error is about, where there is one.

    Args:
        message: The error: `key.subkey: what is wrong`, or, where the parser does not know the
            key, `name value: what is wrong`, or one that quotes what was given.
        arguments: Those of the command line.
    """
    if (match := re.fullmatch(r"([\w.]+): (\w+) is missing", message)) and any(
        re.fullmatch(rf"--{'.'.join(match.groups())}[= ](null|~)", text)
        for text in (*arguments, *map(" ".join, pairwise(arguments)))
    ):
        return f"{'.'.join(match.groups())}: null is no value; a file of that name is ./null"
    key = message.partition(":")[0]
    if any(re.match(rf"--{re.escape(key)}(=|\.|$)", argument) for argument in arguments):
        return message
    for path in reversed(files(arguments)):  # the last one wins
        root = read(path)
        if line := _line(root, key.split(".")):
            return f"{path}, line {line}: {message}"
        if line := _line_of_value(root, message, arguments):
            return f"{path}, line {line}: {message}"
    return message


def _line_of_value(root: yaml.Node, message: str, arguments: Sequence[str]) -> int | None:
    """Find the line of a value that an error is about, unless it is from the command line."""
    values = list(nested_values(root))
    if match := re.match(r"(\w+) (.+?): ", message):
        key, text = match.groups()
        typed = any(re.match(rf"--([\w.]+\.)?{key}(=|$)", argument) for argument in arguments)
        for name, node in values:
            if name == key and not typed and _is(node, text):
                return int(node.start_mark.line) + 1
    quoted = re.search(r"'([^']+)'", message.partition("; ")[0])
    given = quoted[1] if quoted else message.partition(" ")[0]
    if any(given in argument for argument in arguments):
        return None
    layer = given.partition(":")[0]  # of a feature in structured form
    for name, node in values:
        if isinstance(node, yaml.ScalarNode) and (
            given in (node.value, *_layers(node.value)) or (name, node.value) == ("layer", layer)
        ):
            return int(node.start_mark.line) + 1
    return None


def _is(node: yaml.Node, text: str) -> bool:
    try:
        return bool(yaml.SafeLoader("").construct_document(node) == yaml.safe_load(text))
    except yaml.YAMLError:
        return False


def _layers(value: str) -> tuple[str, str]:
    """Return the layer that a feature may name, with and without its side."""
    layer = value.partition(":")[0]
    return layer, layer.partition("/")[0]


def _line(node: yaml.Node, keys: Sequence[str]) -> int | None:
    """Find the line of a nested key; `init_args` is no level of its own."""
    if not isinstance(node, yaml.MappingNode):
        return None
    for name, value in node.value:
        if name.value in ("init_args", "dict_kwargs") and (line := _line(value, keys)):
            return line
        if name.value == keys[0]:
            return _line(value, keys[1:]) if keys[1:] else name.start_mark.line + 1
    return None
