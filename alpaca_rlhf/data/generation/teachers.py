"""What a teacher is: anything that continues prompts.

The one on the local base lives higher up, beside the models; the one behind HTTP is in `endpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import FinishReason


@dataclass(frozen=True)
class Reply:
    """A teacher's continuation of one prompt."""

    text: str
    """The continuation, without the prompt and without an eos token."""
    finish_reason: FinishReason = "eos"
    """`eos` if the teacher ended by itself, `length` if it was cut, by a stop string too."""
    tokens: int = 0
    """Tokens it wrote."""
    prompt_tokens: int | None = None
    """Tokens it read, where they are counted."""
    usd: float | None = None
    """What it cost at the user's prices, where they are given."""
    error: str | None = None
    """Why there is no text: the request was given up. Such a reply holds no row and no drop."""


class TeacherStop(UserError):
    """A teacher cannot go on, and the user can mend it: a budget is spent, a key is refused.

    Args:
        message: One line: what happened and how to go on.
        replies: Those to the first prompts of the batch, which are paid for and must be kept.
    """

    def __init__(self, message: str, replies: Sequence[Reply] = ()) -> None:
        super().__init__(message)
        self.replies = list(replies)


def for_step(step: str, temperature: float, tokens: int) -> tuple[float, int]:
    """Temperature and most tokens of a recipe's step: a yes or no wants no more than that.

    Source: yizhongw/self-instruct@0b26cca identify_clf_or_not.py:98, which has 3 tokens; ours are
    8, because small vocabularies and chat models need a few to come to the word.
    """
    return (0.0, min(8, tokens)) if step == "classify" else (temperature, tokens)


class Teacher(Protocol):
    """Continues prompts."""

    def complete(self, prompts: Sequence[str], *, seed: int, first: int) -> list[Reply]:
        """Continue each prompt once.

        Args:
            prompts: Texts to continue, together if the teacher can.
            seed: Seed of the run.
            first: Request number of the first prompt; the others follow. The noise of a request
                must depend on (seed, request number) alone, so that an interrupted run ends as an
                uninterrupted one.

        Returns:
            One reply a prompt, in order.

        Raises:
            TeacherStop: It cannot go on. Another error (an interruption) may carry `replies` too.
        """
        ...
