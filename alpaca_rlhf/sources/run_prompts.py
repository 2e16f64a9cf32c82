"""The prompts of a run, split by split, and the firewall that typed prompts must pass."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import Firewall, Leak, answered_prompts, read_own_tasks
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.sources.choosing import source_of
from alpaca_rlhf.sources.own_files import read_rows
from alpaca_rlhf.sources.source import Source

RANK = "rank"
"""The split that typed prompts join."""


class RunPrompts:
    """Reads the prompts when they are first asked for.

    Args:
        run: The run folder.
        settings: Its settings.
    """

    def __init__(self, run: Path, settings: Loop) -> None:
        self._run = run
        self._settings = settings

    @cached_property
    def splits(self) -> dict[str, list[Instruction]]:
        """The rows that SFT was trained on, under `sft`, and the prompts of every other split.

        Raises:
            UserError: A file of the run cannot be read any more.
        """
        generated = self._run / "generate" / "rows.jsonl"
        if self._settings.inputs.rows is not None:
            sft_rows, _ = read_rows(self._settings.inputs)
        else:
            sft_rows = self._source.seeds()
            sft_rows += read_own_tasks(generated, answered=True) if generated.is_file() else []
        source = self._source
        return {"sft": sft_rows, **{name: source.prompts(name) for name in source.names()}}

    def to_rank(self) -> list[Instruction]:
        """The prompts of all rounds whose answers are to be ranked."""
        return [
            row
            for name, rows in self.splits.items()
            if name.partition(".")[0] == RANK
            for row in rows
        ]

    def to_evaluate(self) -> list[Instruction]:
        """The prompts of the evaluation."""
        return self.splits.get("eval", [])

    def leak(self, row: Instruction) -> Leak | None:
        """The prompt of another stage that a typed one lies near, so that it may not be ranked."""
        return self._firewall.leak(RANK, row)

    @cached_property
    def _source(self) -> Source:
        return source_of(self._settings)

    @cached_property
    def _firewall(self) -> Firewall:
        wall = Firewall(self._source.key)
        for name, rows in self.splits.items():
            split = name.partition(".")[0]
            wall.note(split, answered_prompts(rows) if split == "sft" else rows)
        return wall
