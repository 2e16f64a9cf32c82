"""Evol-Instruct's deepening (arXiv 2304.12244): the teacher makes a task harder, then answers it.

For a teacher that follows instructions. Parents are the seed tasks and the tasks that evolved from
them; as in WizardLM every task may evolve again. A new task may be a near-duplicate of its own
ancestors, because it adds few words to them, but of no other task.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from alpaca_rlhf.core.prompts import EVOLUTIONS, evolution_prompt, render
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.generation.recipe import SOURCE, GenerationRequest
from alpaca_rlhf.data.generation.teachers import Reply
from alpaca_rlhf.data.novelty import tokens

_MARKER = re.compile(r"\b(?:given|rewritten|created) prompt\b", re.IGNORECASE)
_LABEL = re.compile(r"^#?\s*(?:the )?rewritten prompt\s*#?\s*:?\s*", re.IGNORECASE)


class EvolRecipe:
    """Tasks made deeper in one of four ways, and their answers."""

    def __init__(self, seeds: Sequence[Instruction], *, seed: int, batch_size: int) -> None:
        self._parents = list(seeds)
        self._seed = seed
        self._batch_size = batch_size
        self._new_tasks: list[Instruction] = []

    def phase(self, first: int) -> list[GenerationRequest]:
        """Requests to evolve parents, or to answer the evolved tasks."""
        # Evolved tasks are answered before more are evolved.
        if self._new_tasks:
            tasks, self._new_tasks = self._new_tasks, []
            return [GenerationRequest("answer", render("alpaca", task), task) for task in tasks]
        asks = []
        for request in range(first, first + self._batch_size):
            # Drawn from the request's number alone, so a resumed run draws the same.
            rng = random.Random(f"{self._seed}/{request}")
            parent = rng.choice(self._parents)
            asks.append(
                GenerationRequest(
                    "evolve", evolution_prompt(parent, rng.choice(EVOLUTIONS)), parent
                )
            )
        return asks

    def read(self, ask: GenerationRequest, reply: Reply) -> tuple[list[Instruction], list[Drop]]:
        """The evolved task, or the task with its answer."""
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

    def learn(self, ask: GenerationRequest, reply: Reply, accepted: Sequence[Instruction]) -> None:
        """An answered task may become a parent."""
        (self._new_tasks if ask.step == "evolve" else self._parents).extend(accepted)


def _problem(ask: GenerationRequest, row: Instruction, *, finished: bool) -> tuple[str, str] | None:
    text = row.instruction if ask.step == "evolve" else row.output or ""
    if not tokens(text):
        return "empty", f"the {'task' if ask.step == 'evolve' else 'output'} has no word"
    if not finished:
        return "cut", "the reply ends before the teacher did"
    if ask.step == "evolve" and ask.about is not None:
        if marker := _MARKER.search(text):
            return "marker", f"speaks of the rewriting: {marker[0]!r}"
        if tokens(text) == tokens(f"{ask.about.instruction} {ask.about.input}"):
            return "unchanged", "repeats its parent"
    return None
