"""Asking a process to finish its step and save: SIGINT, on Windows Ctrl-Break.

On Windows `os.kill` with SIGINT ends a process at once. The events of its console reach a group of
processes instead: Ctrl-C every one that shares the console, Ctrl-Break a group of its own
(learn.microsoft.com, GenerateConsoleCtrlEvent).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any


def apart() -> dict[str, Any]:
    """Options of `Popen` for a process that `interrupt` reaches and Ctrl-C at this one does not."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def interrupt(pid: int) -> None:
    """Interrupt a process as Ctrl-C does.

    On Windows only one that was started `apart` at the same console.

    Raises:
        OSError: It has ended, is another user's, or on Windows cannot be reached.
    """
    if sys.platform == "win32":
        os.kill(pid, signal.CTRL_BREAK_EVENT)
    else:
        os.kill(pid, signal.SIGINT)


def numbers() -> list[int]:
    """The signals by which this process may be interrupted."""
    if sys.platform == "win32":
        return [signal.SIGINT, signal.SIGBREAK]
    return [signal.SIGINT]


def heed() -> None:
    """Let Ctrl-Break raise KeyboardInterrupt as Ctrl-C does; it would end this process unsaved."""
    if sys.platform == "win32":
        signal.signal(signal.SIGBREAK, signal.default_int_handler)
