"""Which prompts are near-duplicates of each other.

Two prompts are if a caller's `key` gives the same for both (in the small world: the task, whatever
its phrasing). Where there is no key, they are if the ROUGE-L F1 of their texts is above 0.7. A
prompt with a key is never compared with one without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from alpaca_rlhf.data.novelty import NoveltyIndex
from alpaca_rlhf.records import Instruction

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
        self._indexed: list[int] = []

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

    def groups(self, row: Instruction, group_of: Callable[[int], int]) -> set[int]:
        """The groups that hold a prompt near `row`; `group_of` gives the group of a number."""
        key = self._key(row) if self._key else None
        if key is not None:
            return {group_of(number) for number in self._by_key.get(key, ())}
        return set(self._index.by_group(prompt_text(row), lambda one: group_of(self._indexed[one])))


class Forest:
    """Things joined into groups; a group is known by the least of their numbers.

    Args:
        size: How many things there are, each alone at first.
    """

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, number: int) -> int:
        """The group of a thing."""
        parent = self._parent
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    def join(self, one: int, other: int) -> None:
        """Make one group of two."""
        first, second = sorted((self.root(one), self.root(other)))
        self._parent[second] = first

    def groups(self) -> list[list[int]]:
        """All groups, each ascending, in the order of their least numbers."""
        members: dict[int, list[int]] = {}
        for number in range(len(self._parent)):
            members.setdefault(self.root(number), []).append(number)
        return list(members.values())


def clusters(rows: Sequence[Instruction], key: Key | None = None) -> list[list[Instruction]]:
    """Near-duplicates joined into groups, transitively; all in the order of `rows`."""
    near, forest = Near(key), Forest(len(rows))
    same_id: dict[str, int] = {}  # a text without any token is near nothing, but it is itself
    for number, row in enumerate(rows):
        for other in [same_id.setdefault(row.id, number), *near.groups(row, forest.root)]:
            forest.join(other, number)
        near.add(row)
    return [[rows[number] for number in group] for group in forest.groups()]
