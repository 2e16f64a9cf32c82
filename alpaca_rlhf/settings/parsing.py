"""From defaults, YAML files and flags to a frozen dataclass: `parse`; and back: `to_yaml`.

Defaults < YAML < flags. tyro types every value and writes the help; what is refused is told in one
line that says where the value stands.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings.entries import Entry, read_entries
from alpaca_rlhf.settings.leaves import leaves_of

__all__ = ["parse", "plain", "to_yaml"]

T = TypeVar("T")


def parse(
    cls: type[T],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    default: T | None = None,
) -> T:
    """An instance of `cls` from its defaults, `--config` files and flags, the later ones winning.

    Args:
        cls: Dataclass whose fields are plain values, lists of them, or further dataclasses, whose
            flags are then dotted. A field's docstring is its help text. The message of a
            ValueError that `__post_init__` raises is shown as it is, so it should name the flag.
        argv: The words after the command.
        prog: How the command is called, for messages and help.
        description: What the command does, for the help.
        default: An instance with other defaults than the class's own.

    Raises:
        UserError: A flag, key, value or file that the user can mend.
        SystemExit: With code 0, after `--help` was printed.
    """
    if "-h" in argv or "--help" in argv:
        tyro.cli(
            cls,
            args=["--help"],
            default=tyro.MISSING_NONPROP if default is None else default,
            prog=prog,
            description=f"{description}\n\n--config FILE.yaml reads settings from a file; "
            "the flags beside it stand above it.",
            config=(tyro.conf.FlagConversionOff,),
        )
    # 1. What was written, each value as text with its place.
    leaves = {leaf.path: leaf for leaf in leaves_of(cls, required=default is None)}
    entries = read_entries(argv, leaves, prog)
    for leaf in leaves.values():
        if leaf.required and leaf.path not in entries:
            raise UserError(f"{leaf.flag} is missing: give it {leaf.expected}")
    # 2. The texts as values of their types.
    values = {path: entry.value() for path, entry in entries.items()}
    # 3. The instance, which checks ranges and fields against each other.
    try:
        return _build(cls, values, default)
    except ValueError as error:  # of a `__post_init__`
        problem = " ".join(str(error).split())
        raise UserError(_line_of(problem, entries) + problem) from None


def _build(cls: type[T], values: Mapping[str, Any], default: T | None, prefix: str = "") -> T:
    """An instance with the values at their paths, and the default's own everywhere else."""
    arguments: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        path, kind = prefix + field.name, hints[field.name]
        is_group = dataclasses.is_dataclass(kind)
        if default is not None:
            arguments[field.name] = getattr(default, field.name)
        if path in values:
            arguments[field.name] = values[path]
        elif is_group and any(at.startswith(f"{path}.") for at in values):
            inner = arguments.get(field.name)
            if inner is None and field.default_factory is not dataclasses.MISSING:
                inner = field.default_factory()
            arguments[field.name] = _build(kind, values, inner, f"{path}.")
    return cls(**arguments)


def _line_of(problem: str, entries: Mapping[str, Entry]) -> str:
    """`file:line: ` of the first setting that the message names, if it came from a file."""
    for flag in re.findall(r"--[\w.-]*\w", problem):
        entry = entries.get(flag[2:].replace("-", "_"))
        if entry is not None:
            return entry.line
    return ""


def to_yaml(instance: Any, *, without: Collection[str] = ()) -> str:
    """The settings of a dataclass instance as YAML that `parse` reads back to an equal one.

    Args:
        instance: The settings.
        without: Dotted paths of settings to leave out.
    """
    settings = plain(instance)
    for path in without:
        *parents, name = path.split(".")
        holder = settings
        for parent in parents:
            holder = holder[parent]
        del holder[name]
    text = yaml.dump(settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return str(text)


class _Dumper(yaml.SafeDumper):
    """Writes every text so that it is read back as it was."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # These end lines for YAML; unquoted, a reader turns them into other line ends.
    odd = any(character in text for character in "\r\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


_Dumper.add_representer(str, _represent_text)


def plain(value: Any) -> Any:
    """Settings, or one of them, as YAML holds them."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(element) for element in value]
    return str(value) if isinstance(value, Path) else value
