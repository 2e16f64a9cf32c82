"""Ctrl-C while a stage trains: the current step is finished and saved; a second one stops now.

On Windows Ctrl-Break does the same, by which the app stops a training.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from alpaca_rlhf.core import interrupts

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def finishing_the_step() -> Iterator[Callable[[], bool]]:
    """Inside, the first interrupt only makes the yielded function return True; a second interrupts.

    Nothing changes where a handler other than Python's own is installed, or outside the main
    thread, where Python allows no handlers.
    """
    interrupted = False
    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [n for n in interrupts.numbers() if signal.getsignal(n) is signal.default_int_handler]
    if not in_main_thread or not ours:
        yield lambda: False
        return

    def handle(handler: Callable[[int, FrameType | None], object]) -> None:
        for number in ours:
            signal.signal(number, handler)

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        handle(signal.default_int_handler)
        # Logged from a thread: the signal may have come while the logger's lock is held.
        message = "finishing this step, then saving; Ctrl-C again stops at once"
        threading.Thread(target=logger.warning, args=(message,)).start()

    handle(on_interrupt)
    try:
        yield lambda: interrupted
    finally:
        handle(signal.default_int_handler)
