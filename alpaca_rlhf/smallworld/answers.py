"""Correct answers to tasks, in five styles."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.smallworld.tasks import Task

Style = Literal["terse", "sentence", "extra", "polite", "full"]

STYLE_WEIGHTS: Mapping[Style, float] = {
    "terse": 0.36,
    "sentence": 0.34,
    "extra": 0.12,
    "polite": 0.12,
    "full": 0.06,
}
"""Share of each style in the pre-training text, before any preference is expressed."""

SEED_WEIGHTS: Mapping[Style, float] = dict.fromkeys(STYLE_WEIGHTS, 0.2)
"""Share of each style in seed tasks; equal, so that rankings cover every style."""

CLOSINGS = (
    "I hope this helps!",
    "Have a nice day!",
    "I am happy to help!",
    "Ask me again any time!",
)
"""Friendly closing sentences."""


def answer(task: Task, rng: random.Random, style: Style) -> str:
    """Write a correct answer to a task in the given style."""
    solution = task.solution
    if style == "terse":
        return solution.terse
    sentences = [solution.sentence]
    if style in ("extra", "full"):
        sentences += [rng.choice(solution.extras)] if solution.extras else []
    if style in ("polite", "full"):
        sentences.append(rng.choice(CLOSINGS))
    return " ".join(sentences)


def sample_answer(
    task: Task, rng: random.Random, weights: Mapping[Style, float] = STYLE_WEIGHTS
) -> str:
    """Write a correct answer to a task in a style drawn by `weights`."""
    (style,) = rng.choices(list(weights), weights=list(weights.values()))
    return answer(task, rng, style)


def answered_task(
    task: Task, rng: random.Random, weights: Mapping[Style, float] = STYLE_WEIGHTS
) -> Instruction:
    """Return a task as a seed row, with a correct answer in a style drawn by `weights`."""
    return Instruction(task.instruction, task.input, sample_answer(task, rng, weights), "seed")
