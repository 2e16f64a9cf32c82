"""From a run's sampled completions to the queue that people rank in the app."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.data import read_prompts
from alpaca_rlhf.preferences.assignment import FEWEST, distinct
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.serving import folders


@dataclass(frozen=True)
class Sheet:
    """One prompt and the completions to put in order."""

    prompt: Instruction
    """What was asked."""
    completions: tuple[Completion, ...]
    """The answers."""


def read_sheets(run: Path, stage: str) -> list[Sheet]:
    """What a run's sample stage drew, in its order.

    Args:
        run: The run folder.
        stage: `sample`, in later rounds `sample.2` ...

    Raises:
        UserError: It is not there, or cannot be read.
    """
    prompts = {row.id: row for row in read_prompts(run / stage / "prompts.jsonl")}
    path = run / stage / "completions.jsonl"
    own: dict[str, list[Completion]] = {one: [] for one in prompts}
    try:
        for line in path.read_text(encoding="utf-8").strip("\n").split("\n"):
            row = json.loads(line)
            row.pop("id")
            own[row["prompt_id"]].append(Completion(**row))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); begin anew in another --out") from None
    return [Sheet(prompt, tuple(own[key])) for key, prompt in prompts.items()]


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
