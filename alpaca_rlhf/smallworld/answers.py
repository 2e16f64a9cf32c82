"""Right answers, in five styles."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from alpaca_rlhf.records import Instruction
from alpaca_rlhf.smallworld.tasks import Task

Style = Literal["terse", "sentence", "extra", "polite", "full"]

STYLE_WEIGHTS: Mapping[Style, float] = {
    "terse": 0.36,
    "sentence": 0.34,
    "extra": 0.12,
    "polite": 0.12,
    "full": 0.06,
}
"""How often each style is written where nobody has said which is better."""

CLOSINGS = (
    "I hope this helps!",
    "Have a nice day!",
    "I am happy to help!",
    "Ask me again any time!",
)
"""Friendly last sentences."""


def answer(task: Task, rng: random.Random, style: Style) -> str:
    """A right answer in a style."""
    solution = task.solution
    if style == "terse":
        return solution.terse
    parts = [solution.sentence]
    if style in ("extra", "full"):
        parts += [rng.choice(solution.extras)] if solution.extras else []
    if style in ("polite", "full"):
        parts.append(rng.choice(CLOSINGS))
    return " ".join(parts)


def sample_answer(task: Task, rng: random.Random) -> str:
    """A right answer in a style drawn by `STYLE_WEIGHTS`."""
    (style,) = rng.choices(list(STYLE_WEIGHTS), weights=list(STYLE_WEIGHTS.values()))
    return answer(task, rng, style)


def solved(task: Task, rng: random.Random, source: str = "seed") -> Instruction:
    """A task with a right answer in a drawn style."""
    return Instruction(task.instruction, task.input, sample_answer(task, rng), source)
