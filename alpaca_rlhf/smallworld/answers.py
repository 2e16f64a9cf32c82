"""Correct answers to tasks, in five styles and in the form that is asked for."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.smallworld.forms import Form
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

FOLLOWED, SEEDS_FOLLOWED = 0.5, 0.25
"""Share of requests that an answer follows on purpose, before any preference is expressed: in the
pre-training text, and in seed tasks, so that much is left to prefer."""

STYLE_OF: Mapping[Form, Style] = {
    "bare": "terse",
    "sentence": "sentence",
    "more": "extra",
    "friendly": "polite",
}
"""The style that each request asks for."""

SEED_WEIGHTS: Mapping[Style, float] = dict.fromkeys(STYLE_OF.values(), 0.25)
"""Share of each style in seed tasks; equal, so that rankings cover every form that is asked for."""

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
    task: Task,
    rng: random.Random,
    weights: Mapping[Style, float] = STYLE_WEIGHTS,
    followed: float = FOLLOWED,
) -> str:
    """Write a correct answer to a task.

    A request for a form is followed in a share of `followed`; else the style is drawn by `weights`.
    """
    if task.form is not None and rng.random() < followed:
        return answer(task, rng, STYLE_OF[task.form])
    (style,) = rng.choices(list(weights), weights=list(weights.values()))
    return answer(task, rng, style)


def answered_task(
    task: Task,
    rng: random.Random,
    weights: Mapping[Style, float] = STYLE_WEIGHTS,
    followed: float = FOLLOWED,
) -> Instruction:
    """Return a task as a seed row, with an answer as `sample_answer` writes it."""
    output = sample_answer(task, rng, weights, followed)
    return Instruction(task.instruction, task.input, output, "seed")
