"""Loss scaling for float16: small gradients would round to zero, large ones overflow.

The loss is multiplied by a power of two before the backward and the gradients are divided by it
before the step (arXiv 1710.03740 section 3.2). Where a gradient still overflows, the same batch is
repeated with half the scale. No batch is skipped, so that the order of the data stays a function of
the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from alpaca_rlhf.core import processes

T = TypeVar("T")

START = 2.0**16
"""Initial and largest scale (torch.amp.GradScaler's initial one)."""
DOUBLE_AFTER = 2000
"""Backwards without an overflow after which the scale is doubled (likewise)."""


class LossScale:
    """A power of two, shared by all parameters that get gradients from one backward.

    Args:
        dtype: Compute dtype of the base; the scale stays 1 unless it is float16.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.value = START if dtype == torch.float16 else 1.0
        self._dynamic = dtype == torch.float16
        self._clean_backwards = 0

    def backward(self, loss: Tensor) -> None:
        """Run the backward of a scalar loss, scaled."""
        (loss * self.value).backward()  # type: ignore[no-untyped-call]

    def run(
        self,
        backward: Callable[[], T],
        *,
        parameters: Iterable[nn.Parameter],
        discard: Callable[[], None],
    ) -> T:
        """Return `backward()`, repeated with half the scale as long as a gradient overflows.

        A gradient that is not finite at scale 1 is no overflow: it is left for the step to refuse.

        Args:
            backward: Accumulates scaled gradients.
            parameters: Parameters that may get one.
            discard: Clears the gradients of a failed attempt.
        """
        checked = list(parameters)
        # 1. Try a larger scale after many backwards without an overflow.
        if self._dynamic and self._clean_backwards >= DOUBLE_AFTER:
            self.value, self._clean_backwards = min(2 * self.value, START), 0
        while True:
            # 2. Backward, and done unless a gradient overflowed in any process.
            result = backward()
            if not self._dynamic or self.value <= 1 or not processes.any_of(_overflowed(checked)):
                self._clean_backwards += 1
                return result
            # 3. Halve the scale and repeat the same batch.
            discard()
            self.value, self._clean_backwards = self.value / 2, 0

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the accumulated gradients by the scale."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.value != 1 and grads:
            torch._foreach_div_(grads, self.value)

    def state(self) -> dict[str, Any]:
        """The scale, and the backwards since it last changed, for a checkpoint."""
        return {"value": self.value, "good": self._clean_backwards}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.value, self._clean_backwards = state["value"], state["good"]


def _overflowed(parameters: Iterable[nn.Parameter]) -> bool:
    return any(p.grad is not None and not bool(torch.isfinite(p.grad).all()) for p in parameters)
