"""PPO of the policy adapter against the reward adapter, anchored to the frozen SFT adapter.

Four adapters on one base, one after the other: the policy samples; the SFT adapter gives reference
log-probabilities, the reward adapter scores, the value adapter (a copy of the reward adapter with
its head) gives values; then policy and value each take their own steps. Or the value is a head on
the policy's own hidden states, and there is one forward and one backward for both. Old
log-probabilities come from the training forward, not from the decode loop.

Sources: arXiv 1707.06347, arXiv 2009.01325, openai/lm-human-preferences@cbfd210, InstructGPT
appendix C.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from alpaca_rlhf import processes
from alpaca_rlhf.config import UserError
from alpaca_rlhf.models import rollout as runs
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Batch, Example, collate, from_rollout, left_pad
from alpaca_rlhf.models.forward import token_logprobs, token_logprobs_and_values, value_states
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.records import Rollout
from alpaca_rlhf.settings import PPO, Sampling
from alpaca_rlhf.training.bad_batch import keeping_the_batch, readable
from alpaca_rlhf.training.loop import Checkpoints, Learner, Log, batches, run_steps
from alpaca_rlhf.training.losses import (
    Advantages,
    gae,
    kl_k1,
    kl_k3,
    masked_mean,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from alpaca_rlhf.training.memory import MicroBatch


@dataclass(frozen=True)
class PPOPrompt:
    """A prompt of the ppo split."""

    key: str
    """Names its sampling noise: the prompt's id."""
    ids: tuple[int, ...]
    """Token ids from bos to where the completion starts."""


Watch = Callable[[Sequence[PPOPrompt], Sequence[runs.Sampled]], dict[str, float]]
"""Looks at the completions of an update for the report; what it says never reaches the training."""


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
    detached: bool = False
    """Whether its gradient stops at the policy's hidden states."""

    @property
    def joint(self) -> bool:
        """Whether policy and value share their forwards."""
        return self.role == "policy"


def _critic(adapters: Adapters, reward_head: ScalarHead, settings: PPO, seed: int) -> Critic:
    """An adapter that begins as the reward model; or a head on the policy that begins at 0."""
    head = ScalarHead(len(reward_head.weight)).to(adapters.base.device)
    if settings.value.trunk == "separate":
        adapters.add("value", copy_of="reward", seed=seed)
        head.load_state_dict(reward_head.state_dict())
        return Critic("value", head)
    torch.nn.init.zeros_(head.weight)
    return Critic("policy", head, detached=settings.value.trunk == "detached")


