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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.records import Rollout
from alpaca_rlhf.models import rollout as runs
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Batch, Example, collate, left_pad
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.settings import PPO, Sampling
from alpaca_rlhf.training.bad_batch import keeping_the_batch, readable
from alpaca_rlhf.training.loop import Checkpoints, Learner, Log, batches, run_steps
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.losses import kl_k1, kl_k3, masked_mean
from alpaca_rlhf.training.memory import MicroBatch
from alpaca_rlhf.training.ppo_update import Critic, KLCoefficient, improve


@dataclass(frozen=True)
class PPOPrompt:
    """A prompt of the ppo split."""

    key: str
    """Names its sampling noise: the prompt's id."""
    ids: tuple[int, ...]
    """Token ids from bos to where the completion starts."""


Watch = Callable[[Sequence[PPOPrompt], Sequence[runs.Sampled]], dict[str, float]]
"""Looks at the completions of an update for the report; what it says never reaches the training."""


def _critic(adapters: Adapters, reward_head: ScalarHead, settings: PPO, seed: int) -> Critic:
    """An adapter that begins as the reward model; or a head on the policy that begins at 0."""
    head = ScalarHead(len(reward_head.weight)).to(adapters.base.device)
    if settings.value.trunk == "separate":
        adapters.add("value", copy_of="reward", seed=seed)
        head.load_state_dict(reward_head.state_dict())
        return Critic("value", head)
    torch.nn.init.zeros_(head.weight)
    return Critic("policy", head, settings.value.coef if settings.value.trunk == "shared" else 0.0)


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
    scale = LossScale(adapters.base.dtype)
    policy = Learner(
        "ppo",
        "--ppo.lr",
        [(adapters.parameters("policy"), settings.lr)],
        steps=max(1, settings.updates - settings.value.warmup) * per_update,
        warmup=0.02,
        max_grad_norm=settings.clip.grad_norm,
        optimizer=settings.optimizer,
        scale=scale,
    )
    value = Learner(
        "ppo",
        "--ppo.value.lr",
        [({**own, "head": critic.head.weight}, settings.value.lr)],
        steps=settings.updates * per_update,
        warmup=0.02,
        max_grad_norm=settings.clip.grad_norm,
        optimizer=settings.optimizer,
        scale=scale,
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
                seed=derived_seed(seed, "update", update),
                learns=update >= settings.value.warmup,
            )
            kl_coef.follow(metrics["kl"], len(rollout))
        return {**metrics, **watch(chosen, completions)}

    run_steps(
        "ppo",
        settings.updates,
        take,
        {"policy": policy, "value": value, "kl_coef": kl_coef, "micro": micro, "scale": scale},
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

    if critic.joint:
        old, entropy, values = rows(
            lambda b, n: runs.logprobs_and_values(
                adapters, "policy", critic.head, b, micro_batch_size=n
            )
        )
    else:
        old, entropy = rows(lambda b, n: runs.logprobs(adapters, "policy", b, micro_batch_size=n))
        (values,) = rows(
            lambda b, n: (runs.values(adapters, critic.role, critic.head, b, micro_batch_size=n),)
        )
    reference, _ = rows(lambda b, n: runs.logprobs(adapters, "sft", b, micro_batch_size=n))
    (scores,) = rows(
        lambda b, n: (runs.scores(adapters, "reward", reward_head, b, micro_batch_size=n),)
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
