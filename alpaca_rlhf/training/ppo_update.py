"""One update of PPO: advantages, and the inner steps of policy and value on a rollout.

Sources: arXiv 1707.06347, arXiv 1506.02438, openai/lm-human-preferences@cbfd210.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.records import Rollout
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Batch, from_rollout
from alpaca_rlhf.models.forward import token_logprobs, token_logprobs_and_values, value_states
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.settings import PPO
from alpaca_rlhf.training.loop import Learner, batches
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.losses import (
    Advantages,
    gae,
    kl_k1,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from alpaca_rlhf.training.memory import MicroBatch

T = TypeVar("T")


class KLCoefficient:
    """Weight of the KL term: fixed, or steered so that the KL comes to a target.

    Source: openai/lm-human-preferences@cbfd210 train_policy.py:115-124.
    """

    def __init__(self, settings: PPO) -> None:
        self.value = settings.kl_coef
        self._target = settings.clip.kl_target
        self._horizon = settings.clip.kl_horizon

    def follow(self, kl: float, completions: int) -> None:
        """Raise or lower it after an update whose completions had this mean KL, in nats."""
        if self._target > 0:
            error = min(max(kl / self._target - 1, -0.2), 0.2)
            self.value *= 1 + error * completions / self._horizon

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"value": self.value}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave."""
        self.value = state["value"]


@dataclass(frozen=True)
class Critic:
    """What gives values."""

    role: str
    """The adapter whose hidden states the head reads: `value`, or `policy`."""
    head: ScalarHead
    """The value head."""
    share: float = 0.0
    """Of the gradient that the value's loss sends into the policy's hidden states, how much goes
    on into the policy; 0 stops it there. The head's own gradient is always whole."""

    @property
    def joint(self) -> bool:
        """Whether policy and value share their forwards."""
        return self.role == "policy"


def improve(
    adapters: Adapters,
    critic: Critic,
    rollout: Rollout,
    policy: Learner,
    value: Learner,
    settings: PPO,
    micro: MicroBatch,
    *,
    kl_coef: float,
    seed: int,
    learns: bool = True,
) -> dict[str, float]:
    """The inner epochs of one update.

    Args:
        adapters: Policy and value are trainable.
        critic: The value function.
        rollout: What was sampled.
        policy: Optimiser of the policy adapter.
        value: Optimiser of the value's head, and of its adapter where it has one.
        settings: PPO's numbers.
        micro: Rows in memory at once.
        kl_coef: Weight of the KL term in the reward.
        seed: Order of the minibatches.
        learns: False trains the value alone.

    Returns:
        Means over the tokens of the inner steps taken, and the last learning rates; the policy's
        only where it learned. `approx_kl` includes the minibatch that stopped the policy.
    """
    targets = advantages_of(rollout, settings, kl_coef=kl_coef)
    whitened = whiten(targets.advantages, rollout.completion_mask)
    mask = rollout.completion_mask
    mean = {"policy": _Means(), "value": _Means(), "kl": _Means()}
    rates: dict[str, float] = {}
    policy_steps, stopped = 0, False

    def forget() -> None:
        policy.forget_gradients()
        value.forget_gradients()

    def redone(work: Callable[[int], T], forget: Callable[[], None], *who: Learner) -> T:
        return policy.scale.run(
            lambda: micro.run(work, forget=forget),
            parameters=[p for one in who for p in one.parameters.values()],
            forget=forget,
        )

    for minibatch in batches(len(rollout), settings.minibatch_size, settings.epochs, seed):
        tokens = int(mask[torch.tensor(minibatch, device=mask.device)].sum())
        own = processes.share(minibatch)
        rows = torch.tensor(own, dtype=torch.int64, device=mask.device)
        if learns and not stopped:
            step_of_policy = partial(
                _policy_step,
                adapters,
                critic,
                rollout,
                targets,
                whitened,
                rows,
                tokens,
                settings,
                policy.scale,
            )
            found = processes.add(redone(step_of_policy, forget, policy, value))
            policy.check_loss(found["policy_loss"], of="the policy's loss")
            mean["kl"].add(tokens, approx_kl=found["approx_kl"])
            stopped = found["approx_kl"] / tokens > settings.clip.kl_stop
            if stopped:
                forget()
            else:
                step = policy.step()
                policy_steps += 1
                rates["lr"] = step["lr"]
                mean["policy"].add(
                    tokens,
                    policy_loss=found["policy_loss"],
                    clip_fraction=found["clip_fraction"],
                    policy_grad_norm=step["grad_norm"] * tokens,
                )
        if stopped:
            policy.skip()
        if critic.joint and learns and not stopped:
            value_sum = found["value_loss"]
        else:
            step_of_value = partial(
                _value_step,
                adapters,
                critic,
                rollout,
                targets,
                rows,
                tokens,
                settings,
                value.scale,
            )
            total = redone(step_of_value, value.forget_gradients, value)
            (value_sum,) = processes.add({"loss": total}).values()
        value.check_loss(value_sum, of="the value's loss")
        step = value.step()
        rates["value_lr"] = step["lr"]
        mean["value"].add(tokens, value_loss=value_sum, value_grad_norm=step["grad_norm"] * tokens)
    metrics = {name: value for one in mean.values() for name, value in one.each().items()} | rates
    metrics["policy_steps"] = policy_steps
    metrics["explained_variance"] = explained_variance(rollout.values, targets.returns, mask)
    return metrics


