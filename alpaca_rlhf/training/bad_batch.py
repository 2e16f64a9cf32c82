"""The batch that gave a NaN, kept where a person can read it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.base import Base
from alpaca_rlhf.models.batches import Example, decode
from alpaca_rlhf.training.checkpoints import Checkpoints
from alpaca_rlhf.training.optimizer import NotFinite


@contextlib.contextmanager
def keeping_the_batch(
    checkpoints: Checkpoints, step: int, rows: Callable[[], Sequence[dict[str, Any]]]
) -> Iterator[None]:
    """Inside, a `NotFinite` ends the run with the batch of `step` (counted from 1) written.

    Raises:
        UserError: What was not finite, what to lower, and where the batch is.
    """
    try:
        yield
    except NotFinite as error:
        path = checkpoints.keep_batch(step, rows())
        raise UserError(f"{error} (step {step}; its batch is in {path})") from None


def readable(base: Base, examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Token ids of examples, and their text where the base has a tokenizer."""
    return [
        {
            **_text(base, one),
            "prompt_ids": list(one.prompt),
            "completion_ids": list(one.completion),
        }
        for one in examples
    ]


def _text(base: Base, one: Example) -> dict[str, str]:
    if base.tokenizer is None:
        return {}
    return {"prompt": decode(base, one.prompt), "completion": decode(base, one.completion)}
