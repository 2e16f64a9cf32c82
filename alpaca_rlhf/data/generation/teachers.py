"""The interface of a teacher: anything that continues prompts.

The local base as a teacher is in `models.teacher`, a teacher behind HTTP in `endpoint`.
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
    """`eos` if the teacher ended by itself, `length` if it was cut, even by a stop text."""
    tokens: int = 0
    """Completion tokens."""
    prompt_tokens: int | None = None
    """Prompt tokens, where they are counted."""
    usd: float | None = None
    """Cost at the user's prices, where they are set."""
    error: str | None = None
    """Reason why the request was given up. Such a reply holds no row and no drop."""


class TeacherStop(UserError):
    """A teacher cannot go on until the user acts: a budget is spent, a key is refused.

    Args:
        message: One line that says what happened and how to go on.
        replies: Replies to the first prompts of the batch, which are paid for and must be kept.
    """

    def __init__(self, message: str, replies: Sequence[Reply] = ()) -> None:
        super().__init__(message)
        self.replies = list(replies)


def for_step(step: str, temperature: float, tokens: int) -> tuple[float, int]:
    """Temperature and token limit of a recipe's step; a yes or no is greedy and short.

    Source: yizhongw/self-instruct@0b26cca identify_clf_or_not.py:98, which has 3 tokens; ours are
    8, because small vocabularies and chat models need a few before the word.
    """
    return (0.0, min(8, tokens)) if step == "classify" else (temperature, tokens)


class Teacher(Protocol):
    """Continues prompts."""

    def complete(self, prompts: Sequence[str], *, seed: int, first: int) -> list[Reply]:
        """Continue each prompt once.

        Args:
            prompts: Texts to continue, together if the teacher can.
            seed: Seed of the run.
            first: Request number of the first prompt; the others follow. The sampling noise of a
                request must depend on (seed, request number) alone, so that an interrupted run ends
                like an uninterrupted one.

        Returns:
            One reply a prompt, in order.

        Raises:
            TeacherStop: It cannot go on. Other errors (an interruption) may carry `replies` too.
        """
        ...
