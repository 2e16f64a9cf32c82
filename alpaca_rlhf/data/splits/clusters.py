"""Clusters of near-duplicate prompts.

Two prompts are near-duplicates if a caller's `key` gives the same value for both (in the small
world: the task, however it is phrased). Without a key, they are if the ROUGE-L F1 of their texts is
above 0.7. A prompt with a key is never compared with one without.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.novelty import NoveltyIndex

Key = Callable[[Instruction], str | None]
"""The identity of a prompt's task, or None to compare texts."""

NEAR = 0.7
"""ROUGE-L F1 above which two texts are near-duplicates (arXiv 2212.10560 section 2.2)."""


def prompt_text(row: Instruction) -> str:
    """The text by which free-text prompts are compared: everything that the user wrote.

    That is the instruction and its input, after the user's earlier turns if there are any.
    """
    earlier_turns = [user for user, _ in row.history]
    return "\n".join([*earlier_turns, row.instruction, *([row.input] if row.input else [])])


def answered_prompts(rows: Iterable[Instruction]) -> list[Instruction]:
    """Every prompt that rows answer; for a conversation, the prompt of each of its replies.

    SFT learns from all of them, so no other stage may hold one.
    """
    prompts = []
    for row in rows:
        prompts += [
            Instruction(user, "", reply, row.source, row.history[:number], row.system)
            for number, (user, reply) in enumerate(row.history)
        ]
        prompts.append(row)
    return prompts


class PromptIndex:
    """An index of prompts that finds near-duplicates of another prompt.

    Args:
        key: See the module docstring.
    """

    def __init__(self, key: Key | None = None) -> None:
        self._key = key
        self.rows: list[Instruction] = []
        self._by_key: dict[str, list[int]] = {}
        self._index = NoveltyIndex(NEAR)
        self._indexed = array("q")  # prompt number of each text in the index

    def add(self, row: Instruction) -> int:
        """Add a prompt and return its number: 0, 1, 2 ..."""
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
        neighbours = self._index.duplicates(prompt_text(row))
        return [(neighbour.score, self._indexed[neighbour.row]) for neighbour in neighbours]

    def groups(self, row: Instruction, groups: NDArray[np.intp]) -> set[int]:
        """The groups that hold a prompt near `row`; `groups` (N,) has the group of each number."""
        key = self._key(row) if self._key else None
        if key is not None:
            return set(groups[self._by_key.get(key, [])].tolist())
        numbers = np.frombuffer(self._indexed, dtype=np.intp)
        return set(self._index.by_group(prompt_text(row), lambda rows: groups[numbers[rows]]))


class Forest:
    """A union-find over numbers; a group bears the number of one of its members.

    Args:
        size: Count of members, each alone at first.
    """

    def __init__(self, size: int) -> None:
        self.group: NDArray[np.intp] = np.arange(size)
        self._members: dict[int, list[int]] = {}  # of groups of two and more

    def join(self, first: int, second: int) -> None:
        """Merge the groups of two members; the smaller group is relabelled."""
        large, small = int(self.group[first]), int(self.group[second])
        if large == small:
            return
        # A member that is still alone has no entry.
        large_members = self._members.pop(large, [large])
        small_members = self._members.pop(small, [small])
        # Relabelling the smaller group bounds all merges together by N log N.
        if len(large_members) < len(small_members):
            large, large_members, small_members = small, small_members, large_members
        self.group[small_members] = large
        large_members.extend(small_members)
        self._members[large] = large_members

    def groups(self) -> list[list[int]]:
        """All groups, each ascending, ordered by their smallest numbers."""
        members: dict[int, list[int]] = {}
        for number, group in enumerate(self.group.tolist()):
            members.setdefault(group, []).append(number)
        return list(members.values())


def clusters(rows: Sequence[Instruction], key: Key | None = None) -> list[list[Instruction]]:
    """Near-duplicates joined into groups, transitively; all in the order of `rows`."""
    index, forest = PromptIndex(key), Forest(len(rows))
    first_number: dict[str, int] = {}
    for number, row in enumerate(rows):
        # 1. Join a prompt with its own copies: a text without tokens is near nothing, not even
        #    itself.
        forest.join(first_number.setdefault(row.id, number), number)
        # 2. Join it with every group that holds a near-duplicate.
        for group in index.groups(row, forest.group):
            forest.join(group, number)
        index.add(row)
    return [[rows[number] for number in group] for group in forest.groups()]


def cluster_numbers(rows: Sequence[Instruction], key: Key | None = None) -> list[int]:
    """The cluster of each prompt, as a number from 0; near-duplicates share one."""
    numbers = {
        row.id: number for number, cluster in enumerate(clusters(rows, key)) for row in cluster
    }
    return [numbers[row.id] for row in rows]
