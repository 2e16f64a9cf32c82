"""The loop that GRPO and RLOO share: groups of K completions a prompt, and no value function.

The completions of a prompt are each other's baseline. `grpo` and `rloo` say how a score becomes an
advantage and where the KL to the frozen SFT adapter stands; sampling, scoring and the clipped
surrogate are those of PPO. A prompt goes through the base once for those of its completions that
are in memory together, so the completions of a prompt stay together in a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.records import Rollout
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import from_rollout, left_pad
from alpaca_rlhf.models.devices import float64
from alpaca_rlhf.models.forward import token_logprobs
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.settings import GroupPolicy, Sampling, TokenMean
from alpaca_rlhf.settings.ppo import POLICY_WARMUP
from alpaca_rlhf.training.bad_batch import readable_examples, saving_bad_batch
from alpaca_rlhf.training.loop import (
    Bookkeeping,
    Checkpoints,
    Learner,
    Log,
    batches,
    restore_kept,
    run_steps,
)
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.losses import kl_k3, policy_loss
from alpaca_rlhf.training.rollouts import (
    CompletionMetrics,
    MicroBatchedRows,
    RewardScores,
    RolloutBatch,
    RolloutPrompt,
    ScoreShaping,
    no_metrics,
    prompt_order,
    refuse_too_few,
    sample_from_policy,
)
from alpaca_rlhf.training.watching import Watch, WatchedPolicy


@dataclass(frozen=True)
class GroupMethod:
    """One of the methods, with its numbers."""

    name: str
    """Name of its stage and of its settings."""
    settings: GroupPolicy
    """Hyperparameters."""
    advantages: Callable[[Rollout], Tensor]
    """(B,) advantages of a rollout whose rows are groups of K."""
    kl_in_loss: float = 0.0
    """Weight of the KL term in the loss."""


def train_in_groups(
    adapters: Adapters,
    reward: ScalarHead | RewardScores,
    prompts: Sequence[RolloutPrompt],
    method: GroupMethod,
    *,
    seed: int,
    rollout_batch_size: int,
    checkpoints: Checkpoints,
    log: Log,
    completion_metrics: CompletionMetrics = no_metrics,
    watch: Watch | None = None,
) -> None:
    """Train adapter `policy`, copied by the caller from where it starts.

    Args:
        adapters: Holds `sft` (frozen reference), `policy` and, for a head, `reward`.
        reward: Head of `reward`, normalised on SFT completions, or a judge in its place.
        prompts: Each is used once an epoch, in an order drawn from the seed.
        method: GRPO or RLOO, with its hyperparameters.
        seed: Seed of order and noise.
        rollout_batch_size: Completions decoded together.
        checkpoints: Checkpoints to resume from and to save to.
        log: Receives a row of metrics an update.
        completion_metrics: Adds metrics to each row.
        watch: Looks at the policy; the weights of its best look stay.

    Raises:
        UserError: There are fewer prompts than one rollout batch needs.
    """
    settings, flag = method.settings, f"--{method.name}"
    head = reward if isinstance(reward, ScalarHead) else None
    refuse_too_few(f"{flag}.prompts", settings.prompts, prompts)
    # 1. The policy's optimiser, and the prompts of every update.
    adapters.trainable("policy")
    steps_per_update = settings.epochs * (settings.completions // settings.minibatch_size)
    policy = Learner(
        method.name,
        f"{flag}.lr",
        [(adapters.parameters("policy"), settings.lr)],
        steps=settings.updates * steps_per_update,
        warmup=POLICY_WARMUP,
        max_grad_norm=settings.max_grad_norm,
        optimizer=settings.optimizer,
        scale=LossScale(adapters.base.dtype),
    )
    micro = MicroBatch(
        method.name,
        f"{flag}.micro-batch-size",
        settings.micro_batch_size,
        lower=f"{flag}.max-new-tokens",
    )
    order = prompt_order(len(prompts), settings.prompts, settings.updates, seed)
    sampling = Sampling(
        temperature=settings.rollout_temperature,
        max_new_tokens=settings.max_new_tokens,
        batch_size=rollout_batch_size,
    )

    watched = WatchedPolicy(adapters, reward, micro, sampling, seed)

    def take_update(update: int) -> dict[str, float]:
        if watch is not None and update == 0:
            watch.begin(watched)
        # 2. Sample K completions of each prompt from the current policy.
        sampled_prompts = [prompts[i] for i in order[update]]
        completions = sample_from_policy(
            adapters, sampled_prompts, update, k=settings.k, sampling=sampling, seed=seed
        )
        update_prompts = [prompt for prompt in sampled_prompts for _ in range(settings.k)]
        batch = RolloutBatch(
            adapters,
            update_prompts,
            completions,
            micro=micro,
            temperature=settings.rollout_temperature,
        )
        with saving_bad_batch(
            checkpoints, update + 1, lambda: readable_examples(adapters.base, batch.examples)
        ):
            # 3. Score them: log-probabilities, reference, reward.
            scores = None if isinstance(reward, ScalarHead) else reward(update_prompts, completions)
            rollout, metrics = _collect(
                batch, update_prompts, batch.rewards(head, scores), settings
            )
            # 4. Epochs of minibatch steps.
            metrics |= _improve(
                GroupUpdate(adapters, method, policy, micro, rollout),
                seed=derived_seed(seed, "update", update),
            )
        metrics |= completion_metrics(update_prompts, completions)
        # 5. A look at the policy, if one is due.
        looked = {} if watch is None else watch.after(update + 1, settings.updates, watched)
        return {**metrics, **looked}

    books = Bookkeeping(checkpoints, settings.save_every, log, patience=watch)
    updates = run_steps(
        method.name,
        settings.updates,
        take_update,
        {"policy": policy, "micro": micro, "scale": policy.scale},
        books,
    )
    restore_kept(policy, "policy", books, updates)
    adapters.trainable()


def _collect(
    batch: RolloutBatch,
    prompts: Sequence[RolloutPrompt],
    reward_scores: Tensor,
    settings: GroupPolicy,
) -> tuple[Rollout, dict[str, float]]:
    """Evaluate scored completions under policy and reference; the rollout and its metrics."""
    # 1. Log-probabilities of policy and reference, and the scores to learn from.
    logprobs, entropy = batch.logprobs("policy")
    ref_logprobs, _ = batch.logprobs("sft")
    shaping = ScoreShaping(settings.clip_score, settings.missing_eos_score)
    scores = shaping(reward_scores, batch.finished)
    # 2. The rollout, its rows prompt by prompt.
    prompt_ids, prompt_mask = left_pad(batch.adapters.base, [prompt.ids for prompt in prompts])
    rollout = Rollout(
        prompt_ids=prompt_ids,
        completion_ids=batch.packed.completion_ids,
        prompt_mask=prompt_mask,
        completion_mask=batch.packed.completion_mask,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        scores=scores,
    )
    groups = scores.view(-1, settings.k)
    metrics = batch.metrics(reward_scores, logprobs, ref_logprobs, entropy)
    metrics["group_std"] = float(float64(groups).std(1, correction=0).mean())
    metrics["equal_groups"] = float(float64((groups == groups[:, :1]).all(1)).mean())
    return rollout, metrics


@dataclass(frozen=True)
class GroupUpdate:
    """A rollout, and the steps that are taken on its minibatches."""

    adapters: Adapters
    """`policy` is trainable."""
    method: GroupMethod
    """GRPO or RLOO, with its hyperparameters."""
    policy: Learner
    """Optimiser of the policy adapter."""
    micro: MicroBatch
    """Rows in memory at once."""
    rollout: Rollout
    """B completions of C tokens, sampled from the policy, in groups of K rows."""

    @cached_property
    def micro_batched(self) -> MicroBatchedRows:
        """The rollout's rows, as they are cut into micro-batches."""
        settings = self.method.settings
        return MicroBatchedRows(self.rollout, settings, settings.k)


