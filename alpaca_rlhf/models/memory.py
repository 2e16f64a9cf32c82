"""Where memory runs out: told from other errors, freed, and the work done again in parts."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from alpaca_rlhf.core.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: torch's own error; on the CPU it is a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    told = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(one in str(error) for one in told)


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def halving(
    groups: Iterable[list[int]], work: Callable[[list[int]], T], *, lower: str
) -> Iterator[tuple[list[int], T]]:
    """Each group with what `work` makes of it; where memory runs out, it and the rest are halved.

    For work whose result for an index does not depend on the others of its group.

    Args:
        groups: Indices.
        work: Told a group; done again from its start where memory runs out.
        lower: What to lower where not even one index fits.

    Raises:
        UserError: Memory does not suffice for one.
    """
    left, most = deque(groups), 0
    while left:
        group = left.popleft()
        if most and len(group) > most:
            left.extendleft((group[len(group) // 2 :], group[: len(group) // 2]))
            continue
        try:
            found = work(group)
        except Exception as error:
            if not out_of_memory(error):
                raise
        else:
            yield group, found
            continue
        # Only here, outside the handler, the traceback has let go of the failed try's tensors.
        free()
        if len(group) == 1:
            raise UserError(
                f"out of memory with one at a time; lower {lower}, or use a smaller base"
            )
        most = len(group) // 2
        left.appendleft(group)
        logger.warning("out of memory with %d at once; goes on with %d", len(group), most)
