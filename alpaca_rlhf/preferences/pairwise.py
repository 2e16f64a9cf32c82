"""A judge that compares two answers at a time: what it is asked, what it said, and the order.

Every two answers are asked in both orders. A verdict that changes with the order is none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Literal

from alpaca_rlhf.core.prompts import judge_messages
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.preferences.assignment import Tiers

Said = Literal["first", "second", "tie", "unreadable"]
"""What one reply says."""

Outcome = Literal["decided", "tied", "inconsistent", "unreadable"]
"""What both orders of a pair say together."""

_LAST = re.compile(r"\W*(?:verdict\W*)?\b(A|B|tie)\b\W*", re.IGNORECASE)
_SAYS: dict[str, Said] = {"a": "first", "b": "second", "tie": "tie"}
_TURNED: dict[Said, Said] = {"first": "second", "second": "first"}


@dataclass(frozen=True)
class Question:
    """Two answers in one order."""

    first: str
    """Id of the completion that is shown first."""
    second: str
    """Id of the other."""
    messages: tuple[Mapping[str, str], ...]
    """What the judge is asked."""


@dataclass(frozen=True)
class Order:
    """What a judge's replies come to."""

    tiers: Tiers | None
    """The order; None where no pair was decided, so that there is none."""
    pairs: Mapping[Outcome, int]
    """How many pairs had which outcome."""


def questions(prompt: Instruction, completions: Sequence[Completion]) -> list[Question]:
    """Every two completions of a prompt, in both orders."""
    return [
        Question(a.id, b.id, tuple(judge_messages(prompt, a.text, b.text)))
        for a, b in permutations(completions, 2)
    ]


def verdict_of(reply: str) -> Said:
    """What a reply says: its last line must be a verdict and nothing else."""
    lines = [line for line in reply.splitlines() if line.strip()]
    found = _LAST.fullmatch(lines[-1]) if lines else None
    return "unreadable" if found is None else _SAYS[found[1].lower()]


def order_of(ids: Sequence[str], said: Mapping[tuple[str, str], Said]) -> Order:
    """The order that the verdicts give: by wins less losses, equal ones tied.

    Only verdicts that are the same in both orders count.

    Args:
        ids: The completions.
        said: For each (first, second) what was said; what is missing counts as unreadable.
    """
    points, pairs = dict.fromkeys(ids, 0), Counter[Outcome]()
    for at, a in enumerate(ids):
        for b in ids[at + 1 :]:
            one = said.get((a, b), "unreadable")
            other = said.get((b, a), "unreadable")
            if "unreadable" in (one, other):
                pairs["unreadable"] += 1
            elif _TURNED.get(other, other) != one:
                pairs["inconsistent"] += 1
            elif one == "tie":
                pairs["tied"] += 1
            else:
                pairs["decided"] += 1
                points[a] += 1 if one == "first" else -1
                points[b] += 1 if one == "second" else -1
    levels = sorted(set(points.values()), reverse=True)
    tiers = tuple(tuple(sorted(one for one in ids if points[one] == level)) for level in levels)
    return Order(tiers if len(tiers) > 1 else None, pairs)
