"""Pairwise judging: the questions, the verdict in each reply, and the ranking they add up to.

The judge compares every pair of answers in both orders; a verdict that changes with the order is
discarded.
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
"""The outcome of a pair, from its verdicts in both orders."""

_VERDICT_LINE = re.compile(r"\W*(?:verdict\W*)?\b(A|B|tie)\b\W*", re.IGNORECASE)
_VERDICTS: dict[str, PairVerdict] = {"a": "first", "b": "second", "tie": "tie"}
_SWAPPED: dict[PairVerdict, PairVerdict] = {"first": "second", "second": "first"}


@dataclass(frozen=True)
class Question:
    """A pair of answers to compare, in one of its two orders."""

    first: str
    """Id of the completion shown first."""
    second: str
    """Id of the completion shown second."""
    messages: tuple[Mapping[str, str], ...]
    """The chat sent to the judge."""


@dataclass(frozen=True)
class Order:
    """The ranking that a judge's verdicts add up to."""

    tiers: Tiers | None
    """Tiers from best to worst; None if all completions tie."""
    pairs: Mapping[Outcome, int]
    """The number of pairs by outcome."""


def questions(prompt: Instruction, completions: Sequence[Completion]) -> list[Question]:
    """The questions on every pair of completions of a prompt, in both orders."""
    return [
        Question(first.id, second.id, tuple(judge_messages(prompt, first.text, second.text)))
        for first, second in permutations(completions, 2)
    ]


def verdict_of(reply: str) -> PairVerdict:
    """The verdict of a reply, whose last line must be a verdict and nothing else."""
    lines = [line for line in reply.splitlines() if line.strip()]
    match = _VERDICT_LINE.fullmatch(lines[-1]) if lines else None
    return "unreadable" if match is None else _VERDICTS[match[1].lower()]


def order_of(ids: Sequence[str], verdicts: Mapping[tuple[str, str], PairVerdict]) -> Order:
    """Rank completions by wins minus losses; completions with equal differences tie.

    Only verdicts that are the same in both orders count.

    Args:
        ids: Ids of the completions.
        verdicts: The verdict on each (first, second); a missing one counts as unreadable.
    """
    points, pairs = dict.fromkeys(ids, 0), Counter[Outcome]()
    for index, first in enumerate(ids):
        for second in ids[index + 1 :]:
            verdict = verdicts.get((first, second), "unreadable")
            swapped_verdict = verdicts.get((second, first), "unreadable")
            if "unreadable" in (verdict, swapped_verdict):
                pairs["unreadable"] += 1
            elif _SWAPPED.get(swapped_verdict, swapped_verdict) != verdict:
                pairs["inconsistent"] += 1
            elif verdict == "tie":
                pairs["tied"] += 1
            else:
                pairs["decided"] += 1
                points[first] += 1 if verdict == "first" else -1
                points[second] += 1 if verdict == "second" else -1
    levels = sorted(set(points.values()), reverse=True)
    tiers = tuple(tuple(sorted(id_ for id_ in ids if points[id_] == level)) for level in levels)
    return Order(tiers if len(tiers) > 1 else None, pairs)