def _improve(update: GroupUpdate, *, seed: int) -> dict[str, float]:
    """Run the inner epochs of one update; means over the tokens of its steps, or over its steps."""
    settings, rollout, policy = update.method.settings, update.rollout, update.policy
    advantages = update.method.advantages(rollout)
    mask = rollout.completion_mask
    tokens, losses, norms, sums = 0, [], [], {"clip_fraction": 0.0, "approx_kl": 0.0}
    step: dict[str, float] = {}
    for minibatch in minibatches(settings, seed):
        # 1. Weights of the minibatch's tokens, and this process's share of its rows.
        rows = torch.tensor(minibatch, dtype=torch.int64, device=mask.device)
        weights = token_weights(mask[rows], settings.mean, longest=settings.max_new_tokens)
        share = _share_of_prompts(minibatch, settings.k)
        places = torch.tensor(share, dtype=torch.int64, device=mask.device)

        # 2. The gradient, again where memory runs out or a float16 gradient overflows.
        backward = partial(_backward, update, advantages, MinibatchRows(rows, weights, places))
        attempt = partial(update.micro.run, backward, discard=policy.clear_gradients)
        of_step = policy.scale.run(
            attempt, parameters=policy.parameters.values(), discard=policy.clear_gradients
        )
        of_step = processes.add(of_step)
        policy.check_loss(of_step["loss"], name="the policy's loss")
        # 3. The step.
        step = policy.step()
        tokens += int(mask[rows].sum())
        losses.append(of_step["loss"])
        norms.append(step["grad_norm"])
        for name in sums:
            sums[name] += of_step[name]
    return {
        "policy_loss": sum(losses) / len(losses),
        "policy_grad_norm": sum(norms) / len(norms),
        **{name: value / tokens for name, value in sums.items()},
        "policy_steps": len(losses),
        "lr": step["lr"],
    }


