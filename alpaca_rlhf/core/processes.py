"""One process or several, as `accelerate launch --num_processes N` starts them, one a GPU.

Without GPUs accelerate 1.15 starts a single process, unless it is told `--multi_gpu`; then they
meet over gloo, as they do under `torchrun`.

Every process holds the whole model and the same adapters. Each works on its share of a batch's
rows; sums over rows (gradients, losses, counts) are then added over all of them, so each takes the
same step, and no wrapper stands round the model. Only the main process writes files.

A single process never touches `torch.distributed`: with one, every function here is the identity.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from alpaca_rlhf.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

_PATIENCE = timedelta(days=7)
"""Time that one process waits for the others: a stage of the main process alone may take long."""

_alone = False


def count() -> int:
    """The number of processes; 1 inside `by_main`, whatever was launched."""
    return 1 if _alone else int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def main() -> bool:
    """True in the process that writes files and talks to people."""
    return index() == 0


@cache
def join() -> None:
    """Meet the other processes; each takes its own device. Nothing where there is one process."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        # left to the interpreter's end, gloo's threads abort the process now and then
        atexit.register(state.destroy_process_group)


def share(items: Sequence[T]) -> list[T]:
    """This process's part of a batch: every n-th item. It may be empty."""
    return list(items[index() :: count()])


def gather(results: Sequence[T]) -> list[T]:
    """Results of every process for its `share` of the items, in the order of all items."""
    shares = _from_each(list(results))
    # `share` deals in turn, so item i is number i // n of process i % n.
    return [shares[i % len(shares)][i // len(shares)] for i in range(sum(map(len, shares)))]


def add(sums: Mapping[str, float]) -> dict[str, float]:
    """Add sums over this process's rows to those of all other processes."""
    sums_of_processes = _from_each(dict(sums))
    return {name: sum(local[name] for local in sums_of_processes) for name in sums}


def any_of(condition: bool) -> bool:
    """True where the condition holds in at least one process."""
    return any(_from_each(condition))


def _from_each(value: T) -> list[T]:
    """The values of all processes, in their order; the same list in each."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    join()
    values: list[T] = gather_object([value])
    return values


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place; one that has none counts as 0."""
    if count() == 1:
        return
    import torch
    from accelerate.utils import reduce

    join()
    trainable = list(parameters)
    # One flat tensor, so that the processes meet once and not once a parameter.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trainable]
    total: Tensor = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
    start = 0
    for parameter in trainable:
        # A copy, since a view would keep the whole flat tensor alive.
        parameter.grad = total[start : start + parameter.numel()].view_as(parameter).clone()
        start += parameter.numel()


def from_main(work: Callable[[], T]) -> T:
    """Return what `work` returns in the main process; the others wait for it.

    Raises:
        UserError: The main process refused, or was interrupted; the others do too.
    """
    results: list[T] = []
    by_main(lambda: results.append(work()))
    return next(result for results in _from_each(results) for result in results)


def wait() -> None:
    """Block until every process has arrived."""
    if count() > 1:
        from accelerate.utils import wait_for_everyone

        join()
        wait_for_everyone()


def by_main(work: Callable[[], None]) -> None:
    """Run `work` in the main process alone while the others wait.

    Inside it `count` is 1, so the work may call code that is written for several processes.

    Raises:
        UserError: The main process refused, or was interrupted; the others do too.
    """
    global _alone
    if count() == 1:
        work()
        return
    from accelerate.utils import broadcast_object_list

    join()
    failure: list[BaseException | None] = [None]
    if main():
        _alone = True
        try:
            work()
        except (UserError, KeyboardInterrupt) as error:
            failure = [error]
        finally:
            _alone = False
    # The others must hear of a refusal, or they would wait for ever.
    broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]
