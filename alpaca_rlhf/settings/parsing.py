"""From defaults, a YAML file and flags to a frozen dataclass: `parse`; and back: `to_yaml`.

Defaults < YAML < flags. tyro types every value; what it refuses is told in one line that says
where the value stands.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings.given import Given, leaves_of, read_flags, read_yaml

__all__ = ["parse", "to_yaml"]

T = TypeVar("T")

_TYRO = (tyro.conf.FlagConversionOff,)


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
    leaves = {leaf.path: leaf for leaf in leaves_of(cls, required=default is None)}
    if "-h" in argv or "--help" in argv:
        _tyro(
            cls,
            ["--help"],
            default,
            prog=prog,
            description=f"{description}\n\n--config FILE.yaml reads settings from a file; "
            "the flags beside it stand above it.",
        )
    files, flags = read_flags(argv, leaves, prog)
    given = {one.leaf.path: one for file in files for one in read_yaml(file, leaves)}
    given |= {one.leaf.path: one for one in flags}
    for leaf in leaves.values():
        if leaf.required and leaf.path not in given:
            raise UserError(f"{leaf.flag} is missing: give it {leaf.expected}")
    return _build(cls, list(given.values()), default)


def to_yaml(instance: Any) -> str:
    """The settings of a dataclass instance as YAML that `parse` reads back to an equal one."""
    found = yaml.dump(_plain(instance), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return str(found)


class _Dumper(yaml.SafeDumper):
    """Writes every text so that it is read back as it was."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # These end lines for YAML, and where they stand plainly a reader makes another one of them.
    odd = any(one in text for one in "\r\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


_Dumper.add_representer(str, _text)


def _tyro(
    cls: type[T], args: list[str], default: T | None, prog: str = "", description: str = ""
) -> T:
    settings: Any = tyro.MISSING_NONPROP if default is None else default
    made: T = tyro.cli(
        cls,
        args=args,
        default=settings,
        prog=prog,
        description=description,
        config=_TYRO,
        console_outputs=bool(prog),  # without a name nobody reads what it prints
    )
    return made


def _build(cls: type[T], given: list[Given], default: T | None) -> T:
    args = [word for one in given for word in one.args(one.leaf.flag)]
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            made = _tyro(cls, args, default)
    except SystemExit as stop:
        for one in given:
            if not _typed(one):
                got = " ".join(one.values)
                raise UserError(f"{one.place} expects {one.leaf.expected}, got {got!r}") from None
        problem = _first_value_error(stop)
        if problem is None:
            raise RuntimeError(f"tyro refuses {cls.__name__}: {printed.getvalue()}") from stop
        raise UserError(_where(problem, given) + problem) from None
    for one in given:
        value: Any = made
        for name in one.leaf.path.split("."):
            value = getattr(value, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{one.place} expects a finite number, got {value}")
    return made


def _typed(one: Given) -> bool:
    """Whether the value, taken alone, has the type of its setting."""
    alone = dataclasses.make_dataclass("Alone", [("value", one.leaf.type)])
    try:
        with redirect_stderr(io.StringIO()):
            _tyro(alone, one.args("--value"), None)
    except SystemExit:
        return False
    return True


def _first_value_error(stop: SystemExit) -> str | None:
    """The message of a `__post_init__`: tyro exits while it handles that ValueError."""
    message, error = None, stop.__context__
    while error is not None:
        if isinstance(error, ValueError):
            message = " ".join(str(error).split())
        error = error.__context__
    return message


def _where(problem: str, given: list[Given]) -> str:
    """`file:line: ` of the first setting that the message names, if it came from a file."""
    for flag in re.findall(r"--[\w.-]*\w", problem):
        for one in given:
            if one.leaf.flag == flag:
                return one.at
    return ""


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
