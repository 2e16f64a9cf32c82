"""The run that the app is on: the one that it was started on, or one that the page has chosen.

    .app-<name>    in the folder of runs: name of the run that the app has gone on to which was
                   started on <name>

The choice is on the disk before the app follows it, so that it outlives a restart and a kill.
"""

from __future__ import annotations

import re
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.serving import run_contents

MAX_NAME_CHARS = 40
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{MAX_NAME_CHARS - 1}}}")
UPLOADS = "uploads"
"""Folder of uploaded files, beside the runs."""


class RunChoice:
    """The choice of an app, and the runs that it can choose from.

    Args:
        started_on: The run folder that the app was started on; it may be absent.
    """

    def __init__(self, started_on: Path) -> None:
        has_name = started_on.name not in ("", "..")
        self.started_on = started_on if has_name else started_on.resolve()
        started_on = self.started_on
        self.folder = started_on.parent
        self.file = self.folder / f".app-{started_on.name}"

    @property
    def current(self) -> Path:
        """The run that the app is on. A chosen one that is gone or damaged counts for nothing."""
        try:
            name = self.file.read_text(encoding="utf-8").strip()
            if name in self.runs():
                run_contents.settings_of(self.folder / name)
                return self.folder / name
        except (OSError, ValueError, UserError):
            pass
        return self.started_on

    def choose(self, name: str) -> Path:
        """Go on with a run of the folder, and return it.

        Raises:
            UserError: There is no such run, its settings cannot be read, or the choice cannot be
                written.
        """
        if name == self.started_on.name:
            self.file.unlink(missing_ok=True)
            return self.started_on
        if name not in self.runs():
            raise UserError(f"{name!r} is not a run of {self.folder}")
        run_contents.settings_of(self.folder / name)
        atomic_write(self.file, f"{name}\n")
        return self.folder / name

    def runs(self) -> list[str]:
        """Names of the runs in the folder: no name that is not of this list is ever followed."""
        try:
            folders = [path for path in self.folder.iterdir() if not path.name.startswith(".")]
        except OSError:
            return []
        return sorted(path.name for path in folders if run_contents.holds_run(path))


def is_run_name(name: str) -> bool:
    """True for a name that a new run may have: a plain folder name, the same on every system."""
    return bool(_NAME.fullmatch(name)) and name.lower() != UPLOADS
