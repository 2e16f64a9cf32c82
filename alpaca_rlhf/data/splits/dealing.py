"""Dealing prompts to splits: whole clusters of near-duplicates, by a hash that nothing else moves.

A cluster draws a number in [0, 1) from the seed and its smallest id, and the shares of the splits,
laid side by side, decide where that number falls. So the order of the rows does not matter, and
adding rows moves few others. A cluster that would rule an evaluation set goes to another split.
`split_prompts` deals once, to shares or to exact numbers of prompts;
`deal` adds to an earlier dealing and never moves a prompt that has its split.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.sizes import MAX_CLUSTER_SHARE
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.novelty import NoveltyIndex
from alpaca_rlhf.data.splits.assignments import SplitAssignment
from alpaca_rlhf.data.splits.clusters import (
    NEAR,
    Forest,
    Key,
    answered_prompts,
    clusters,
    prompt_text,
)

_EVALUATION = ("eval", "dev")
"""Splits whose clusters are bounded."""

Progress = Callable[[int, int], None]
"""Called with the number of prompts compared so far, and their total."""


@dataclass(frozen=True)
class Dealing:
    """The result of `deal`."""

    assigned: list[SplitAssignment]
    """Every prompt assigned so far: the earlier ones first, unchanged."""
    drops: list[Drop] = field(default_factory=list)
    """New prompts that lie between two splits and may enter neither."""


def split_prompts(
    rows: Sequence[Instruction],
    *,
    sizes: Mapping[str, float],
    seed: int,
    key: Key | None = None,
    max_cluster: float = MAX_CLUSTER_SHARE,
) -> dict[str, list[Instruction]]:
    """Deal whole clusters of near-duplicates to splits.

    Args:
        rows: Prompts.
        sizes: Split name to a number of prompts (each split gets exactly that many), or to a share
            of all prompts (approximate; shares sum to at most 1). Prompts left over are omitted.
        seed: Determines the dealing.
        key: See `clusters`.
        max_cluster: Share of an evaluation set's prompts that one cluster may be.

    Returns:
        Split name to prompts, each in the order of `rows`.

    Raises:
        UserError: There are too few prompts for the numbers, or the shares sum to more than 1.
    """
    counted = all(isinstance(size, int) for size in sizes.values())
    total = sum(sizes.values())
    if any(size < 0 for size in sizes.values()) or total <= 0 or (not counted and total > 1 + 1e-9):
        raise UserError(
            "split: sizes must be numbers of prompts, or shares that sum up to 1 at most; "
            f"got {dict(sizes)}"
        )

    # 1. Group near-duplicates, and order the groups by their draws.
    groups = sorted(
        (_draw(seed, min((key(row) if key else None) or row.id for row in group)), number, group)
        for number, group in enumerate(clusters(rows, key))
    )
    split_of: dict[str, str] = {}
    # Shares are no limits, so every group fits.
    free = dict(sizes) if counted else dict.fromkeys(sizes, float("inf"))

    def place(group: Sequence[Instruction], name: str) -> bool:
        if free[name] < len(group):
            return False
        free[name] -= len(group)
        split_of.update((row.id, name) for row in group)
        return True

    # 2. Give each group the split that its draw falls into, unless the group no longer fits there
    #    or would rule it.
    waiting = []
    expected = {name: size if counted else size * len(rows) for name, size in sizes.items()}
    limits = _limits(expected, [len(group) for _, _, group in groups], max_cluster)
    for draw, _, group in groups:
        drawn_split = _split_at(draw, sizes, total if counted else 1.0)
        if drawn_split is not None and len(group) > limits[drawn_split]:
            bounded = {name: size for name, size in sizes.items() if name not in _EVALUATION}
            drawn_split = _split_at(draw, bounded, sum(bounded.values())) or drawn_split
        if drawn_split is not None and not place(group, drawn_split):
            waiting.append(group)

    def preference(group: Sequence[Instruction], name: str) -> tuple[bool, float]:
        return len(group) > limits[name], -free[name]

    # 3. Fill up with the groups that did not fit, the emptiest split that bears them first.
    for group in waiting:
        any(place(group, name) for name in sorted(sizes, key=partial(preference, group)))
    if counted and any(free.values()):
        shortage = ", ".join(
            f"{name} lacks {free[name]} of {sizes[name]}" for name in sizes if free[name]
        )
        raise UserError(
            f"{len(rows)} prompts in {len(groups)} groups of near-duplicates are too few: "
            f"{shortage}; bring more prompts or ask for less"
        )
    return {name: [row for row in rows if split_of.get(row.id) == name] for name in sizes}


def deal_rest(
    rows: Sequence[Instruction],
    splits: Mapping[str, Sequence[Instruction]],
    *,
    at_most: int,
    seed: int,
    key: Key | None = None,
) -> list[Instruction]:
    """Whole clusters of the prompts that `split_prompts` left over, in the order of their draws.

    Args:
        rows: All prompts.
        splits: Those that were dealt, as `split_prompts` gave them.
        at_most: Prompts at most.
        seed: Determines the order.
        key: See `clusters`.

    Returns:
        The prompts in the order of `rows`; none where nothing was left.
    """
    dealt = {row.id for split_rows in splits.values() for row in split_rows}
    left = [row for row in rows if row.id not in dealt]
    groups = sorted(
        (_draw(seed, min((key(row) if key else None) or row.id for row in group)), number, group)
        for number, group in enumerate(clusters(left, key))
    )
    taken: set[str] = set()
    for _, _, group in groups:
        ids = {row.id for row in group}
        if len(taken) + len(ids) <= at_most:
            taken |= ids
    return [row for row in left if row.id in taken]


def deal(
    rows: Iterable[Instruction],
    earlier: Sequence[SplitAssignment] = (),
    *,
    shares: Mapping[str, float],
    seed: int = 0,
    progress: Progress | None = None,
) -> Dealing:
    """Assign every new prompt in `rows` to a split; their order does not matter.

    A cluster of new prompts near earlier prompts of one split joins that split. A cluster near
    several splits joins the split of its smallest id that is near one; its members near another
    split are dropped. A cluster without any output is never given to `sft`.

    Args:
        rows: Prompts, with or without outputs, new or already assigned.
        earlier: Assignments made before.
        shares: Split name to its relative weight.
        seed: Determines the dealing of the new prompts.
        progress: Called after each new prompt.

    Raises:
        UserError: The shares leave no split for prompts without an output.
    """
    # 1. Keep each new prompt once, preferring a row that has an output.
    known_ids = {assignment.id for assignment in earlier}
    new_rows: dict[str, Instruction] = {}
    for row in sorted(rows, key=lambda row: (row.id, row.output is None)):
        if row.id not in known_ids:
            new_rows.setdefault(row.id, row)
    prompts = list(new_rows.values())
    texts = [tuple(prompt_text(turn) for turn in answered_prompts([row])) for row in prompts]

    # 2. Index the earlier prompts by their splits.
    drops: list[Drop] = []
    earlier_index, new_index = _TextsIndex(), _TextsIndex()
    for number, assignment in enumerate(earlier):
        earlier_index.add(number, assignment.texts)
    split_numbers = {assignment.split: number for number, assignment in enumerate(earlier)}
    splits = np.array([split_numbers[assignment.split] for assignment in earlier], dtype=np.intp)

    # 3. Compare each new prompt with the earlier ones, then with the new ones before it. A prompt
    #    near two splits is dropped before it can link their clusters.
    forest = Forest(len(prompts))
    earlier_neighbours: dict[int, SplitAssignment] = {}
    dropped_numbers: set[int] = set()
    for number, prompt_texts in enumerate(texts):
        near = [earlier[at] for at in earlier_index.by_group(prompt_texts, splits).values()]
        if len(near) > 1:
            drops.append(_drop_between(prompts[number], near))
            dropped_numbers.add(number)
        else:
            if near:
                earlier_neighbours[number] = near[0]
            for neighbour in new_index.by_group(prompt_texts, forest.group):
                forest.join(neighbour, number)
            new_index.add(number, prompt_texts)
        if progress is not None:
            progress(number + 1, len(prompts))

    # 4. Give each cluster one split: that of an earlier neighbour, or else a drawn one. Members
    #    near an earlier prompt of another split are dropped.
    split_of: dict[int, str] = {}
    groups = forest.groups()
    total = sum(shares.values()) or 1.0
    expected = {name: share / total * len(prompts) for name, share in shares.items()}
    limits = _limits(expected, [len(group) for group in groups])
    for group in groups:
        if group[0] in dropped_numbers:  # a dropped prompt was never joined, so it is alone
            continue
        linked = [number for number in group if number in earlier_neighbours]
        split = (
            earlier_neighbours[linked[0]].split
            if linked
            else _drawn_split([prompts[number] for number in group], shares, limits, seed)
        )
        for number in group:
            if number in earlier_neighbours and earlier_neighbours[number].split != split:
                near = [earlier_neighbours[number], earlier_neighbours[linked[0]]]
                drops.append(_drop_between(prompts[number], near))
            else:
                split_of[number] = split
    added = [
        SplitAssignment(prompts[number].id, split_of[number], texts[number])
        for number in sorted(split_of)
    ]
    return Dealing([*earlier, *added], drops)


class _TextsIndex:
    """A novelty index of prompts that have several texts each."""

    def __init__(self) -> None:
        self._index = NoveltyIndex(NEAR)
        self._owners = array("q")  # prompt number of each indexed text

    def add(self, number: int, texts: Iterable[str]) -> None:
        for text in texts:
            self._index.add(text)
            self._owners.append(number)

    def by_group(self, texts: Iterable[str], groups: NDArray[np.intp]) -> dict[int, int]:
        """Group to one of its prompts near the texts; `groups` (N,) holds each prompt's group."""
        near_prompts: dict[int, int] = {}
        owners = np.frombuffer(self._owners, dtype=np.intp)
        for text in texts:
            neighbours = self._index.by_group(text, lambda rows: groups[owners[rows]])
            for group, neighbour in neighbours.items():
                near_prompts.setdefault(group, self._owners[neighbour.row])
        return near_prompts


