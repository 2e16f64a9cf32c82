"""New decisions on the replies of a finished run, without a teacher."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.decisions import Check, Decisions
from alpaca_rlhf.data.generation.filters import Drop, Rule
from alpaca_rlhf.data.generation.history import requests, seeds_of, settings_of
from alpaca_rlhf.data.generation.recipe import rows_of
from alpaca_rlhf.data.novelty import NoveltyIndex
from alpaca_rlhf.data.readers.template_marks import without_end_marks


@dataclass(frozen=True)
class RefilterResult:
    """The outcome of other filters on the replies of a run."""

    rows: list[Instruction]
    """Rows accepted now."""
    drops: list[Drop]
    """Rows dropped now."""
    before: int
    """Number of rows accepted in the run."""
    gained: list[Instruction]
    """Rows accepted now and dropped in the run."""
    lost: Mapping[str, int]
    """For each rule, the rows accepted in the run that it drops now."""
    unanswered: int
    """Tasks that would pass now, but whose instances the teacher was never asked for."""


def refilter(
    folder: Path,
    *,
    rules: Sequence[Rule],
    accept: Check | None = None,
    novel: Check | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> RefilterResult:
    """Read every reply of a run again and decide on its rows with other rules.

    Args:
        folder: Folder of the events.
        rules: The filters to use now.
        accept: As in `generate`.
        novel: As in `generate`; it must start empty.
        on_progress: Called with the number of requests that are done.

    Raises:
        UserError: The folder's files are missing or damaged.
    """
    settings, _ = settings_of(folder)
    decisions = Decisions(
        seeds_of(folder),
        target=settings.target,
        rules=rules,
        accept=accept,
        novel=novel,
        threshold=settings.novelty,
    )
    rows: list[Instruction] = []
    drops: list[Drop] = []
    gained: list[Instruction] = []
    lost: Counter[str] = Counter()
    before = unanswered = 0
    refused: dict[str, Drop] = {}  # tasks that were answered in the run and are dropped now
    for recipe, answered in requests(folder):
        # 1. Read the reply; its rows go if their task is dropped now.
        rows_read, broken = rows_of(recipe, answered.ask, answered.reply)
        # Earlier versions left ends of turns in replies; readers refuse them in a user's file.
        rows_read = [_without_end_marks(row) for row in rows_read]
        kept_rows = [_without_end_marks(row) for row in answered.kept]
        task = answered.ask.about
        if task is not None and not answered.ask.drafts and task.id in refused:
            # Its instances would not exist, so they go for the reason for which their task goes.
            task_drop = refused[task.id]
            broken = [*broken, *(dataclasses.replace(task_drop, row=row) for row in rows_read)]
            rows_read = []
        # 2. Decide with the new rules, and compare with the run.
        accepted, dropped = decisions.decide(answered.ask, rows_read, broken)
        drops += dropped
        if answered.ask.drafts:
            refused |= {drop.row.id: drop for drop in dropped if drop.row in kept_rows and drop.row}
            unanswered += sum(row not in kept_rows for row in accepted)
        else:
            rows += accepted
            before += len(kept_rows)
            gained += [row for row in accepted if row not in kept_rows]
            lost.update(drop.rule for drop in dropped if drop.row in kept_rows)
        if on_progress is not None:
            on_progress(answered.number + 1)
    return RefilterResult(rows, drops, before, gained, lost, unanswered)


def _without_end_marks(row: Instruction) -> Instruction:
    """The row without ends of turns at the end of its output."""
    if row.output is None:
        return row
    return dataclasses.replace(row, output=without_end_marks(row.output))


def kept_by_rouge(folder: Path, threshold: float = 0.7) -> tuple[int, int]:
    """Count the rows that ROUGE-L would have accepted as the only criterion of novelty.

    Returns:
        The number of rows that are new by ROUGE-L of their instruction against the seed tasks and
        each other, and the number of all rows whose novelty was checked in the run.

    Raises:
        UserError: The folder's files are missing or damaged.
    """
    index = NoveltyIndex(threshold)
    for row in seeds_of(folder):
        index.add(row.instruction)
    n_new = n_checked = 0
    for recipe, answered in requests(folder):
        if answered.ask.drafts:
            continue
        # Rows that another check dropped never came to the check of novelty.
        repeated = [drop.row for drop in answered.dropped if drop.rule == "duplicate"]
        for row in rows_of(recipe, answered.ask, answered.reply)[0]:
            if row in answered.kept or row in repeated:
                n_checked += 1
                if index.duplicate(row.instruction) is None:
                    index.add(row.instruction)
                    n_new += 1
    return n_new, n_checked
