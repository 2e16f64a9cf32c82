"""The user's own rows and prompts, and people as judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import Drop, FileAccount, Firewall, Rule
from alpaca_rlhf.sources.source import Slice


@dataclass
class Files:
    """The user's prompts, dealt to the splits by clusters, and people as judges."""

    rows: Sequence[Instruction]
    """Seed tasks, or rows to train on."""
    splits: Mapping[str, list[Instruction]]
    """Prompts of each split."""
    accounts: Sequence[FileAccount] = ()
    """The rows of the user's files."""
    rules: ClassVar[Sequence[Rule] | None] = None
    """Those that Alpaca used."""

    def seeds(self) -> list[Instruction]:
        """The user's rows."""
        return list(self.rows)

    def unanswered(self) -> list[Instruction]:
        """The seed tasks without their outputs."""
        return [replace(row, output=None) for row in self.rows]

    def names(self) -> list[str]:
        """Splits other than sft."""
        return list(self.splits)

    def prompts(self, split: str) -> list[Instruction]:
        """The prompts of a split."""
        if split == "dev" and self.splits and split not in self.splits:
            raise UserError(
                "--watch.every, --evaluate.split dev: the other splits leave no prompts for dev; "
                "give more, or ask for fewer with --rank.prompts, --best-of-k.prompts or "
                "--evaluate.prompts"
            )
        if split not in self.splits:
            raise UserError(
                f"there are no prompts for the {split} split; give a file with --inputs.prompts"
            )
        return self.splits[split]

    def slices(self, rows: Sequence[Instruction]) -> dict[Slice, list[int]]:
        """No slices are reported separately."""
        return {}

    def key(self, row: Instruction) -> None:
        """Free text: near-duplicates are found by ROUGE-L."""
        return

    def accept(self, row: Instruction) -> Drop | None:
        """Any row that no other split holds."""
        leak = self._firewall.leak("sft", row)
        return None if leak is None else Drop("leak", str(leak), row=row)

    def novelty(self) -> None:
        """By ROUGE-L."""
        return

    @property
    def gold(self) -> None:
        """Only people judge."""
        return

    @cached_property
    def _firewall(self) -> Firewall:
        firewall = Firewall()
        for split, rows in self.splits.items():
            firewall.claim(split, rows)
        return firewall