def minibatches(settings: GroupPolicy, seed: int) -> list[list[int]]:
    """Rows of every optimiser step of an update; each epoch is a fresh permutation of the prompts.

    The K rows of a prompt are neighbours, so at most the first and last prompt of a minibatch have
    rows in another one.
    """
    k, size = settings.k, settings.minibatch_size
    plan: list[list[int]] = []
    for order in batches(settings.prompts, settings.prompts, settings.epochs, seed):
        rows = [prompt * k + sample for prompt in order for sample in range(k)]
        plan += [rows[start : start + size] for start in range(0, len(rows), size)]
    return plan


def _share_of_prompts(minibatch: Sequence[int], k: int) -> list[int]:
    """Places in a minibatch of the rows that this process takes: those of every n-th prompt.

    With fewer prompts than processes it is every n-th row, so that none waits for the others.
    """
    runs = [list(run) for _, run in groupby(range(len(minibatch)), lambda i: minibatch[i] // k)]
    if len(runs) < processes.count():
        return list(processes.share(range(len(minibatch))))
    return [place for run in processes.share(runs) for place in run]


class MinibatchRows(NamedTuple):
    """The rows of a minibatch, and those of them that this process takes."""

    rows: Tensor
    """(R,) int64, rows of the rollout."""
    weights: Tensor
    """(R, C) float32 weights of their tokens."""
    places: Tensor
    """(S,) int64, positions in `rows` of this process's share."""


def _backward(
    update: GroupUpdate, advantages: Tensor, minibatch: MinibatchRows, size: int
) -> dict[str, float]:
    """Accumulate the gradient of this process's share of a minibatch.

    Args:
        update: The rollout, and the policy's optimiser.
        advantages: (B,) float32, of the whole rollout.
        minibatch: Its rows and their weights.
        size: Rows at once.

    Returns:
        The weighted loss of these rows, and sums over their tokens.
    """
    adapters, rollout, settings = update.adapters, update.rollout, update.method.settings
    sums = {"loss": 0.0, "clip_fraction": 0.0, "approx_kl": 0.0}
    with adapters.using("policy"), adapters.training():
        local_rows = minibatch.rows[minibatch.places]
        for positions in update.micro_batched.parts(local_rows, size):
            places = minibatch.places[positions]
            micro_rows, micro_weights = minibatch.rows[places], minibatch.weights[places]
            micro_rollout = rollout[micro_rows]
            mask = micro_rollout.completion_mask
            # 1. New log-probabilities.
            logprobs = token_logprobs(
                adapters, from_rollout(micro_rollout), temperature=settings.rollout_temperature
            )
            # 2. The clipped surrogate; weights above 0 go into it with the advantage.
            surrogate = policy_loss(
                logprobs,
                micro_rollout.logprobs,
                advantages[micro_rows, None] * micro_weights,
                mask,
                clip=settings.clip_ratio,
            )
            loss = surrogate.loss
            # 3. The KL from the reference, where it stands in the loss.
            if update.method.kl_in_loss:
                kl = kl_k3(logprobs, micro_rollout.ref_logprobs)
                loss = loss + update.method.kl_in_loss * (kl * micro_weights).sum()
            update.policy.scale.backward(loss)
            sums["loss"] += loss.item()
            sums["clip_fraction"] += float(surrogate.clipped)
            sums["approx_kl"] += float(surrogate.kl)
    return sums


def token_weights(mask: Tensor, mean: TokenMean, *, longest: int) -> Tensor:
    """(R, C) weights of the tokens of a minibatch, 0 where masked.

    Args:
        mask: (R, C) bool, True on completion tokens; at least one a row.
        mean: The way to a mean; see `settings.GRPO`.
        longest: Completion tokens at most.
    """
    rows = mask.shape[0]
    divisor = {
        "sequence": rows * mask.sum(1, keepdim=True),
        "token": mask.sum(),
        "fixed": torch.tensor(rows * longest),
    }[mean]
    return mask / divisor
