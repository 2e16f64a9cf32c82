"""Range checks: a field's type says its range, `Bounded` checks it and names the flag as typed.

    class Lora(Bounded, group="--lora"):
        r: PositiveInt = 16

refuses `Lora(r=0)` with "--lora.r must be > 0, got 0", however the instance is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
LearningRate = Annotated[float, Gt(0), Interval(gt=0, le=1)]
"""A peak learning rate of AdamW, whose steps are about as large, weight by weight."""
Fraction = Annotated[float, Interval(ge=0, lt=1)]
"""A part of a whole that never takes all of it."""
Share = Annotated[float, Interval(gt=0, le=1)]
"""A part of a whole that takes at least something."""
Discount = Annotated[float, Interval(ge=0.0, le=1.0)]
"""A factor on what comes later."""
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
"""The range of seeds that numpy and torch share."""


Bound = Gt | Ge | Interval

_COMPARISONS: dict[type, Callable[[Any, Any], bool]] = {
    Gt: lambda number, limit: number > limit.gt,
    Ge: lambda number, limit: number >= limit.ge,
    Lt: lambda number, limit: number < limit.lt,
    Le: lambda number, limit: number <= limit.le,
}


class Bounded:
    """Base of dataclasses whose numbers have ranges.

    A text among a field's annotations ends the refusal, as the reason. Checks across fields stay
    in `__post_init__`, after `super().__post_init__()`.

    Args:
        group: Beginning of the flags of its fields, e.g. `--sft` of `--sft.lr`.
    """

    group: ClassVar[str] = ""

    def __init_subclass__(cls, group: str | None = None) -> None:
        super().__init_subclass__()
        if group is not None:
            cls.group = group

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, metadata in _bounds(cls):
            number = getattr(self, name)
            if number is not None:
                flag = name.replace("_", "-")
                _check(f"{self.group}.{flag}" if self.group else f"--{flag}", number, metadata)


@cache
def _bounds(cls: type) -> list[tuple[str, tuple[Any, ...]]]:
    """The fields with a range, each with the metadata of its annotation."""
    hints = get_type_hints(cls, include_extras=True)
    return [(name, metadata) for name, hint in hints.items() for metadata in _metadata(hint)]


def _metadata(hint: Any) -> Iterator[tuple[Any, ...]]:
    # In `Annotated[int, Gt(0)] | None` it lies one level down.
    for member in (hint, *get_args(hint)):
        metadata = getattr(member, "__metadata__", ())
        if any(isinstance(bound, Bound) for bound in metadata):
            yield metadata


def _check(flag: str, number: float, metadata: tuple[Any, ...]) -> None:
    reason = "".join(f": {text}" for text in metadata if isinstance(text, str))
    # Several bounds are checked in the order in which they are written; the first to fail is told.
    for bound in metadata:
        if isinstance(bound, Bound) and not _holds(number, bound):
            digits = str(number) if isinstance(number, int) else f"{number:g}"
            raise ValueError(f"{flag} must be {_in_words(bound)}, got {digits}{reason}")


def _holds(number: float, bound: Bound) -> bool:
    """True if a number lies within a bound; nan lies within none."""
    limits: list[Any] = list(bound) if isinstance(bound, Interval) else [bound]
    return all(_COMPARISONS[type(limit)](number, limit) for limit in limits)


def _in_words(bound: Bound) -> str:
    match bound:
        case Gt(gt=low):
            return f"> {low}"
        case Ge(ge=low):
            return f">= {low}"
        case Interval(ge=low, lt=None, le=None):
            return f"at least {low}"
        case Interval(gt=None, ge=low, lt=high, le=None):
            return f"at least {low} and below {'2**32' if high == 2**32 else high}"
        case Interval(gt=None, ge=low, le=int() as high):
            return f"{low} to {high}"
        case Interval(gt=None, ge=low, le=high):
            return f"in [{low:g}, {high:g}]"
        case Interval(gt=low, le=high):
            return f"in ({low}, {high}]"
