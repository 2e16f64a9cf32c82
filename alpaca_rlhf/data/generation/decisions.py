"""Which rows stay: filters, the caller's check, novelty, and the target, asked in this order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop, Rule, drop_reason
from alpaca_rlhf.data.generation.recipe import Ask
from alpaca_rlhf.data.novelty import NoveltyIndex

Check = Callable[[Instruction], Drop | None]
"""Looks at a row: a `Drop` if it may not stay, else None."""


class Decisions:
    """Decides on rows strictly in the order they come, and remembers those that stay.

    A task without an output yet is looked at by the filters and by ROUGE-L novelty; its instances
    by the filters and the caller's checks.

    Args:
        seeds: Seed tasks: nothing may lie near them. They are never filtered.
        target: Rows wanted; those that come after are surplus.
        rules: Filters on the row's text.
        accept: The caller's own check.
        novel: Replaces ROUGE-L novelty. It is asked last: what it lets through is kept.
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
        self._left = target
        self._target = target
        self._rules = rules
        self._accept = accept
        self._novel = novel
        self._index = NoveltyIndex(threshold)
        self._known: list[Instruction] = []
        self._parents: dict[str, str] = {}
        for row in seeds:
            self._remember(row)

    def decide(
        self, ask: Ask, rows: Sequence[Instruction], broken: Sequence[Drop]
    ) -> tuple[list[Instruction], list[Drop]]:
        """The rows that stay, and why the others do not, each with its nearest neighbour.

        Args:
            ask: The request.
            rows: Rows of the reply.
            broken: What of the reply is no row.
        """
        kept: list[Instruction] = []
        dropped = [self._with_neighbour(drop) for drop in broken]
        for row in rows:
            drop = self._reason(ask, row)
            if drop is not None:
                dropped.append(self._with_neighbour(replace(drop, row=row)))
                continue
            kept.append(row)
            if ask.about is None or ask.drafts:  # an instance's task is known already
                self._remember(row)
            if not ask.drafts:
                self._left -= 1
            elif ask.about is not None:
                self._parents[row.id] = ask.about.id
        return kept, dropped

    def _reason(self, ask: Ask, row: Instruction) -> Drop | None:
        if self._left <= 0:
            return Drop("surplus", f"the target of {self._target} rows was reached")
        if (drop := drop_reason(row, self._rules)) is not None:
            return drop
        if not ask.drafts and self._accept is not None:
            if (drop := self._accept(row)) is not None:
                return drop
        if self._novel is not None:
            return None if ask.drafts else self._novel(row)
        return self._duplicate(ask, row) if ask.drafts or ask.about is None else None

    def _duplicate(self, ask: Ask, row: Instruction) -> Drop | None:
        ancestors = self._ancestors(ask.about)
        for near in self._index.duplicates(row.instruction):
            other = self._known[near.row]
            if other.id not in ancestors:
                detail = f"too near to {other.instruction!r}"
                return Drop("duplicate", detail, near=other.id, score=near.score)
        return None

    def _ancestors(self, row: Instruction | None) -> set[str]:
        found: set[str] = set()
        one = row.id if row is not None else None
        while one is not None and one not in found:
            found.add(one)
            one = self._parents.get(one)
        return found

    def _with_neighbour(self, drop: Drop) -> Drop:
        if drop.near or drop.row is None:
            return drop
        near = self._index.nearest(drop.row.instruction)
        if near is None:
            return drop
        return replace(drop, near=self._known[near.row].id, score=near.score)

    def _remember(self, row: Instruction) -> None:
        self._index.add(row.instruction)
        self._known.append(row)
