"""The process around a judge: what a user's code changes of it holds for that code alone.

A judge may move to its own folder, set a variable of the environment, or switch gradients off. None
of that may reach the run: a relative `--out` would lie elsewhere, and nothing would be learned.
Global random generators stay as a judge leaves them, since the kit draws from none of them.
"""

from __future__ import annotations

import contextlib
import locale
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_TORCH_SWITCHES: dict[tuple[str, str], Any] = {
    ("is_grad_enabled", "set_grad_enabled"): True,
    ("get_default_dtype", "set_default_dtype"): None,
    ("get_default_device", "set_default_device"): None,
    ("get_num_threads", "set_num_threads"): None,
    ("get_float32_matmul_precision", "set_float32_matmul_precision"): "highest",
    ("are_deterministic_algorithms_enabled", "use_deterministic_algorithms"): False,
}
"""Functions of torch that read and set something for the whole process, and the value that a fresh
torch has; None if it is left alone where a judge is the first to load torch."""


@dataclass
class JudgeProcess:
    """A judge's own folder, environment and switches of torch, kept from one call to the next."""

    _folder: str | None = None
    _variables: dict[str, str | None] = field(default_factory=dict)
    _switches: dict[tuple[str, str], Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Run a judge's code in a process as it left it, and put the process back after it.

        Put back are the working folder, the environment, the locale, the handlers of SIGINT and
        SIGTERM, and torch's global switches. What the judge prints goes to stderr, since stdout is
        the program's.
        """
        # 1. The process as it is, then the judge's folder, variables and switches.
        folder, variables = os.getcwd(), dict(os.environ)
        language, handlers, switches = locale.setlocale(locale.LC_ALL), _handlers(), _switches()
        if self._folder is not None:
            with contextlib.suppress(OSError):  # it is gone, and the judge will say so
                os.chdir(self._folder)
        _set_variables(self._variables)
        _put_back(self._switches)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            # 2. Keep those three for the next call.
            self._switches = {
                names: value for names, value in _switches().items() if value != switches[names]
            }
            self._variables = _changes(variables, os.environ)
            self._folder = None
            with contextlib.suppress(OSError):  # the judge may have deleted it
                self._folder = os.getcwd() if os.getcwd() != folder else None
            # 3. Put everything back.
            os.chdir(folder)
            _set_variables(_changes(os.environ, variables))
            if locale.setlocale(locale.LC_ALL) != language:
                locale.setlocale(locale.LC_ALL, language)
            for number, handler in handlers.items():
                if signal.getsignal(number) != handler:
                    signal.signal(number, handler)
            _put_back(switches)


def _handlers() -> dict[signal.Signals, Any]:
    """The handlers that this thread may set again."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return {number: handler for number, handler in handlers.items() if handler is not None}


def _switches() -> dict[tuple[str, str], Any]:
    """Values of torch's switches; without torch, those that it will begin with."""
    torch = sys.modules.get("torch")
    if torch is None:
        return _TORCH_SWITCHES
    return {names: getattr(torch, names[0])() for names in _TORCH_SWITCHES}


def _put_back(switches: Mapping[tuple[str, str], Any]) -> None:
    torch = sys.modules.get("torch")
    if torch is None:
        return
    for (reader, setter), value in switches.items():
        if value is not None and getattr(torch, reader)() != value:
            # torch says `cpu` where no default device is set, and setting that is not the same.
            unset = value == torch.device("cpu")
            getattr(torch, setter)(None if unset else value)


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that differ, by their value after; None for those that are gone."""
    names = {*before, *after}
    return {name: after.get(name) for name in names if before.get(name) != after.get(name)}


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
