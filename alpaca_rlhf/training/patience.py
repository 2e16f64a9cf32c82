"""Which weights were best by held-out loss, and when to stop waiting for better ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Patience:
    """Remembers the best evaluation. Part of a checkpoint, so that a resumed run stops alike.

    Args:
        limit: Evaluations without a better one after which it is exhausted; 0 waits for ever.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.best = math.inf
        self.best_step: int | None = None
        self.waited = 0

    def see(self, step: int, loss: float) -> None:
        """Note the held-out loss after `step` steps; equal is not better."""
        if loss < self.best:
            self.best, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1

    @property
    def exhausted(self) -> bool:
        """Whether as many evaluations as the limit were none of them better than the best."""
        return 0 < self.limit <= self.waited

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = state["waited"]
