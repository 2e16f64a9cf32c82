"""The prompt firewall: what one stage has seen comes up in no other, near-duplicates included.

What a near-duplicate is says `clusters`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.splits.clusters import Key, Near, clusters, prompt_text


@dataclass(frozen=True)
class Leak:
    """A prompt that lies near another split's."""

    row: Instruction
    """The prompt."""
    other: Instruction
    """The one it lies near."""
    split: str
    """Where `row` was to go."""
    other_split: str
    """Where `other` is."""
    score: float
    """ROUGE-L F1; 1 if they have the same key."""

    def __str__(self) -> str:
        """One line that names both."""
        how = "the same task" if self.score == 1 else f"ROUGE-L {self.score:.2f}"
        return (
            f"{prompt_text(self.row)!r} of split {self.split!r} and {prompt_text(self.other)!r} "
            f"of split {self.other_split!r} are near-duplicates ({how})"
        )


def split_prompts(
    rows: Sequence[Instruction], *, sizes: Mapping[str, float], seed: int, key: Key | None = None
) -> dict[str, list[Instruction]]:
    """Deal whole clusters of near-duplicates to splits, by a hash of the cluster's least key or id.

    The order of `rows` does not matter to who goes where, and adding rows moves few others.

    Args:
        rows: Prompts.
        sizes: Split name to a number of prompts (each split gets exactly so many), or to a share of
            all of them (about so many; shares sum up to 1 at most). What is over is left out.
        seed: Another seed, another dealing.
        key: See `clusters`.

    Returns:
        Split name to prompts, each in the order of `rows`.

    Raises:
        UserError: There are too few prompts for the numbers, or shares sum up to more than 1.
    """
    counted = all(isinstance(size, int) for size in sizes.values())
    total = sum(sizes.values())
    if any(size < 0 for size in sizes.values()) or total <= 0 or (not counted and total > 1 + 1e-9):
        raise UserError(
            "split: sizes must be numbers of prompts, or shares that sum up to 1 at most; "
            f"got {dict(sizes)}"
        )
    groups = sorted(
        (_hash(seed, group, key), number, group) for number, group in enumerate(clusters(rows, key))
    )
    place: dict[str, str] = {}
    left = dict(sizes) if counted else dict.fromkeys(sizes, float("inf"))

    def put(group: Sequence[Instruction], name: str) -> bool:
        if left[name] < len(group):
            return False
        left[name] -= len(group)
        place.update((row.id, name) for row in group)
        return True

    waiting = []
    for draw, _, group in groups:
        wanted = _share_of(draw, sizes, total if counted else 1.0)
        if wanted is not None and not put(group, wanted):
            waiting.append(group)
    for group in waiting:
        any(put(group, name) for name in sorted(sizes, key=lambda name: -left[name]))
    if counted and any(left.values()):
        short = ", ".join(
            f"{name} lacks {left[name]} of {sizes[name]}" for name in sizes if left[name]
        )
        raise UserError(
            f"split: {len(rows)} prompts in {len(groups)} groups of near-duplicates are too few: "
            f"{short}; ask for less or bring more prompts"
        )
    return {name: [row for row in rows if place.get(row.id) == name] for name in sizes}


def check_disjoint(
    splits: Mapping[str, Sequence[Instruction]],
    key: Key | None = None,
    *,
    raise_on_leak: bool = True,
) -> int:
    """The number of prompts that lie near a prompt of a split named before their own.

    Raises:
        UserError: There is one, unless `raise_on_leak` is False. The message names the first pair.
    """
    wall = Firewall(key)
    overlaps = 0
    for name, rows in splits.items():
        for row in rows:
            leak = wall.leak(name, row)
            if leak is not None and raise_on_leak:
                raise UserError(f"prompts leak between stages: {leak}")
            overlaps += leak is not None
        wall.note(name, rows)
    return overlaps


class Firewall:
    """Remembers which split every prompt belongs to, and lets no other split near it.

    Args:
        key: See `clusters`.
    """

    def __init__(self, key: Key | None = None) -> None:
        self._near = Near(key)
        self._split: list[str] = []
        self._ids: dict[str, set[str]] = {}

    def leak(self, split: str, row: Instruction) -> Leak | None:
        """The nearest near-duplicate in another split, or None if `row` may go to `split`."""
        for score, number in self._near.find(row):
            if self._split[number] != split:
                return Leak(row, self._near.rows[number], split, self._split[number], score)
        return None

    def claim(self, split: str, rows: Sequence[Instruction]) -> None:
        """Give prompts to a split: all of them or, if one leaks, none.

        Raises:
            UserError: A prompt lies near another split's; the message names both.
        """
        for row in rows:
            leak = self.leak(split, row)
            if leak is not None:
                raise UserError(f"prompts leak between stages: {leak}")
        self.note(split, rows)

    def note(self, split: str, rows: Sequence[Instruction]) -> None:
        """Give prompts to a split without asking: for prompts that some stage has seen already."""
        ids = self._ids.setdefault(split, set())
        for row in rows:
            if row.id not in ids:
                ids.add(row.id)
                self._near.add(row)
                self._split.append(split)

    def counts(self) -> dict[str, int]:
        """Split name to its number of prompts, each counted once."""
        return {split: len(ids) for split, ids in self._ids.items()}


def _hash(seed: int, group: Sequence[Instruction], key: Key | None) -> float:
    """A number in [0, 1) that depends only on the seed and the least key, or id, in the group."""
    least = min((key(row) if key else None) or row.id for row in group)
    return int.from_bytes(hashlib.sha256(f"{seed}/{least}".encode()).digest()[:6], "big") / 2**48


def _share_of(draw: float, sizes: Mapping[str, float], total: float) -> str | None:
    """The split that a number in [0, 1) falls into, all side by side; None beyond the last."""
    at = draw * total
    for name, size in sizes.items():
        if at < size:
            return name
        at -= size
    return None