def _draw(seed: int, smallest: str) -> float:
    """The draw of a cluster in [0, 1), from the seed and its smallest id or key alone."""
    digest = hashlib.sha256(f"{seed}/{smallest}".encode()).digest()
    # A float holds 48 bits exactly.
    return int.from_bytes(digest[:6], "big") / 2**48


def _split_at(draw: float, sizes: Mapping[str, float], total: float) -> str | None:
    """The split that a draw falls into when sizes lie side by side; None beyond the last."""
    at = draw * total
    for name, size in sizes.items():
        if at < size:
            return name
        at -= size
    return None


def _limits(
    expected: Mapping[str, float], sizes: Sequence[int], max_cluster: float = MAX_CLUSTER_SHARE
) -> dict[str, float]:
    """Prompts that a cluster may have at most, for each split.

    An evaluation set bounds its clusters, unless those within its bound are so few that the set
    would be starved, or there is nowhere else to put the others.

    Args:
        expected: Prompts that each split is to get.
        sizes: Prompts of each cluster.
        max_cluster: Share of an evaluation set's prompts; two are always borne.
    """
    limits = dict.fromkeys(expected, float("inf"))
    if any(expected[name] > 0 for name in expected if name not in _EVALUATION):
        for name in set(_EVALUATION) & set(expected):
            limit = max(2.0, max_cluster * expected[name])
            if 2 * sum(size for size in sizes if size <= limit) >= sum(sizes):
                limits[name] = limit
    return limits


