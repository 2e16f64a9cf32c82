"""Tasks of the small world, dealt to the splits by their keys, and its gold judge."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Scores, UnknownPrompt
from alpaca_rlhf.data import Drop, FileAccount, Firewall, Rule
from alpaca_rlhf.smallworld import (
    SEED_WEIGHTS,
    SEEDS_FOLLOWED,
    GoldJudge,
    Task,
    answered_task,
    recognise,
    sample_task,
)
from alpaca_rlhf.smallworld.tasks import Part
from alpaca_rlhf.sources.source import Slice

MIN_DRAWS, DRAWS_PER_TASK = 20_000, 30
"""Draws after which a split of the small world counts as exhausted: so many, and so many more for
each task that was found."""

SIZE_FLAGS = {
    "sft": "--generate.seeds",
    "rank": "--rank.prompts",
    "ppo": "--ppo.updates times --ppo.batch-size, or --best-of-k.prompts",
    "eval": "--evaluate.prompts",
    "dev": "--evaluate.prompts",
}
"""The flags that set the size of each split."""


@dataclass
class SmallWorld:
    """Tasks of the small world.

    A task's split is a function of (seed, task key), so that no phrasing crosses it.
    """

    seed: int
    """Draws the tasks, and deals the keys to the splits."""
    n_seeds: int
    """Seed tasks."""
    sizes: Mapping[str, int]
    """Prompts of each split other than sft, e.g. {"eval": 400, "rank": 400, "ppo": 1280}."""
    accounts: Sequence[FileAccount] = ()
    """The rows of the user's files."""
    _by_split: dict[str, list[Instruction]] = field(default_factory=dict, init=False)

    rules: ClassVar[Sequence[Rule] | None] = ()
    """None are needed: `accept` knows every task."""
    phrasing_share = 0.2
    """Share of the evaluation prompts with a held-out phrasing."""
    fact_share = 0.1
    """Share of the evaluation prompts with a held-out fact, as far as there are so many."""

    def seeds(self) -> list[Instruction]:
        """Train tasks with gold answers in mixed styles."""
        return self._seeds

    def unanswered(self) -> list[Instruction]:
        """The seed tasks without their outputs."""
        return [replace(seed, output=None) for seed in self.seeds()]

    def names(self) -> list[str]:
        """Splits other than sft."""
        return list(self.sizes)

    def prompts(self, split: str) -> list[Instruction]:
        """Distinct tasks of a split.

        In `eval` and `dev` a part has held-out facts or held-out phrasings.
        """
        if split not in self._by_split:
            n = self.sizes[split]
            # Held-out facts as far as they go, then held-out phrasings; known tasks fill up.
            if split in ("eval", "dev"):
                rows = self._draw(
                    split, round(n * self.fact_share), phrasing="train", fact="held_out"
                )
                rows += self._draw(
                    split,
                    round(n * self.phrasing_share),
                    phrasing="held_out",
                    fact="train",
                    excluded=rows,
                )
                rows += self._draw(
                    split, n - len(rows), phrasing="train", fact="train", excluded=rows
                )
            else:
                rows = self._draw(split, n, phrasing="train", fact="train")
            self._by_split[split] = [task.record() for task in rows]
        return self._by_split[split]

    def slices(self, rows: Sequence[Instruction]) -> dict[Slice, list[int]]:
        """Known facts in known phrasings; held-out facts; held-out phrasings."""
        tasks = [self._task(row) for row in rows]
        return {
            "seen_facts_train_phrasings": [
                i for i, t in enumerate(tasks) if not t.held_out_fact and not t.held_out_phrasing
            ],
            "held_out_facts": [i for i, t in enumerate(tasks) if t.held_out_fact],
            "held_out_phrasings": [i for i, t in enumerate(tasks) if t.held_out_phrasing],
        }

    def key(self, row: Instruction) -> str | None:
        """Family and arguments, whatever the phrasing."""
        task = recognise(row.instruction, row.input)
        return None if task is None else task.key

    def accept(self, row: Instruction) -> Drop | None:
        """Only known tasks, with trained facts and phrasings, that no other split holds."""
        task = recognise(row.instruction, row.input)
        if task is None:
            return Drop("unknown task", "no task of the small world", row=row)
        if task.held_out_fact or task.held_out_phrasing:
            return Drop("held out", f"{task.key} is for the evaluation", row=row)
        leak = self._firewall.leak("sft", row)
        return None if leak is None else Drop("leak", str(leak), row=row)

    def novelty(self) -> Callable[[Instruction], Drop | None]:
        """A check that no seed and no earlier row asks the same as a row, in whatever phrasing."""
        known = {self.key(row) for row in self.seeds()}

        def check(row: Instruction) -> Drop | None:
            key = self.key(row)
            if key in known:
                return Drop("duplicate", f"there is a task {key} already", row=row)
            known.add(key)
            return None

        return check

    @property
    def gold(self) -> Callable[[Instruction, str, bool], Scores]:
        """The gold judge."""
        return self._gold

    def _gold(self, row: Instruction, completion: str, finished: bool) -> Scores:
        verdict = GoldJudge().verdict(self._task(row), completion, finished)
        parts = ("correct", "form", "to_the_point")
        return Scores(verdict.score, {name: float(getattr(verdict, name)) for name in parts})

    def _task(self, row: Instruction) -> Task:
        task = recognise(row.instruction, row.input)
        if task is None:
            raise UnknownPrompt(
                f"{row.instruction!r} is not a task of the small world, so it has no gold answer"
            )
        return task

    @cached_property
    def _seeds(self) -> list[Instruction]:
        rng = random.Random(f"{self.seed}/seed answers")
        return [
            answered_task(task, rng, SEED_WEIGHTS, SEEDS_FOLLOWED)
            for task in self._draw("sft", self.n_seeds, phrasing="train", fact="train")
        ]

    @cached_property
    def _firewall(self) -> Firewall:
        firewall = Firewall(self.key)
        for split in self.sizes:
            firewall.claim(split, self.prompts(split))
        return firewall

    def _draw(
        self, split: str, n: int, *, phrasing: Part, fact: Part, excluded: Sequence[Task] = ()
    ) -> list[Task]:
        rng = random.Random(f"{self.seed}/{split}/{phrasing}/{fact}")
        tasks: list[Task] = []
        keys = {task.key for task in excluded}
        # A later round gets no task of an earlier one.
        if "." in split:
            keys |= self._earlier(split)
        draws = 0
        while len(tasks) < n and draws < MIN_DRAWS + DRAWS_PER_TASK * len(tasks):
            draws += 1
            task = sample_task(rng, phrasing=phrasing, fact=fact, requests=1.0)
            if task.key not in keys and self._split_of(task) == split.split(".")[0]:
                keys.add(task.key)
                tasks.append(task)
        # Few facts are held out, so fewer tasks than asked for will do.
        if len(tasks) == n or fact == "held_out":
            return tasks
        raise UserError(
            f"{SIZE_FLAGS[split.partition('.')[0]]}: the small world has about {len(tasks)} tasks "
            f"for this part of the {split} split, not {n}; ask for fewer"
        )

    def _earlier(self, split: str) -> set[str]:
        name, number = split.split(".")
        earlier = [name, *(f"{name}.{i}" for i in range(2, int(number)))]
        return {str(self.key(row)) for name in earlier for row in self.prompts(name)}

    def _split_of(self, task: Task) -> str:
        digest = hashlib.blake2b(f"{self.seed}/{task.key}".encode(), digest_size=8).digest()
        draw = int.from_bytes(digest, "big") / 2**64
        if task.held_out_fact:
            return "eval" if draw < 0.75 else "dev"
        for split, share in (("sft", 0.35), ("rank", 0.15), ("ppo", 0.3), ("eval", 0.12)):
            draw -= share
            if draw < 0:
                return split
        return "dev"
