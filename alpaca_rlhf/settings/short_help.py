"""Help on a few of a dataclass's flags, a line or two each; tyro writes the help on all of them."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Iterable, Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any, Literal

from alpaca_rlhf.settings.leaves import Leaf, leaves_of

_MAX_WIDTH = 100
"""Columns of text at most: longer lines are hard to read."""
_INDENT = 8
_METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def short_help(settings: Any, paths: Iterable[str], *, usage: str, about: str, more: str) -> str:
    """Help on some flags.

    Args:
        settings: An instance of a dataclass, whose values are the defaults.
        paths: Dotted paths of its settings, in the order in which they are shown.
        usage: The command with its operands.
        about: What the command does.
        more: The command that shows all flags.
    """
    width = min(shutil.get_terminal_size().columns, _MAX_WIDTH)
    leaves = {leaf.path: leaf for leaf in leaves_of(type(settings), required=False)}
    lines = [f"usage: {usage} [flags]", ""]
    for paragraph in about.split("\n\n"):
        lines += [*textwrap.wrap(paragraph, width), ""]
    for path in paths:
        leaf = leaves[path]
        lines.append(f"  {leaf.flag} {_metavar(leaf)}".rstrip())
        value = reduce(getattr, path.split("."), settings)
        text = f"{_first_sentence(_description(type(settings), path))} {_default(value)}"
        indent = " " * _INDENT
        lines += textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)
    lines += ["", f"all {len(leaves)} flags: {more}", "--config FILE.yaml reads them from a file"]
    return "\n".join(lines) + "\n"


def _metavar(leaf: Leaf) -> str:
    """The kind of value that a flag takes; none for a switch."""
    kinds = [kind for kind in _members(leaf.type) if kind is not type(None)]
    if bool in kinds:
        return ""
    kind = kinds[0]
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
    if leaf.is_list:
        inner = typing.get_args(kind)[0]
        return "{" + " ".join(map(str, typing.get_args(inner))) + "}"
    return _METAVARS.get(kind, "VALUE")


def _members(kind: Any) -> tuple[Any, ...]:
    is_plain = typing.get_origin(kind) in (Literal, tuple, list) or not typing.get_args(kind)
    return (kind,) if is_plain else typing.get_args(kind)


def _default(value: Any) -> str:
    if value is None or value is False or value == "":
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
    return f"(default: {shown})"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)(?<!e\.g\.)\s", " ".join(text.split()), maxsplit=1)[0]


def _description(cls: type, path: str) -> str:
    """The docstring of a setting of nested dataclasses."""
    *parents, name = path.split(".")
    for parent in parents:
        cls = typing.get_type_hints(cls)[parent]
    return next(texts[name] for texts in map(_docstrings, cls.__mro__) if name in texts)


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """The docstrings of a class's own fields, which Python itself does not keep."""
    if cls is object:
        return {}
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    return dict(_documented(tree))


def _documented(tree: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(text, ast.Expr):
            continue
        if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            yield ast.unparse(field.target), text.value.value
