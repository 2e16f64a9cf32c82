"""The stages of the loop, which `pipeline` runs in order; each reads and writes files.

A stage is a function of the settings, the seed and the files of earlier stages. When it is killed
and run again, it resumes from its last checkpoint, or starts over, and ends with the same files.
"""

from alpaca_rlhf.stages.dpo import dpo
from alpaca_rlhf.stages.evaluate import evaluate
from alpaca_rlhf.stages.generate import generate
from alpaca_rlhf.stages.group_policies import grpo, rloo
from alpaca_rlhf.stages.outcome import Outcome, Stage
from alpaca_rlhf.stages.policies import best_of_k, ppo
from alpaca_rlhf.stages.rank import PeopleNeeded, rank, sample_completions
from alpaca_rlhf.stages.reward import reward
from alpaca_rlhf.stages.sft import sft

__all__ = [
    "Outcome",
    "PeopleNeeded",
    "Stage",
    "best_of_k",
    "dpo",
    "evaluate",
    "generate",
    "grpo",
    "ppo",
    "rank",
    "reward",
    "rloo",
    "sample_completions",
    "sft",
]
