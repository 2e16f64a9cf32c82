"""What a recipe of generation is: which requests to make, and how to read the replies.

A run goes from phase to phase. A phase is a list of requests that depends only on the seed, on the
request numbers, and on what earlier phases gave. So a run that was interrupted finds its place from
its events alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.generation.teachers import Reply, Teacher

SOURCE = "self_instruct"
"""`Instruction.source` of generated rows."""

StepName = Literal["worksheet", "propose", "classify", "instances", "evolve", "answer"]

DRAFTS: frozenset[StepName] = frozenset({"propose", "evolve"})
"""Steps whose rows are tasks without an output yet."""


@dataclass(frozen=True)
class Ask:
    """One request."""

    step: StepName
    """What it is for."""
    prompt: str
    """The text that the teacher continues."""
    about: Instruction | None = None
    """The task it is about, where it is about one."""

    @property
    def drafts(self) -> bool:
        """Whether its rows are tasks without an output yet."""
        return self.step in DRAFTS


class Recipe(Protocol):
    """Makes requests and reads their replies. It holds what has been made so far."""

    def phase(self, first: int) -> list[Ask]:
        """The requests of the next phase, `first` being the number of the first of them.

        Asked when every request before is answered. Never empty.
        """
        ...

    def read(self, ask: Ask, reply: Reply) -> tuple[list[Instruction], list[Drop]]:
        """The rows of a reply and why the rest are none; a pure function."""
        ...

    def learn(self, ask: Ask, reply: Reply, kept: Sequence[Instruction]) -> None:
        """Remember what came of a request. Called once for each, in order."""
        ...


@runtime_checkable
class StepTeacher(Protocol):
    """A teacher that can be told what a request is for, so that it may cut short replies short."""

    def at(self, step: StepName) -> Teacher:
        """The teacher for a step: e.g. greedy and three tokens long for `classify`."""
        ...


class Schedule:
    """The requests of a run, in chunks that are asked together.

    Chunks start at multiples of `size` within their phase and are always finished, so that a run
    killed while it wrote one falls back into step.
    """

    def __init__(self, recipe: Recipe, *, size: int, most: int) -> None:
        self._recipe = recipe
        self._size = size
        self._most = most
        self._phase: list[Ask] = []
        self._place = 0
        self.requests = 0

    @property
    def between(self) -> bool:
        """Whether a chunk is finished, or all that may be asked."""
        at_end = self._place in (0, len(self._phase)) or self._place % self._size == 0
        return at_end or self.requests == self._most

    def chunk(self) -> list[Ask]:
        """What is left of the chunk under way, or the next one; empty when the most is reached."""
        if self._place == len(self._phase):
            self._phase, self._place = self._recipe.phase(self.requests), 0
        end = (self._place // self._size + 1) * self._size
        return self._phase[self._place : end][: self._most - self.requests]

    def taken(self) -> None:
        """The next request is answered."""
        self._place += 1
        self.requests += 1


def rows_of(recipe: Recipe, ask: Ask, reply: Reply) -> tuple[list[Instruction], list[Drop]]:
    """What `Recipe.read` gives; nothing of a request that the teacher gave up."""
    return ([], []) if failed(reply) else recipe.read(ask, reply)


def failed(reply: Reply) -> bool:
    """Whether the teacher gave the request up: its reply has an `error`."""
    return reply.error is not None


def parts(asks: Sequence[Ask]) -> Iterator[tuple[StepName, Sequence[Ask]]]:
    """Runs of requests of one step."""
    start = 0
    for end in range(1, len(asks) + 1):
        if end == len(asks) or asks[end].step != asks[start].step:
            yield asks[start].step, asks[start:end]
            start = end
