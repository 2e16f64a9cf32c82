"""What is wrong with rows: one problem, and an account of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

Reason = Literal["too long", "empty", "bad label", "leak", "unusable"]
"""The reasons why a row is not trained on."""

SHOWN = 5
"""Problems told with their place, and kinds told with their count."""

_KINDS = 1000
_OTHER = "other problems"
_NAMES, _NAME = 12, 40


class BadRow(Exception):
    """One row cannot be used; the message says what is wrong and what was expected."""

    reason: ClassVar[Reason] = "unusable"
    """The reason under which it is counted where broken rows are left out."""


class EmptyRow(BadRow):
    """A text that the row needs is empty or absent."""

    reason = "empty"


class MarkedBad(Exception):
    """A valid row that its own label marks as one not to learn from; the message says which."""

    reason: ClassVar[Reason] = "bad label"


class Unreadable(BadRow):
    """From here on the file cannot be read: where its next row begins is unknown."""


class Problems:
    """Counts problems by kind and remembers the first few with their place; bounded in memory."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[tuple[str, str]] = []

    def note(self, place: str, message: str) -> None:
        """Count a problem; `place` is `file:line`."""
        known = message in self.counts or len(self.counts) < _KINDS
        self.counts[message if known else _OTHER] += 1
        if len(self.first) < SHOWN:
            self.first.append((place, message))

    @property
    def total(self) -> int:
        """How many there were."""
        return self.counts.total()

    def summary(self, rows: int) -> str:
        """One line: the first problem with its place, and the count of each kind."""
        place, message = self.first[0]
        return f"{place}: {message} ({self.total} of {rows} rows broken{self._kinds()})"

    def _kinds(self) -> str:
        if len(self.counts) == 1:
            return ""
        listed = [f"{count} x {message}" for message, count in self.counts.most_common(SHOWN)]
        return ": " + "; ".join(listed + (["..."] if len(self.counts) > SHOWN else []))


def short(text: str, length: int = _NAME) -> str:
    """The beginning of a text that a file brought, for a message."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def listed(names: Sequence[object]) -> str:
    """Column names for a message: sorted, not all of very many, none of them long."""
    known = sorted(short(str(name)) for name in names)
    return ", ".join(known[:_NAMES] + (["..."] if len(known) > _NAMES else [])) or "none"
