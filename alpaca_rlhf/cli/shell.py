"""The frame around every command: flags, help and exit codes.

Exit codes: 0 done; 2 the user can mend it, told in one line; 130 interrupted. Anything else is a
bug and keeps its traceback.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from alpaca_rlhf.cli.terminal import Terminal, plain
from alpaca_rlhf.core import interrupts, locks, processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import FULL, is_full

T = TypeVar("T")

HELP_ALL = "--help-all"
"""Shows every flag of a command; `--help` shows those that people need first."""

_BAD_PATHS = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
)
"""Errors of the system about a path of the user's."""
_MAX_PATH_CHARS = 120
_MEMORY_FLAGS = {
    "generate": "--generate.batch-size",
    "sft": "--sft.micro-batch-size",
    "reward": "--reward.micro-batch-size",
    "ppo": "--ppo.micro-batch-size",
    "best_of_k": "--sft.micro-batch-size",
    "dpo": "--dpo.micro-batch-size",
    "grpo": "--grpo.micro-batch-size",
    "rloo": "--rloo.micro-batch-size",
}
"""Flags to lower when a stage runs out of GPU memory; none of them changes the result."""


def guarded(body: Callable[[], int], *, command: str, terminal: Terminal) -> int:
    """Run a command and turn how it ends into an exit code.

    Args:
        body: The command; returns its exit code.
        command: The command line that goes on after an interruption.
        terminal: Stopped before anything is told; knows the stage.
    """
    interrupts.heed()
    locks.take_over()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a poor locale must not stop a run
    ours, handler = logging.getLogger("alpaca_rlhf"), _WarningsToTerminal(terminal)
    ours.addHandler(handler)
    try:
        # The terminal's live line ends before anything is told.
        with terminal:
            code = body()
            sys.stdout.flush()
        return code
    except SystemExit as stop:  # after help was printed
        return int(stop.code or 0)
    except UserError as error:
        return _tell(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _tell(f"interrupted; what was done is kept. To go on: {command}", 130)
    except BrokenPipeError:
        _drop_output()
        return _tell(f"the output was closed; what was done is kept. To go on: {command}", 130)
    except Exception as error:
        # Three failures are the user's to mend though no UserError: a full disk, a path that the
        # system refuses even to look at, a full card.
        if is_full(error):
            where = getattr(error, "filename", None) or "something"
            return _tell(
                f"error: {where}: cannot be written (No space left on device); {FULL}: {command}", 2
            )
        if isinstance(error, OSError) and error.errno in _BAD_PATHS and error.filename is not None:
            where, reason = str(error.filename)[:_MAX_PATH_CHARS], error.strerror
            return _tell(f"error: {where}: {reason}; give another path, or mend this one", 2)
        if type(error).__name__ != "OutOfMemoryError":  # torch's; torch may not be loaded
            raise
        stage = (terminal.stage or "").partition(".")[0]
        flag = _MEMORY_FLAGS.get(stage, "--sampling.batch-size")
        way_out = (
            "end what else uses the card and run it again"
            if stage == "export"
            else f"go on with a smaller {flag} (the result stays the same)"
        )
        return _tell(f"error: {stage or 'the base'}: out of GPU memory; {way_out}", 2)
    finally:
        ours.removeHandler(handler)


def open_streams() -> bool:
    """Open the standard streams that were closed at the start; False if the output was.

    Else the next file that is opened would take the place of one, and what is printed would end
    up in it. A closed input is one that has ended.
    """
    has_output = sys.stdout is not None
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))
    return has_output


def refuse_closed_output(command: str) -> int:
    """Say that the output is closed; returns the exit code."""
    return _tell(f"error: the output is closed; give it a file: {command} > log.txt", 2)


def printed(text: str) -> int:
    """Write a text to a reader who may leave before its end, as `head` does."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
    return 0


def command_line(program: str, arguments: Sequence[str]) -> str:
    """The command as it can be typed again; `program` is taken as it is."""
    return " ".join([program, shlex.join(arguments)]).strip()


def wants_help(arguments: Sequence[str]) -> Literal["first", "all"] | None:
    """The help that is asked for among the arguments: on the first flags, or on all."""
    if HELP_ALL in arguments:
        return "all"
    return "first" if "-h" in arguments or "--help" in arguments else None


def parsed(
    cls: type[T], arguments: Sequence[str], *, prog: str, about: str, default: T | None = None
) -> T:
    """The flags of a command as a dataclass; see `settings.parsing.parse`.

    Raises:
        UserError: A flag is wrong.
        SystemExit: Help was asked for, and printed to a reader who may leave before its end.
    """
    from alpaca_rlhf.settings.parsing import (
        parse,  # tyro is slow to load, and the overview needs none
    )

    if not wants_help(arguments):
        with naming_newer_runs():
            return parse(cls, arguments, prog=prog, description=about, default=default)
    help_wanted = ["--help"]
    if sys.stdout.isatty():
        return parse(cls, help_wanted, prog=prog, description=about, default=default)
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse(cls, help_wanted, prog=prog, description=about, default=default)
    raise SystemExit(printed(text.getvalue()))


@contextlib.contextmanager
def naming_newer_runs() -> Iterator[None]:
    """Name the version of a run whose `config.yaml` is given as `--config` and not understood."""
    try:
        yield
    except UserError as error:
        from alpaca_rlhf.serving.run_contents import other_version

        place = re.match(r"(?P<folder>.*?)config\.yaml:\d+: ", str(error))
        remedy = "leave out what it does not know"
        version = other_version(Path(place["folder"]), remedy) if place else ""
        raise UserError(f"{error}{version}") from None


class _WarningsToTerminal(logging.Handler):
    """Shows what our own modules warn of."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        self._terminal.say(f"warning: {record.getMessage()}")


def _tell(line: str, code: int) -> int:
    if code == 130 and not processes.main():  # all are interrupted together: told once
        return code
    sys.stderr.write(plain(" ".join(line.splitlines())) + "\n")
    return code


def _drop_output() -> None:
    """Let the interpreter's last flush fail on nothing."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
