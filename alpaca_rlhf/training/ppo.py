"""PPO of the policy adapter against a reward model or a judge, anchored to the frozen SFT adapter.

Four adapters on one base, one after the other: the policy samples; the SFT adapter gives reference
log-probabilities, the reward adapter scores, the value adapter (a copy of the reward adapter with
its head) gives values; then policy and value each take their own steps. Or the value function is a
head on the policy's own hidden states, and there is one forward and one backward for both. Old
log-probabilities come from the training forward, not from the decode loop.

Sources: arXiv 1707.06347, arXiv 2009.01325, openai/lm-human-preferences@cbfd210, InstructGPT
appendix C.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.records import Rollout
from alpaca_rlhf.models import heads, scoring
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Batch, Example, collate, left_pad
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.models.rollout import SampledCompletion, sample
from alpaca_rlhf.settings import PPO, Sampling
from alpaca_rlhf.training.bad_batch import readable_examples, saving_bad_batch
from alpaca_rlhf.training.loop import (
    Bookkeeping,
    Checkpoints,
    Learner,
    Log,
    batches,
    run_steps,
)
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.losses import kl_k1, kl_k3, masked_mean
from alpaca_rlhf.training.ppo_update import Critic, KLCoefficient, PPOContext, PPOUpdate, improve

WARMUP = 0.02
"""Share of the steps over which both learning rates rise."""
MAX_MISSING_EOS_SCORE = -1.0
"""Score of a completion that does not stop, unless a finished one of its batch is worse, on the
normalised scale (openai/lm-human-preferences@cbfd210 train_policy.py:388)."""


@dataclass(frozen=True)
class PPOPrompt:
    """A prompt of the ppo split."""

    key: str
    """Names its sampling noise: the prompt's id."""
    ids: tuple[int, ...]
    """Token ids from bos to where the completion starts."""


CompletionMetrics = Callable[[Sequence[PPOPrompt], Sequence[SampledCompletion]], dict[str, float]]
"""Measures the completions of an update for the report; never influences the training."""


RewardScores = Callable[[Sequence[PPOPrompt], Sequence[SampledCompletion]], Sequence[float]]
"""Scores completions in a reward model's place, on its scale: SFT has mean 0, deviation 1."""


def train_ppo(
    adapters: Adapters,
    reward: ScalarHead | RewardScores,
    prompts: Sequence[PPOPrompt],
    settings: PPO,
    *,
    seed: int,
    rollout_batch_size: int,
    checkpoints: Checkpoints,
    log: Log,
    completion_metrics: CompletionMetrics = lambda prompts, completions: {},
) -> None:
    """Train adapter `policy`, copied by the caller from where it starts, and its value function.

    Args:
        adapters: Holds `sft` (frozen reference), `policy` and, for a head, `reward`; `value` is
            created here where the value function has an adapter of its own.
        reward: Head of `reward`, normalised on SFT completions, or a judge in its place.
        prompts: Each is used once an epoch, in an order drawn from the seed.
        settings: Hyperparameters.
        seed: Seed of order and noise.
        rollout_batch_size: Completions decoded together.
        checkpoints: Checkpoints to resume from and to save to.
        log: Receives a row of metrics an update.
        completion_metrics: Adds metrics to each row.

    Raises:
        UserError: There are fewer prompts than one rollout batch needs.
    """
    if len(prompts) < settings.batch_size:
        raise UserError(
            f"--ppo.batch-size {settings.batch_size} needs as many prompts; "
            f"the ppo split has {len(prompts)}"
        )
    # 1. Critic, and one optimiser each for policy and value.
    reward_head = reward if isinstance(reward, heads.ScalarHead) else None
    reward_scores = None if isinstance(reward, heads.ScalarHead) else reward
    critic = _critic(adapters, reward_head, settings, seed)
    adapters.trainable(*{"policy", critic.role})
    policy, value = _learners(adapters, critic, settings)
    kl_coef = KLCoefficient(settings)
    micro = MicroBatch(
        "ppo", "--ppo.micro-batch-size", settings.micro_batch_size, lower="--ppo.max-new-tokens"
    )
    context = PPOContext(adapters, reward_head, critic, settings, micro)
    # 2. Prompts of every update, in an order drawn from the seed.
    prompt_order = _prompt_order(len(prompts), settings, seed)
    sampling = Sampling(
        temperature=settings.rollout_temperature,
        max_new_tokens=settings.max_new_tokens,
        batch_size=rollout_batch_size,
    )

    def take_update(update: int) -> dict[str, float]:
        # 3. Sample a completion of each prompt from the current policy.
        update_prompts = [prompts[i] for i in prompt_order[update]]
        local_prompts = processes.share(update_prompts)
        local_samples = sample(
            adapters,
            "policy",
            [prompt.ids for prompt in local_prompts],
            [f"{update}/{prompt.key}" for prompt in local_prompts],
            sampling=sampling,
            seed=seed,
        )
        completions = [completion for (completion,) in processes.gather(local_samples)]
        examples = [
            Example(prompt.ids, completion.ids)
            for prompt, completion in zip(update_prompts, completions, strict=True)
        ]
        with saving_bad_batch(
            checkpoints, update + 1, lambda: readable_examples(adapters.base, examples)
        ):
            # 4. Score them: log-probabilities, reference, values, reward.
            scores = None if reward_scores is None else reward_scores(update_prompts, completions)
            rollout, metrics = collect(context, update_prompts, completions, scores)
            metrics["kl_coef"] = kl_coef.value
            # 5. Epochs of minibatch steps of policy and value.
            metrics |= improve(
                PPOUpdate(context, policy, value, rollout, kl_coef.value),
                seed=derived_seed(seed, "update", update),
                train_policy=update >= settings.value.warmup,
            )
            # 6. Adapt the KL coefficient for the next update.
            kl_coef.update(metrics["kl"], len(rollout))
        return {**metrics, **completion_metrics(update_prompts, completions)}

    run_steps(
        "ppo",
        settings.updates,
        take_update,
        {
            "policy": policy,
            "value": value,
            "kl_coef": kl_coef,
            "micro": micro,
            "scale": policy.scale,
        },
        Bookkeeping(checkpoints, settings.save_every, log),
    )
    adapters.trainable()


