"""Ctrl-C while a stage trains: the current step is finished and saved; a second one stops now."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def finishing_the_step() -> Iterator[Callable[[], bool]]:
    """Inside, the first SIGINT only makes the yielded function return True; a second interrupts.

    Nothing changes where a handler other than Python's own is installed, or outside the main
    thread, where Python allows no handlers.
    """
    interrupted = False
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return

    def on_sigint(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Logged from a thread: the signal may have come while the logger's lock is held.
        message = "finishing this step, then saving; Ctrl-C again stops at once"
        threading.Thread(target=logger.warning, args=(message,)).start()

    signal.signal(signal.SIGINT, on_sigint)
    try:
        yield lambda: interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
