"""The small world: a closed world in simple English in which every task has a known answer.

The embedded base is pre-trained on its text, the quickstart's tasks are drawn from it, and its
gold judge measures exactly what a reward model only estimates. `facts` says what is true,
`families` and the modules named after their topics define the tasks, `tasks` draws and recognises
them, `answers` writes right answers, `judge` grades answers, and `corpus` writes documents.
"""

from alpaca_rlhf.smallworld.answers import (
    CLOSINGS,
    SEED_WEIGHTS,
    SEEDS_FOLLOWED,
    STYLE_WEIGHTS,
    answer,
    answered_task,
    sample_answer,
)
from alpaca_rlhf.smallworld.judge import GoldJudge, GoldWeights, Verdict
from alpaca_rlhf.smallworld.tasks import FAMILIES, Task, recognise, sample_task

__all__ = [
    "CLOSINGS",
    "FAMILIES",
    "SEEDS_FOLLOWED",
    "SEED_WEIGHTS",
    "STYLE_WEIGHTS",
    "GoldJudge",
    "GoldWeights",
    "Task",
    "Verdict",
    "answer",
    "answered_task",
    "recognise",
    "sample_answer",
    "sample_task",
]
