"""The numbers of PPO; `loop.py` holds those of everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from alpaca_rlhf.settings.bounds import (
    Bounded,
    Discount,
    LearningRate,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

OptimizerName = Literal["adamw", "adamw8bit", "paged_adamw8bit"]
"""Optimisers, by the place of their moments; the last two are bitsandbytes'."""

POLICY_WARMUP = 0.02
"""Share of the steps over which the learning rates of PPO, GRPO and RLOO rise: the first 10 of
InstructGPT's 500 batches (arXiv 2203.02155 appendix C.4: 256,000 episodes in batches of 512)."""


@dataclass(frozen=True)
class Clip(Bounded, group="--ppo.clip"):
    """Bounds of a PPO update."""

    ratio: PositiveFloat = 0.2
    """The probability ratio is clipped to 1 +- this (arXiv 1707.06347 section 3)."""
    value: NonNegativeFloat = 0.2
    """A value is clipped to within this distance of the old one, in normalised score units; 0
    switches it off."""
    score: NonNegativeFloat = 0.0
    """Scores are clipped to +- this before they become rewards; 0 switches it off."""
    grad_norm: PositiveFloat = 1.0
    """Clip the gradients of policy and value to this norm, each separately."""
    kl_stop: PositiveFloat = 0.05
    """Stop the inner epochs of an update once the k3 estimate of KL(old, new) is above this, in
    nats per token."""
    kl_target: NonNegativeFloat = 0.0
    """Steer the KL coefficient towards this KL to the reference, in nats per completion (arXiv
    1909.08593 section 2.2: 6); 0 keeps the coefficient."""
    kl_horizon: PositiveInt = 10000
    """Completions over which the steered coefficient follows (openai/lm-human-preferences@cbfd210
    launch.py)."""


@dataclass(frozen=True)
class Value(Bounded, group="--ppo.value"):
    """PPO's value function."""

    trunk: Literal["detached", "shared", "separate"] = "detached"
    """`detached` is a head on the policy's hidden states that never moves the policy: as good as
    `separate` in three quarters of its time (benchmarks/value_trunk.py); `shared` is the same head,
    but its loss moves the policy too; `separate` is an adapter of its own, which begins as the
    reward model."""
    lr: LearningRate = 1e-4
    """Peak learning rate of its head, and of its adapter where it has one, falling linearly to 0;
    meant for a 7B base, where a step moves a head's output by the sum of thousands of hidden
    units. A small base needs more: the quickstart's head learns at 1e-2
    (docs/experiments.md)."""
    coef: NonNegativeFloat = 0.1
    """Weight of its loss's gradient on the policy on a `shared` trunk
    (openai/lm-human-preferences@cbfd210 train_policy.py:53)."""
    warmup: NonNegativeInt = 2
    """First updates in which the value learns and the policy does not."""


@dataclass(frozen=True)
class PPO(Bounded, group="--ppo"):
    """Proximal policy optimisation against the reward adapter, anchored to SFT."""

    updates: PositiveInt = 40
    """Rollout batches (tatsu-lab/alpaca_farm@30717dd README: best at 20 to 80 of 512)."""
    batch_size: PositiveInt = 256
    """Completions per rollout batch."""
    minibatch_size: PositiveInt = 64
    """Completions per optimiser step (InstructGPT appendix C.4)."""
    micro_batch_size: PositiveInt = 4
    """Completions in memory at once. Never changes the result."""
    epochs: PositiveInt = 2
    """Passes over each rollout batch."""
    lr: LearningRate = 2e-5
    """Peak learning rate of the policy adapter, falling linearly to 0."""
    kl_coef: NonNegativeFloat = 0.02
    """Weight of the KL term in the reward (InstructGPT appendix C.4)."""
    temperature: PositiveFloat | None = None
    """Temperature of the rollouts; the policy's and the reference's log-probabilities, and so
    ratios and KL, are those of this temperature. None takes that of --sampling.temperature."""
    gamma: Discount = 1.0
    """Discount per token."""
    lam: Discount = 0.95
    """GAE's lambda (arXiv 1506.02438)."""
    missing_eos_score: float | None = None
    """Score of a completion that does not stop; None gives it the lowest score of the batch's
    finished ones, or -1 where that is lower (openai/lm-human-preferences@cbfd210
    train_policy.py:388), so that not stopping never pays."""
    max_new_tokens: PositiveInt = 256
    """Completion tokens at most."""
    control: bool = False
    """Train a second policy against the reward model of shuffled verdicts (--reward.control): what
    it gains, the verdicts have not earned. It takes as long as the stage itself."""
    save_every: PositiveInt = 5
    """Updates between checkpoints."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; `adamw8bit` keeps its moments in 8 bit (arXiv 2110.02861), a quarter of the memory;
    `paged_adamw8bit` moves them to the host when the card is full (QLoRA section 3)."""
    clip: Clip = field(default_factory=Clip)
    """Bounds of the update."""
    value: Value = field(default_factory=Value)
    """The value function."""

    @property
    def rollout_temperature(self) -> float:
        """Temperature of the rollouts; 1 unless it was set."""
        return 1.0 if self.temperature is None else self.temperature

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.minibatch_size:
            raise ValueError(
                f"--ppo.batch-size {self.batch_size} must be a multiple of --ppo.minibatch-size "
                f"{self.minibatch_size}"
            )
