"""From a run's sampled completions to the queue that people rank in the app."""

from __future__ import annotations

from pathlib import Path

from alpaca_rlhf.preferences.assignment import FEWEST, distinct
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.ui import folders
from alpaca_rlhf.ui.ranking import read_sheets


def queue_sampled(run: Path, store: Store) -> int:
    """Put what every sample stage of a run drew into the queue; what is there already stays.

    Of completions that say the same one is shown, and a prompt with only one is nothing to rank.

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
        rows = [(one.prompt, distinct(one.completions)) for one in sheets]
        told = [row for row in rows if len(row[1]) >= FEWEST]
        added += store.add_sets(told, origin=f"{run.name}/{stage}")
    return added
