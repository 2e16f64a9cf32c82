"""Values of a row: the text of a column, and the JSON name of a type."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from alpaca_rlhf.data.readers.problems import BadRow, NoColumn, listed

_MIN_WORDS = 3
_MIN_WIDE_CHARS = 4


def text_column(row: Mapping[str, Any], names: tuple[str, ...], *, required: bool = True) -> str:
    """The text of the first of the columns `names` that is present.

    Raises:
        BadRow: It is not text, or none is present although one is required; else "" stands in.
    """
    for name in names:
        if not is_absent(row.get(name)):
            return checked_text(row[name], f"column `{name}`")
    if required:
        expected = " or ".join(f"`{name}`" for name in names)
        raise NoColumn(f"expected a column {expected}; columns here: {listed(list(row))}")
    return ""


def is_absent(value: object) -> bool:
    """True for no value: null, or the NaN that tables write in the place of a text."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def checked_text(value: object, label: str) -> str:
    """The value, if it is text that can be written as UTF-8.

    Raises:
        BadRow: It is not; the message begins with `label`.
    """
    if not isinstance(value, str):
        raise BadRow(f"{label} must be text, got {type_name(value)}")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise BadRow(f"{label} holds half of a surrogate pair (a broken \\u escape)")
    return value


def is_prose(text: str) -> bool:
    """True for a text as people write it, and not a name, a number or a label.

    It has three words, or two and the end of a sentence; or four characters of a script without
    blanks.
    """
    if sum(unicodedata.east_asian_width(char) == "W" for char in text) >= _MIN_WIDE_CHARS:
        return True
    words = [word for word in text.split() if any(map(str.isalpha, word))]
    ended = text.rstrip().endswith((".", "?", "!", ":"))
    return len(words) >= (_MIN_WORDS - 1 if ended else _MIN_WORDS)


def finite_number(value: object) -> float | None:
    """A number as a float; None for anything else, and for one that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_rank(value: object) -> bool:
    """True for a whole number that a table can hold, as 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def type_name(value: object) -> str:
    """The JSON name of a value's type."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names.get(type(value), f"a value of type {type(value).__name__}")
