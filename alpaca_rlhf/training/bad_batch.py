"""The batch whose loss or gradient was not finite, kept where a person can read it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import Example, decode
from alpaca_rlhf.training.checkpoints import Checkpoints
from alpaca_rlhf.training.optimizer import NotFiniteError


@contextlib.contextmanager
def saving_bad_batch(
    checkpoints: Checkpoints, step: int, rows: Callable[[], Sequence[dict[str, Any]]]
) -> Iterator[None]:
    """Inside, a `NotFiniteError` writes the batch of `step` (counted from 1) and ends the run.

    Raises:
        UserError: Names what was not finite, what to lower, and the file of the batch.
    """
    try:
        yield
    except NotFiniteError as error:
        path = checkpoints.save_bad_batch(step, rows())
        raise UserError(f"{error} (step {step}; its batch is in {path})") from None


def readable_examples(base: Base, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Token ids of examples, and their text where the base has a tokenizer."""
    return [
        {
            **_text(base, example),
            "prompt_ids": list(example.prompt),
            "completion_ids": list(example.completion),
        }
        for example in examples
    ]


def _text(base: Base, example: Example) -> dict[str, str]:
    if base.tokenizer is None:
        return {}
    return {
        "prompt": decode(base, example.prompt),
        "completion": decode(base, example.completion),
    }