class _Means:
    """Means over tokens of sums over tokens; nothing where nothing was added."""

    def __init__(self) -> None:
        self._tokens = 0
        self._sums: dict[str, float] = {}

    def add(self, tokens: int, **sums: float) -> None:
        self._tokens += tokens
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def each(self) -> dict[str, float]:
        return {name: value / self._tokens for name, value in self._sums.items()}


def advantages_of(rollout: Rollout, settings: PPO, *, kl_coef: float) -> Advantages:
    """GAE of a rollout: the score at the last token, the KL to the reference at each."""
    kl = kl_k1(rollout.logprobs, rollout.ref_logprobs)
    rewards = token_rewards(rollout.scores, kl, rollout.completion_mask, kl_coef=kl_coef)
    return gae(
        rewards, rollout.values, rollout.completion_mask, gamma=settings.gamma, lam=settings.lam
    )


def _policy_step(
    adapters: Adapters,
    critic: Critic,
    rollout: Rollout,
    targets: Advantages,
    advantages: Tensor,
    rows: Tensor,
    tokens: int,
    settings: PPO,
    scale: LossScale,
    size: int,
) -> dict[str, float]:
    """Leave the gradient of a minibatch's mean surrogate in the policy; returns token sums.

    On the policy's own states the value's head gets its gradient too, the whole of it.
    """
    sums = {"policy_loss": 0.0, "clip_fraction": 0.0, "approx_kl": 0.0, "value_loss": 0.0}
    with adapters.using("policy"), adapters.training():
        for part, batch in _micro(rollout, rows, size):
            beside: Tensor | float = 0.0
            if critic.joint:
                new, values = token_logprobs_and_values(
                    adapters, critic.head, batch, share=critic.share
                )
                lost = _value_loss(values, rollout, targets, part, settings)
                sums["value_loss"] += lost.item()
                beside = lost
            else:
                new = token_logprobs(adapters, batch)
            found = policy_loss(
                new,
                rollout.logprobs[part],
                advantages[part],
                rollout.completion_mask[part],
                clip=settings.clip.ratio,
            )
            scale.backward((found.loss + beside) / tokens)
            sums["policy_loss"] += found.loss.item()
            sums["clip_fraction"] += float(found.clipped)
            sums["approx_kl"] += float(found.kl)
    return sums


def _value_step(
    adapters: Adapters,
    critic: Critic,
    rollout: Rollout,
    targets: Advantages,
    rows: Tensor,
    tokens: int,
    settings: PPO,
    scale: LossScale,
    size: int,
) -> float:
    """Leave the gradient of a minibatch's mean loss in the value function; returns the sum.

    On a shared trunk in its head alone: the policy does not learn now.
    """
    total = 0.0
    with adapters.using(critic.role), adapters.training():
        for part, batch in _micro(rollout, rows, size):
            with torch.set_grad_enabled(not critic.joint):
                states = value_states(adapters, batch)
            loss = _value_loss(batch.spread(critic.head(states)), rollout, targets, part, settings)
            scale.backward(loss / tokens)
            total += loss.item()
    return total


def _value_loss(
    values: Tensor, rollout: Rollout, targets: Advantages, part: Tensor, settings: PPO
) -> Tensor:
    return value_loss(
        values,
        rollout.values[part],
        targets.returns[part],
        rollout.completion_mask[part],
        clip=settings.clip.value,
    )


def _micro(rollout: Rollout, rows: Tensor, size: int) -> list[tuple[Tensor, Batch]]:
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [(part, from_rollout(rollout[part])) for part in parts]


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the unmasked tokens; 0 for constant returns."""
    v, r = values[mask].double(), returns[mask].double()
    variance = r.var(correction=0)
    return float(1 - (r - v).var(correction=0) / variance) if variance > 0 else 0.0
