"""The judge of verifiable instructions: a deterministic score of an answer, in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from alpaca_rlhf.checks.catalogue import Request, read_request
from alpaca_rlhf.checks.kinds import Constraint, Language
from alpaca_rlhf.checks.relevance import (
    content_stems,
    is_loop,
    own_share,
    prose_share,
    subject_share,
)
from alpaca_rlhf.checks.text import Answer, is_chinese
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import user_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Scores, UnknownPrompt

_MIN_WORDS = 4  # of an answer; Chinese characters count as words
_CONSTRAINT = (
    "no constraint that `checks` can verify, such as `Use at most 30 words.`; see all phrasings "
    "with: alpaca-rlhf checks list"
)


@dataclass(frozen=True)
class ChecksWeights:
    """Weights of the parts of a verdict.

    The score is (met_degree * M + all_met * A) times a factor for each of the other parts: 1 where
    the part is 1, the number below where it is 0, and in between in proportion.
    """

    met_degree: float = 0.5
    """Share of the mean degree to which the constraints are met."""
    all_met: float = 0.5
    """Share that is earned when all of them are."""
    stops: float = 0.25
    """Factor of an answer that does not stop."""
    no_loop: float = 0.05
    """Factor of an answer that loops."""
    on_subject: float = 0.05
    """Factor of an answer about something else, in another language, or of words without sense."""
    own_words: float = 0.0
    """Factor of an answer that only copies its prompt."""


@dataclass(frozen=True)
class CheckResult:
    """One constraint of a prompt and the degree to which an answer meets it."""

    constraint: Constraint
    """The constraint."""
    degree: float
    """In [0, 1]; 1 if it is met."""

    @property
    def met(self) -> bool:
        """True if it is met."""
        return self.degree >= 1


@dataclass(frozen=True)
class Verdict:
    """The results of all constraints of a prompt, and the score that follows from them."""

    results: tuple[CheckResult, ...]
    """Each constraint in its order."""
    scores: Scores
    """The score with its parts."""


class Checks:
    """A judge that checks an answer against the constraints that its prompt states.

    Constraints are read from the prompt's own text, so any prompt that states some in a known
    phrasing can be judged.

    Args:
        weights: Weights of the parts.
    """

    def __init__(self, weights: ChecksWeights | None = None) -> None:
        self.weights = weights or ChecksWeights()

    def score(self, prompt: Instruction, completion: str, finished: bool) -> Scores:
        """Score a completion; see `Scorer`.

        The parts are `met` (share of the constraints met), `met_degree`, `all_met`, `stops`,
        `no_loop`, `on_subject` and `own_words`.

        Raises:
            UnknownPrompt: The prompt states no constraint in a known phrasing.
        """
        return self.verdict(prompt, completion, finished).scores

    def verdict(self, prompt: Instruction, completion: str, finished: bool) -> Verdict:
        """Score a completion, and keep what each constraint contributes.

        Raises:
            UnknownPrompt: The prompt states no constraint in a known phrasing.
        """
        request = _request_of(prompt)
        answer = Answer(completion.strip(), request.core)
        results = tuple(CheckResult(check, check.degree(answer)) for check in request.constraints)
        degrees = [result.degree for result in results]
        parts = {
            "met": sum(result.met for result in results) / len(results),
            "met_degree": sum(degrees) / len(degrees),
            "all_met": float(all(result.met for result in results)),
            "stops": float(finished),
            **_conduct(request, prompt, answer),
        }
        w = self.weights
        score = w.met_degree * parts["met_degree"] + w.all_met * parts["all_met"]
        for name in ("stops", "no_loop", "on_subject", "own_words"):
            floor = getattr(w, name)
            score *= floor + (1 - floor) * parts[name]
        score *= min(1.0, len(answer.words) / _MIN_WORDS)
        return Verdict(results, Scores(min(1.0, max(0.0, score)), parts))

    @staticmethod
    def can_judge(prompt: Instruction) -> bool:
        """True if a prompt states a constraint in a known phrasing."""
        return bool(read_request(user_text(prompt)).constraints)

    @classmethod
    def refuse_others(cls, prompts: Iterable[Instruction], flag: str) -> None:
        """Refuse prompts that state no constraint.

        Raises:
            UserError: There are some; the message names the first one.
        """
        rows = list(prompts)
        others = [row for row in rows if not cls.can_judge(row)]
        if others:
            raise UserError(
                f"{flag}: {len(others)} of {len(rows)} prompts, the first {_shown(others[0])}, "
                f"state {_CONSTRAINT}"
            )


def _request_of(prompt: Instruction) -> Request:
    request = read_request(user_text(prompt))
    if not request.constraints:
        raise UnknownPrompt(f"the prompt {_shown(prompt)} states {_CONSTRAINT}")
    return request


def _shown(prompt: Instruction) -> str:
    text = " ".join(user_text(prompt).split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _conduct(request: Request, prompt: Instruction, answer: Answer) -> dict[str, float]:
    """The parts that do not depend on the constraints; all 0 for an empty answer."""
    if not answer.words:
        return dict.fromkeys(("no_loop", "on_subject", "own_words"), 0.0)
    demanded = {
        stem
        for constraint in request.constraints
        for text in constraint.demands.required_words
        for stem in ({text} if is_chinese(text) else {*content_stems(text)})
    }
    about = subject_share(answer, request.core, demanded)
    language: Language = "zh" if is_chinese(request.core) else "en"
    return {
        "no_loop": float(not is_loop(answer)),
        "on_subject": about * prose_share(answer, user_text(prompt), language),
        "own_words": own_share(answer, user_text(prompt)),
    }
