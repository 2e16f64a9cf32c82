"""The rules of assigning tasks and checking verdicts, without the database."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal, TypeVar

from alpaca_rlhf.core.records import Completion, Instruction

Kind = Literal["task", "gold", "repeat"]
"""An ordinary task, one whose right order is known, or one of the annotator's own again. Only
ordinary ones are trained on."""

Tiers = tuple[tuple[str, ...], ...]
"""Completion ids, best tier first; ties share a tier."""

Candidates = tuple[Instruction, Sequence[Completion]]
"""A prompt and the completions to put in order."""

MIN_ANSWERS, MAX_ANSWERS = 2, 9
"""Completions of a candidate set."""
MAX_TEXT_CHARS = 2000
"""Characters of a comment."""
MAX_BETTER_CHARS = 20_000
"""Characters of a better answer that a person writes."""
MAX_OVERLAP = 9
"""People who rank one set, at most."""
MAX_STARS = 5
"""The best that a criterion can be given; 1 is the worst."""

METHODS = ("mouse", "touch", "keyboard", "buttons", "mixed", "as_shown", "")
"""Ways to put an order in; `as_shown` is an untouched order that was confirmed."""

Problem = Literal[
    "unknown",
    "not_yours",
    "incomplete",
    "bad_value",
    "done",
    "too_early",
    "other_verdict",
    "same_answer",
]


T = TypeVar("T")


def distinct_keys(keys: Sequence[T], texts: Sequence[str]) -> list[T]:
    """The key of the first occurrence of each text, spaces around it apart."""
    first: dict[str, T] = {}
    for key, text in zip(keys, texts, strict=True):
        first.setdefault(text.strip(), key)
    return list(first.values())


MIN_GOLD_ASKED = 5
"""Gold questions that somebody must have answered to be left out by them, unless said otherwise."""


def distinct(completions: Sequence[Completion], k: int = MAX_ANSWERS) -> list[Completion]:
    """The first K completions with different texts: two with the same text would rank alike."""
    return distinct_keys(completions, [completion.text for completion in completions])[:k]


class Refused(Exception):
    """A request of an annotator is refused; `problem` is the kind, for a translated message."""

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True)
class Overlap:
    """A share of the sets that several people rank, for the agreement; one ranks each other set."""

    share: float
    """The share, from 0 to 1."""
    people: int = 2
    """People who rank each of them."""


@dataclass(frozen=True)
class Rules:
    """Shares and times by which tasks are assigned."""

    lease_s: float = 900.0
    """Seconds that a task is kept for an idle annotator."""
    second_share: float = 0.2
    """Share of the sets that two people rank, until an admin sets another overlap."""
    gold_rate: float = 0.05
    """Share of the tasks that are gold questions, while there are new ones."""
    repeat_rate: float = 0.03
    """Share of the tasks that are the annotator's own again."""
    repeat_after: int = 20
    """Tasks between a set and its repeat, at least."""


@dataclass(frozen=True)
class Shown:
    """One completion as an annotator sees it: nothing tells who wrote it."""

    id: str
    """`Completion.id`."""
    text: str
    """The answer."""
    cut: bool
    """True if it was cut at the length limit."""


@dataclass(frozen=True)
class BetterAnswer:
    """An answer that an annotator wrote because it is better than all that were shown."""

    text: str
    """The answer."""
    edited_from: str = ""
    """Id of the completion that it was made of; empty where it is new."""


@dataclass(frozen=True)
class Task:
    """One candidate set as it is shown to one annotator."""

    id: int
    """The assignment, which a submit names."""
    revision: int
    """The revision that a submit will be; a submit of an older one was saved already."""
    kind: Kind
    """The reason it is shown; the annotator is not told."""
    prompt: Instruction
    """The prompt."""
    completions: tuple[Shown, ...]
    """The answers, in the shuffled order in which they are shown."""
    lease_s: float
    """Seconds it is kept."""
    tiers: Tiers = ()
    """The order that was taken back by an undo; empty for a new task."""
    criteria: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Stars that were taken back with it."""
    better: BetterAnswer | None = None
    """The better answer that was taken back with it."""


@dataclass(frozen=True)
class Verdict:
    """An annotator's answer to a task."""

    tiers: Tiers
    """Every completion once, best tier first."""
    criteria: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Completion id to criterion to stars, 1 to 5; may be empty."""
    all_bad: bool = False
    """True if none of them is acceptable; the order counts all the same."""
    comment: str = ""
    """A remark by the annotator."""
    input_method: str = ""
    """The way the order was entered, one of `METHODS`."""
    blind: bool = True
    """True if nothing told who wrote which."""
    better: BetterAnswer | None = None
    """An answer by the annotator, above all others."""
    guideline: int | None = None
    """Version of the guidelines that the annotator was shown; None where there were none."""


@dataclass(frozen=True)
class Saved:
    """The answer to a submit."""

    ranking_id: int
    """Its row."""
    already: bool
    """True if it had been saved before; then nothing was changed."""
    duration_s: float
    """From being shown until the submit, by the server's clock."""
    counts: bool = True
    """False if it was kept before and another verdict counts instead: the task was ranked otherwise
    in the meantime, or taken back."""


