"""The prompts of a run as they are now, for an app that outlives the stages of its run.

Training adds rounds with prompts of their own, and `generate` adds rows that SFT learns.
"""

from __future__ import annotations

from pathlib import Path

from alpaca_rlhf.core.runs import CONFIG, LEDGER
from alpaca_rlhf.serving import run_contents
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.sources.run_prompts import RunPrompts

_FILES = (CONFIG, LEDGER, "generate/rows.jsonl")
"""Files whose change may deal prompts anew, or add rows to learn."""


class CurrentPrompts:
    """Reads the prompts anew once a file that decides on them has changed.

    Args:
        run: The run folder.
        settings: Its settings as they are now.
    """

    def __init__(self, run: Path, settings: Loop) -> None:
        self._run = run
        self._read = (self._version(), RunPrompts(run, settings))  # replaced as a whole

    def newest(self) -> RunPrompts:
        """The prompts as they are now; the same object until a file changes.

        Raises:
            UserError: The settings of the run cannot be read any more.
        """
        # Files are looked at before they are read, so that a later change is seen the next time.
        version = self._version()
        read_version, prompts = self._read
        if version != read_version:
            prompts = RunPrompts(self._run, run_contents.settings_of(self._run))
            self._read = (version, prompts)
        return prompts

    def _version(self) -> tuple[tuple[int, int], ...]:
        return tuple(_changed(self._run / name) for name in _FILES)


def _changed(path: Path) -> tuple[int, int]:
    """Time of the last change of a file, and its size; zeros without one."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size
