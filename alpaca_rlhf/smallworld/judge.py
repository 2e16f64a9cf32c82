"""The gold judge: a deterministic score of an answer, in [0, 1], with its parts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from alpaca_rlhf.smallworld import facts
from alpaca_rlhf.smallworld.answers import CLOSINGS
from alpaca_rlhf.smallworld.forms import shortest_is_a_sentence
from alpaca_rlhf.smallworld.tasks import FAMILIES, Task, recognise


@dataclass(frozen=True)
class GoldWeights:
    """Weights of the parts of a verdict.

    With correctness C, score = correct * C + (floor + (1 - floor) * C) * (the other shares that
    were earned) - penalties, clamped to [0, 1]. A right answer in the worst form is worth more than
    a wrong one in the best.
    """

    correct: float = 0.40
    """Share of correctness."""
    form: float = 0.55
    """Share of the form that was asked for; half of it with one part too many or missing."""
    to_the_point: float = 0.05
    """Share of staying on the point."""
    floor: float = 0.1
    """Fraction of the other shares that a wrong answer still earns."""
    unfinished: float = 0.3
    """Penalty for an answer that does not stop."""
    repetition: float = 0.2
    """Penalty for a repeated sentence, or for a second friendly closing."""
    too_long: float = 0.2
    """Penalty for more than five sentences."""


@dataclass(frozen=True)
class Verdict:
    """A score and its parts, each in [0, 1]."""

    correct: float
    """Right and complete."""
    form: float
    """The form that was asked for; a sentence where none was."""
    to_the_point: float
    """No sentence beside the point."""
    penalty: float
    """Sum of the penalties."""
    score: float
    """The total."""


class GoldJudge:
    """A judge of completions to tasks of the small world.

    Args:
        weights: Weights of the parts.
    """

    def __init__(self, weights: GoldWeights | None = None) -> None:
        self.weights = weights or GoldWeights()

    def verdict(self, task: Task, completion: str, finished: bool = True) -> Verdict:
        """Judge one completion; `finished` is True if the model ended it with a stop token."""
        w, free = self.weights, FAMILIES[task.family].free
        # 1. Split the completion: friendly closings, the answer proper, known extras, and the rest.
        sentences = _sentences(completion)
        closings = [s for s in sentences if _plain(s) in _CLOSINGS]
        statements = [s for s in sentences if _plain(s) not in _CLOSINGS]
        extras = {_plain(e) for e in task.solution.extras}
        proper, rest = _proper(task, statements, extras)
        beside_point = [s for s in rest if _plain(s) not in extras]
        # 2. Correctness: none if a further sentence contradicts the answer.
        correct = _correct(task, proper)
        if not free and any(_contradicts(task, s) for s in beside_point):
            correct = 0.0
        # 3. The other parts, and the penalties.
        repeated = len({_plain(s) for s in sentences}) < len(sentences) or len(closings) > 1
        has_extra = len(rest) > len(beside_point) and correct > 0
        parts = {
            "form": _form(task, statements, proper, has_extra, bool(closings)),
            "to_the_point": float(not beside_point and bool(statements) and len(sentences) <= 4),
        }
        penalty = (
            w.unfinished * (not finished)
            + w.repetition * repeated
            + w.too_long * (len(sentences) > 5)
        )
        # 4. The score: a wrong answer earns only a fraction of the other parts.
        rest_score = sum(getattr(w, name) * value for name, value in parts.items())
        score = w.correct * correct + (w.floor + (1 - w.floor) * correct) * rest_score - penalty
        return Verdict(correct, **parts, penalty=penalty, score=min(1.0, max(0.0, score)))


def _proper(task: Task, statements: list[str], extras: set[str]) -> tuple[str, list[str]]:
    """Split statements into the answer proper and the sentences after it.

    A free answer is up to three sentences long and ends before the first known extra.
    """
    if not FAMILIES[task.family].free:
        return (statements[0] if statements else ""), statements[1:]
    cut = next((i for i, s in enumerate(statements[:3]) if i > 0 and _plain(s) in extras), 3)
    return " ".join(statements[:cut]), statements[cut:]


def _form(
    task: Task, statements: list[str], proper: str, has_extra: bool, has_closing: bool
) -> float:
    """Grade the form: 1 as asked for, 0.5 with one part too many or missing, else 0.

    The parts are a whole sentence instead of the bare answer, a true extra sentence, and a friendly
    closing.
    """
    if not statements:
        return 0.0
    form = task.form or "sentence"
    parts_wrong = (has_extra != (form == "more")) + (has_closing != (form == "friendly"))
    if not shortest_is_a_sentence(task.solution):
        is_bare = len(proper.split()) <= len(task.solution.terse.split()) + 1
        is_whole = all(re.match(r"[A-Z0-9].*[.!?]$", s) is not None for s in statements)
        parts_wrong += not is_bare if form == "bare" else is_bare or not is_whole
    return max(0.0, 1 - parts_wrong / 2)


def _correct(task: Task, proper: str) -> float:
    """Grade the answer proper, in [0, 1]. Repeating the task, or beginning with it, is no answer."""
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
    head, terse, tail = solution.sentence.partition(solution.terse)
    others = {_plain(f"{head}{a}{tail}") for a in solution.accepted} if terse else set()
    return float(text in others)


def _contradicts(task: Task, sentence: str) -> bool:
    """True if a further sentence gives a second answer.

    It does if it has no more words than an answer, begins with `It`, yes or no or like the right
    sentence, or is the right sentence with another answer in it. The right sentence itself, in any
    of its forms, a true fact of the world and a true denial do not contradict the answer.
    """
    solution, theirs = task.solution, _words(sentence)
    if len(set(theirs)) < 3:
        return True
    if (
        _correct(task, sentence) == 1
        or _plain(sentence) in _true_sentences()
        or _denies(task, sentence)
    ):
        return False
    ours, terse = _words(solution.sentence), _words(solution.terse)
    # A second answer by its form,
    if len(theirs) <= len(terse) or theirs[0] in ("it", "no", "yes") or theirs[:3] == ours[:3]:
        return True
    if FAMILIES[task.family].symmetric is not None:  # the same may be true of two others
        return False
    # or the right sentence around another answer.
    head, answer, tail = f" {' '.join(ours)} ".partition(f" {' '.join(terse)} ")
    padded = f" {' '.join(theirs)} "
    return bool(
        answer and (head or tail) and padded.startswith(f"{head} ") and padded.endswith(f" {tail}")
    )


def _denies(task: Task, sentence: str) -> bool:
    """True if a sentence rightly denies a category of the task's noun: `It is not a room`."""
    noun = dict(task.args).get("x", "")
    denial = re.fullmatch(rf"(?:it|an? {re.escape(noun)}) is not an? (\w+)", _plain(sentence))
    kind = facts.CATEGORY_OF.get(noun)
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
    solutions = (
        FAMILIES[name].solve({"x": key}) for name, table in tables.items() for key in table
    )
    return frozenset(_plain(solution.sentence) for solution in solutions if solution is not None)


_CLOSINGS = frozenset(_plain(c) for c in CLOSINGS)
