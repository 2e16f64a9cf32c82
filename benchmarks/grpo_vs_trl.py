"""GRPO's update: the kit against TRL's GRPOTrainer, on the same groups of four completions.

    pip install -c constraints.txt -e '.[bench-trl1]'    # trl==1.16.0, in an environment of its own
    python benchmarks/grpo_vs_trl.py [--quick] --json benchmarks/results/grpo_vs_trl.json

Completions and rewards are given to both sides, so that the losses can be compared; sampling is
`rollout.py`'s. What is measured: old log-probabilities, those of the reference, and two optimiser
steps over all completions, with the clipped surrogate and the KL in the loss (beta 0.04, a mean
over the tokens of a completion, then over completions). TRL pads prompts on the left and
completions on the right, four completions at once, in random order; ours keeps the four of a prompt
together and computes their prompt once. What both sides have alike: `trl_trainers.py`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpaca_rlhf.settings import GRPO
from benchmarks.trl_trainers import (
    LONGEST,
    LR,
    RANKINGS,
    SEQUENCES_AT_ONCE,
    STEPS,
    K,
    Kit,
    Trainer,
    compare,
    rankings,
)

SETTINGS = GRPO(
    updates=1,
    prompts=RANKINGS,
    k=K,
    minibatch_size=K * RANKINGS,
    micro_batch_size=SEQUENCES_AT_ONCE,
    epochs=STEPS,
    lr=LR,
    max_new_tokens=LONGEST,
)


def reward(number: int, sample: int) -> float:
    """The reward of a completion."""
    return float((7 * number + 3 * sample) % 5)


class Ours(Kit):
    """`train_in_groups`, with completions and a judge's scores in place of sampling."""

    def prepare(self) -> None:
        """The adapter to train is the policy."""
        super().prepare()
        self.adapters.add("policy", copy_of="sft")

    def train(self, folder: Path) -> None:
        """One update of two epochs."""
        from alpaca_rlhf.models.rollout import SampledCompletion
        from alpaca_rlhf.training import group_policy
        from alpaca_rlhf.training.grpo import grpo_method
        from alpaca_rlhf.training.loop import Checkpoints
        from alpaca_rlhf.training.rollouts import RolloutPrompt

        rows = rankings()

        def sampled(_: Any, prompts: Any, *args: Any, **options: Any) -> list[SampledCompletion]:
            return [
                SampledCompletion(tuple(ids), True)
                for prompt in prompts
                for ids in rows[int(prompt.key)].completions
            ]

        def scores(prompts: Any, completions: Any) -> list[float]:
            return [reward(int(prompt.key), i % K) for i, prompt in enumerate(prompts)]

        module: Any = group_policy
        module.sample_from_policy, module.POLICY_WARMUP = sampled, 0.0
        group_policy.train_in_groups(
            self.adapters,
            scores,
            [RolloutPrompt(str(i), tuple(row.prompt)) for i, row in enumerate(rows)],
            grpo_method(SETTINGS),
            seed=0,
            rollout_batch_size=K * RANKINGS,
            checkpoints=Checkpoints(folder),
            log=self.rows.append,
        )

    def run(self) -> dict[str, Any]:
        """The update; its row holds means over its steps."""
        with tempfile.TemporaryDirectory() as folder:
            self.train(Path(folder))
        return {
            "losses": [row["policy_loss"] for row in self.rows],
            "gradient_norms": [row["policy_grad_norm"] for row in self.rows],
        }


class Theirs(Trainer):
    """TRL's GRPOTrainer, with completions through `rollout_func`."""

    def made(self) -> Any:
        """The trainer: one generation, two passes over it."""
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        rows = rankings()

        def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
            numbers = [int(prompt) for prompt in prompts]
            seen: dict[int, int] = {}
            samples = []
            for number in numbers:
                samples.append(seen.get(number, 0))
                seen[number] = samples[-1] + 1
            return {
                "prompt_ids": [rows[number].prompt for number in numbers],
                "completion_ids": [
                    rows[number].completions[sample]
                    for number, sample in zip(numbers, samples, strict=True)
                ],
                "logprobs": None,
                "sample": samples,
            }

        def score(prompts: list[str], sample: list[int], **options: Any) -> list[float]:
            return [reward(int(prompt), i) for prompt, i in zip(prompts, sample, strict=True)]

        return GRPOTrainer(
            self.load("AutoModelForCausalLM"),
            reward_funcs=score,
            args=GRPOConfig(
                **self.arguments(SEQUENCES_AT_ONCE, K * RANKINGS),
                max_steps=STEPS,
                num_generations=K,
                num_iterations=STEPS,
                steps_per_generation=K * RANKINGS // SEQUENCES_AT_ONCE,
                max_completion_length=LONGEST,
                beta=SETTINGS.kl_coef,
                use_bias_correction_kl=False,  # ours has the published estimator
                loss_type="grpo",
                epsilon=SETTINGS.clip_ratio,
                shuffle_dataset=False,
            ),
            train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(RANKINGS)]),
            processing_class=self.tokenizer(),
            peft_config=self.lora("CAUSAL_LM"),
            rollout_func=rollout,
        )

    def run(self) -> dict[str, Any]:
        """Both steps; means over them, as ours are."""
        work = super().run()
        return {name: [sum(values) / len(values)] for name, values in work.items()}


if __name__ == "__main__":
    compare("grpo_vs_trl", __doc__, Ours, Theirs)