def train_ppo(
    adapters: Adapters,
    reward_head: ScalarHead,
    prompts: Sequence[PPOPrompt],
    settings: PPO,
    *,
    seed: int,
    rollout_batch_size: int,
    checkpoints: Checkpoints,
    log: Log,
    watch: Watch = lambda prompts, completions: {},
) -> None:
    """Train adapter `policy`, copied by the caller from where it starts, and its value function.

    Args:
        adapters: Holds `sft` (frozen reference), `policy` and `reward`; `value` is made here
            where the value function has an adapter of its own.
        reward_head: Head of `reward`, normalised on SFT completions.
        prompts: Each is used once an epoch, in an order drawn from the seed.
        settings: PPO's numbers.
        seed: Changes order and noise.
        rollout_batch_size: Completions decoded together.
        checkpoints: Where to go on from, and to save to.
        log: Receives a row an update.
        watch: Adds numbers of its own to each row.

    Raises:
        UserError: There are fewer prompts than one rollout batch needs.
    """
    if len(prompts) < settings.batch_size:
        raise UserError(
            f"--ppo.batch-size {settings.batch_size} needs as many prompts; "
            f"the ppo split has {len(prompts)}"
        )
    critic = _critic(adapters, reward_head, settings, seed)
    adapters.trainable(*{"policy", critic.role})
    own = {} if critic.joint else adapters.parameters(critic.role)
    per_update = settings.epochs * (settings.batch_size // settings.minibatch_size)
    policy = Learner(
        "ppo",
        "--ppo.lr",
        [(adapters.parameters("policy"), settings.lr)],
        steps=max(1, settings.updates - settings.value.warmup) * per_update,
        warmup=0.02,
        max_grad_norm=settings.clip.grad_norm,
        optimizer=settings.optimizer,
    )
    value = Learner(
        "ppo",
        "--ppo.value.lr",
        [({**own, "head": critic.head.weight}, settings.value.lr)],
        steps=settings.updates * per_update,
        warmup=0.02,
        max_grad_norm=settings.clip.grad_norm,
        optimizer=settings.optimizer,
    )
    kl_coef = KLCoefficient(settings)
    order = _prompt_order(len(prompts), settings, seed)
    micro = MicroBatch(
        "ppo", "--ppo.micro-batch-size", settings.micro_batch_size, lower="--ppo.max-new-tokens"
    )
    sampling = Sampling(max_new_tokens=settings.max_new_tokens, batch_size=rollout_batch_size)

    def take(update: int) -> dict[str, float]:
        chosen = [prompts[i] for i in order[update]]
        own = processes.share(chosen)
        drawn = runs.sample(
            adapters,
            "policy",
            [p.ids for p in own],
            [f"{update}/{p.key}" for p in own],
            sampling=sampling,
            seed=seed,
        )
        completions = [one[0] for one in processes.gather(drawn)]
        seen = [Example(p.ids, c.ids) for p, c in zip(chosen, completions, strict=True)]
        with keeping_the_batch(checkpoints, update + 1, lambda: readable(adapters.base, seen)):
            rollout, metrics = collect(
                adapters, reward_head, critic, chosen, completions, settings, micro
            )
            metrics["kl_coef"] = kl_coef.value
            metrics |= improve(
                adapters,
                critic,
                rollout,
                policy,
                value,
                settings,
                micro,
                kl_coef=kl_coef.value,
                seed=seed + update,
                learns=update >= settings.value.warmup,
            )
            kl_coef.follow(metrics["kl"], len(rollout))
        return {**metrics, **watch(chosen, completions)}

    run_steps(
        "ppo",
        settings.updates,
        take,
        {"policy": policy, "value": value, "kl_coef": kl_coef},
        checkpoints=checkpoints,
        save_every=settings.save_every,
        log=log,
    )
    adapters.trainable()


def _prompt_order(n: int, settings: PPO, seed: int) -> list[list[int]]:
    """Prompt indices of every update: no prompt twice in an epoch, and only whole batches."""
    whole = n // settings.batch_size
    epochs = -(-settings.updates // whole)
    plan = [
        one
        for one in batches(n, settings.batch_size, epochs, seed)
        if len(one) == settings.batch_size
    ]
    return plan[: settings.updates]


def collect(
    adapters: Adapters,
    reward_head: ScalarHead,
    critic: Critic,
    prompts: Sequence[PPOPrompt],
    completions: Sequence[runs.Sampled],
    settings: PPO,
    micro: MicroBatch,
) -> tuple[Rollout, dict[str, float]]:
    """What the update needs to know of the sampled completions, and the numbers to report.

    Of several processes each runs its share of the rows; all hold the whole rollout.
    """
    base = adapters.base
    examples = [Example(p.ids, c.ids) for p, c in zip(prompts, completions, strict=True)]
    batch = collate(base, examples)

    def rows(run: Callable[[Batch, int], Sequence[Tensor]]) -> list[Tensor]:
        own = processes.share(examples)
        columns = batch.completion_mask.shape[1]
        part = collate(base, own, columns=columns) if own else batch
        found = micro.run(lambda size: run(part, size)) if own else []
        every = processes.gather(list(zip(*(one.cpu() for one in found), strict=True)))
        return [torch.stack(one).to(base.device) for one in zip(*every, strict=True)]

    old, entropy = rows(lambda b, n: runs.logprobs(adapters, "policy", b, micro_batch_size=n))
    reference, _ = rows(lambda b, n: runs.logprobs(adapters, "sft", b, micro_batch_size=n))
    (scores,) = rows(
        lambda b, n: (runs.scores(adapters, "reward", reward_head, b, micro_batch_size=n),)
    )
    (values,) = rows(
        lambda b, n: (runs.values(adapters, critic.role, critic.head, b, micro_batch_size=n),)
    )
    finished = torch.tensor([c.finished for c in completions], device=base.device)
    raw = scores.clone()
    if settings.clip.score > 0:
        scores = scores.clamp(-settings.clip.score, settings.clip.score)
    scores = torch.where(finished, scores, torch.full_like(scores, settings.missing_eos_score))
    ids, prompt_mask = left_pad(base, [p.ids for p in prompts])
    mask = batch.completion_mask
    rollout = Rollout(
        prompt_ids=ids,
        completion_ids=batch.completion_ids,
        prompt_mask=prompt_mask,
        completion_mask=mask,
        logprobs=old,
        ref_logprobs=reference,
        values=values,
        scores=scores,
    )
    lengths = mask.sum(1).double()
    metrics = {
        "score": float(raw.double().mean()),
        "score_std": float(raw.double().std(correction=0)),
        "kl": float((kl_k1(old, reference) * mask).sum(1).double().mean()),
        "kl_k3": float((kl_k3(old, reference) * mask).sum(1).double().mean()),
        "entropy": float(masked_mean(entropy, mask)),
        "stop_rate": float(finished.double().mean()),
        "mean_tokens": float(lengths.mean()),
    }
    return rollout, metrics


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
        Means over the tokens of all inner epochs.
    """
    targets = advantages_of(rollout, settings, kl_coef=kl_coef)
    whitened = whiten(targets.advantages, rollout.completion_mask)
    mask = rollout.completion_mask
    sums = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "approx_kl"), 0.0)
    norms: dict[str, list[float]] = {"policy_grad_norm": [], "value_grad_norm": []}
    policy_tokens = value_tokens = 0
    epochs_run = 0

    def forget() -> None:
        policy.forget_gradients()
        value.forget_gradients()

    for minibatch in batches(len(rollout), settings.minibatch_size, settings.epochs, seed):
        tokens = int(mask[torch.tensor(minibatch, device=mask.device)].sum())
        own = processes.share(minibatch)
        rows = torch.tensor(own, dtype=torch.int64, device=mask.device)
        if learns:
            found = processes.add(
                micro.run(
                    partial(
                        _policy_step,
                        adapters,
                        critic,
                        rollout,
                        targets,
                        whitened,
                        rows,
                        tokens,
                        settings,
                    ),
                    forget=forget,
                )
            )
            policy.check_loss(found["policy_loss"], of="the policy's loss")
            for name in ("policy_loss", "clip_fraction", "approx_kl"):
                sums[name] += found[name]
            policy_tokens += tokens
            if found["approx_kl"] / tokens > settings.clip.kl_stop:
                forget()
                learns = False
            else:
                norms["policy_grad_norm"].append(policy.step()["grad_norm"])
                epochs_run += 1
        if critic.joint and learns:
            value_sum = found["value_loss"]
        else:
            total = micro.run(
                partial(_value_step, adapters, critic, rollout, targets, rows, tokens, settings),
                forget=value.forget_gradients,
            )
            (value_sum,) = processes.add({"loss": total}).values()
        value.check_loss(value_sum, of="the value's loss")
        sums["value_loss"] += value_sum
        value_tokens += tokens
        norms["value_grad_norm"].append(value.step()["grad_norm"])
    metrics = {
        k: v / max(1, value_tokens if k == "value_loss" else policy_tokens) for k, v in sums.items()
    }
    metrics |= {k: sum(v) / max(1, len(v)) for k, v in norms.items()}
    metrics["policy_steps"] = epochs_run
    metrics["explained_variance"] = explained_variance(rollout.values, targets.returns, mask)
    return metrics


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
    size: int,
) -> dict[str, float]:
    """Leave the gradient of a minibatch's mean surrogate in the policy; returns token sums.

    On a shared trunk that of the value's loss too, and all of it in the value's head.
    """
    sums = {"policy_loss": 0.0, "clip_fraction": 0.0, "approx_kl": 0.0, "value_loss": 0.0}
    with adapters.using("policy"), adapters.training():
        for part, batch in _micro(rollout, rows, size):
            beside: Tensor | float = 0.0
            if critic.joint:
                new, values = token_logprobs_and_values(
                    adapters, critic.head, batch, detach=critic.detached
                )
                lost = _value_loss(values, rollout, targets, part, settings)
                sums["value_loss"] += lost.item()
                beside = settings.value.coef * lost
            else:
                new = token_logprobs(adapters, batch)
            found = policy_loss(
                new,
                rollout.logprobs[part],
                advantages[part],
                rollout.completion_mask[part],
                clip=settings.clip.ratio,
            )
            ((found.loss + beside) / tokens).backward()  # type: ignore[no-untyped-call]
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
            (loss / tokens).backward()  # type: ignore[no-untyped-call]
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
