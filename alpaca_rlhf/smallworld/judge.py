"""The gold judge: how good an answer is, graded in [0, 1], and why. Plain code, the same every time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.answers import CLOSINGS
from alpaca_rlhf.smallworld.tasks import FAMILIES, Task


@dataclass(frozen=True)
class GoldWeights:
    """score = correct_share * C + (floor + (1 - floor) * C) * (the rest), minus penalties, within [0, 1]."""

    correct: float = 0.70
    """Share of correctness."""
    well_formed: float = 0.08
    """Share of whole sentences."""
    to_the_point: float = 0.06
    """Share of saying nothing beside the point."""
    helpful: float = 0.10
    """Share of a true extra sentence about the topic."""
    friendly: float = 0.06
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
        w = self.weights
        sentences = _sentences(completion)
        closings = [s for s in sentences if _plain(s) in _CLOSINGS]
        said = [s for s in sentences if _plain(s) not in _CLOSINGS]
        solution = task.solution
        extras = {_plain(e) for e in solution.extras}
        proper, rest = self._proper(task, said)
        correct = self._correct(task, proper)
        helpful = any(_plain(s) in extras for s in rest)
        beside = [s for s in rest if _plain(s) not in extras]
        if not FAMILIES[task.family].free and any(
            _contradicts(s, solution.sentence) for s in beside
        ):
            correct = 0.0
        repeated = len({_plain(s) for s in sentences}) < len(sentences) or len(closings) > 1
        well = float(
            bool(said) and all(re.match(r"[A-Z0-9].*[.!?]$", s) is not None for s in said)
        ) * float(len(proper.split()) > 1)
        parts = {
            "well_formed": well * float(correct > 0 or FAMILIES[task.family].free),
            "to_the_point": float(not beside and bool(said) and len(sentences) <= 4),
            "helpful": float(helpful and correct > 0),
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

    def _proper(self, task: Task, said: list[str]) -> tuple[str, list[str]]:
        """The answer proper and what follows it. Free answers take in every sentence that is no known extra."""
        if not FAMILIES[task.family].free:
            return (said[0] if said else ""), said[1:]
        extras = {_plain(e) for e in task.solution.extras}
        cut = next((i for i, s in enumerate(said) if i > 0 and _plain(s) in extras), len(said))
        cut = min(cut, 3)
        return " ".join(said[:cut]), said[cut:]

    def _correct(self, task: Task, proper: str) -> float:
        solution = task.solution
        if not proper:
            return 0.0
        if solution.grade is not None:
            return solution.grade(proper)
        text = _plain(proper)
        right = {
            _plain(solution.sentence),
            *(_bare(a) for a in (solution.terse, *solution.accepted)),
        }
        if text in right or _bare(proper) in right:
            return 1.0
        head, tail = _frame(solution.sentence, solution.terse)
        if tail is None:
            return 0.0
        return float(
            any(text == _plain(f"{head}{a}{tail}") for a in (solution.terse, *solution.accepted))
        )


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in re.findall(r"[^.!?\n]+[.!?]*", text[:2000]) if s.strip(" .!?,")]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"[^\w, ]", " ", text.lower())).strip()


def _bare(text: str) -> str:
    return re.sub(r"^(an?|the) ", "", _plain(text))


def _frame(sentence: str, terse: str) -> tuple[str, str | None]:
    head, found, tail = sentence.partition(terse)
    return (head, tail) if found else (sentence, None)


def _contradicts(said: str, sentence: str) -> bool:
    """Whether a further sentence answers a second time: bare words, `It is ...`, or the answer's own beginning.

    A fact of the world is beside the point, but contradicts nothing.
    """
    ours, theirs = _plain(sentence).split(), _plain(said).split()
    if theirs == ours or _plain(said) in _true_sentences():
        return False
    return len(theirs) < 3 or theirs[0] in ("it", "no", "yes") or theirs[:3] == ours[:3]


@lru_cache(maxsize=1)
def _true_sentences() -> frozenset[str]:
    tables = (
        ("colour", facts.COLOUR_OF), ("sound", facts.SOUND_OF), ("home", facts.HOME_OF), ("food", facts.FOOD_OF),
        ("legs", facts.LEGS_OF), ("category", facts.CATEGORY_OF), ("use", facts.USE_OF), ("young", facts.YOUNG_OF),
    )  # fmt: skip
    solved = (FAMILIES[name].solve({"x": key}) for name, table in tables for key in table)
    return frozenset(_plain(one.sentence) for one in solved if one is not None)


_CLOSINGS = frozenset(_plain(c) for c in CLOSINGS)
