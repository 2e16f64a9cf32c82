"""Self-Instruct's own recipe (arXiv 2212.10560): tasks, then their kind, then their instances.

A round has three phases. Its requests for tasks show eight: six seed tasks and two of the teacher's
own, once there are any from an earlier round. Then every new task is asked about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import classification_prompt, instances_prompt, task_list_prompt
from alpaca_rlhf.core.records import Instruction, content_hash
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.generation.instances import is_classification, parse_instances, parse_tasks
from alpaca_rlhf.data.generation.recipe import Ask
from alpaca_rlhf.data.generation.teachers import Reply

SHOWN, OWN = 8, 2
"""Tasks shown in a request, and how many of them at most are the teacher's own
(yizhongw/self-instruct@0b26cca bootstrap_instructions.py:164)."""


class SelfInstructRecipe:
    """Bootstrapped tasks, then output-first or input-first instances of each.

    Raises:
        UserError: There are too few seed tasks.
    """

    def __init__(self, seeds: Sequence[Instruction], *, seed: int, batch_size: int) -> None:
        if len(seeds) < SHOWN:
            raise UserError(
                f"--generate.recipe self-instruct shows {SHOWN} tasks, got {len(seeds)} seed tasks"
            )
        self._seeds = seeds
        self._seed = seed
        self._size = batch_size
        self._own: list[str] = []
        self._new: list[Instruction] = []
        self._to_answer: list[tuple[Instruction, bool]] = []

    def phase(self, first: int) -> list[Ask]:
        """Tasks; or whether those that came are classifications; or their instances."""
        if self._to_answer:
            asked, self._to_answer = self._to_answer, []
            return [
                Ask("instances", instances_prompt(one.instruction, output_first=is_class), one)
                for one, is_class in asked
            ]
        if self._new:
            new, self._new = self._new, []
            return [Ask("classify", classification_prompt(one.instruction), one) for one in new]
        return [Ask("propose", task_list_prompt(self._shown(first + i))) for i in range(self._size)]

    def read(self, ask: Ask, reply: Reply) -> tuple[list[Instruction], list[Drop]]:
        """Tasks without outputs; nothing; instances."""
        finished = reply.finish_reason == "eos"
        if ask.step == "propose":
            return parse_tasks(reply.text, SHOWN + 1, finished=finished)
        if ask.about is None or ask.step == "classify":
            return [], []
        task = ask.about
        first = ask.prompt == instances_prompt(task.instruction, output_first=True)
        draw = f"{self._seed}/{content_hash(ask.prompt)}"
        return parse_instances(reply.text, task, output_first=first, finished=finished, draw=draw)

    def learn(self, ask: Ask, reply: Reply, kept: Sequence[Instruction]) -> None:
        """New tasks join the pool at once; none is shown before the next round."""
        if ask.step == "propose":
            self._new.extend(kept)
            self._own.extend(row.instruction for row in kept)
        elif ask.step == "classify" and ask.about is not None:
            self._to_answer.append((ask.about, is_classification(reply.text)))

    def _shown(self, request: int) -> list[str]:
        rng = random.Random(f"{self._seed}/{request}")
        own = rng.sample(self._own, min(OWN, len(self._own)))
        seeds = rng.sample(self._seeds, SHOWN - len(own))
        shown = [*own, *(row.instruction for row in seeds)]
        rng.shuffle(shown)
        return shown
