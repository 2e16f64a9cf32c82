"""The standing of the prompts of a run in the ranking, round by round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alpaca_rlhf.core.runs import finished
from alpaca_rlhf.preferences.standing import Standing
from alpaca_rlhf.sources.sampled import candidate_sets

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.store import Store


def standing_of_stage(run: Path, stage: str, store: Store) -> Standing:
    """The standing of the prompts of a sample stage (`sample`, in later rounds `sample.2` ...).

    Raises:
        UserError: The stage is not there, or cannot be read.
    """
    prompts = [prompt.id for prompt, _ in candidate_sets(run, stage)]
    return Standing.of(store.statuses(prompts).values())


def standing_by_round(run: Path, store: Store) -> dict[int, Standing]:
    """The standing of each round of a run that has sampled, by its number.

    Raises:
        UserError: The run's files cannot be read.
    """
    stages = [name for name in finished(run) if name.partition(".")[0] == "sample"]
    rounds = {int(stage.partition(".")[2] or 1): stage for stage in stages}
    return {
        number: standing_of_stage(run, stage, store) for number, stage in sorted(rounds.items())
    }
