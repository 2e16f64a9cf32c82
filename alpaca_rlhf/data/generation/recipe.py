"""The interface of a generation recipe: the requests to make, and the reading of their replies.

A run goes from phase to phase. A phase is a list of requests that depends only on the seed, on the
request numbers and on the results of earlier phases. So an interrupted run finds its place from its
events alone.
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

StepName = Literal["worksheet", "propose", "classify", "instances", "evolve", "answer", "reply"]
"""Purpose of a request."""

DRAFTS: frozenset[StepName] = frozenset({"propose", "evolve"})
"""Steps whose rows are tasks without an output yet."""


@dataclass(frozen=True)
class GenerationRequest:
    """One request to the teacher."""

    step: StepName
    """Its purpose."""
    prompt: str
    """Text that the teacher continues."""
    about: Instruction | None = None
    """The task that it concerns, if it concerns one."""
    siblings: tuple[Instruction, ...] = ()
    """Further tasks that the same reply is for."""

    @property
    def drafts(self) -> bool:
        """True if its rows are tasks without an output yet."""
        return self.step in DRAFTS


class Recipe(Protocol):
    """Makes requests and reads their replies; it remembers the accepted rows."""

    def phase(self, first: int) -> list[GenerationRequest]:
        """The requests of the next phase, numbered from `first`; empty ends the run.

        Called once every earlier request is answered.
        """
        ...

    def read(self, ask: GenerationRequest, reply: Reply) -> tuple[list[Instruction], list[Drop]]:
        """The rows of a reply, and a `Drop` for each part that is no row; a pure function."""
        ...

    def learn(self, ask: GenerationRequest, reply: Reply, accepted: Sequence[Instruction]) -> None:
        """Remember the accepted rows of a reply. Called once for each request, in order."""
        ...


@runtime_checkable
class StepTeacher(Protocol):
    """A teacher that adapts to the purpose of a request, for instance with a short limit."""

    def at(self, step: StepName) -> Teacher:
        """The teacher for a step: greedy and a few tokens long for `classify`, for instance."""
        ...


class Schedule:
    """The requests of a run, in chunks that are sent together.

    Chunks start at multiples of `size` within their phase and are always finished, so that a run
    that was killed inside a chunk resumes with the same chunks.
    """

    def __init__(self, recipe: Recipe, *, size: int, max_requests: int) -> None:
        self._recipe = recipe
        self._size = size
        self._max_requests = max_requests
        self._phase: list[GenerationRequest] = []
        self._place = 0
        self.requests = 0

    @property
    def between(self) -> bool:
        """True between two chunks, and once the last request is answered."""
        at_end = self._place in (0, len(self._phase)) or self._place % self._size == 0
        return at_end or self.requests == self._max_requests

    def chunk(self) -> list[GenerationRequest]:
        """The rest of the current chunk, or the next one; empty after `max_requests` requests."""
        if self._place == len(self._phase):
            self._phase, self._place = self._recipe.phase(self.requests), 0
        end = (self._place // self._size + 1) * self._size
        return self._phase[self._place : end][: self._max_requests - self.requests]

    def advance(self) -> None:
        """Note that the next request is answered."""
        self._place += 1
        self.requests += 1


def rows_of(
    recipe: Recipe, ask: GenerationRequest, reply: Reply
) -> tuple[list[Instruction], list[Drop]]:
    """The result of `Recipe.read`; nothing for a request that the teacher gave up."""
    return ([], []) if failed(reply) else recipe.read(ask, reply)


def failed(reply: Reply) -> bool:
    """True if the teacher gave the request up: its reply has an `error`."""
    return reply.error is not None


def runs_of_steps(
    asks: Sequence[GenerationRequest],
) -> Iterator[tuple[StepName, Sequence[GenerationRequest]]]:
    """Split requests into runs of the same step."""
    start = 0
    for end in range(1, len(asks) + 1):
        if end == len(asks) or asks[end].step != asks[start].step:
            yield asks[start].step, asks[start:end]
            start = end
