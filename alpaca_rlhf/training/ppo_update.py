"""One update of PPO: advantages, and the inner steps of policy and value on a rollout.

Sources: arXiv 1707.06347, arXiv 1506.02438, openai/lm-human-preferences@cbfd210.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.records import ValuedRollout
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Batch, from_rollout
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.forward import token_logprobs, token_logprobs_and_values, value_states
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.settings import PPO
from alpaca_rlhf.training.loop import Learner, batches
from alpaca_rlhf.training.losses import (
    Advantages,
    gae,
    kl_k1,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from alpaca_rlhf.training.rollouts import MicroBatchedRows

T = TypeVar("T")


class KLCoefficient:
    """Weight of the KL term: fixed, or adapted so that the KL approaches a target.

    Source: openai/lm-human-preferences@cbfd210 train_policy.py:115-124.
    """

    def __init__(self, settings: PPO) -> None:
        self.value = settings.kl_coef
        self._target = settings.clip.kl_target
        self._horizon = settings.clip.kl_horizon

    def update(self, kl: float, completions: int) -> None:
        """Adapt to an update of so many completions with this mean KL a completion, in nats."""
        if self._target > 0:
            error = min(max(kl / self._target - 1, -0.2), 0.2)
            self.value *= 1 + error * completions / self._horizon

    def state(self) -> dict[str, Any]:
        """The coefficient, for a checkpoint."""
        return {"value": self.value}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        self.value = state["value"]


@dataclass(frozen=True)
class Critic:
    """The value function: a head on the hidden states of an adapter."""

    role: str
    """Adapter whose hidden states the head reads: `value`, or `policy`."""
    head: ScalarHead
    """The value head."""
    share: float = 0.0
    """Fraction of the value loss's gradient into the policy's hidden states that reaches the
    policy; 0 detaches them. The head's own gradient is always whole."""

    @property
    def joint(self) -> bool:
        """True if policy and value share their forwards."""
        return self.role == "policy"


@dataclass(frozen=True)
class PPOContext:
    """Models and settings that stay the same over a run of PPO."""

    adapters: Adapters
    """`policy`, `sft` (frozen reference), `reward` (frozen), and `value` if the critic has one."""
    reward_head: ScalarHead | None
    """Head of `reward`, normalised on SFT completions; None where a judge gives the reward."""
    critic: Critic
    """The value function."""
    settings: PPO
    """Hyperparameters."""
    micro: MicroBatch
    """Rows in memory at once."""


@dataclass
class PPOUpdate:
    """A rollout with its advantages, and the two steps that are taken on its minibatches."""

    context: PPOContext
    """Models and settings; policy and value are trainable."""
    policy: Learner
    """Optimiser of the policy adapter."""
    value: Learner
    """Optimiser of the value head, and of its adapter where it has one."""
    rollout: ValuedRollout
    """B completions of C tokens, sampled from the policy."""
    kl_coef: float
    """Weight of the KL term in the reward."""
    advantages: Tensor = field(init=False)
    """(B, C) float32, whitened over the whole rollout; 0 where masked."""
    returns: Tensor = field(init=False)
    """(B, C) float32 targets of the value; 0 where masked."""
    _micro_batched: MicroBatchedRows = field(init=False)

    def __post_init__(self) -> None:
        targets = advantages_of(self.rollout, self.context.settings, kl_coef=self.kl_coef)
        self.advantages = whiten(targets.advantages, self.rollout.completion_mask)
        self.returns = targets.returns
        self._micro_batched = MicroBatchedRows(self.rollout, self.context.settings)

    def policy_backward(self, rows: Tensor, tokens: int, micro_batch_size: int) -> dict[str, float]:
        """Accumulate the gradient of a minibatch's mean surrogate in the policy.

        On the policy's own hidden states the value head gets its gradient too, the whole of it.

        Args:
            rows: (R,) int64, this process's rows of the minibatch.
            tokens: Completion tokens of the whole minibatch.
            micro_batch_size: Rows at once.

        Returns:
            Sums over the tokens of these rows.
        """
        adapters, critic, rollout = self.context.adapters, self.context.critic, self.rollout
        sums = {"policy_loss": 0.0, "clip_fraction": 0.0, "approx_kl": 0.0, "value_loss": 0.0}
        with adapters.using("policy"), adapters.training():
            for part, batch in self._micro_batches(rows, micro_batch_size):
                # 1. New log-probabilities, and values where they come from the same forward.
                value_term: Tensor | float = 0.0
                if critic.joint:
                    logprobs, values = token_logprobs_and_values(
                        adapters,
                        critic.head,
                        batch,
                        share=critic.share,
                        temperature=self.context.settings.rollout_temperature,
                    )
                    value_sum = self._value_loss(values, part)
                    sums["value_loss"] += value_sum.item()
                    value_term = value_sum
                else:
                    logprobs = token_logprobs(
                        adapters, batch, temperature=self.context.settings.rollout_temperature
                    )
                # 2. The clipped surrogate against the rollout's log-probabilities.
                surrogate = policy_loss(
                    logprobs,
                    rollout.logprobs[part],
                    self.advantages[part],
                    rollout.completion_mask[part],
                    clip=self.context.settings.clip.ratio,
                )
                # 3. Sums over tokens become a mean over the minibatch.
                self.policy.scale.backward((surrogate.loss + value_term) / tokens)
                sums["policy_loss"] += surrogate.loss.item()
                sums["clip_fraction"] += float(surrogate.clipped)
                sums["approx_kl"] += float(surrogate.kl)
        return sums

    def value_backward(self, rows: Tensor, tokens: int, micro_batch_size: int) -> float:
        """Accumulate the gradient of a minibatch's mean loss in the value function.

        On the policy's hidden states in its head alone: the policy does not learn here.

        Args:
            rows: (R,) int64, this process's rows of the minibatch.
            tokens: Completion tokens of the whole minibatch.
            micro_batch_size: Rows at once.

        Returns:
            Sum of the loss over the tokens of these rows.
        """
        adapters, critic = self.context.adapters, self.context.critic
        loss_sum = 0.0
        with adapters.using(critic.role), adapters.training():
            for part, batch in self._micro_batches(rows, micro_batch_size):
                with torch.set_grad_enabled(not critic.joint):
                    hidden = value_states(adapters, batch)
                loss = self._value_loss(batch.spread(critic.head(hidden)), part)
                self.value.scale.backward(loss / tokens)
                loss_sum += loss.item()
        return loss_sum

    def retried(self, backward: Callable[[int], T], *learners: Learner) -> T:
        """Run a backward, again where memory runs out or a float16 gradient overflows.

        Args:
            backward: Takes the micro-batch size.
            learners: Learners that get gradients; those of a failed attempt are cleared.
        """

        def discard() -> None:
            for learner in learners:
                learner.clear_gradients()

        return self.policy.scale.run(
            lambda: self.context.micro.run(backward, discard=discard),
            parameters=[p for learner in learners for p in learner.parameters.values()],
            discard=discard,
        )

    def _value_loss(self, values: Tensor, part: Tensor) -> Tensor:
        return value_loss(
            values,
            self.rollout.values[part],
            self.returns[part],
            self.rollout.completion_mask[part],
            clip=self.context.settings.clip.value,
        )

    def _micro_batches(self, rows: Tensor, size: int) -> list[tuple[Tensor, Batch]]:
        parts = [rows[positions] for positions in self._micro_batched.parts(rows, size)]
        return [(part, from_rollout(self.rollout[part])) for part in parts]


