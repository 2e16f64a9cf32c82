"""Numbers as people read them: the filters of the report's templates."""

from __future__ import annotations

import math
from collections.abc import Iterable

_MINUS = "\u2212"
_MAX_TEXT_CHARS = 4000  # a runaway completion must not hide the others


def number(value: float, digits: int = 2) -> str:
    """`value` with `digits` decimals and a true minus sign; never minus zero."""
    text = f"{value:,.{digits}f}"
    if text.startswith("-"):
        return _MINUS + text[1:] if _is_nonzero(text) else text[1:]
    return text


def signed(value: float, digits: int = 2) -> str:
    """`number` with a plus sign where it is above zero."""
    text = number(value, digits)
    return "+" + text if value > 0 and _is_nonzero(text) else text


def interval(ci95: Iterable[float], digits: int = 2, *, plus: bool = False) -> str:
    """`low to high`."""
    low, high = ((signed if plus else number)(end, digits) for end in ci95)
    return f"{low} to {high}"


def count(value: float) -> str:
    """A whole number with separators: `1,280`."""
    return f"{value:,.0f}"


def percent(share: float, digits: int = 0) -> str:
    """`share` (0 to 1) in percent."""
    return f"{share:.{digits}%}"


def place(value: float) -> str:
    """A coordinate of a drawing: two decimals at most, no trailing zeros, never minus zero."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def duration(seconds: float) -> str:
    """Seconds for people: `8.2 s`, `4 min 12 s`, `2 h 05 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def money(usd: float) -> str:
    """US dollars: cents, and four decimals below one cent."""
    if usd == 0:
        return "$0"
    if usd < 0.0001:
        return "under $0.0001"
    return f"${usd:,.2f}" if usd >= 0.01 else f"${usd:.4f}"


def large(value: float) -> str:
    """A count in three digits: `4.9 million`."""
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return count(value)


def shortened(text: object) -> str:
    """`text`, or its first 4,000 characters and how many more there are."""
    full = str(text)
    if len(full) <= _MAX_TEXT_CHARS:
        return full
    return f"{full[:_MAX_TEXT_CHARS]} … ({len(full) - _MAX_TEXT_CHARS:,} more characters)"


def finite(value: object) -> bool:
    """True for a finite number; a truth value is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_nonzero(text: str) -> bool:
    return any(digit in "123456789" for digit in text)
