"""Checkpoints of one stage: each written whole or not at all, the last few and the best kept.

A checkpoint holds the trainable weights (adapter and heads), optimiser, schedule, and whatever else
a stage counts, after a number of steps. It holds no random state: data order, noise and initial
weights are functions of the seed, the step and names, and nothing is drawn from a global generator,
so the number of steps done determines all randomness that follows.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.files import atomic_write, json_text


class Checkpoints:
    """Checkpoints of one stage.

    Args:
        folder: Their folder; created when first needed.
        keep: Number of newest checkpoints that stay, beside the best.
        bad_batches: Folder for batches without a finite loss or gradient; by default inside
            `folder`.
    """

    def __init__(self, folder: Path, *, keep: int = 2, bad_batches: Path | None = None) -> None:
        self.folder = folder
        self.keep = keep
        self.bad_batches = bad_batches or folder / "bad_batch"

    def save(self, step: int, state: dict[str, Any], *, best: int | None = None) -> None:
        """Write the state after `step` steps, and delete older checkpoints.

        Of several processes, which hold the same state, one writes; all wait for it.

        Args:
            step: Steps done.
            state: Tensors, numbers and text only: it is read back with `weights_only`.
            best: Step whose checkpoint stays however old it is.
        """
        if processes.main():
            self._write(step, state, best)
        processes.wait()

    def _write(self, step: int, state: dict[str, Any], best: int | None) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write(self._at(step) / "state.pt", buffer.getvalue())
        for folder in self._saved()[: -self.keep]:
            if _step_of(folder) != best:
                shutil.rmtree(folder)

    def step(self) -> int:
        """Steps done at the newest complete checkpoint; 0 if there is none."""
        saved = self._saved()
        return _step_of(saved[-1]) if saved else 0

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest complete checkpoint: steps done, and the state."""
        step = self.step()
        return (step, self.load(step)) if self._saved() else None

    def load(self, step: int) -> dict[str, Any]:
        """State after `step` steps, for which there must be a checkpoint."""
        state: dict[str, Any] = torch.load(
            self._at(step) / "state.pt", weights_only=True, map_location="cpu"
        )
        return state

    def clear(self) -> None:
        """Delete all of them: the stage is done and its result written."""
        if processes.main():
            shutil.rmtree(self.folder, ignore_errors=True)

    def save_bad_batch(self, step: int, rows: Sequence[dict[str, Any]]) -> Path:
        """Write the batch that a step failed on, for a person to read; returns the file."""
        path = self.bad_batches / f"step-{step:06d}.json"
        value = {"step": step, "rows": list(rows)}
        if processes.main():
            atomic_write(path, json_text(value, path.name, indent=2) + "\n")
        return path

    def _at(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _saved(self) -> list[Path]:
        folders = self.folder.glob("step-*")
        return sorted(folder for folder in folders if (folder / "state.pt").is_file())


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
