"""The numbers of PPO; `settings.py` holds those of everything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from alpaca_rlhf.settings.bounds import above

OptimizerName = Literal["adamw", "adamw8bit", "paged_adamw8bit"]
"""Where the optimiser's moments live; the last two are bitsandbytes'."""


@dataclass(frozen=True)
class Clip:
    """PPO's bounds."""

    ratio: float = 0.2
    """The probability ratio counts within 1 +- this (arXiv 1707.06347 section 3)."""
    value: float = 0.2
    """A value moves at most this far from the old one, in normalised score units; 0 switches it
    off."""
    score: float = 0.0
    """Scores are clamped to +- this before they become rewards; 0 switches it off."""
    grad_norm: float = 1.0
    """Clip the gradients of policy and value to this norm, each for itself."""
    kl_stop: float = 0.05
    """Stop the inner epochs of an update once the k3 estimate of KL(old, new) is above this, in
    nats a token."""
    kl_target: float = 0.0
    """Steer the KL coefficient towards this KL to the reference, in nats a completion (arXiv
    1909.08593 section 2.2: 6); 0 keeps the coefficient."""
    kl_horizon: int = 10000
    """Completions over which the steered coefficient follows (openai/lm-human-preferences@cbfd210
    launch.py)."""

    def __post_init__(self) -> None:
        for name in ("ratio", "grad_norm", "kl_stop", "kl_horizon"):
            above(f"--ppo.clip.{name.replace('_', '-')}", getattr(self, name), 0)
        for name in ("value", "score", "kl_target"):
            flag = f"--ppo.clip.{name.replace('_', '-')}"
            above(flag, getattr(self, name), 0, equal_allowed=True)


@dataclass(frozen=True)
class Value:
    """PPO's value function."""

    trunk: Literal["detached", "shared", "separate"] = "detached"
    """`detached` is a head on the policy's hidden states that never moves the policy: as good as
    `separate` in three quarters of its time (benchmarks/value_trunk.py); `shared` is the same head,
    but its loss moves the policy too; `separate` is an adapter of its own, which begins as the
    reward model."""
    lr: float = 1e-4
    """Peak learning rate of its head, and of its adapter where it has one, falling linearly to
    0."""
    coef: float = 0.1
    """How much of its loss's gradient moves the policy on a `shared` trunk
    (openai/lm-human-preferences@cbfd210 train_policy.py:53)."""
    warmup: int = 2
    """First updates in which the value learns and the policy does not."""

    def __post_init__(self) -> None:
        above("--ppo.value.lr", self.lr, 0)
        above("--ppo.value.coef", self.coef, 0, equal_allowed=True)
        above("--ppo.value.warmup", self.warmup, 0, equal_allowed=True)


@dataclass(frozen=True)
class PPO:
    """Proximal policy optimisation against the reward adapter, anchored to SFT."""

    updates: int = 40
    """Rollout batches (tatsu-lab/alpaca_farm@30717dd README: best at 20 to 80 of 512)."""
    batch_size: int = 256
    """Completions a rollout batch."""
    minibatch_size: int = 64
    """Completions an optimiser step (InstructGPT appendix C.4)."""
    micro_batch_size: int = 4
    """Completions in memory at once. Never changes the result."""
    epochs: int = 2
    """Passes over each rollout batch."""
    lr: float = 2e-5
    """Peak learning rate of the policy adapter, falling linearly to 0."""
    kl_coef: float = 0.02
    """Weight of the KL term in the reward (InstructGPT appendix C.4)."""
    gamma: float = 1.0
    """Discount a token."""
    lam: float = 0.95
    """GAE's lambda (arXiv 1506.02438)."""
    missing_eos_score: float = -1.0
    """Score of a completion that does not stop (openai/lm-human-preferences@cbfd210
    train_policy.py:388)."""
    max_new_tokens: int = 256
    """Completion tokens at most."""
    save_every: int = 5
    """Updates between checkpoints."""
    optimizer: OptimizerName = "adamw"
    """`adamw`; `adamw8bit` keeps its moments in 8 bit (arXiv 2110.02861), a quarter of the memory;
    `paged_adamw8bit` moves them to the host when the card is full (QLoRA section 3)."""
    clip: Clip = field(default_factory=Clip)
    """Bounds of the update."""
    value: Value = field(default_factory=Value)
    """The value function."""

    def __post_init__(self) -> None:
        for name in (
            "updates",
            "batch_size",
            "minibatch_size",
            "micro_batch_size",
            "epochs",
            "lr",
        ):
            above(f"--ppo.{name.replace('_', '-')}", getattr(self, name), 0)
        for name in ("max_new_tokens", "save_every"):
            above(f"--ppo.{name.replace('_', '-')}", getattr(self, name), 0)
        above("--ppo.kl-coef", self.kl_coef, 0, equal_allowed=True)
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--ppo.{name} must be in [0, 1], got {getattr(self, name):g}")
        if self.batch_size % self.minibatch_size:
            raise ValueError(
                f"--ppo.batch-size {self.batch_size} must be a multiple of --ppo.minibatch-size "
                f"{self.minibatch_size}"
            )
