"""Reward training: the kit against TRL's RewardTrainer, on rankings of four completions.

    pip install -c constraints.txt -e '.[bench-trl1]'    # trl==1.16.0, in an environment of its own
    python benchmarks/reward_vs_trl.py [--quick] --json benchmarks/results/reward_vs_trl.json

A ranking of four is six pairs. TRL has a row for each pair, so it computes every completion three
times, each time with its prompt; ours computes the prompt of a ranking and each of its completions
once. The losses are the same mean over all pairs. Two pairs, or one ranking, in memory at once:
four sequences. What both sides have alike: `trl_trainers.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from alpaca_rlhf.settings import Reward
from benchmarks.little_llama import SHAPE
from benchmarks.trl_trainers import (
    LR,
    PAIRS,
    RANKINGS,
    SEQUENCES_AT_ONCE,
    STEPS,
    K,
    Kit,
    Trainer,
    compare,
    rankings,
)

SETTINGS = Reward(
    lr=LR,
    head_lr=LR,
    epochs=STEPS,
    batch_size=RANKINGS,
    micro_batch_size=SEQUENCES_AT_ONCE // K,
    warmup=0.0,
    max_length=1024,
)


class Ours(Kit):
    """`train_reward`, which also scores a short held-out ranking at the end."""

    def train(self, folder: Path) -> None:
        """Both steps."""
        from alpaca_rlhf.models.batches import Example
        from alpaca_rlhf.training.groups import Group
        from alpaca_rlhf.training.loop import Checkpoints
        from alpaca_rlhf.training.reward import train_reward

        train = [
            Group(
                str(number),
                tuple(Example(tuple(row.prompt), tuple(ids)) for ids in row.completions),
                tuple(PAIRS),
            )
            for number, row in enumerate(rankings())
        ]
        short = tuple(Example((5, 6), (number, SHAPE.eos)) for number in (7, 8))
        train_reward(
            self.adapters,
            "trained",
            train,
            [Group("held out", short, ((0, 1),))],
            SETTINGS,
            seed=0,
            checkpoints=Checkpoints(folder),
            log=self.rows.append,
        )


class Theirs(Trainer):
    """TRL's RewardTrainer."""

    def made(self) -> Any:
        """The trainer on all pairs, with the head that ours starts from."""
        from datasets import Dataset
        from trl import RewardConfig, RewardTrainer

        from alpaca_rlhf.models.heads import ScalarHead

        model: Any = self.load("AutoModelForSequenceClassification", num_labels=1)
        with torch.no_grad():
            model.score.weight.copy_(ScalarHead(SHAPE.hidden, seed=0).weight[None])
        pairs = [
            {
                "chosen_ids": row.prompt + row.completions[i],
                "rejected_ids": row.prompt + row.completions[j],
            }
            for row in rankings()
            for i, j in PAIRS
        ]
        return RewardTrainer(
            model,
            args=RewardConfig(
                **self.arguments(SEQUENCES_AT_ONCE // 2, len(pairs)), num_train_epochs=STEPS
            ),
            train_dataset=Dataset.from_list(pairs),
            processing_class=self.tokenizer(),
            peft_config=self.lora("SEQ_CLS"),
        )


if __name__ == "__main__":
    compare("reward_vs_trl", __doc__, Ours, Theirs)
