"""The small world: a closed world in simple English in which every task has a known answer.

The embedded base is pre-trained on its text, the quickstart's tasks are drawn from it, and its
gold judge measures what a reward model only guesses.
"""

from alpaca_rlhf.smallworld.answers import (
    CLOSINGS,
    SEED_WEIGHTS,
    STYLE_WEIGHTS,
    answer,
    sample_answer,
    solved,
)
from alpaca_rlhf.smallworld.judge import GoldJudge, GoldWeights, Verdict
from alpaca_rlhf.smallworld.tasks import FAMILIES, Task, recognise, sample_task

__all__ = [
    "CLOSINGS",
    "FAMILIES",
    "SEED_WEIGHTS",
    "STYLE_WEIGHTS",
    "GoldJudge",
    "GoldWeights",
    "Task",
    "Verdict",
    "answer",
    "recognise",
    "sample_answer",
    "sample_task",
    "solved",
]
