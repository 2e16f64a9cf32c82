"""The command line: one file a command, and the terminal they share.

Before a command has begun, two ends are told in one line, as `shell.guarded` does later: Ctrl-C
while modules are loaded, and a Python without what this package needs. So nothing is imported
here but the standard library.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

_USUAL_HOOK = sys.excepthook


def _tell_early_end(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _end("interrupted; run it again", 130)
    package = str(getattr(error, "name", None) or "").partition(".")[0]
    if issubclass(kind, ModuleNotFoundError) and package != "alpaca_rlhf":
        _end(
            f"error: {package} is not installed for {sys.executable}; use the environment's "
            "Python, e.g. .venv/bin/python, or install it: pip install -c constraints.txt -e .",
            2,
        )
    _USUAL_HOOK(kind, error, trace)


def _end(line: str, code: int) -> None:
    for stream, text in ((sys.stdout, ""), (sys.stderr, line + "\n")):
        if stream is not None:
            stream.write(text)
            stream.flush()
    os._exit(code)  # nothing has begun, and after this hook Python would end with another code


sys.excepthook = _tell_early_end
