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

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.records import ValuedRollout
from alpaca_rlhf.models import heads, scoring
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.batches import Example, left_pad
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.models.oom_retry import MicroBatch
from alpaca_rlhf.models.rollout import SampledCompletion
from alpaca_rlhf.settings import PPO, Sampling
from alpaca_rlhf.settings.ppo import POLICY_WARMUP
from alpaca_rlhf.training.bad_batch import readable_examples, saving_bad_batch
from alpaca_rlhf.training.loop import (
    Bookkeeping,
    Checkpoints,
    Learner,
    Log,
    restore_kept,
    run_steps,
)
from alpaca_rlhf.training.loss_scale import LossScale
from alpaca_rlhf.training.ppo_update import Critic, KLCoefficient, PPOContext, PPOUpdate, improve
from alpaca_rlhf.training.rollouts import (
    CompletionMetrics,
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


def train_ppo(
    adapters: Adapters,
    reward: ScalarHead | RewardScores,
    prompts: Sequence[RolloutPrompt],
    settings: PPO,
    *,
    seed: int,
    rollout_batch_size: int,
    checkpoints: Checkpoints,
    log: Log,
    completion_metrics: CompletionMetrics = no_metrics,
    watch: Watch | None = None,
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
        watch: Looks at the policy; the weights of its best look stay.

    Raises:
        UserError: There are fewer prompts than one rollout batch needs.
    """
    refuse_too_few("--ppo.batch-size", settings.batch_size, prompts)
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
    order = prompt_order(len(prompts), settings.batch_size, settings.updates, seed)
    sampling = Sampling(
        temperature=settings.rollout_temperature,
        max_new_tokens=settings.max_new_tokens,
        batch_size=rollout_batch_size,
    )

    watched = WatchedPolicy(adapters, reward, micro, sampling, seed)

    def take_update(update: int) -> dict[str, float]:
        if watch is not None and update == 0:
            watch.begin(watched)
        # 3. Sample a completion of each prompt from the current policy.
        update_prompts = [prompts[i] for i in order[update]]
        completions = sample_from_policy(
            adapters, update_prompts, update, sampling=sampling, seed=seed
        )
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
        metrics |= completion_metrics(update_prompts, completions)
        # 7. A look at the policy, if one is due.
        looked = {} if watch is None else watch.after(update + 1, settings.updates, watched)
        return {**metrics, **looked}

    books = Bookkeeping(checkpoints, settings.save_every, log, patience=watch)
    updates = run_steps(
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
        books,
    )
    restore_kept(policy, "policy", books, updates)
    adapters.trainable()


def _critic(adapters: Adapters, reward_head: ScalarHead | None, settings: PPO, seed: int) -> Critic:
    """A value adapter that starts as the reward model; or a head on the policy that starts at 0.

    Of several heads the value starts as their mean. Without a reward model the adapter starts as
    SFT, and its head at 0.
    """
    head = ScalarHead(int(adapters.base.model.config.hidden_size)).to(adapters.base.device)
    separate = settings.value.trunk == "separate"
    if separate and reward_head is not None:
        adapters.add("value", copy_of="reward", seed=seed)
        head.load_state_dict(reward_head.mean.state_dict())
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
            warmup=POLICY_WARMUP,
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


def collect(
    context: PPOContext,
    prompts: Sequence[RolloutPrompt],
    completions: Sequence[SampledCompletion],
    scores_of_judge: Sequence[float] | None = None,
) -> tuple[ValuedRollout, dict[str, float]]:
    """Evaluate sampled completions under policy, reference, value function and reward model.

    Of several processes each evaluates its share of the rows; all hold the whole rollout.
    `scores_of_judge` stand in for those of the reward model.

    Returns:
        The rollout: B completions of up to C tokens. And the metrics to report.
    """
    adapters, critic, settings = context.adapters, context.critic, context.settings
    temperature = settings.rollout_temperature
    # 1. Prompts and completions, packed.
    batch = RolloutBatch(
        adapters, prompts, completions, micro=context.micro, temperature=temperature
    )
    # 2. Log-probabilities and entropies of the policy, and values: together on a shared trunk.
    if critic.joint:
        logprobs, entropy, values = batch.all_rows(
            lambda b, n: scoring.logprobs_and_values(
                adapters, "policy", critic.head, b, micro_batch_size=n, temperature=temperature
            )
        )
    else:
        logprobs, entropy = batch.logprobs("policy")
        (values,) = batch.all_rows(
            lambda b, n: (
                scoring.values(adapters, critic.role, critic.head, b, micro_batch_size=n),
            )
        )
    # 3. Reference log-probabilities from the frozen SFT adapter.
    ref_logprobs, _ = batch.logprobs("sft")
    # 4. Scores from the reward adapter, clipped; a completion without eos does not get its own.
    reward_scores = batch.rewards(context.reward_head, scores_of_judge)
    shaping = ScoreShaping(settings.clip.score, settings.missing_eos_score)
    # 5. The rollout and its metrics.
    prompt_ids, prompt_mask = left_pad(adapters.base, [prompt.ids for prompt in prompts])
    rollout = ValuedRollout(
        prompt_ids=prompt_ids,
        completion_ids=batch.packed.completion_ids,
        prompt_mask=prompt_mask,
        completion_mask=batch.packed.completion_mask,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        scores=shaping(reward_scores, batch.finished),
    )
    return rollout, batch.metrics(reward_scores, logprobs, ref_logprobs, entropy)