def _critic(adapters: Adapters, reward_head: ScalarHead | None, settings: PPO, seed: int) -> Critic:
    """A value adapter that starts as the reward model; or a head on the policy that starts at 0.

    Without a reward model the adapter starts as SFT, and its head at 0.
    """
    head = ScalarHead(int(adapters.base.model.config.hidden_size)).to(adapters.base.device)
    separate = settings.value.trunk == "separate"
    if separate and reward_head is not None:
        adapters.add("value", copy_of="reward", seed=seed)
        head.load_state_dict(reward_head.state_dict())
        return Critic("value", head)
    torch.nn.init.zeros_(head.weight)
    if separate:
        adapters.add("value", copy_of="sft", seed=seed)
        return Critic("value", head)
    return Critic("policy", head, settings.value.coef if settings.value.trunk == "shared" else 0.0)


def _learners(adapters: Adapters, critic: Critic, settings: PPO) -> tuple[Learner, Learner]:
    """Optimisers of policy and value; on the policy's hidden states the value's has a head only."""
    steps_per_update = settings.epochs * (settings.batch_size // settings.minibatch_size)
    scale = LossScale(adapters.base.dtype)

    def learner(
        flag: str, parameters: Mapping[str, nn.Parameter], lr: float, updates: int
    ) -> Learner:
        return Learner(
            "ppo",
            flag,
            [(parameters, lr)],
            steps=updates * steps_per_update,
            warmup=WARMUP,
            max_grad_norm=settings.clip.grad_norm,
            optimizer=settings.optimizer,
            scale=scale,
        )

    policy_updates = max(1, settings.updates - settings.value.warmup)
    policy = learner("--ppo.lr", adapters.parameters("policy"), settings.lr, policy_updates)
    trunk = {} if critic.joint else adapters.parameters(critic.role)
    value_parameters = {**trunk, "head": critic.head.weight}
    value = learner("--ppo.value.lr", value_parameters, settings.value.lr, settings.updates)
    return policy, value


def _prompt_order(n: int, settings: PPO, seed: int) -> list[list[int]]:
    """Prompt indices of every update: no prompt twice in an epoch, and only whole batches."""
    batches_per_epoch = n // settings.batch_size
    epochs = -(-settings.updates // batches_per_epoch)
    whole_batches = [
        batch
        for batch in batches(n, settings.batch_size, epochs, seed)
        if len(batch) == settings.batch_size
    ]
    return whole_batches[: settings.updates]


def collect(
    context: PPOContext,
    prompts: Sequence[PPOPrompt],
    completions: Sequence[SampledCompletion],
    scores_of_judge: Sequence[float] | None = None,
) -> tuple[Rollout, dict[str, float]]:
    """Evaluate sampled completions under policy, reference, value function and reward model.

    Log-probabilities of policy and reference are those of the temperature they were sampled at.

    Of several processes each evaluates its share of the rows; all hold the whole rollout.
    `scores_of_judge` stand in for those of the reward model.

    Returns:
        The rollout: B completions of up to C tokens. And the metrics to report.
    """
    adapters, critic, settings = context.adapters, context.critic, context.settings
    base, temperature = adapters.base, settings.rollout_temperature
    # 1. Prompts and completions, packed.
    examples = [Example(p.ids, c.ids) for p, c in zip(prompts, completions, strict=True)]
    batch = collate(base, examples)
    local_examples = processes.share(examples)
    columns = batch.completion_mask.shape[1]
    local_batch = collate(base, local_examples, columns=columns) if local_examples else batch

    def all_rows(evaluate: Callable[[Batch, int], Sequence[Tensor]]) -> list[Tensor]:
        """Tensors of all rows, from a pass over this process's rows in micro-batches."""
        tensors = (
            context.micro.run(lambda size: evaluate(local_batch, size)) if local_examples else []
        )
        rows = processes.gather(list(zip(*(tensor.cpu() for tensor in tensors), strict=True)))
        return [torch.stack(column).to(base.device) for column in zip(*rows, strict=True)]

    # 2. Log-probabilities and entropies of the policy, and values: together on a shared trunk.
    if critic.joint:
        logprobs, entropy, values = all_rows(
            lambda b, n: scoring.logprobs_and_values(
                adapters, "policy", critic.head, b, micro_batch_size=n, temperature=temperature
            )
        )
    else:
        logprobs, entropy = all_rows(
            lambda b, n: scoring.logprobs(
                adapters, "policy", b, micro_batch_size=n, temperature=temperature
            )
        )
        (values,) = all_rows(
            lambda b, n: (
                scoring.values(adapters, critic.role, critic.head, b, micro_batch_size=n),
            )
        )
    # 3. Reference log-probabilities from the frozen SFT adapter.
    ref_logprobs, _ = all_rows(
        lambda b, n: scoring.logprobs(
            adapters, "sft", b, micro_batch_size=n, temperature=temperature
        )
    )
    # 4. Scores from the reward adapter, clamped; a completion without eos does not get its own.
    head = context.reward_head
    if head is not None:
        (reward_scores,) = all_rows(
            lambda b, n: (scoring.scores(adapters, "reward", head, b, micro_batch_size=n),)
        )
    else:
        assert scores_of_judge is not None
        reward_scores = torch.tensor(scores_of_judge, dtype=torch.float32, device=base.device)
    finished = torch.tensor([c.finished for c in completions], device=base.device)
    scores = reward_scores.clone()
    if settings.clip.score > 0:
        scores = scores.clamp(-settings.clip.score, settings.clip.score)
    unfinished_score = missing_eos_score(scores[finished], settings)
    scores = torch.where(finished, scores, torch.full_like(scores, unfinished_score))
    # 5. The rollout and its metrics.
    prompt_ids, prompt_mask = left_pad(base, [prompt.ids for prompt in prompts])
    mask = batch.completion_mask
    rollout = Rollout(
        prompt_ids=prompt_ids,
        completion_ids=batch.completion_ids,
        prompt_mask=prompt_mask,
        completion_mask=mask,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        scores=scores,
    )
    lengths = mask.sum(1).double()
    metrics = {
        "score": float(reward_scores.double().mean()),
        "score_std": float(reward_scores.double().std(correction=0)),
        "kl": float((kl_k1(logprobs, ref_logprobs) * mask).sum(1).double().mean()),
        "kl_k3": float((kl_k3(logprobs, ref_logprobs) * mask).sum(1).double().mean()),
        "entropy": float(masked_mean(entropy, mask)),
        "stop_rate": float(finished.double().mean()),
        "mean_tokens": float(lengths.mean()),
    }
    return rollout, metrics


def missing_eos_score(finished_scores: Tensor, settings: PPO) -> float:
    """Score of the completions of a rollout batch that do not stop.

    Args:
        finished_scores: (N,) clamped scores of those that stop; may be empty.
        settings: A number in `missing_eos_score` is taken as it is.
    """
    if settings.missing_eos_score is not None:
        return settings.missing_eos_score
    return min([MAX_MISSING_EOS_SCORE, *map(float, finished_scores)])
