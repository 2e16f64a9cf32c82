"""Decisions on rows: the target, filters, the caller's check and novelty, in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop, Rule, drop_reason
from alpaca_rlhf.data.generation.recipe import GenerationRequest
from alpaca_rlhf.data.novelty import NoveltyIndex

Check = Callable[[Instruction], Drop | None]
"""Checks a row; returns a `Drop` if the row must go, else None."""


@runtime_checkable
class BatchCheck(Protocol):
    """A check that sees the rows of a batch of replies together before each is decided on."""

    def prepare(self, rows: Sequence[Instruction]) -> None:
        """Look at rows that are about to be checked one by one, in their order."""
        ...

    def __call__(self, row: Instruction) -> Drop | None:
        """Check one of them; a resumed run checks rows that were not prepared, too."""
        ...


class Decisions:
    """Decide on rows strictly in the order they come, and remember the accepted ones.

    A task without an output yet passes the filters and ROUGE-L novelty; its instances pass the
    filters and the caller's checks.

    Args:
        seeds: Seed tasks, never filtered; no accepted task may be a near-duplicate of one.
        target: Number of rows to accept; any later ones are surplus.
        rules: Filters on the row's text.
        accept: The caller's own check.
        novel: Replaces ROUGE-L novelty. It is the last check: a row that passes it is accepted.
        threshold: Two instructions with a ROUGE-L F1 above it are near-duplicates.
    """

    def __init__(
        self,
        seeds: Sequence[Instruction],
        *,
        target: int,
        rules: Sequence[Rule],
        accept: Check | None,
        novel: Check | None,
        threshold: float,
    ) -> None:
        self._missing = target
        self._target = target
        self._rules = rules
        self._accept = accept
        self._novel = novel
        self._index = NoveltyIndex(threshold)
        self._known_rows: list[Instruction] = []
        self._parents: dict[str, str] = {}
        for row in seeds:
            self._remember(row)

    def prepare(self, rows: Sequence[Instruction]) -> None:
        """Show rows that pass the filters to a caller's check that wants them together."""
        if isinstance(self._accept, BatchCheck) and self._missing > 0:
            self._accept.prepare([row for row in rows if drop_reason(row, self._rules) is None])

    def decide(
        self, ask: GenerationRequest, rows: Sequence[Instruction], broken: Sequence[Drop]
    ) -> tuple[list[Instruction], list[Drop]]:
        """The accepted rows, and a `Drop` with the nearest neighbour for each of the others.

        Args:
            ask: The request.
            rows: Rows of the reply.
            broken: Parts of the reply that are no rows.
        """
        accepted: list[Instruction] = []
        dropped = [self._with_neighbour(drop) for drop in broken]
        for row in rows:
            drop = self._reason(ask, row)
            if drop is not None:
                dropped.append(self._with_neighbour(replace(drop, row=row)))
                continue
            accepted.append(row)
            if ask.about is None or ask.drafts:  # an instance's task is known already
                self._remember(row)
            if not ask.drafts:
                self._missing -= 1
            elif ask.about is not None:
                self._parents[row.id] = ask.about.id
        return accepted, dropped

    def _reason(self, ask: GenerationRequest, row: Instruction) -> Drop | None:
        # The cheap checks come first; novelty compares with every known row.
        if self._missing <= 0:
            return Drop("surplus", f"the target of {self._target} rows was reached")
        if (drop := drop_reason(row, self._rules)) is not None:
            return drop
        if not ask.drafts and self._accept is not None:
            if (drop := self._accept(row)) is not None:
                return drop
        if self._novel is not None:
            return None if ask.drafts else self._novel(row)
        return self._duplicate(ask, row) if ask.drafts or ask.about is None else None

    def _duplicate(self, ask: GenerationRequest, row: Instruction) -> Drop | None:
        ancestors = self._ancestors(ask.about)
        # The nearest first, so that the drop names the nearest that is no ancestor.
        for near in self._index.duplicates(row.instruction):
            neighbour = self._known_rows[near.row]
            if neighbour.id not in ancestors:
                detail = f"too near to {neighbour.instruction!r}"
                return Drop("duplicate", detail, near=neighbour.id, score=near.score)
        return None

    def _ancestors(self, row: Instruction | None) -> set[str]:
        """Ids of a task and of the tasks it evolved from; it may lie near these."""
        ancestors: set[str] = set()
        row_id = row.id if row is not None else None
        while row_id is not None and row_id not in ancestors:
            ancestors.add(row_id)
            row_id = self._parents.get(row_id)
        return ancestors

    def _with_neighbour(self, drop: Drop) -> Drop:
        if drop.near or drop.row is None:
            return drop
        near = self._index.nearest(drop.row.instruction)
        if near is None:
            return drop
        return replace(drop, near=self._known_rows[near.row].id, score=near.score)

    def _remember(self, row: Instruction) -> None:
        self._index.add(row.instruction)
        self._known_rows.append(row)
