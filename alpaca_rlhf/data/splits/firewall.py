"""The prompt firewall: a prompt that one stage has seen enters no other, nor do near-duplicates.

`clusters` defines near-duplicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.splits.clusters import Key, PromptIndex, prompt_text


@dataclass(frozen=True)
class Leak:
    """A prompt that is a near-duplicate of one in another split."""

    row: Instruction
    """The prompt."""
    other: Instruction
    """Its near-duplicate."""
    split: str
    """The split that `row` was to enter."""
    other_split: str
    """The split of `other`."""
    score: float
    """ROUGE-L F1; 1 if both have the same key."""

    def __str__(self) -> str:
        """One line that names both prompts."""
        likeness = "the same task" if self.score == 1 else f"ROUGE-L {self.score:.2f}"
        return (
            f"{prompt_text(self.row)!r} of split {self.split!r} and {prompt_text(self.other)!r} "
            f"of split {self.other_split!r} are near-duplicates ({likeness})"
        )


def check_disjoint(
    splits: Mapping[str, Sequence[Instruction]],
    key: Key | None = None,
    *,
    raise_on_leak: bool = True,
    way_out: str = "",
) -> int:
    """Count the prompts that are near-duplicates of one in an earlier split of the mapping.

    Args:
        splits: Split name to its prompts.
        key: See `clusters`.
        raise_on_leak: Refuse the first one.
        way_out: The next step, for the end of the message.

    Raises:
        UserError: There is one, unless `raise_on_leak` is False. The message names the first pair.
    """
    firewall = Firewall(key)
    overlaps = 0
    for name, rows in splits.items():
        # Ask for all rows before noting any: near-duplicates within one split are allowed.
        for row in rows:
            leak = firewall.leak(name, row)
            if leak is not None and raise_on_leak:
                raise UserError(f"prompts leak between stages: {leak}{way_out}")
            overlaps += leak is not None
        firewall.note(name, rows)
    return overlaps


class Firewall:
    """A record of every prompt's split that keeps its near-duplicates out of all other splits.

    Args:
        key: See `clusters`.
    """

    def __init__(self, key: Key | None = None) -> None:
        self._prompts = PromptIndex(key)
        self._splits: list[str] = []  # split of each prompt in the index
        self._ids: dict[str, set[str]] = {}

    def leak(self, split: str, row: Instruction) -> Leak | None:
        """The nearest near-duplicate in another split, or None if `row` may enter `split`."""
        for score, number in self._prompts.find(row):
            if self._splits[number] != split:
                return Leak(row, self._prompts.rows[number], split, self._splits[number], score)
        return None

    def claim(self, split: str, rows: Sequence[Instruction]) -> None:
        """Add prompts to a split: all of them or, if one leaks, none.

        Raises:
            UserError: A prompt is near one of another split; the message names both.
        """
        # 1. Check every prompt before the first is added, so that a refusal changes nothing.
        for row in rows:
            leak = self.leak(split, row)
            if leak is not None:
                raise UserError(f"prompts leak between stages: {leak}")
        # 2. Add them all.
        self.note(split, rows)

    def note(self, split: str, rows: Sequence[Instruction]) -> None:
        """Add prompts to a split unchecked, for those that a stage has already seen."""
        ids = self._ids.setdefault(split, set())
        for row in rows:
            if row.id not in ids:
                ids.add(row.id)
                self._prompts.add(row)
                self._splits.append(split)

    def counts(self) -> dict[str, int]:
        """Split name to its number of distinct prompts."""
        return {split: len(ids) for split, ids in self._ids.items()}
