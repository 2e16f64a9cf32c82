"""From a run's sampled completions to the queue that people rank in the app."""

from __future__ import annotations

from pathlib import Path

from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.ui import folders
from alpaca_rlhf.ui.ranking import read_sheets

MOST = 9
"""Completions that the app shows side by side."""


def queue_sampled(run: Path, store: Store) -> int:
    """Put what every sample stage of a run drew into the queue; what is there already stays.

    Returns:
        How many prompts are new there.

    Raises:
        UserError: The run's files cannot be read.
    """
    added = 0
    for stage in folders.stages_done(run):
        if stage.partition(".")[0] != "sample":
            continue
        sheets = read_sheets(run, stage)
        rows = [
            (one.prompt, one.completions) for one in sheets if 2 <= len(one.completions) <= MOST
        ]
        added += store.add_sets(rows, origin=f"{run.name}/{stage}")
    return added
