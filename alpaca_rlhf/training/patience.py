"""Early stopping: the step with the lowest held-out loss, and when to stop waiting for a lower."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class Patience:
    """Track the best evaluation; part of a checkpoint, so a resumed run stops at the same step.

    Args:
        limit: Evaluations without an improvement after which it is exhausted; 0 waits for ever.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.best = math.inf
        self.best_step: int | None = None
        self.waited = 0

    def observe(self, step: int, loss: float) -> None:
        """Record the held-out loss after `step` steps; an equal loss is no improvement."""
        if loss < self.best:
            self.best, self.best_step, self.waited = loss, step, 0
        else:
            self.waited += 1

    @property
    def exhausted(self) -> bool:
        """True once `limit` evaluations in a row have not improved on the best loss."""
        return 0 < self.limit <= self.waited

    def state(self) -> dict[str, Any]:
        """Best loss, its step, and evaluations since, for a checkpoint."""
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.waited = state["waited"]
