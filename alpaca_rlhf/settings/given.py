"""What the user gave, word for word: settings from flags and from a YAML file, each with its place.

Nothing is typed here but the shape (one value or a list); `config.parse` hands the words to tyro.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from alpaca_rlhf.core.errors import UserError

_FLAG = re.compile(r"--[A-Za-z]")
_NULL, _BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "None",
}


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting: where it lies in the nested dataclasses, and what it holds."""

    path: str
    """Field names, dotted."""
    type: Any
    """The field's type."""
    required: bool
    """Whether it has no default."""

    @property
    def flag(self) -> str:
        """Its flag."""
        return "--" + self.path.replace("_", "-")

    @property
    def is_list(self) -> bool:
        """Whether it holds several values."""
        kinds = (typing.get_origin(one) or one for one in _members(self.type))
        return any(kind in (list, tuple, set, frozenset) for kind in kinds)

    @property
    def expected(self) -> str:
        """What it holds, in plain words."""
        return _in_words(self.type)


@dataclasses.dataclass(frozen=True)
class Given:
    """A setting as the user gave it."""

    leaf: Leaf
    """Which setting."""
    values: tuple[str, ...]
    """The words."""
    place: str
    """The flag as typed, or `file:line: key`."""
    at: str = ""
    """`file:line: ` if it stands in a file."""

    def args(self, flag: str) -> list[str]:
        """The words of a command line that give it under the name `flag`."""
        return [flag, *self.values] if self.leaf.is_list else [f"{flag}={self.values[0]}"]


def leaves_of(cls: Any, *, required: bool, prefix: str = "") -> Iterator[Leaf]:
    """The settings of a dataclass and of those nested in it; none is required if not `required`."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path, kind = prefix + field.name, hints[field.name]
        no_default = field.default is field.default_factory is dataclasses.MISSING
        if dataclasses.is_dataclass(kind):
            yield from leaves_of(kind, required=required and no_default, prefix=f"{path}.")
        else:
            yield Leaf(path, kind, required and no_default)


def read_flags(
    argv: Sequence[str], leaves: Mapping[str, Leaf], prog: str
) -> tuple[list[Path], list[Given]]:
    """The `--config` files of a command line, and its other flags.

    Raises:
        UserError: A flag is not known or has no value, or a word belongs to no flag.
    """
    files: list[Path] = []
    given: list[Given] = []
    words = list(argv)
    while words:
        typed, equals, rest = words.pop(0).partition("=")
        if not _FLAG.match(typed):
            word = typed + equals + rest
            raise UserError(f"unexpected {word!r}: every setting is a flag; see {prog} --help")
        path = typed[2:].replace("-", "_")
        leaf = Leaf(path, Path, False) if path == "config" else leaves.get(path)
        if leaf is None:
            raise UserError(f"{typed}: no such flag{_hint(path, leaves, '--')}; see {prog} --help")
        values = [rest] if equals else []
        while words and not _FLAG.match(words[0]) and not equals and (leaf.is_list or not values):
            values.append(words.pop(0))
        if not values and not leaf.is_list:
            raise UserError(f"{typed} needs a value: {leaf.expected}")
        if path == "config":
            files.append(Path(values[0]))
        else:
            given.append(Given(leaf, tuple(_spelt(leaf, one) for one in values), typed))
    return files, given


def read_yaml(file: Path, leaves: Mapping[str, Leaf]) -> list[Given]:
    """The settings of a YAML file.

    Raises:
        UserError: It cannot be read, is not a mapping, or holds an unknown, empty or doubled key.
    """
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
    except OSError as error:
        raise UserError(f"--config {file}: cannot be read ({error.strerror})") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{file}{line}: is not YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UserError(f"{file}: is not YAML in UTF-8; write `key: value` lines") from None
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        line = f":{root.start_mark.line + 1}"
        raise UserError(f"{file}{line}: expected `key: value` lines, got {_kind(root)}")
    return list(_walk(root, "", file, leaves, {}))


def _walk(
    mapping: yaml.MappingNode,
    prefix: str,
    file: Path,
    leaves: Mapping[str, Leaf],
    seen: dict[str, int],
) -> Iterator[Given]:
    for key, node in mapping.value:
        line = key.start_mark.line + 1
        at = f"{file}:{line}: "
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{at}a key must be a plain word")
        path = prefix + key.value.replace("-", "_")
        place = at + path
        if path in seen:
            raise UserError(f"{place} stands twice (first on line {seen[path]}); keep one")
        seen[path] = line
        if path in leaves:
            yield Given(leaves[path], tuple(_words_of(node, leaves[path], place)), place, at)
        elif not _below(path, leaves):
            raise UserError(f"{place}: no such setting{_hint(path, leaves, '')}")
        elif isinstance(node, yaml.MappingNode):
            yield from _walk(node, f"{path}.", file, leaves, seen)
        elif node.tag != _NULL:
            raise UserError(f"{place} is a group: write {_below(path, leaves)} indented below it")


def _words_of(node: yaml.Node, leaf: Leaf, place: str) -> list[str]:
    """The node's values as they stand in the file, so that tyro types them and not YAML 1.1."""
    if isinstance(node, yaml.ScalarNode) and node.tag == _NULL:
        if type(None) not in _members(leaf.type):
            raise UserError(f"{place} is empty; give it {leaf.expected} or delete the line")
        return ["None"]
    if isinstance(node, yaml.ScalarNode) and not leaf.is_list:
        if node.tag == _BOOL and bool in _members(leaf.type):
            return [str(node.value.lower() in ("true", "yes", "on"))]
        return [node.value]
    if isinstance(node, yaml.SequenceNode) and leaf.is_list:
        if all(isinstance(one, yaml.ScalarNode) for one in node.value):
            return [_spelt(leaf, one.value) for one in node.value]
    raise UserError(f"{place} expects {leaf.expected}, got {_kind(node)}")