def improve(update: PPOUpdate, *, seed: int, train_policy: bool = True) -> dict[str, float]:
    """Run the inner epochs of one update.

    Args:
        update: The rollout, its advantages, and the learners.
        seed: Order of the minibatches.
        train_policy: False trains the value function alone.

    Returns:
        Means over the tokens of the inner steps taken, and the last learning rates; the policy's
        only where it learned. `approx_kl` includes the minibatch that stopped the policy.
    """
    settings, critic, rollout = update.context.settings, update.context.critic, update.rollout
    policy, value = update.policy, update.value
    mask = rollout.completion_mask
    means = {"policy": _TokenMeans(), "value": _TokenMeans(), "kl": _TokenMeans()}
    learning_rates: dict[str, float] = {}
    policy_steps, stopped = 0, False
    for minibatch in batches(len(rollout), settings.minibatch_size, settings.epochs, seed):
        # 1. The minibatch's tokens, and this process's share of its rows.
        tokens = int(mask[torch.tensor(minibatch, device=mask.device)].sum())
        rows = torch.tensor(processes.share(minibatch), dtype=torch.int64, device=mask.device)
        # 2. Policy step, unless the policy has already moved too far from the rollout's.
        if train_policy and not stopped:
            policy_backward = partial(update.policy_backward, rows, tokens)
            sums = processes.add(update.retried(policy_backward, policy, value))
            policy.check_loss(sums["policy_loss"], name="the policy's loss")
            means["kl"].add(tokens, approx_kl=sums["approx_kl"])
            stopped = sums["approx_kl"] / tokens > settings.clip.kl_stop
            if stopped:
                policy.clear_gradients()
                value.clear_gradients()
            else:
                step = policy.step()
                policy_steps += 1
                learning_rates["lr"] = step["lr"]
                means["policy"].add(
                    tokens,
                    policy_loss=sums["policy_loss"],
                    clip_fraction=sums["clip_fraction"],
                    policy_grad_norm=step["grad_norm"] * tokens,
                )
        if stopped:
            policy.skip_step()  # its learning rate decays all the same
        # 3. Value step: on the gradient of the shared forward, or on one of its own.
        if critic.joint and train_policy and not stopped:
            value_sum = sums["value_loss"]
        else:
            value_backward = partial(update.value_backward, rows, tokens)
            local_sum = update.retried(value_backward, value)
            (value_sum,) = processes.add({"loss": local_sum}).values()
        value.check_loss(value_sum, name="the value's loss")
        step = value.step()
        learning_rates["value_lr"] = step["lr"]
        means["value"].add(tokens, value_loss=value_sum, value_grad_norm=step["grad_norm"] * tokens)
    # 4. Metrics of the whole update.
    metrics = {name: mean for group in means.values() for name, mean in group.means().items()}
    metrics |= learning_rates
    metrics["policy_steps"] = policy_steps
    metrics["explained_variance"] = explained_variance(rollout.values, update.returns, mask)
    return metrics


class _TokenMeans:
    """Means over tokens, from sums over tokens; empty where nothing was added."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sums: dict[str, float] = {}

    def add(self, tokens: int, **sums: float) -> None:
        self._tokens += tokens
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        return {name: value / self._tokens for name, value in self._sums.items()}


def advantages_of(rollout: ValuedRollout, settings: PPO, *, kl_coef: float) -> Advantages:
    """GAE of a rollout: the score at the last token, the KL to the reference at every token."""
    kl = kl_k1(rollout.logprobs, rollout.ref_logprobs)
    rewards = token_rewards(rollout.scores, kl, rollout.completion_mask, kl_coef=kl_coef)
    return gae(
        rewards, rollout.values, rollout.completion_mask, gamma=settings.gamma, lam=settings.lam
    )


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the unmasked tokens; 0 for constant returns."""
    v, r = float64(values[mask]), float64(returns[mask])
    variance = r.var(correction=0)
    return float(1 - (r - v).var(correction=0) / variance) if variance > 0 else 0.0
