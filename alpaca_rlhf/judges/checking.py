"""The check of what a judge returned: a number in [0, 1], or `Scores` of such numbers."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from alpaca_rlhf.core.scorers import Scores

ROUNDING = 1e-9
"""Largest distance beyond 0 or 1 that counts as the rounding of a sum of shares."""
MAX_SHOWN_CHARS = 60
"""Characters of a wrong value that a message shows."""


def checked(value: Any) -> Scores:
    """A judge's return value as `Scores`.

    Raises:
        ValueError: It is not a number in [0, 1], nor `Scores` of such numbers; the message goes
            after the name of the function.
    """
    if not isinstance(value, Scores):
        return Scores(_number(value, "returned"))
    if not isinstance(value.parts, Mapping):
        raise ValueError(f"returned Scores whose parts are {_shown(value.parts)}; give a dict")
    for name in value.parts:
        if not isinstance(name, str) or not name:
            raise ValueError(f"returned Scores with a part named {_shown(name)}; give it a text")
    parts = {
        name: _number(part, f"returned Scores whose part {name!r} is")
        for name, part in value.parts.items()
    }
    return Scores(_number(value.score, "returned Scores whose score is"), parts)


def _number(value: Any, beginning: str) -> float:
    """A number in [0, 1]; `beginning` opens the refusal."""
    if inspect.iscoroutine(value):
        value.close()  # or Python warns that it was never awaited
        raise ValueError(f"{beginning} a coroutine; make it a plain function, without async")
    if inspect.isgenerator(value):
        raise ValueError(f"{beginning} a generator; return a number instead of yielding it")
    if value is None:
        raise ValueError(f"{beginning} None; return a number in [0, 1] on every path")
    if not isinstance(value, Real):
        raise ValueError(f"{beginning} {_shown(value)}; return a number in [0, 1], or Scores")
    try:
        number = float(value)
    except Exception:  # 2 ** 1024 is no float, and a number of a user's class may be none either
        raise ValueError(f"{beginning} {_shown(value)}; return a number in [0, 1]") from None
    if math.isnan(number):
        raise ValueError(f"{beginning} NaN; return a number in [0, 1]")
    if not -ROUNDING <= number <= 1 + ROUNDING:
        raise ValueError(f"{beginning} {number:g}; return a number in [0, 1]")
    return min(max(number, 0.0), 1.0)


def _shown(value: Any) -> str:
    """A value with its type, on one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a user's class may fail even here
        text = "?"
    short = text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
    return f"{short} ({type(value).__name__})"
