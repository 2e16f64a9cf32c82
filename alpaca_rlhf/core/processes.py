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
"""How long one process waits for the others: a stage of the main process alone may take long."""


_alone = False


def count() -> int:
    """How many processes there are; 1 inside `by_main`, whatever was launched."""
    return 1 if _alone else int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def main() -> bool:
    """Whether this is the one that writes files and talks to people."""
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


def gather(own: Sequence[T]) -> list[T]:
    """What `share` dealt out, mapped one to one by each process, in the order of the whole."""
    dealt = _each(list(own))
    return [dealt[i % len(dealt)][i // len(dealt)] for i in range(sum(map(len, dealt)))]


def add(sums: Mapping[str, float]) -> dict[str, float]:
    """Sums over this process's rows to sums over all rows."""
    every = _each(dict(sums))
    return {name: sum(one[name] for one in every) for name in sums}


def any_of(asked: bool) -> bool:
    """Whether it is so in any process."""
    return any(_each(asked))


def _each(value: T) -> list[T]:
    """Every process's value, in their order; the same list in all of them."""
    if count() == 1:
        return [value]
    from accelerate.utils import gather_object

    join()
    every: list[T] = gather_object([value])
    return every


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes, in place; one that has none counts as 0."""
    if count() == 1:
        return
    import torch
    from accelerate.utils import reduce

    join()
    learned = list(parameters)
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
    whole: Tensor = reduce(torch.cat([one.flatten() for one in own]), "sum")
    start = 0
    for parameter in learned:
        parameter.grad = whole[start : start + parameter.numel()].view_as(parameter).clone()
        start += parameter.numel()


def wait() -> None:
    """Go on when every process is here."""
    if count() > 1:
        from accelerate.utils import wait_for_everyone

        join()
        wait_for_everyone()


def by_main(work: Callable[[], None]) -> None:
    """Do something in the main process alone while the others wait.

    There `count` is 1, so what is done may itself be made for several processes.

    Raises:
        UserError: The main process refused, or was interrupted; the others do too.
    """
    global _alone
    if count() == 1:
        work()
        return
    from accelerate.utils import broadcast_object_list

    join()
    ended: list[BaseException | None] = [None]
    if main():
        _alone = True
        try:
            work()
        except (UserError, KeyboardInterrupt) as error:
            ended = [error]
        finally:
            _alone = False
    broadcast_object_list(ended)
    if ended[0] is not None:
        raise ended[0]
