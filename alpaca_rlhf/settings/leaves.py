"""The settings of nested dataclasses, one by one: their flags, their types, and what they expect.

tyro knows how a word becomes a value of a type. Its own refusals are boxes of several lines that
name neither the flag as it was typed nor a file's line, and what it offers instead of them
(`tyro._errors`) is private; so each setting is typed by itself, with tyro's constructor of its
type.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from alpaca_rlhf.core.files import at_home

_TYPES_IN_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    type(None): "None",
}


REPEATS = "repeats"
"""Key in the metadata of a list field whose flag may stand several times."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting: where it lies in the nested dataclasses, and what it holds."""

    path: str
    """Field names, dotted."""
    type: Any
    """The field's type, without annotations."""
    required: bool
    """True if it has no default."""
    repeats: bool = False
    """True for a list whose flag may stand several times, each time with further values."""

    @property
    def flag(self) -> str:
        """Its flag."""
        return "--" + self.path.replace("_", "-")

    @property
    def is_list(self) -> bool:
        """True if it holds several values."""
        return self._constructor.nargs == "*"

    @property
    def expected(self) -> str:
        """The values it takes, in plain words."""
        return _in_words(self.type)

    def takes(self, kind: Any) -> bool:
        """True if a value of a type may stand here, alone or as one of a list."""
        return kind is self.type or kind in typing.get_args(self.type)

    def value(self, texts: Sequence[str]) -> Any:
        """Read texts as a value of the field's type.

        Raises:
            ValueError: They are not of its type; the message says what was expected.
        """
        if self.takes(bool):  # tyro knows `True` and `False`; `true` and `false` are welcome too
            texts = [
                text.capitalize() if text.lower() in ("true", "false") else text for text in texts
            ]
        if self.takes(Path):  # the shell expands no `~` in a file, nor after `=`
            texts = [at_home(text) for text in texts]
            if "" in texts:  # of a variable that is not set; it would be the current folder
                raise ValueError(f"expects {self.expected}, got an empty text")
        # tyro checks choices in its parser, not in the constructor: there `maybe` would be False.
        choices = self._constructor.choices
        try:
            if choices is not None and not {*texts} <= {*choices}:
                unknown = next(text for text in texts if text not in choices)
                raise _UnknownChoice(
                    f"expects {self.expected}, got {unknown!r}"
                    + _hint(unknown, choices, is_list=self.is_list)
                )
            value = self._constructor.instance_from_str(list(texts))
        except _UnknownChoice:
            raise
        except ValueError:
            raise ValueError(f"expects {self.expected}, got {' '.join(texts)!r}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"expects a finite number, got {value}")
        return value

    @cached_property
    def _constructor(self) -> PrimitiveConstructorSpec[Any]:
        constructor = ConstructorRegistry.get_primitive_spec(
            PrimitiveTypeInfo.make(self.type, set())
        )
        if not isinstance(constructor, PrimitiveConstructorSpec):
            raise TypeError(f"{self.path}: tyro cannot read a {self.type} from words")
        return constructor


class _UnknownChoice(ValueError):
    """A text that is none of the choices."""


def _hint(text: str, choices: Collection[str], *, is_list: bool) -> str:
    """The choice that was meant."""
    if is_list and {*text.split(",")} <= {*choices}:
        return f"; put spaces between them: {text.replace(',', ' ')}"
    near = difflib.get_close_matches(text.lower().replace("_", "-"), choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def leaves_of(cls: Any, *, required: bool, prefix: str = "") -> Iterator[Leaf]:
    """The settings of a dataclass and of those nested in it; none is required if not `required`."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path, kind = prefix + field.name, hints[field.name]
        no_default = field.default is field.default_factory is dataclasses.MISSING
        if dataclasses.is_dataclass(kind):
            yield from leaves_of(kind, required=required and no_default, prefix=f"{path}.")
        else:
            repeats = bool(field.metadata.get(REPEATS))
            yield Leaf(path, kind, required and no_default, repeats)


def _in_words(kind: Any) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inside))
    if kind in (list, tuple) or origin in (list, tuple):
        return "a list" + (f" of values, each {_in_words(inside[0])}" if inside else "")
    if inside:  # a union
        return " or ".join(map(_in_words, inside))
    return _TYPES_IN_WORDS.get(kind) or str(getattr(kind, "__name__", kind))
