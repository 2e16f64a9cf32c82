"""Verifiable instructions, dealt to the splits by clusters, and the judge that checks answers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import ClassVar, Literal

from alpaca_rlhf.checks import (
    Checks,
    Core,
    Language,
    Part,
    bare_request,
    compose,
    cores,
    demonstrations,
    read_request,
)
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import user_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Scores
from alpaca_rlhf.data import Drop, FileAccount, NoveltyIndex, Rule, clusters
from alpaca_rlhf.sources.source import Slice

Languages = Literal["en", "zh", "both"]
"""Languages of the prompts."""

SHARES = {"sft": 0.2, "rank": 0.3, "ppo": 0.25, "dev": 0.1, "eval": 0.15}
"""Share of the clusters of instructions that each split gets. Most go to ranking, the only data of
the reward model; of 2,567 English instructions eval gets about 385, enough for 300 prompts."""

MAX_PER_INSTRUCTION = 8
"""Prompts at most that are composed with one instruction, each with other constraints. Eight make
about 5,100 for PPO of the English ones, a new one for each sample of 20 updates of 256."""

SIZE_FLAGS = {
    "sft": "--generate.target",
    "rank": "--rank.prompts",
    "ppo": "--ppo.updates times --ppo.batch-size, or --best-of-k.prompts",
    "eval": "--evaluate.prompts",
    "dev": "--evaluate.prompts",
}
"""The flags that set the size of each split."""

_LANGUAGES: Mapping[Languages, tuple[Language, ...]] = {
    "en": ("en",),
    "zh": ("zh",),
    "both": ("en", "zh"),
}
_EVALUATED = ("eval", "dev")
_PARTS: tuple[Part, ...] = (
    "trained", "held_out_kinds", "trained", "held_out_phrasings", "trained",
    "held_out_kinds", "trained", "held_out_phrasings", "trained", "held_out_kinds",
)  # fmt: skip
"""The parts of the prompts of eval and dev, over and over: half of them trained."""
_TRIES = 20  # compositions of one instruction before it counts as exhausted


@dataclass
class ChecksSource:
    """Prompts that state verifiable constraints.

    A cluster of near-duplicate instructions goes to one split, by the seed; so does a round of a
    split. The constraints of a prompt are drawn by the seed and the split.
    """

    seed: int
    """Deals the instructions to the splits, and draws the constraints."""
    sizes: Mapping[str, int]
    """Prompts of each split, e.g. {"eval": 300, "rank": 400, "rank.2": 400, "sft": 800}."""
    languages: Languages = "en"
    """Languages of the prompts."""
    accounts: Sequence[FileAccount] = ()
    """The rows of the user's files."""
    prompts_per_row: int = 1
    """Prompts of the split `sft` for each row that is to be generated."""
    _by_split: dict[str, list[Instruction]] = field(default_factory=dict, init=False)

    rules: ClassVar[Sequence[Rule] | None] = None
    """Those that Alpaca used."""

    def seeds(self) -> list[Instruction]:
        """Hand-written answers that meet constraints of trained kinds."""
        return demonstrations(_LANGUAGES[self.languages])

    def unanswered(self) -> list[Instruction]:
        """The prompts of the split `sft`."""
        return self.prompts("sft")

    def names(self) -> list[str]:
        """Splits other than sft."""
        return [name for name in self.sizes if name != "sft"]

    def prompts(self, split: str) -> list[Instruction]:
        """The prompts of a split, without answers; fewer of them are the first of these.

        In `eval` and `dev` some have held-out kinds of constraint, some held-out phrasings.

        Raises:
            UserError: There are not so many.
        """
        if split not in self._by_split:
            self._by_split[split] = self._composed(split, self.sizes[split])
        return self._by_split[split]

    def capacity(self, split: str) -> int:
        """Prompts at most of a split."""
        return MAX_PER_INSTRUCTION * len(self._cores_of_split.get(split, []))

    def slices(self, rows: Sequence[Instruction]) -> dict[Slice, list[int]]:
        """Trained kinds in trained phrasings; held-out kinds; held-out phrasings."""
        constraints = [read_request(user_text(row)).constraints for row in rows]
        new_kinds = [any(check.kind.held_out for check in checks) for checks in constraints]
        new_phrasings = [
            any(check.held_out_phrasing for check in checks) and not new_kind
            for checks, new_kind in zip(constraints, new_kinds, strict=True)
        ]
        indices = range(len(rows))
        return {
            "trained": [i for i in indices if not new_kinds[i] and not new_phrasings[i]],
            "held_out_kinds": [i for i in indices if new_kinds[i]],
            "held_out_phrasings": [i for i in indices if new_phrasings[i]],
        }

    def key(self, row: Instruction) -> str:
        """The cluster of the instruction, whatever the constraints.

        An instruction that is not one of ours has the cluster of the nearest one of ours
        (ROUGE-L above 0.7), or is alone with its text.
        """
        return _dealt_instructions().key(read_request(user_text(row)).core)

    def accept(self, row: Instruction) -> Drop | None:
        """Only rows whose constraints can be verified, are not held out, and are met."""
        constraints = read_request(user_text(row)).constraints
        if not constraints:
            return Drop("no constraint", "it states no constraint that can be verified", row)
        held_out = [
            check.text for check in constraints if check.kind.held_out or check.held_out_phrasing
        ]
        if held_out:
            return Drop("held out", f"{held_out[0]!r} is for the evaluation", row)
        split = self._split_of_key(self.key(row))
        if split not in ("sft", None):
            return Drop("leak", f"its instruction is one of split {split!r}", row)
        if row.output is not None:
            scores = self.gold(row, row.output, True)
            if scores.parts["all_met"] < 1:
                return Drop("not met", "its output does not meet every constraint", row)
        return None

    def novelty(self) -> None:
        """By ROUGE-L."""
        return

    @property
    def gold(self) -> Callable[[Instruction, str, bool], Scores]:
        """The judge of verifiable instructions."""
        return Checks().score

    @cached_property
    def _cores_of_split(self) -> dict[str, list[Core]]:
        """The instructions of each split and round, in the order of their draws."""
        instructions = _dealt_instructions()
        groups: dict[str, list[Core]] = {}
        for core in cores():
            if core.language in _LANGUAGES[self.languages]:
                groups.setdefault(instructions.key(core.text), []).append(core)
        dealt: dict[str, list[Core]] = {}
        for key, group in sorted(
            groups.items(), key=lambda item: _draw(self.seed, "order", item[0])
        ):
            split = self._split_of_key(key)
            if split is not None:
                dealt.setdefault(self._round_of(split, key), []).extend(group)
        return dealt

    def _split_of_key(self, key: str) -> str | None:
        """The split of a cluster; None for an instruction that is not one of ours."""
        instructions = _dealt_instructions()
        if key in instructions.demonstrated:
            return "sft"
        if key not in instructions.keys:
            return None
        draw = _draw(self.seed, "split", key)
        for split, share in SHARES.items():
            draw -= share
            if draw < 0:
                return split
        return "eval"

    def _round_of(self, split: str, key: str) -> str:
        """The name of the split in the round that a cluster is dealt to."""
        names = [name for name in self.sizes if name.partition(".")[0] == split] or [split]
        return names[int(_draw(self.seed, "round", key) * len(names))]

    def _composed(self, split: str, n: int) -> list[Instruction]:
        instructions = self._cores_of_split.get(split, [])
        rng = random.Random(f"{self.seed}/{split}/{self.languages}")
        rows: list[Instruction] = []
        ids: set[str] = set()
        # One prompt of each instruction, then a second one of each ...
        for _ in range(MAX_PER_INSTRUCTION):
            for core in instructions:
                if len(rows) == n:
                    return rows
                part = _PARTS[len(rows) % len(_PARTS)] if split in _EVALUATED else "trained"
                drawn = (compose(core, rng, part) for _ in range(_TRIES))
                row = next((row for row in drawn if row.id not in ids), None)
                if row is not None:
                    ids.add(row.id)
                    rows.append(row)
        if len(rows) == n:
            return rows
        per_row = self.prompts_per_row if split == "sft" else 1
        wanted = f"{n // per_row} rows with {per_row} prompts each" if per_row > 1 else str(n)
        raise UserError(
            f"{SIZE_FLAGS[split.partition('.')[0]]}: there are {len(rows)} verifiable prompts for "
            f"the {split} split, not {wanted}; ask for at most {len(rows) // per_row}"
        )