def places(key: str, overlap: Overlap) -> int:
    """The number of people who rank a set: several for a share of all keys, else 1.

    The key decides, so a larger share has the sets of a smaller one.
    """
    draw = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    return overlap.people if draw < overlap.share else 1


def check(verdict: Verdict, completions: Collection[str]) -> None:
    """Refuse a verdict that does not put each completion in exactly one place.

    Nothing that a browser sends is trusted.

    Raises:
        Refused: `incomplete` or `bad_value`, with what is wrong.
    """
    ranked = [key for tier in verdict.tiers for key in tier]
    if any(not tier for tier in verdict.tiers):
        raise Refused("incomplete", "a tier is empty")
    for key in ranked:
        if key not in completions:
            raise Refused("incomplete", f"{str(key)[:40]!r} is not one of the answers")
    if len(set(ranked)) != len(ranked):
        raise Refused("incomplete", "an answer stands in two places")
    if len(ranked) != len(completions):
        raise Refused("incomplete", f"{len(completions) - len(ranked)} answers have no place")
    for key, stars in verdict.criteria.items():
        if key not in completions:
            raise Refused("bad_value", f"stars for {str(key)[:40]!r}, which is not an answer")
        for criterion, count in stars.items():
            if not isinstance(criterion, str) or not 0 < len(criterion) <= 40:
                raise Refused("bad_value", "a criterion needs a name of at most 40 characters")
            if type(count) is not int or not 1 <= count <= MAX_STARS:
                raise Refused("bad_value", f"{criterion}: give 1 to {MAX_STARS} stars")
    if len(verdict.comment) > MAX_TEXT_CHARS:
        raise Refused("bad_value", f"a comment has at most {MAX_TEXT_CHARS} characters")
    if verdict.better is not None:
        if not 0 < len(verdict.better.text.strip()) <= MAX_BETTER_CHARS:
            raise Refused("bad_value", f"a better answer has 1 to {MAX_BETTER_CHARS} characters")
        if verdict.better.edited_from and verdict.better.edited_from not in completions:
            raise Refused("bad_value", "the better answer was made of another task's")
    if verdict.input_method not in METHODS:
        raise Refused("bad_value", f"the input method is one of {', '.join(METHODS[:-1])}")


def pairs(tiers: Sequence[Sequence[str]]) -> int:
    """The number of pairs that an order decides: those of completions in different tiers."""
    return sum(len(a) * len(b) for a, b in combinations(tiers, 2))


def first_slot(shown_order: Sequence[str], tiers: Sequence[Sequence[str]]) -> tuple[float, float]:
    """The share of the win that went to the answer shown first, and the share by chance.

    A tie at the top is shared. Where all tie nobody wins: (0, 0).
    """
    if len(tiers) < 2:
        return 0.0, 0.0
    return (shown_order[0] in tiers[0]) / len(tiers[0]), 1 / len(shown_order)


def passes(gold: Sequence[Sequence[str]], tiers: Sequence[Sequence[str]]) -> bool:
    """True if every pair that the known order decides stands in that order, untied."""
    place = {key: rank for rank, tier in enumerate(tiers) for key in tier}
    return all(
        place[a] < place[b]
        for better, worse in combinations(gold, 2)
        for a in better
        for b in worse
    )


def as_tiers(stored: Sequence[Sequence[Any]]) -> Tiers:
    """Tiers as they lie in the database, as tuples."""
    return tuple(tuple(tier) for tier in stored)
