"""DPO: the kit against TRL's DPOTrainer, on rankings of four completions.

    pip install -c constraints.txt -e '.[bench-trl1]'    # trl==1.16.0, in an environment of its own
    python benchmarks/dpo_vs_trl.py [--quick] --json benchmarks/results/dpo_vs_trl.json

A ranking of four is six pairs. TRL has a row for each pair, so it computes every completion three
times, each time with its prompt, and the same under the reference in every step; ours computes the
prompt of a ranking and each of its completions once, and the reference's log-probabilities once
before the first step, which is counted too. The losses are the same mean over all pairs. Two pairs,
or one ranking, in memory at once: four sequences. What both sides have alike: `trl_trainers.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpaca_rlhf.settings import DPO
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
    words,
)

SETTINGS = DPO(
    lr=LR,
    epochs=STEPS,
    batch_size=RANKINGS,
    micro_batch_size=SEQUENCES_AT_ONCE // K,
    warmup=0.0,
    max_length=1024,
    eval_every=1000,
)


class Ours(Kit):
    """`train_dpo`, which also evaluates a short held-out ranking at the end."""

    def train(self, folder: Path) -> None:
        """The reference's log-probabilities, then both steps."""
        from alpaca_rlhf.models.batches import Example
        from alpaca_rlhf.training.dpo import (
            ReferencedGroup,
            micro_batch,
            reference_logprobs,
            train_dpo,
        )
        from alpaca_rlhf.training.groups import Group
        from alpaca_rlhf.training.loop import Checkpoints

        groups = [
            Group(
                str(number),
                tuple(Example(tuple(row.prompt), tuple(ids)) for ids in row.completions),
                tuple(PAIRS),
            )
            for number, row in enumerate(rankings())
        ]
        short = tuple(Example((5, 6), (number, SHAPE.eos)) for number in (7, 8))
        groups.append(Group("held out", short, ((0, 1),)))
        reference = reference_logprobs(self.adapters, groups, micro_batch("dpo", SETTINGS))
        rows = [ReferencedGroup(*pair) for pair in zip(groups, reference, strict=True)]
        train_dpo(
            self.adapters,
            "trained",
            rows[:-1],
            rows[-1:],
            SETTINGS,
            seed=0,
            checkpoints=Checkpoints(folder),
            log=self.rows.append,
        )


class Theirs(Trainer):
    """TRL's DPOTrainer; the reference is the model without its adapter."""

    def made(self) -> Any:
        """The trainer on all pairs."""
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        pairs = [
            {
                "prompt": words(row.prompt) + " ",
                "chosen": words(row.completions[i]),
                "rejected": words(row.completions[j]),
            }
            for row in rankings()
            for i, j in PAIRS
        ]
        return DPOTrainer(
            self.load("AutoModelForCausalLM"),
            args=DPOConfig(
                **self.arguments(SEQUENCES_AT_ONCE // 2, len(pairs)),
                num_train_epochs=STEPS,
                beta=SETTINGS.beta,
            ),
            train_dataset=Dataset.from_list(pairs),
            processing_class=self.tokenizer(),
            peft_config=self.lora("CAUSAL_LM"),
        )


if __name__ == "__main__":
    compare("dpo_vs_trl", __doc__, Ours, Theirs)
