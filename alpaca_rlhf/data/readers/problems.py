"""Problems of rows: the exception for one, and a summary of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

Reason = Literal[
    "too long", "empty", "bad label", "tie", "leak", "unusable", "repeated", "not needed"
]
"""The reasons why a row is not used; `not needed`: no split took it."""

MAX_SHOWN = 5
"""Problems reported with their place, and kinds reported with their count."""

_MAX_KINDS = 1000
_OTHER = "other problems"
_MAX_NAMES, _MAX_NAME_CHARS = 12, 40


class BadRow(Exception):
    """A row that cannot be used; the message says what is wrong and what was expected."""

    reason: ClassVar[Reason] = "unusable"
    """The reason under which it is counted where broken rows are left out."""
    number: int | None = None
    """Number of the line at fault, in a row that was gathered from several."""


class EmptyRow(BadRow):
    """A text that the row needs is empty or absent."""

    reason = "empty"


class DifferentPrompts(BadRow):
    """Its two answers do not answer the same prompt."""


class NoColumn(BadRow):
    """None of the columns that a text may stand in is there."""


class LeftOut(Exception):
    """A valid row that gives no record; the message says why."""

    reason: ClassVar[Reason] = "unusable"


class MarkedBad(LeftOut):
    """Its own label marks it as one not to learn from."""

    reason = "bad label"


class Tie(LeftOut):
    """Neither of its two answers is better."""

    reason = "tie"


Omitted = Literal["without a rating", "without a rank", "deleted", "below a deleted one", "alone"]
"""The reasons why an answer of a row stands in no ranking; `alone`: it has none to compare with."""


class Unreadable(BadRow):
    """A break after which the file cannot be read, because the next row's start is unknown."""


class Problems:
    """Counts of problems by kind, and the first few with their place; bounded in memory."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: list[tuple[str, str]] = []

    def note(self, place: str, message: str, rows: int = 1) -> None:
        """Count the rows of a problem; `place` is `file:line`."""
        countable = message in self.counts or len(self.counts) < _MAX_KINDS
        self.counts[message if countable else _OTHER] += rows
        if len(self.first) < MAX_SHOWN:
            self.first.append((place, message))

    @property
    def total(self) -> int:
        """Number of problems."""
        return self.counts.total()

    def summary(self, rows: int) -> str:
        """One line: the first problem with its place, and the count of each kind."""
        place, message = self.first[0]
        return f"{place}: {message} ({self.total} of {rows} rows broken{self._kinds()})"

    def _kinds(self) -> str:
        if len(self.counts) == 1:
            return ""
        kinds = [f"{count} x {message}" for message, count in self.counts.most_common(MAX_SHOWN)]
        return ": " + "; ".join(kinds + (["..."] if len(self.counts) > MAX_SHOWN else []))


def short(text: str, length: int = _MAX_NAME_CHARS) -> str:
    """The beginning of a text from a file, for a message of one line."""
    text = " ".join(text.splitlines())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def listed(names: Sequence[object]) -> str:
    """Column names for a message: sorted, shortened, and at most a dozen."""
    columns = sorted(short(str(name)) for name in names)
    ellipsis = ["..."] if len(columns) > _MAX_NAMES else []
    return ", ".join(columns[:_MAX_NAMES] + ellipsis) or "none"
