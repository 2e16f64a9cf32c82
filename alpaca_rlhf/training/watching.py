"""Watching a policy for over-optimisation: looks by a scorer that does not give the reward.

Each look samples a completion of the same prompts with the same noise, so that two looks differ by
the policy alone. The weights of the best look are kept.

Source: arXiv 2210.10760 (a proxy's score and a held-out one against the KL from the start).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.settings import Sampling
from alpaca_rlhf.training.probes import probes
from alpaca_rlhf.training.rollouts import (
    RewardScores,
    RolloutBatch,
    RolloutPrompt,
    sample_from_policy,
)


@dataclass(frozen=True)
class WatchedPolicy:
    """A policy in training, as a look needs it."""

    adapters: Adapters
    """Holds `sft`, `policy` and, for a head, `reward`."""
    reward: ScalarHead | RewardScores
    """Head of `reward`, or a judge in its place."""
    micro: MicroBatch
    """Rows in memory at once."""
    sampling: Sampling
    """Temperature and length of the rollouts."""
    seed: int
    """Seed of the noise."""


@dataclass(frozen=True)
class Look:
    """A policy on the watched prompts after some updates."""

    step: int
    """Updates done; 0 is the policy that training began with."""
    scores: Sequence[float]
    """The held-out scorer's, by prompt."""
    reward: float
    """Mean of the reward that the policy learns from, before clipping."""
    kl: float
    """Mean KL from SFT in nats a completion (k3)."""
    probes: Mapping[str, Sequence[float]]
    """Signs of a hacked reward by name, by prompt."""

    @property
    def score(self) -> float:
        """Mean score of the held-out scorer."""
        return math.fsum(self.scores) / len(self.scores)

    @property
    def metrics(self) -> dict[str, float]:
        """The means, as they are logged."""
        means = {
            f"watch_{name}": math.fsum(values) / len(values) for name, values in self.probes.items()
        }
        return {
            "watch_score": self.score,
            "watch_reward": self.reward,
            "watch_kl": self.kl,
            **means,
        }


class Watch:
    """The looks at one policy; part of a checkpoint, so a resumed run keeps the same weights.

    Args:
        prompts: Prompts that no stage trains on.
        scorer: Scores their completions; must not give the reward.
        every: Updates between looks.
        patience: Over-optimised looks in a row after which training ends; 0 never ends it.
    """

    def __init__(
        self,
        prompts: Sequence[RolloutPrompt],
        scorer: RewardScores,
        *,
        every: int,
        patience: int,
    ) -> None:
        self.prompts, self.scorer = prompts, scorer
        self.every, self.patience = every, patience
        self.start: Look | None = None
        self.looks: list[Look] = []
        self.waited = 0

    def for_another(self) -> Watch:
        """The same looks, at another policy: none is taken yet."""
        return Watch(self.prompts, self.scorer, every=self.every, patience=self.patience)

    def begin(self, policy: WatchedPolicy) -> None:
        """Look at the policy before its first update."""
        self.start = self._look(0, policy)

    def after(self, step: int, steps: int, policy: WatchedPolicy) -> dict[str, float]:
        """Look at the policy after an update, if a look is due; returns its metrics."""
        if step % self.every and step != steps:
            return {}
        look = self._look(step, policy)
        best = self.best
        hacked = best is not None and look.score < best.score and look.reward > best.reward
        self.waited = self.waited + 1 if hacked else 0
        self.looks.append(look)
        return look.metrics

    @property
    def best(self) -> Look | None:
        """The look with the highest score, the earliest of equals."""
        return max(self.looks, key=lambda look: look.score, default=None)

    @property
    def kept_step(self) -> int | None:
        """Updates after which the weights were best."""
        return None if self.best is None else self.best.step

    @property
    def exhausted(self) -> bool:
        """True once `patience` looks in a row had less score and more reward than the best one."""
        return 0 < self.patience <= self.waited

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the looks have sampled."""
        looks = [*([self.start] if self.start else []), *self.looks]
        return round(sum(sum(look.probes["tokens"]) for look in looks))

    def observe(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Nothing: `after` has taken the look that these metrics are of."""

    def state(self) -> dict[str, Any]:
        """All looks, for a checkpoint."""
        start = None if self.start is None else asdict(self.start)
        return {
            "start": start,
            "looks": [asdict(look) for look in self.looks],
            "waited": self.waited,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.start = None if state["start"] is None else Look(**state["start"])
        self.looks = [Look(**look) for look in state["looks"]]
        self.waited = state["waited"]

    def _look(self, step: int, policy: WatchedPolicy) -> Look:
        # 1. A completion of each prompt, with the noise of every other look.
        completions = sample_from_policy(
            policy.adapters, self.prompts, 0, sampling=policy.sampling, seed=policy.seed
        )
        # 2. Its reward and its distance from SFT.
        batch = RolloutBatch(
            policy.adapters,
            self.prompts,
            completions,
            micro=policy.micro,
            temperature=policy.sampling.temperature,
        )
        by_model = isinstance(policy.reward, ScalarHead)
        head = policy.reward if isinstance(policy.reward, ScalarHead) else None
        by_judge = None if by_model else policy.reward(self.prompts, completions)
        rewards = batch.rewards(head, by_judge)
        logprobs, entropy = batch.logprobs("policy")
        ref_logprobs, _ = batch.logprobs("sft")
        metrics = batch.metrics(rewards, logprobs, ref_logprobs, entropy)
        # 3. The held-out scorer, and the signs of a hacked reward.
        return Look(
            step=step,
            scores=[float(score) for score in self.scorer(self.prompts, completions)],
            reward=metrics["score"],
            kl=metrics["kl_k3"],
            probes=probes(
                [prompt.ids for prompt in self.prompts],
                [completion.ids for completion in completions],
                [completion.finished for completion in completions],
            ),
        )
