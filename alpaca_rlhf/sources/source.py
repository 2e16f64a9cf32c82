"""The protocol of a run's source of tasks and verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Scores
from alpaca_rlhf.data import Drop, FileAccount, Rule

Slice = str
"""A part of the evaluation prompts with figures of its own."""


class Source(Protocol):
    """Tasks and verdicts of a run."""

    def seeds(self) -> list[Instruction]:
        """Tasks with outputs, to bootstrap from and to train on."""
        ...

    def unanswered(self) -> list[Instruction]:
        """Prompts of SFT for a teacher to answer, with the recipe `answers`."""
        ...

    def names(self) -> list[str]:
        """The splits that prompts are dealt to.

        `rank`, `ppo` (in later rounds `rank.2` ...), `eval`, perhaps `dev`.
        """
        ...

    def prompts(self, split: str) -> list[Instruction]:
        """The prompts of a split."""
        ...

    def slices(self, rows: Sequence[Instruction]) -> dict[Slice, list[int]]:
        """Indices of the evaluation prompts of each slice that is reported separately."""
        ...

    def key(self, row: Instruction) -> str | None:
        """Key that near-duplicate prompts share; None compares their texts."""
        ...

    @property
    def accounts(self) -> Sequence[FileAccount]:
        """The rows of each of the user's files: used or left out, by reason."""
        ...

    @property
    def rules(self) -> Sequence[Rule] | None:
        """Filters on the text of generated rows; None is the set that Alpaca used."""
        ...

    def accept(self, row: Instruction) -> Drop | None:
        """The reason to drop a generated row; None if it may stay."""
        ...

    def novelty(self) -> Callable[[Instruction], Drop | None] | None:
        """A fresh check that a generated row is new; None compares its text with all before it."""
        ...

    @property
    def gold(self) -> Callable[[Instruction, str, bool], Scores] | None:
        """The judge of (prompt, completion, finished), or None where only people judge."""
        ...
