"""The protocols of judges that score completions: a rule, a function, or a reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction


class UnknownPrompt(UserError):
    """A judge by the kit's own rules has no rule for a prompt."""


@dataclass(frozen=True)
class Scores:
    """A judge's score of one completion, with its named parts."""

    score: float
    """In [0, 1]; higher is better."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The parts of the score by name, each in [0, 1]; empty if the judge names none."""


class Scorer(Protocol):
    """A judge of completions, one at a time."""

    def score(self, prompt: Instruction, completion: str, finished: bool) -> float | Scores:
        """Score a completion.

        Args:
            prompt: The request, with its history and system text.
            completion: The text that was sampled, without special tokens.
            finished: True if the completion ended by itself, false if it was cut at the limit.

        Returns:
            A number in [0, 1], or `Scores` with named parts.
        """
        ...


class Response(NamedTuple):
    """A completion to be scored, as a batched judge receives it."""

    prompt: Instruction
    """The request, with its history and system text."""
    completion: str
    """The text that was sampled, without special tokens."""
    finished: bool
    """True if the completion ended by itself, false if it was cut at the limit."""


class BatchScorer(Protocol):
    """A judge of several completions at once."""

    batched: Literal[True]
    """Says so."""

    def score_batch(self, responses: Sequence[Response]) -> Sequence[float | Scores]:
        """Score completions, perhaps of different prompts; one score each, in their order."""
        ...
