"""Which split a prompt was given to, once and for good, so that rows may be added later.

Prompts that lie near each other (`clusters`) go to one split together, by a hash of the least id
among them. What was assigned stays: a new prompt near an earlier one joins its split, and one that
lies between two splits goes nowhere.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, json_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.splits.clusters import NEAR, Forest, answered_prompts, prompt_text
from alpaca_rlhf.data.splits.novelty import NoveltyIndex

Progress = Callable[[int, int], None]
"""Told how many prompts are looked at, of how many."""


@dataclass(frozen=True)
class SplitAssignment:
    """A prompt and its split."""

    id: str
    """`Instruction.id` of the prompt."""
    split: str
    """`sft`, `rank`, `ppo` or `eval`."""
    texts: tuple[str, ...]
    """What the user said: its text and, of a conversation, that of each of its beginnings."""


@dataclass(frozen=True)
class Dealing:
    """What `deal` decided."""

    assigned: list[SplitAssignment]
    """Every prompt assigned so far, the earlier ones first, as they were."""
    drops: list[Drop] = field(default_factory=list)
    """New prompts that may go nowhere."""


def deal(
    rows: Iterable[Instruction],
    earlier: Sequence[SplitAssignment] = (),
    *,
    shares: Mapping[str, float],
    seed: int = 0,
    progress: Progress | None = None,
) -> Dealing:
    """Assign every new prompt among `rows` to a split; their order does not matter.

    A cluster of new prompts that lies near earlier ones of one split joins it. Where it lies near
    several splits, it joins that of the least new id near one, and those near another are dropped.
    Clusters in which nothing has an output are not given to `sft`.

    Args:
        rows: Prompts, with or without outputs, new or known.
        earlier: What was assigned before.
        shares: Split name to its weight among all.
        seed: Another seed, another dealing of what is new.
        progress: Told now and then.

    Raises:
        UserError: The shares leave no split for prompts without an output.
    """
    known = {one.id for one in earlier}
    fresh: dict[str, Instruction] = {}
    for row in sorted(rows, key=lambda row: (row.id, row.output is None)):
        if row.id not in known:
            fresh.setdefault(row.id, row)
    prompts = list(fresh.values())
    texts = [tuple(prompt_text(one) for one in answered_prompts([row])) for row in prompts]

    def told(count: int) -> None:
        if progress is not None:
            progress(count, len(prompts))

    drops: list[Drop] = []
    old, new = _Texts(), _Texts()
    for number, one in enumerate(earlier):
        old.add(number, one.texts)
    names = {one.split: number for number, one in enumerate(earlier)}
    splits = np.array([names[one.split] for one in earlier], dtype=np.intp)
    forest = Forest(len(prompts))
    touched: dict[int, SplitAssignment] = {}  # new prompt to an earlier one that it lies near
    apart: set[int] = set()
    for number, said in enumerate(texts):
        near = [earlier[at] for at in old.by_group(said, splits).values()]
        if len(near) > 1:
            drops.append(_between(prompts[number], near))
            apart.add(number)
        else:
            if near:
                touched[number] = near[0]
            for other in new.by_group(said, forest.group):
                forest.join(other, number)
            new.add(number, said)
        told(number + 1)
    place: dict[int, str] = {}
    for group in forest.groups():
        if group[0] in apart:  # and therefore alone
            continue
        ties = [number for number in group if number in touched]
        split = (
            touched[ties[0]].split
            if ties
            else _drawn([prompts[number] for number in group], shares, seed)
        )
        for number in group:
            if number in touched and touched[number].split != split:
                first = touched[ties[0]]
                drops.append(_between(prompts[number], [touched[number], first]))
            else:
                place[number] = split
    added = [
        SplitAssignment(prompts[number].id, place[number], texts[number])
        for number in sorted(place)
    ]
    return Dealing([*earlier, *added], drops)


def files_of(
    rows: Iterable[Instruction], assigned: Iterable[SplitAssignment], names: Iterable[str]
) -> tuple[dict[str, list[Instruction]], list[Drop]]:
    """The rows of each split's file, in the order of `rows`, and those that are of no use there.

    `sft` gets every row that has an output, the others every prompt once. Rows without a split are
    left out.
    """
    split_of = {one.id: one.split for one in assigned}
    files: dict[str, list[Instruction]] = {name: [] for name in names}
    drops: list[Drop] = []
    seen: set[tuple[str, str | None]] = set()
    for row in rows:
        split = split_of.get(row.id)
        if split is None:
            continue
        what = (row.id, row.output if split == "sft" else None)
        if split == "sft" and row.output is None:
            drops.append(Drop("no output", "its prompt is one of sft, and it has no output", row))
        elif what in seen:
            drops.append(Drop("repeated", f"stands in {split} already", row))
        else:
            seen.add(what)
            files[split].append(row)
    return files, drops


def read_assignments(path: Path) -> list[SplitAssignment]:
    """What `write_assignments` wrote; nothing if there is no such file.

    Raises:
        UserError: It cannot be read, or a line is not an assignment.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); put it back") from None
    lines = text.split("\n")[:-1]  # not splitlines: a text may hold other line ends
    return [_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def write_assignments(path: Path, assigned: Iterable[SplitAssignment]) -> None:
    """Write assignments, one a line, all or nothing."""
    atomic_write(path, "".join(json_text(asdict(one), path.name) + "\n" for one in assigned))


class _Texts:
    """An index of prompts that have several texts each."""

    def __init__(self) -> None:
        self._index = NoveltyIndex(NEAR)
        self._owners = array("q")

    def add(self, number: int, texts: Iterable[str]) -> None:
        for text in texts:
            self._index.add(text)
            self._owners.append(number)

    def by_group(self, texts: Iterable[str], groups: NDArray[np.intp]) -> dict[int, int]:
        """Group to a prompt of it that lies near one of the texts; `groups` has each prompt's."""
        found: dict[int, int] = {}
        owners = np.frombuffer(self._owners, dtype=np.intp)
        for text in texts:
            near = self._index.by_group(text, lambda rows: groups[owners[rows]])
            for group, one in near.items():
                found.setdefault(group, self._owners[one.row])
        return found


def _drawn(group: Sequence[Instruction], shares: Mapping[str, float], seed: int) -> str:
    """The split of a cluster that no earlier prompt decides."""
    answered = any(row.output is not None for row in group)
    open_to = {name: share for name, share in shares.items() if name != "sft" or answered}
    total = sum(open_to.values())
    if total <= 0:
        raise UserError(
            f"--shares: {prompt_text(group[0])!r} has no output to learn from, and only sft has a "
            "share; give another split one, or take prompts without outputs out"
        )
    least = min(row.id for row in group)
    digest = hashlib.sha256(f"{seed}/{least}".encode()).digest()
    at = int.from_bytes(digest[:6], "big") / 2**48 * total
    for name, share in open_to.items():
        if at < share:
            return name
        at -= share
    return max(open_to, key=lambda name: open_to[name])  # the last rounding error


def _between(row: Instruction, near: Sequence[SplitAssignment]) -> Drop:
    first, second = near[0], near[1]
    detail = (
        f"lies near {first.texts[-1]!r} of {first.split}, and with others near "
        f"{second.texts[-1]!r} of {second.split}"
    )
    return Drop("between splits", detail, row, near=first.id)


def _parsed(line: str, where: str) -> SplitAssignment:
    try:
        columns: dict[str, Any] = json.loads(line)
        columns["texts"] = tuple(columns["texts"])
        made = SplitAssignment(**columns)
        if not all(isinstance(one, str) for one in (made.id, made.split, *made.texts)):
            raise TypeError
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{where}: is not an assignment any more; put the file back, or split into a new folder"
        ) from None
    return made
