"""One small quickstart for all tests that look at a whole run, or compare another with it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest

from alpaca_rlhf.core import files
from alpaca_rlhf.core.locks import Lock
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.parsing import parse
from alpaca_rlhf.settings.quickstart import QUICKSTART
from tests.prove import SMALL


class Quiet:
    """A reporter that remembers the stages, and may stop the run in the middle of one."""

    def __init__(self, stop_in: str | None = None) -> None:
        self.stop_in = stop_in
        self.started: list[str] = []

    def start(self, stage, what):
        self.started.append(stage)
        if stage == self.stop_in and stage.startswith("rank"):
            raise KeyboardInterrupt  # it has no steps

    def step(self, stage, done, total, metrics):
        if stage == self.stop_in and (done > total / 2 or total == 1):
            raise KeyboardInterrupt

    def preview(self, stage, what, segments):
        pass

    def say(self, text): ...

    def finish(self, stage, what):
        pass


def small(out: Path, **changes) -> Loop:
    """The settings of a small quickstart."""
    settings = parse(Loop, SMALL, prog="test", description="", default=QUICKSTART)
    return replace(settings, out=out, **changes)


@dataclass(frozen=True)
class WholeRun:
    """A finished run that nobody disturbed; tests copy it before they change anything."""

    out: str
    """Its folder."""
    flushes: int
    """Calls of fsync."""
    peak: int
    """Bytes of the folder at its largest."""

    @property
    def path(self) -> Path:
        """Its folder."""
        return Path(self.out)


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def make_once(shared: Path) -> WholeRun:
    """Run it, unless another worker of the same session has.

    Args:
        shared: A folder that all workers see.
    """
    described = shared / "whole-run.json"
    with Lock(shared / "whole-run.lock", wait=True):
        if not described.exists():
            described.write_text(json.dumps(asdict(_watched(shared / "whole-run"))))
    return WholeRun(**json.loads(described.read_text()))


def _watched(out: Path) -> WholeRun:
    sizes = []
    flush = os.fsync

    def watch(number: int) -> None:
        sizes.append(size_of(out) if out.exists() else 0)
        flush(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "fsync", watch)
        run_loop(small(out), Quiet(), kind="quickstart", command="test")
    return WholeRun(str(out), len(sizes), max(sizes))
