"""What a teacher is: anything that continues prompts.

The one on the local base lives higher up, beside the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from alpaca_rlhf.records import FinishReason


@dataclass(frozen=True)
class Reply:
    """A teacher's continuation of one prompt."""

    text: str
    """The continuation, without the prompt and without an eos token."""
    finish_reason: FinishReason = "eos"
    """`eos` if the teacher ended by itself, `length` if it was cut, by a stop string too."""
    tokens: int = 0
    """Tokens it took."""


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
        """
        ...