def _spelt(leaf: Leaf, word: str) -> str:
    """`true` and `false` are welcome however they are written; tyro knows `True` and `False`."""
    held = [*_members(leaf.type), *typing.get_args(leaf.type)]
    return word.capitalize() if bool in held and word.lower() in ("true", "false") else word


def _hint(path: str, leaves: Mapping[str, Leaf], dashes: str) -> str:
    def shown(one: str) -> str:
        return dashes + one.replace("_", "-") if dashes else one

    inside = [shown(one) for one in leaves if one.startswith(f"{path}.")]
    if inside:
        return f", it is a group: {', '.join(inside)}"
    group, _, name = path.rpartition(".")
    siblings = _below(group, leaves) if group else ""
    names = siblings.split(", ") if siblings else []
    near = difflib.get_close_matches(name, names, n=1)
    near = near or [one for one in names if one.startswith(name)]
    close = [f"{group}.{one}" for one in near]
    same = [one for one in leaves if one.rpartition(".")[2] == name]
    close = close or difflib.get_close_matches(path, same, n=1) or same[:3]
    if not close and not siblings:
        close = difflib.get_close_matches(path, leaves, n=1)
    if close:
        return f", did you mean {' or '.join(shown(one) for one in close)}?"
    return f"; {group} has {siblings}" if siblings else ""


def _below(path: str, leaves: Mapping[str, Leaf]) -> str:
    inside = (one[len(path) + 1 :] for one in leaves if one.startswith(f"{path}."))
    return ", ".join(dict.fromkeys(one.partition(".")[0] for one in inside))


def _members(kind: Any) -> tuple[Any, ...]:
    union = typing.get_origin(kind) in (Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def _in_words(kind: Any) -> str:
    inside = [one for one in typing.get_args(kind) if one is not ...]
    if len(_members(kind)) > 1:
        return " or ".join(_in_words(one) for one in inside)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(str(one) for one in inside)
    if Leaf("", kind, False).is_list:
        return "a list" + (f" of values, each {_in_words(inside[0])}" if inside else "")
    return _WORDS.get(kind) or str(getattr(kind, "__name__", kind))


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "a single value"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
