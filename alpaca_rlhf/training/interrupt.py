"""Ctrl-C while a stage trains: the step under way is finished and saved; a second one stops now."""

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
    """Inside, the first SIGINT only makes what is yielded return True; the handler is put back.

    Where it is not Python's own handler that would be replaced, or in another thread than the main
    one (where Python sets no handlers), nothing is changed.
    """
    asked = False
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # Told from a thread: the signal may have come in the middle of another line of the log.
        told = "finishing this step, then saving; Ctrl-C again stops at once"
        threading.Thread(target=logger.warning, args=(told,)).start()

    signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
