"""Evol-instruct's deepening (arXiv 2304.12244): a task is made harder, then answered.

For a teacher that follows instructions. Parents are seed tasks and what was made of them; as in
WizardLM every task may evolve again. A new task may lie near its own ancestors, because it adds few
words to them, but near no other.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from alpaca_rlhf.core.prompts import EVOLUTIONS, evolution_prompt, render
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.generation.recipe import SOURCE, Ask
from alpaca_rlhf.data.generation.teachers import Reply
from alpaca_rlhf.data.novelty import tokens

_MARKER = re.compile(r"\b(?:given|rewritten|created) prompt\b", re.IGNORECASE)
_LABEL = re.compile(r"^#?\s*(?:the )?rewritten prompt\s*#?\s*:?\s*", re.IGNORECASE)


class EvolRecipe:
    """Tasks made deeper in one of four ways, and their answers."""

    def __init__(self, seeds: Sequence[Instruction], *, seed: int, batch_size: int) -> None:
        self._parents = list(seeds)
        self._seed = seed
        self._size = batch_size
        self._new: list[Instruction] = []

    def phase(self, first: int) -> list[Ask]:
        """Parents to evolve; or what came of them to answer."""
        if self._new:
            new, self._new = self._new, []
            return [Ask("answer", render("alpaca", one), one) for one in new]
        asks = []
        for request in range(first, first + self._size):
            rng = random.Random(f"{self._seed}/{request}")
            parent = rng.choice(self._parents)
            asks.append(Ask("evolve", evolution_prompt(parent, rng.choice(EVOLUTIONS)), parent))
        return asks

    def read(self, ask: Ask, reply: Reply) -> tuple[list[Instruction], list[Drop]]:
        """One task, or one answer."""
        task = ask.about
        if task is None:
            return [], []
        text = reply.text.replace("\r\n", "\n").strip()
        if ask.step == "evolve":
            row = Instruction(_LABEL.sub("", text, count=1), "", None, SOURCE)
        else:
            row = Instruction(task.instruction, task.input, text, SOURCE)
        problem = _problem(ask, row, finished=reply.finish_reason == "eos")
        return ([row], []) if problem is None else ([], [Drop(*problem, row)])

    def learn(self, ask: Ask, reply: Reply, kept: Sequence[Instruction]) -> None:
        """An answered task may become a parent."""
        (self._new if ask.step == "evolve" else self._parents).extend(kept)


def _problem(ask: Ask, row: Instruction, *, finished: bool) -> tuple[str, str] | None:
    said = row.instruction if ask.step == "evolve" else row.output or ""
    if not tokens(said):
        return "empty", f"the {'task' if ask.step == 'evolve' else 'output'} has no word"
    if not finished:
        return "cut", "the reply ends before the teacher did"
    if ask.step == "evolve" and ask.about is not None:
        if marker := _MARKER.search(said):
            return "marker", f"speaks of the rewriting: {marker[0]!r}"
        if tokens(said) == tokens(f"{ask.about.instruction} {ask.about.input}"):
            return "unchanged", "says what its parent says"
    return None
