"""Settings as the user wrote them: words from flags and from YAML files, each with its place.

Nothing is typed here but the shape (one value or a list); `Leaf.value` types the words.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from alpaca_rlhf.core.bases import EMBEDDED, SMOLLM2
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.settings.leaves import Leaf
from alpaca_rlhf.settings.other_names import remark_on, setting_elsewhere

_FLAG = re.compile(r"--[A-Za-z]")
_NULL, _BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"


@dataclass(frozen=True)
class Entry:
    """A setting as the user wrote it."""

    leaf: Leaf
    """The setting."""
    texts: tuple[str, ...]
    """Its values as texts, not typed yet."""
    place: str
    """The flag as typed, or `file:line: key`."""
    line: str = ""
    """`file:line: ` if it stands in a file."""

    def value(self) -> Any:
        """The words as a value of the setting's type.

        Raises:
            UserError: They are not of its type.
        """
        try:
            return self.leaf.value(self.texts)
        except ValueError as error:
            raise UserError(f"{self.place} {error}") from None


def read_entries(argv: Sequence[str], leaves: Mapping[str, Leaf], prog: str) -> dict[str, Entry]:
    """The settings of a command line and of the `--config` files it names, by their paths.

    Flags stand above files, and later ones above earlier ones, but for lists that may be given
    piece by piece (`Leaf.repeats`).

    Raises:
        UserError: A flag, a key or a file that the user can mend.
    """
    files, flags = read_flags(argv, leaves, prog)
    from_files = [entry for file in files for entry in read_yaml(file, leaves)]
    entries = {entry.leaf.path: entry for entry in from_files}
    typed: set[str] = set()
    for entry in flags:
        path = entry.leaf.path
        if entry.leaf.repeats and path in typed:
            entry = replace(entry, texts=entries[path].texts + entry.texts)
        typed.add(path)
        entries[path] = entry
    return entries


def read_flags(
    argv: Sequence[str], leaves: Mapping[str, Leaf], prog: str
) -> tuple[list[Path], list[Entry]]:
    """The `--config` files of a command line, and its other flags.

    Raises:
        UserError: A flag is not known or has no value, or an argument belongs to no flag.
    """
    files: list[Path] = []
    entries: list[Entry] = []
    arguments = list(argv)
    taken = ""
    while arguments:
        # 1. The flag, and which setting it names.
        flag, equals, attached = arguments.pop(0).partition("=")
        if not _FLAG.match(flag):
            word = flag + equals + attached
            after = f" after {taken}, which takes one value" if taken and word[:1] != "-" else ""
            meant = "" if taken else _meant_flag(word, leaves)
            raise UserError(
                f"unexpected {word!r}{after}: every setting is a flag{meant}; see {prog} --help"
            )
        path = flag[2:].replace("-", "_")
        leaf = Leaf(path, Path, False) if path == "config" else leaves.get(path)
        if leaf is None:
            raise UserError(f"{flag}: no such flag{_hint(path, leaves, '--')}; see {prog} --help")
        # 2. Its values: what `=` attaches to it, or the arguments up to the next flag.
        values = [attached] if equals else []
        while arguments and not equals and (leaf.is_list or not values):
            if _FLAG.match(arguments[0]):
                break
            values.append(arguments.pop(0))
        if not values and leaf.takes(bool):
            values = ["True"]  # a switch
        if not values and not leaf.is_list:
            raise UserError(f"{flag} needs a value: {leaf.expected}")
        taken = shlex.join([flag, *values])
        if path == "config":
            files.append(leaf.value(values))
        else:
            entries.append(Entry(leaf, tuple(values), flag))
    return files, entries


def read_yaml(file: Path, leaves: Mapping[str, Leaf]) -> list[Entry]:
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
    first_lines: dict[str, int],
) -> Iterator[Entry]:
    """The settings below a mapping; `first_lines` holds the line on which each path stood first."""
    for key, node in mapping.value:
        number = key.start_mark.line + 1
        line = f"{file}:{number}: "
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{line}a key must be a plain word")
        path = prefix + key.value.replace("-", "_")
        place = line + path
        # Dotted keys and nested ones may name the same setting, so paths are compared.
        if path in first_lines:
            raise UserError(f"{place} stands twice (first on line {first_lines[path]}); keep one")
        first_lines[path] = number
        if path in leaves:
            yield Entry(leaves[path], tuple(_words_of(node, leaves[path], place)), place, line)
        elif not _below(path, leaves):
            raise UserError(f"{place}: no such setting{_hint(path, leaves, '')}")
        elif isinstance(node, yaml.MappingNode):
            yield from _walk(node, f"{path}.", file, leaves, first_lines)
        elif node.tag != _NULL:
            raise UserError(f"{place} is a group: write {_below(path, leaves)} indented below it")


def _words_of(node: yaml.Node, leaf: Leaf, place: str) -> list[str]:
    """A node's values as they stand in the file, so that tyro types them and not YAML 1.1."""
    if isinstance(node, yaml.ScalarNode) and node.tag == _NULL:
        if not leaf.takes(type(None)):
            raise UserError(f"{place} is empty; give it {leaf.expected} or delete the line")
        return ["None"]
    if isinstance(node, yaml.ScalarNode) and not leaf.is_list:
        # `yes` and `on` are true in YAML 1.1, and people write them
        is_bool = node.tag == _BOOL and leaf.takes(bool)
        return [str(node.value.lower() in ("true", "yes", "on")) if is_bool else node.value]
    if isinstance(node, yaml.SequenceNode) and leaf.is_list:
        if all(isinstance(element, yaml.ScalarNode) for element in node.value):
            return [element.value for element in node.value]
    raise UserError(f"{place} expects {leaf.expected}, got {_kind(node)}")


