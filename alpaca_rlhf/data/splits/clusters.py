"""Which prompts are near-duplicates of each other.

Two prompts are if a caller's `key` gives the same for both (in the small world: the task, whatever
its phrasing). Where there is no key, they are if the ROUGE-L F1 of their texts is above 0.7. A
prompt with a key is never compared with one without.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.splits.novelty import NoveltyIndex

Key = Callable[[Instruction], str | None]
"""What makes two prompts the same task, or None to compare their texts."""

NEAR = 0.7
"""ROUGE-L F1 above which two texts are near-duplicates (arXiv 2212.10560 section 2.2)."""


def prompt_text(row: Instruction) -> str:
    """The text by which free-text prompts are compared: all that the user said.

    That is the instruction and its input, after the user's earlier turns if there are any.
    """
    earlier = [user for user, _ in row.history]
    return "\n".join([*earlier, row.instruction, *([row.input] if row.input else [])])


def answered_prompts(rows: Iterable[Instruction]) -> list[Instruction]:
    """Every prompt that rows answer: of a conversation, the prompt of each of its replies.

    SFT learns from all of them, so no other stage may hold one.
    """
    return [
        one
        for row in rows
        for one in (
            *(
                Instruction(user, "", reply, row.source, row.history[:number])
                for number, (user, reply) in enumerate(row.history)
            ),
            row,
        )
    ]


class Near:
    """Prompts added so far, to be asked which of them lie near another.

    Args:
        key: See the top of this module.
    """

    def __init__(self, key: Key | None = None) -> None:
        self._key = key
        self.rows: list[Instruction] = []
        self._by_key: dict[str, list[int]] = {}
        self._index = NoveltyIndex(NEAR)
        self._indexed = array("q")

    def add(self, row: Instruction) -> int:
        """Remember a prompt and return its number: 0, 1, 2 ..."""
        number = len(self.rows)
        self.rows.append(row)
        key = self._key(row) if self._key else None
        if key is not None:
            self._by_key.setdefault(key, []).append(number)
        else:
            self._index.add(prompt_text(row))
            self._indexed.append(number)
        return number

    def find(self, row: Instruction) -> list[tuple[float, int]]:
        """(score, number) of every prompt near `row`, the nearest first."""
        key = self._key(row) if self._key else None
        if key is not None:
            return [(1.0, number) for number in self._by_key.get(key, ())]
        return [
            (one.score, self._indexed[one.row]) for one in self._index.duplicates(prompt_text(row))
        ]

    def groups(self, row: Instruction, groups: NDArray[np.intp]) -> set[int]:
        """The groups that hold a prompt near `row`; `groups` (N,) has the group of each number."""
        key = self._key(row) if self._key else None
        if key is not None:
            return set(groups[self._by_key.get(key, [])].tolist())
        numbers = np.frombuffer(self._indexed, dtype=np.intp)
        return set(self._index.by_group(prompt_text(row), lambda rows: groups[numbers[rows]]))


class Forest:
    """Things joined into groups; a group has the number of one of them.

    Args:
        size: How many things there are, each alone at first.
    """

    def __init__(self, size: int) -> None:
        self.group: NDArray[np.intp] = np.arange(size)
        self._members: dict[int, list[int]] = {}  # of groups of two and more

    def join(self, one: int, other: int) -> None:
        """Make one group of two; the smaller one is renamed."""
        large, small = int(self.group[one]), int(self.group[other])
        if large == small:
            return
        kept, moved = self._members.pop(large, [large]), self._members.pop(small, [small])
        if len(kept) < len(moved):
            large, kept, moved = small, moved, kept
        self.group[moved] = large
        kept.extend(moved)
        self._members[large] = kept

    def groups(self) -> list[list[int]]:
        """All groups, each ascending, in the order of their least numbers."""
        members: dict[int, list[int]] = {}
        for number, group in enumerate(self.group.tolist()):
            members.setdefault(group, []).append(number)
        return list(members.values())


def clusters(rows: Sequence[Instruction], key: Key | None = None) -> list[list[Instruction]]:
    """Near-duplicates joined into groups, transitively; all in the order of `rows`."""
    near, forest = Near(key), Forest(len(rows))
    same_id: dict[str, int] = {}  # a text without any token is near nothing, but it is itself
    for number, row in enumerate(rows):
        for other in [same_id.setdefault(row.id, number), *near.groups(row, forest.group)]:
            forest.join(other, number)
        near.add(row)
    return [[rows[number] for number in group] for group in forest.groups()]
