"""How many rows are in memory at once: halved where memory does not suffice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.memory import free, out_of_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")


class MicroBatch:
    """The size of a micro-batch, shared by all steps of a stage.

    Losses are sums over rows divided by counts of the whole optimiser batch, so its size never
    changes the result.

    Args:
        stage: For messages, e.g. `sft`.
        flag: The size's flag, likewise, e.g. `--sft.micro-batch-size`.
        size: Rows at once, to begin with.
        lower: The flag to lower where not even one row fits, e.g. `--sft.max-length`.
    """

    def __init__(self, stage: str, flag: str, size: int, *, lower: str) -> None:
        self.stage = stage
        self.flag = flag
        self.size = size
        self.lower = lower

    def state(self) -> dict[str, Any]:
        """The size, for a checkpoint: who goes on must not run out of memory again."""
        return {"size": self.size}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """The smaller one of what was reached and what is asked for now."""
        self.size = min(self.size, state["size"])

    def run(self, work: Callable[[int], T], *, forget: Callable[[], None] = lambda: None) -> T:
        """`work(size)`; where memory runs out it is done again from its start with half the size.

        Args:
            work: Runs forwards, and backwards if it likes, of so many rows at once.
            forget: Drops what a failed try left behind: the gradients it has added so far.

        Raises:
            UserError: Memory does not suffice for one row.
        """
        while True:
            try:
                return work(self.size)
            except Exception as error:
                if not out_of_memory(error):
                    raise
            # Only here, outside the handler, the traceback has let go of the failed try's tensors.
            forget()
            free()
            if self.size == 1:
                raise UserError(
                    f"{self.stage}: out of memory with {self.flag} 1; lower {self.lower}, "
                    "or use a smaller base"
                )
            logger.warning(
                "%s: out of memory with %s %d; goes on with %d, and the same result",
                self.stage,
                self.flag,
                self.size,
                self.size // 2,
            )
            self.size //= 2
