"""Out of memory: the same work again with half as many rows at once, in every stage.

Training repeats a step with a smaller micro-batch (`MicroBatch`); sampling and scoring go on in
smaller batches (`shrink_on_oom`, `halve_on_oom`). Neither changes a result.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch

from alpaca_rlhf.core import allocator
from alpaca_rlhf.core.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""Texts of allocation errors raised outside torch's CUDA allocator."""


def is_out_of_memory(error: BaseException) -> bool:
    """True for torch's own error and for the plain RuntimeError of the CPU and of cuBLAS."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MESSAGES)


def attempt(
    work: Callable[[], T], *, discard: Callable[[], None] = lambda: None
) -> tuple[T] | None:
    """Run `work`; return its result in a tuple, or None where memory ran out.

    Args:
        work: Run once.
        discard: Called where memory ran out: drops the gradients added so far.
    """
    try:
        return (work(),)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    # Only outside the handler has the traceback let go of the failed attempt's tensors.
    discard()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def shrink_on_oom(size: int, work: Callable[[int], None], *, lower: str) -> None:
    """Run `work(size)`; where memory runs out, let it go on with half the size.

    Args:
        size: Number of things at once, to begin with.
        work: Called again with a smaller size where memory ran out; keeps what it has done.
        lower: What the user can lower where not even one fits.

    Raises:
        UserError: Memory does not suffice for one.
    """
    while attempt(partial(work, size)) is None:
        if size == 1:
            raise UserError(
                f"out of memory with one at a time; lower {lower}, or use a smaller base"
            )
        logger.warning("out of memory with %d at once; continuing with %d", size, size // 2)
        size //= 2


def halve_on_oom(
    batches: Iterable[list[int]], work: Callable[[list[int]], T], *, lower: str
) -> Iterator[tuple[list[int], T]]:
    """Run `work` on each batch; where memory runs out, halve that batch and all that follow.

    For work whose result for an index does not depend on the other indices of its batch.

    Args:
        batches: Indices.
        work: Called with the indices of one batch, again from its start where memory ran out.
        lower: What the user can lower where not even one index fits.

    Yields:
        The indices of a batch, and the result of `work` for them.

    Raises:
        UserError: Memory does not suffice for one index.
    """
    pending, max_rows = deque(batches), 0
    growth = allocator.Growth()
    while pending:
        batch = pending.popleft()
        # 1. Split a batch that is larger than what is known to fail.
        if max_rows and len(batch) > max_rows:
            pending.extendleft((batch[len(batch) // 2 :], batch[: len(batch) // 2]))
            continue
        # 2. Try it.
        done = attempt(partial(work, batch))
        if done is not None:
            growth.trim()
            yield batch, done[0]
            continue
        # 3. Lower the limit and try again.
        if len(batch) == 1:
            raise UserError(
                f"out of memory with one at a time; lower {lower}, or use a smaller base"
            )
        max_rows = len(batch) // 2
        pending.appendleft(batch)
        logger.warning("out of memory with %d at once; continuing with %d", len(batch), max_rows)


class MicroBatch:
    """The size of a micro-batch, shared by all steps of a stage.

    Losses are sums over rows divided by counts of the whole optimiser batch, so the size never
    changes the result.

    Args:
        stage: Name of the stage in messages, e.g. `sft`.
        flag: Flag of the size in messages, e.g. `--sft.micro-batch-size`.
        size: Rows at once, to begin with.
        lower: Flag to lower where not even one row fits, e.g. `--sft.max-length`.
    """

    def __init__(self, stage: str, flag: str, size: int, *, lower: str) -> None:
        self.stage = stage
        self.flag = flag
        self.size = size
        self.lower = lower

    def state(self) -> dict[str, Any]:
        """The size, for a checkpoint: a resumed run must not run out of memory again."""
        return {"size": self.size}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take the smaller of the size reached before and the size set now."""
        self.size = min(self.size, state["size"])

    def run(self, work: Callable[[int], T], *, discard: Callable[[], None] = lambda: None) -> T:
        """Return `work(size)`, repeated from its start with half the size while memory runs out.

        Args:
            work: Runs forwards, and backwards if it likes, of so many rows at once.
            discard: Drops what a failed attempt left behind: the gradients added so far.

        Raises:
            UserError: Memory does not suffice for one row.
        """
        while True:
            done = attempt(lambda: work(self.size), discard=discard)
            if done is not None:
                return done[0]
            if self.size == 1:
                raise UserError(
                    f"{self.stage}: out of memory with {self.flag} 1; lower {self.lower}, "
                    "or use a smaller base"
                )
            logger.warning(
                "%s: out of memory with %s %d; continuing with %d, and the same result",
                self.stage,
                self.flag,
                self.size,
                self.size // 2,
            )
            self.size //= 2
