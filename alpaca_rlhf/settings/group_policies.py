"""The numbers of GRPO and RLOO, which learn from groups of completions without a value function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from alpaca_rlhf.settings.bounds import (
    Bounded,
    LearningRate,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)
from alpaca_rlhf.settings.ppo import OptimizerName

TokenMean = Literal["sequence", "token", "fixed"]
"""Ways to a mean over the tokens of completions of different lengths."""


@dataclass(frozen=True)
class GroupPolicy(Bounded):
    """Settings that GRPO and RLOO share."""

    updates: PositiveInt = 40
    """Rollout batches."""
    prompts: PositiveInt = 64
    """Prompts per rollout batch; times 4 that is as many completions as PPO samples."""
    k: Annotated[int, Interval(ge=2), "with one there is nothing to compare it with"] = 4
    """Completions of each prompt: a group, whose scores are compared with each other."""
    minibatch_size: PositiveInt = 64
    """Completions per optimiser step."""
    micro_batch_size: PositiveInt = 4
    """Completions in memory at once. Never changes the result."""
    epochs: PositiveInt = 1
    """Passes over each rollout batch."""
    lr: LearningRate = 2e-5
    """Peak learning rate of the policy adapter, falling linearly to 0; that of PPO."""
    kl_coef: NonNegativeFloat = 0.0
    """Weight of the KL from SFT."""
    temperature: PositiveFloat | None = None
    """Temperature of the rollouts, of their log-probabilities and KL. None takes that of
    --sampling.temperature."""
    mean: TokenMean = "fixed"
    """`sequence` is a mean over the tokens of each completion, then over completions; `token` over
    all tokens of a step; `fixed` a sum over the tokens of each completion, divided by the longest
    length allowed."""
    clip_ratio: PositiveFloat = 0.2
    """The probability ratio is clipped to 1 +- this (arXiv 1707.06347 section 3)."""
    clip_score: NonNegativeFloat = 0.0
    """Scores are clipped to +- this before they are compared; 0 switches it off."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip the gradient of a step to this norm."""
    missing_eos_score: float | None = None
    """Score of a completion that does not stop; None gives it the lowest score of the batch's
    finished ones, or -1 where that is lower."""
    max_new_tokens: PositiveInt = 256
    """Completion tokens at most."""
    save_every: PositiveInt = 5
    """Updates between checkpoints."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; `adamw8bit` keeps its moments in 8 bit (arXiv 2110.02861), a quarter of the memory;
    `paged_adamw8bit` moves them to the host when the card is full (QLoRA section 3)."""

    @property
    def completions(self) -> int:
        """Completions per rollout batch."""
        return self.prompts * self.k

    @property
    def rollout_temperature(self) -> float:
        """Temperature of the rollouts; 1 unless it was set."""
        return 1.0 if self.temperature is None else self.temperature

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.completions % self.minibatch_size:
            raise ValueError(
                f"{self.group}.prompts {self.prompts} times {self.group}.k {self.k} must be a "
                f"multiple of {self.group}.minibatch-size {self.minibatch_size}"
            )


@dataclass(frozen=True)
class GRPO(GroupPolicy, group="--grpo"):
    """Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300 section 4.1)."""

    kl_coef: NonNegativeFloat = 0.04
    """Weight of the KL from SFT in the loss, by the estimator k3 (arXiv 2402.03300 section 4.2)."""
    mean: TokenMean = "sequence"
    """`sequence` is a mean over the tokens of each completion, then over completions (arXiv
    2402.03300 equation 3); `token` over all tokens of a step (DAPO, arXiv 2503.14476 section 3.3);
    `fixed` a sum over the tokens of each completion, divided by the longest length allowed, so that
    long wrong completions are not spared (Dr. GRPO, arXiv 2503.20783 section 3.1)."""
    divide_by_std: bool = True
    """Divide the advantages of a group by the standard deviation of its scores; Dr. GRPO does not,
    because it weighs up prompts that are too easy or too hard (arXiv 2503.20783 section 3.1)."""


@dataclass(frozen=True)
class RLOO(GroupPolicy, group="--rloo"):
    """REINFORCE with the other completions of the prompt as the baseline (arXiv 2402.14740)."""

    kl_coef: NonNegativeFloat = 0.05
    """Weight of the KL from SFT in the reward, k1 summed over the completion
    (huggingface/trl@006d32c trl/trainer/rloo_config.py: 0.05)."""
    mean: TokenMean = "fixed"
    """`fixed` is a sum over the tokens of each completion, which is one action, divided by the
    longest length allowed (arXiv 2402.14740 section 3.3); `sequence` a mean over the tokens of each
    completion, then over completions; `token` over all tokens of a step."""
