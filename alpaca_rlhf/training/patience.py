"""The step whose weights stay, and when a stage ends before its last one: by held-out loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol


class Stopping(Protocol):
    """Follows a stage's evaluations: which weights stay, and whether it ends early."""

    @property
    def kept_step(self) -> int | None:
        """Step whose weights stay; None keeps the last."""
        ...

    @property
    def exhausted(self) -> bool:
        """True once the stage must end."""
        ...

    def observe(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record what was measured after `step` steps."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        ...


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

    @property
    def kept_step(self) -> int | None:
        """Step of the lowest loss, where there is a limit."""
        return self.best_step if self.limit else None

    def observe(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record `eval_loss`, if it was measured; an equal loss is no improvement."""
        if "eval_loss" not in metrics:
            return
        loss = metrics["eval_loss"]
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
