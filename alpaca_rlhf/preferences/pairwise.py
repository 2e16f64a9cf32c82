"""Pairwise judging: the questions, the verdict in each reply, and the order they give.

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

PairVerdict = Literal["first", "second", "tie", "unreadable"]
"""The verdict of one reply."""

Outcome = Literal["decided", "tied", "inconsistent", "unreadable"]
"""The outcome of a pair from both orders together."""

_VERDICT_LINE = re.compile(r"\W*(?:verdict\W*)?\b(A|B|tie)\b\W*", re.IGNORECASE)
_VERDICTS: dict[str, PairVerdict] = {"a": "first", "b": "second", "tie": "tie"}
_TURNED: dict[PairVerdict, PairVerdict] = {"first": "second", "second": "first"}


@dataclass(frozen=True)
class Question:
    """Two answers in one order."""

    first: str
    """Id of the completion that is shown first."""
    second: str
    """Id of the other."""
    messages: tuple[Mapping[str, str], ...]
    """The chat sent to the judge."""


@dataclass(frozen=True)
class Order:
    """The order that a judge's replies give."""

    tiers: Tiers | None
    """The order; None where no pair was decided, so that there is none."""
    pairs: Mapping[Outcome, int]
    """The number of pairs by outcome."""


def questions(prompt: Instruction, completions: Sequence[Completion]) -> list[Question]:
    """Every two completions of a prompt, in both orders."""
    return [
        Question(a.id, b.id, tuple(judge_messages(prompt, a.text, b.text)))
        for a, b in permutations(completions, 2)
    ]


def verdict_of(reply: str) -> PairVerdict:
    """The verdict of a reply, whose last line must be a verdict and nothing else."""
    lines = [line for line in reply.splitlines() if line.strip()]
    match = _VERDICT_LINE.fullmatch(lines[-1]) if lines else None
    return "unreadable" if match is None else _VERDICTS[match[1].lower()]


def order_of(ids: Sequence[str], verdicts: Mapping[tuple[str, str], PairVerdict]) -> Order:
    """The order that the verdicts give: by wins less losses, equal ones tied.

    Only verdicts that are the same in both orders count.

    Args:
        ids: The completions.
        verdicts: The verdict on each (first, second); a missing one counts as unreadable.
    """
    points, pairs = dict.fromkeys(ids, 0), Counter[Outcome]()
    for at, a in enumerate(ids):
        for b in ids[at + 1 :]:
            straight = verdicts.get((a, b), "unreadable")
            turned = verdicts.get((b, a), "unreadable")
            if "unreadable" in (straight, turned):
                pairs["unreadable"] += 1
            elif _TURNED.get(turned, turned) != straight:
                pairs["inconsistent"] += 1
            elif straight == "tie":
                pairs["tied"] += 1
            else:
                pairs["decided"] += 1
                points[a] += 1 if straight == "first" else -1
                points[b] += 1 if straight == "second" else -1
    levels = sorted(set(points.values()), reverse=True)
    tiers = tuple(tuple(sorted(key for key in ids if points[key] == level)) for level in levels)
    return Order(tiers if len(tiers) > 1 else None, pairs)