def _meant_flag(word: str, leaves: Mapping[str, Leaf]) -> str:
    """The flag that a word without one may belong to: a file of rows, or a base."""
    if Path(word).is_file():
        path = next((name for name in ("inputs.data", "data") if name in leaves), "")
    else:
        is_base = word in (EMBEDDED, SMOLLM2) or "/" in word or Path(word).is_dir()
        path = "base" if is_base and "base" in leaves else ""
    flag = path.replace("_", "-")
    return f", did you mean --{flag} {quoted(word)}?" if path else ""


def _hint(path: str, leaves: Mapping[str, Leaf], dashes: str) -> str:
    """Suggest settings for a path that names none; `dashes` are `--` where flags are typed.

    In order: members of the group that it names, close names in its own group, the same name in
    other groups, any close path.
    """

    def as_typed(path: str) -> str:
        return dashes + path.replace("_", "-") if dashes else path

    inside = [as_typed(leaf_path) for leaf_path in leaves if leaf_path.startswith(f"{path}.")]
    if inside:
        namesakes = [as_typed(leaf_path) for leaf_path in leaves if leaf_path.endswith(f".{path}")]
        meant = f", did you mean {' or '.join(namesakes)}? As a name alone" if namesakes else ","
        return f"{meant} it is a group: {', '.join(inside)}"
    elsewhere = setting_elsewhere(path, leaves)
    if elsewhere:
        return f", did you mean {as_typed(elsewhere)}?"
    if remark_on(path):
        return f"; {remark_on(path)}"
    group, _, name = path.rpartition(".")
    siblings = _below(group, leaves) if group else ""
    names = siblings.split(", ") if siblings else []
    near = difflib.get_close_matches(name, names, n=1)
    near = near or [sibling for sibling in names if sibling.startswith(name)]
    close = [f"{group}.{sibling}" for sibling in near]
    namesakes = [leaf_path for leaf_path in leaves if leaf_path.rpartition(".")[2] == name]
    close = close or difflib.get_close_matches(path, namesakes, n=1) or namesakes[:3]
    if not close and not siblings:
        close = difflib.get_close_matches(path, leaves, n=1)
    if close:
        return f", did you mean {' or '.join(map(as_typed, close))}?"
    return f"; {group} has {siblings}" if siblings else ""


def _below(path: str, leaves: Mapping[str, Leaf]) -> str:
    """The names in a group, listed; empty if it is none."""
    group = f"{path}."
    inside = [leaf_path.removeprefix(group) for leaf_path in leaves if leaf_path.startswith(group)]
    return ", ".join(dict.fromkeys(name.partition(".")[0] for name in inside))


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "a single value"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
