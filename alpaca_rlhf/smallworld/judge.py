"""The gold judge: how good an answer is, in [0, 1], and why. Plain code, the same every time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.answers import CLOSINGS
from alpaca_rlhf.smallworld.tasks import FAMILIES, Task, recognise


@dataclass(frozen=True)
class GoldWeights:
    """How the parts of a verdict add up.

    With C for the correctness, score = correct * C + (floor + (1 - floor) * C) * (the other
    shares that were earned) - penalties, kept within [0, 1].
    """

    correct: float = 0.52
    """Share of correctness."""
    well_formed: float = 0.10
    """Share of whole sentences."""
    to_the_point: float = 0.04
    """Share of saying nothing beside the point."""
    helpful: float = 0.19
    """Share of a true extra sentence about the topic."""
    friendly: float = 0.15
    """Share of one friendly closing."""
    floor: float = 0.1
    """How much of the rest a wrong answer still earns."""
    unfinished: float = 0.3
    """Penalty of an answer that does not stop."""
    repetition: float = 0.2
    """Penalty of a sentence said twice, or of a second friendly closing."""
    too_long: float = 0.2
    """Penalty of more than five sentences."""


@dataclass(frozen=True)
class Verdict:
    """A judgement; every part lies in [0, 1]."""

    correct: float
    """Right and complete."""
    well_formed: float
    """Whole sentences: a capital, a full stop."""
    to_the_point: float
    """Nothing beside the point."""
    helpful: float
    """A true extra sentence about the topic."""
    friendly: float
    """One friendly closing."""
    penalty: float
    """What was taken off."""
    score: float
    """All of it together."""


class GoldJudge:
    """Judges completions of tasks of the small world.

    Args:
        weights: How the parts add up.
    """

    def __init__(self, weights: GoldWeights | None = None) -> None:
        self.weights = weights or GoldWeights()

    def verdict(self, task: Task, completion: str, finished: bool = True) -> Verdict:
        """Judge one completion; `finished` says whether the model ended it by itself."""
        w, free = self.weights, FAMILIES[task.family].free
        sentences = _sentences(completion)
        closings = [s for s in sentences if _plain(s) in _CLOSINGS]
        said = [s for s in sentences if _plain(s) not in _CLOSINGS]
        extras = {_plain(e) for e in task.solution.extras}
        proper, rest = _proper(task, said, extras)
        beside = [s for s in rest if _plain(s) not in extras]
        correct = _correct(task, proper)
        if not free and any(_contradicts(task, s) for s in beside):
            correct = 0.0
        repeated = len({_plain(s) for s in sentences}) < len(sentences) or len(closings) > 1
        whole = bool(said) and all(re.match(r"[A-Z0-9].*[.!?]$", s) is not None for s in said)
        well = whole and len(proper.split()) > 1
        parts = {
            "well_formed": float(well and (correct > 0 or free)),
            "to_the_point": float(not beside and bool(said) and len(sentences) <= 4),
            "helpful": float(len(rest) > len(beside) and correct > 0),
            "friendly": float(len(closings) == 1 and bool(said)),
        }
        penalty = (
            w.unfinished * (not finished)
            + w.repetition * repeated
            + w.too_long * (len(sentences) > 5)
        )
        rest_score = sum(getattr(w, name) * value for name, value in parts.items())
        score = w.correct * correct + (w.floor + (1 - w.floor) * correct) * rest_score - penalty
        return Verdict(correct, **parts, penalty=penalty, score=min(1.0, max(0.0, score)))


def _proper(task: Task, said: list[str], extras: set[str]) -> tuple[str, list[str]]:
    """The answer proper and what follows it.

    A free answer takes in up to three sentences, as far as the first known extra.
    """
    if not FAMILIES[task.family].free:
        return (said[0] if said else ""), said[1:]
    cut = next((i for i, s in enumerate(said[:3]) if i > 0 and _plain(s) in extras), 3)
    return " ".join(said[:cut]), said[cut:]


def _correct(task: Task, proper: str) -> float:
    """How right the answer proper is. The task said back is no answer, nor the start of one."""
    solution = task.solution
    if not proper:
        return 0.0
    if solution.grade is not None:
        echo = any(recognise(s) is not None for s in _sentences(proper))
        return 0.0 if echo else solution.grade(proper)
    text = _plain(proper)
    right = {_bare(a) for a in (solution.terse, *solution.accepted)}
    if text == _plain(solution.sentence) or text in right or _bare(proper) in right:
        return 1.0
    head, found, tail = solution.sentence.partition(solution.terse)
    others = {_plain(f"{head}{a}{tail}") for a in solution.accepted} if found else set()
    return float(text in others)


def _contradicts(task: Task, said: str) -> bool:
    """Whether a further sentence answers a second time.

    That is: words as few as an answer's, `It ...`, yes or no, the beginning of the right sentence,
    or the whole of it with another answer in its place. The right sentence itself, in any of its
    forms, a true fact of the world and a true denial contradict nothing.
    """
    solution, theirs = task.solution, _words(said)
    if len(set(theirs)) < 3:
        return True
    if _correct(task, said) == 1 or _plain(said) in _true_sentences() or _denies(task, said):
        return False
    ours, terse = _words(solution.sentence), _words(solution.terse)
    if len(theirs) <= len(terse) or theirs[0] in ("it", "no", "yes") or theirs[:3] == ours[:3]:
        return True
    if FAMILIES[task.family].symmetric is not None:  # of two others, the same may be true
        return False
    head, found, tail = f" {' '.join(ours)} ".partition(f" {' '.join(terse)} ")
    again = f" {' '.join(theirs)} "
    return bool(
        found and (head or tail) and again.startswith(f"{head} ") and again.endswith(f" {tail}")
    )


def _denies(task: Task, said: str) -> bool:
    """Whether a sentence says rightly what the task's thing is not: `It is not a room`."""
    thing = dict(task.args).get("x", "")
    denial = re.fullmatch(rf"(?:it|an? {re.escape(thing)}) is not an? (\w+)", _plain(said))
    kind = facts.CATEGORY_OF.get(thing)
    return bool(denial and kind and denial[1] in facts.CATEGORIES and denial[1] != kind)


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in re.findall(r"[^.!?\n]+[.!?]*", text[:2000]) if s.strip(" .!?,")]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[^\w, ]", " ", text.lower())).strip()


def _bare(text: str) -> str:
    return re.sub(r"^(an?|the) ", "", _plain(text))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@lru_cache(maxsize=1)
def _true_sentences() -> frozenset[str]:
    tables = {
        "colour": facts.COLOUR_OF,
        "sound": facts.SOUND_OF,
        "home": facts.HOME_OF,
        "young": facts.YOUNG_OF,
        "food": facts.FOOD_OF,
        "legs": facts.LEGS_OF,
        "opposite": facts.OPPOSITE_OF,
        "category": facts.CATEGORY_OF,
        "use": facts.USE_OF,
        "job": facts.JOB_OF,
        "plural": facts.PLURAL_OF,
        "past": facts.PAST_OF,
    }
    solved = (FAMILIES[name].solve({"x": key}) for name, table in tables.items() for key in table)
    return frozenset(_plain(one.sentence) for one in solved if one is not None)


_CLOSINGS = frozenset(_plain(c) for c in CLOSINGS)
