"""Loss scaling for float16, whose small gradients would round to zero and whose large overflow.

The loss is multiplied by a power of two before the backward and the gradients are divided by it
before the step (arXiv 1710.03740 section 3.2). Where a gradient overflows all the same, the same
batch is done again with half the scale: none is left out, so that the order of the data stays a
function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from alpaca_rlhf.core import processes

T = TypeVar("T")

START = 2.0**16
"""The scale to begin with, and the largest (torch.amp.GradScaler's start)."""
DOUBLE_AFTER = 2000
"""Backwards without an overflow after which the scale is doubled (likewise)."""


class LossScale:
    """A power of two, shared by all that one backward gives gradients to.

    Args:
        dtype: What the base computes in; the scale stays 1 unless it is float16.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.value = START if dtype == torch.float16 else 1.0
        self._moves = dtype == torch.float16
        self._good = 0

    def backward(self, loss: Tensor) -> None:
        """The backward of a scalar loss, scaled."""
        (loss * self.value).backward()  # type: ignore[no-untyped-call]

    def run(
        self,
        work: Callable[[], T],
        *,
        parameters: Iterable[nn.Parameter],
        forget: Callable[[], None],
    ) -> T:
        """`work()`, done again with half the scale for as long as a gradient overflows.

        A gradient that is not finite at scale 1 is no overflow: it is left for the step to refuse.

        Args:
            work: Leaves scaled gradients.
            parameters: What may have one.
            forget: Drops those of a failed try.
        """
        watched = list(parameters)
        if self._moves and self._good >= DOUBLE_AFTER:
            self.value, self._good = min(2 * self.value, START), 0
        while True:
            found = work()
            if not self._moves or self.value <= 1 or not processes.any_of(_overflowed(watched)):
                self._good += 1
                return found
            forget()
            self.value, self._good = self.value / 2, 0

    def undo(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients that lie there by the scale."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.value != 1 and grads:
            torch._foreach_div_(grads, self.value)

    def state(self) -> dict[str, Any]:
        """The scale and how long it has held, for a checkpoint."""
        return {"value": self.value, "good": self._good}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self.value, self._good = state["value"], state["good"]


def _overflowed(parameters: Iterable[nn.Parameter]) -> bool:
    return any(p.grad is not None and not bool(torch.isfinite(p.grad).all()) for p in parameters)
