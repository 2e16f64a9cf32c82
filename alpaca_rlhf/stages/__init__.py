"""The stages of the loop, each from files to files: what `pipeline` runs in order.

A stage is a function of the settings, the seed and the files of earlier stages. Killed and run
again it goes on from
its last checkpoint, or begins anew, and ends with the same files.
"""

from alpaca_rlhf.stages.evaluate import evaluate
from alpaca_rlhf.stages.generate import generate
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
    "evaluate",
    "generate",
    "ppo",
    "rank",
    "reward",
    "sample_completions",
    "sft",
]