class _Instructions:
    """Every instruction with its cluster of near-duplicates."""

    def __init__(self) -> None:
        demonstrated = [read_request(user_text(row)).core for row in demonstrations(("en", "zh"))]
        texts = [*demonstrated, *(core.text for core in cores())]
        rows = [Instruction(text) for text in dict.fromkeys(texts)]
        self._key_of: dict[str, str] = {}
        self._index = NoveltyIndex()
        self._texts: list[str] = []
        for group in clusters(rows):
            key = bare_request(min(row.instruction for row in group))
            for row in group:
                self._key_of[bare_request(row.instruction)] = key
                self._index.add(row.instruction)
                self._texts.append(row.instruction)
        self.keys = frozenset(self._key_of.values())
        self.demonstrated = frozenset(self._key_of[bare_request(text)] for text in demonstrated)

    def key(self, text: str) -> str:
        """The name of an instruction's cluster."""
        bare = bare_request(text)
        if bare in self._key_of:
            return self._key_of[bare]
        near = self._index.duplicate(text)
        return bare if near is None else self._key_of[bare_request(self._texts[near.row])]


@lru_cache(maxsize=1)
def _dealt_instructions() -> _Instructions:
    return _Instructions()


def _draw(seed: int, purpose: str, key: str) -> float:
    """A number in [0, 1) from the seed, its purpose and a cluster's name alone."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
