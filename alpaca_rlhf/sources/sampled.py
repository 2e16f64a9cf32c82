"""The completions that a run has sampled, to be ranked by people or judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alpaca_rlhf.core import jsonl
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Completion, Instruction
from alpaca_rlhf.core.runs import finished
from alpaca_rlhf.data import read_own_tasks
from alpaca_rlhf.preferences.assignment import MIN_ANSWERS, Candidates, distinct

if TYPE_CHECKING:
    from alpaca_rlhf.preferences.store import Store


UNCERTAINTY = "uncertainty.jsonl"
"""Beside the completions of a sample stage whose prompts are in the order of their entropy."""


@dataclass(frozen=True)
class Sheet:
    """One prompt and the completions to put in order."""

    prompt: Instruction
    """The request."""
    completions: tuple[Completion, ...]
    """The answers."""


def read_sheets(run: Path, stage: str) -> list[Sheet]:
    """The prompts of a run's sample stage with all their completions, in its order.

    Args:
        run: The run folder.
        stage: `sample`, in later rounds `sample.2` ...

    Raises:
        UserError: It is not there, or cannot be read.
    """
    prompts = {
        prompt.id: prompt
        for prompt in read_own_tasks(run / stage / "prompts.jsonl", answered=False)
    }
    path = run / stage / "completions.jsonl"
    completions: dict[str, list[Completion]] = {key: [] for key in prompts}
    mend = "begin anew in another --out"
    for line in jsonl.lines(path, expected="a completion", mend=mend, whole=True):
        columns = {name: value for name, value in line.value.items() if name != "id"}
        try:
            completions[columns["prompt_id"]].append(Completion(**columns))
        except (KeyError, TypeError):
            raise UserError(f"{path}:{line.number}: is not a completion; {mend}") from None
    return [Sheet(prompt, tuple(completions[key])) for key, prompt in prompts.items()]


def candidate_sets(run: Path, stage: str) -> list[Candidates]:
    """The candidate sets of a sample stage: of completions with the same text one is shown.

    A prompt all of whose completions say the same is nothing to rank, and left out.

    Raises:
        UserError: The stage is not there, or cannot be read.
    """
    sets = [(sheet.prompt, distinct(sheet.completions)) for sheet in read_sheets(run, stage)]
    return [
        (prompt, completions) for prompt, completions in sets if len(completions) >= MIN_ANSWERS
    ]


def origin_of_stage(run: Path, stage: str) -> str:
    """The origin that is noted with the candidate sets of a sample stage."""
    return f"{run.name}/{stage}"


def queue_stage(run: Path, stage: str, store: Store) -> int:
    """Put what a sample stage drew into the queue; what is there already stays.

    Returns:
        How many candidate sets are new there.

    Raises:
        UserError: The stage is not there, or cannot be read.
    """
    sets, origin = candidate_sets(run, stage), origin_of_stage(run, stage)
    if not (run / stage / UNCERTAINTY).is_file():
        return store.add_sets(sets, origin=origin)
    # Fresh sets are handed out as they were added, and a batch is added in the order of its keys.
    return sum(store.add_sets([candidates], origin=origin) for candidates in sets)


def queue_sampled(run: Path, store: Store) -> int:
    """Put what every sample stage of a run drew into the queue; what is there already stays.

    Returns:
        How many candidate sets are new there.

    Raises:
        UserError: The run's files cannot be read.
    """
    stages = [name for name in finished(run) if name.partition(".")[0] == "sample"]
    return sum(
        queue_stage(run, stage, store)
        for stage in sorted(stages, key=lambda name: int(name.partition(".")[2] or 1))
    )