def _drawn_split(
    group: Sequence[Instruction],
    shares: Mapping[str, float],
    limits: Mapping[str, float],
    seed: int,
) -> str:
    """The split of a cluster that lies near no earlier prompt."""
    answered = any(row.output is not None for row in group)
    open_shares = {name: share for name, share in shares.items() if name != "sft" or answered}
    bounded = {name: share for name, share in open_shares.items() if len(group) <= limits[name]}
    if sum(bounded.values()) > 0:
        open_shares = bounded
    total = sum(open_shares.values())
    if total <= 0:
        raise UserError(
            f"--shares: {prompt_text(group[0])!r} has no output to learn from, and only sft has a "
            "share; give another split one, or take prompts without outputs out"
        )
    split = _split_at(_draw(seed, min(row.id for row in group)), open_shares, total)
    if split is not None:
        return split
    # Rounding carried the draw past the last share.
    return max(open_shares, key=lambda name: open_shares[name])


def _drop_between(row: Instruction, near: Sequence[SplitAssignment]) -> Drop:
    """The refusal of a prompt near two splits, which names a neighbour in each."""
    first, second = near[0], near[1]
    detail = (
        f"lies near {first.texts[-1]!r} of {first.split}, and with others near "
        f"{second.texts[-1]!r} of {second.split}"
    )
    return Drop("between splits", detail, row, near=first.id)
