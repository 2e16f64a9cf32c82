"""Self-Instruct's original recipe (arXiv 2212.10560): tasks, their kind, their instances.

A round has three phases. A request for tasks shows eight: six seed tasks and two that the teacher
wrote in earlier rounds, once there are any. Then the teacher is asked about every new task: whether
it is a classification, and for its instances.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.prompts import classification_prompt, instances_prompt, task_list_prompt
from alpaca_rlhf.core.records import Instruction, content_hash
from alpaca_rlhf.data.generation.filters import Drop
from alpaca_rlhf.data.generation.instances import is_classification, parse_instances, parse_tasks
from alpaca_rlhf.data.generation.recipe import GenerationRequest
from alpaca_rlhf.data.generation.teachers import Reply

SHOWN_TASKS, MAX_TEACHER_TASKS = 8, 2
"""Tasks shown in a request, and the most of them that the teacher wrote itself
(yizhongw/self-instruct@0b26cca bootstrap_instructions.py:164)."""


class SelfInstructRecipe:
    """Bootstrapped tasks, then output-first or input-first instances of each.

    Raises:
        UserError: There are too few seed tasks.
    """

    def __init__(self, seeds: Sequence[Instruction], *, seed: int, batch_size: int) -> None:
        if len(seeds) < SHOWN_TASKS:
            raise UserError(
                f"--generate.recipe self-instruct shows {SHOWN_TASKS} tasks, got {len(seeds)} seed "
                "tasks"
            )
        self._seeds = seeds
        self._seed = seed
        self._batch_size = batch_size
        self._teacher_tasks: list[str] = []
        self._new_tasks: list[Instruction] = []
        self._to_answer: list[tuple[Instruction, bool]] = []

    def phase(self, first: int) -> list[GenerationRequest]:
        """Requests for new tasks, for the kind of each new task, or for its instances."""
        # A round proposes, classifies, then asks for instances; the list that is filled tells which
        # step comes next.
        if self._to_answer:
            tasks, self._to_answer = self._to_answer, []
            return [
                GenerationRequest(
                    "instances", instances_prompt(task.instruction, output_first=is_class), task
                )
                for task, is_class in tasks
            ]
        if self._new_tasks:
            new_tasks, self._new_tasks = self._new_tasks, []
            return [
                GenerationRequest("classify", classification_prompt(task.instruction), task)
                for task in new_tasks
            ]
        return [
            GenerationRequest("propose", task_list_prompt(self._shown_tasks(number)))
            for number in range(first, first + self._batch_size)
        ]

    def read(self, ask: GenerationRequest, reply: Reply) -> tuple[list[Instruction], list[Drop]]:
        """Tasks without outputs from a proposal; instances; nothing from a classification."""
        finished = reply.finish_reason == "eos"
        if ask.step == "propose":
            return parse_tasks(reply.text, SHOWN_TASKS + 1, finished=finished)
        if ask.about is None or ask.step == "classify":
            return [], []
        task = ask.about
        first = ask.prompt == instances_prompt(task.instruction, output_first=True)
        draw = f"{self._seed}/{content_hash(ask.prompt)}"
        return parse_instances(reply.text, task, output_first=first, finished=finished, draw=draw)

    def learn(self, ask: GenerationRequest, reply: Reply, accepted: Sequence[Instruction]) -> None:
        """New tasks join the pool at once, but none is shown before the next round."""
        if ask.step == "propose":
            self._new_tasks.extend(accepted)
            self._teacher_tasks.extend(row.instruction for row in accepted)
        elif ask.step == "classify" and ask.about is not None:
            self._to_answer.append((ask.about, is_classification(reply.text)))

    def _shown_tasks(self, request: int) -> list[str]:
        rng = random.Random(f"{self._seed}/{request}")
        teacher_tasks = rng.sample(
            self._teacher_tasks, min(MAX_TEACHER_TASKS, len(self._teacher_tasks))
        )
        seeds = rng.sample(self._seeds, SHOWN_TASKS - len(teacher_tasks))
        tasks = [*teacher_tasks, *(row.instruction for row in seeds)]
        rng.shuffle(tasks)
        return tasks
