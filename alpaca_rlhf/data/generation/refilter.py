"""Deciding anew on the replies of a run, without asking a teacher."""

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


@dataclass(frozen=True)
class Refiltered:
    """What other filters make of the replies of a run."""

    rows: list[Instruction]
    """Rows that stay now."""
    drops: list[Drop]
    """All others."""
    before: int
    """Rows that stayed in the run."""
    gained: list[Instruction]
    """Rows that stay now and did not before."""
    lost: Mapping[str, int]
    """Rule to rows that stayed before and that it drops now."""
    unanswered: int
    """Tasks that would pass now, and of which the teacher was never asked for instances."""


def refilter(
    folder: Path,
    *,
    rules: Sequence[Rule],
    accept: Check | None = None,
    novel: Check | None = None,
    note: Callable[[int], None] | None = None,
) -> Refiltered:
    """Read every reply of a run again and decide on its rows by other rules.

    Args:
        folder: Where the events lie.
        rules: The filters to use now.
        accept: As in `generate`.
        novel: As in `generate`; it must start empty.
        note: Told how many requests are done.

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
    refused: dict[str, Drop] = {}  # tasks that were answered, and would not be asked about now
    for recipe, one in requests(folder):
        read, broken = rows_of(recipe, one.ask, one.reply)
        task = one.ask.about
        if task is not None and not one.ask.drafts and task.id in refused:
            why = refused[task.id]
            broken = [*broken, *(dataclasses.replace(why, row=row) for row in read)]
            read = []
        kept, dropped = decisions.decide(one.ask, read, broken)
        drops += dropped
        if one.ask.drafts:
            refused |= {drop.row.id: drop for drop in dropped if drop.row in one.kept and drop.row}
            unanswered += sum(row not in one.kept for row in kept)
        else:
            rows += kept
            before += len(one.kept)
            gained += [row for row in kept if row not in one.kept]
            lost.update(drop.rule for drop in dropped if drop.row in one.kept)
        if note is not None:
            note(one.number + 1)
    return Refiltered(rows, drops, before, gained, lost, unanswered)


def kept_by_rouge(folder: Path, threshold: float = 0.7) -> tuple[int, int]:
    """What ROUGE-L alone would have kept, had it been the only judge of novelty.

    Returns:
        How many of the rows that reached the question of novelty are new by ROUGE-L of their
        instruction against the seed tasks and each other; and how many rows these were.

    Raises:
        UserError: The folder's files are missing or damaged.
    """
    index = NoveltyIndex(threshold)
    for row in seeds_of(folder):
        index.add(row.instruction)
    new = asked = 0
    for recipe, one in requests(folder):
        if one.ask.drafts:
            continue
        repeated = [drop.row for drop in one.dropped if drop.rule == "duplicate"]
        for row in rows_of(recipe, one.ask, one.reply)[0]:
            if row in one.kept or row in repeated:
                asked += 1
                if index.duplicate(row.instruction) is None:
                    index.add(row.instruction)
                    new += 1
    return new, asked
