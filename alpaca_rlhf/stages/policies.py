"""The stages that train a policy: PPO and best-of-K."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.evaluation.win_rate import best_of_n_kl, expected_best
from alpaca_rlhf.models.batches import Example, TokenCounts
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.candidates import candidates
from alpaca_rlhf.stages.context import Context, control_of
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.rollouts import facts_of_looks, outcome_of_updates, rollout_source
from alpaca_rlhf.training.best_of_k import choose, choose_at_random
from alpaca_rlhf.training.ppo import train_ppo
from alpaca_rlhf.training.sft import SFTResult, train_sft
from alpaca_rlhf.training.watching import Watch


def ppo(ctx: Context, round_: int) -> Outcome:
    """Run PPO from SFT or, in later rounds, from the last policy; SFT stays the reference."""
    # 1. The reference, the prompts, and a judge that gives the reward.
    stage = suffixed("ppo", round_)
    settings = replace(ctx.settings.ppo, temperature=ctx.settings.temperature_of("ppo"))
    source = rollout_source(ctx, stage, round_)
    prompts = source.prompts

    def train(name: str, reward_stage: str, start: str, watch: Watch | None) -> None:
        """Train from a policy against a reward, from the last checkpoint, and save."""
        reward = source.reward(reward_stage)
        ctx.load("policy", start)
        train_ppo(
            ctx.adapters,
            reward,
            prompts,
            settings,
            seed=derived_seed(ctx.settings.seed, "round", round_),
            rollout_batch_size=ctx.settings.sampling.batch_size,
            checkpoints=ctx.checkpoints(name),
            log=ctx.log(name),
            completion_metrics=source.completion_metrics,
            watch=watch,
        )
        ctx.save("policy", name)

    # 2. The control, unless an earlier sitting has it; then the policy. Looks choose the adapter of
    #    both, or the gain over the control would hold the gain of choosing.
    watch = source.watch()
    reward_stage, control = suffixed("reward", round_), control_of(stage)
    before = None if round_ == 1 else suffixed("ppo", round_ - 1)
    started = time.perf_counter()
    if settings.control and ctx.run.done(control) is None:
        _require_control(ctx, control_of(reward_stage))
        # A control that was begun by a version that did not watch it goes on so.
        latest = ctx.checkpoints(control).latest()
        unwatched = latest is not None and "patience" not in latest[1]
        looks = None if watch is None or unwatched else watch.for_another()
        start = control_of(before) if before else "sft"
        train(control, control_of(reward_stage), start, looks)
        ctx.finish(control, {} if looks is None else {"watch": facts_of_looks(ctx, control, looks)})
    control_seconds = time.perf_counter() - started
    train(stage, reward_stage, before or "sft", watch)

    outcome = outcome_of_updates(ctx, stage, settings.batch_size, watch)
    if not settings.control:
        return outcome
    return replace(outcome, facts={**outcome.facts, "control_seconds": control_seconds})


def _require_control(ctx: Context, stage: str) -> None:
    """Refuse a control of PPO without the reward model of shuffled verdicts.

    Raises:
        UserError: The reward stage was done before its control was kept.
    """
    if not ctx.adapter_folder(stage).is_dir():
        raise UserError(
            f"--ppo.control: {ctx.adapter_folder(stage)} is not there, since the reward stage of "
            "this run kept no control; leave the flag out or use another --out"
        )


def best_of_k(ctx: Context, round_: int) -> Outcome:
    """Sample K completions a prompt, keep the best scored, and fine-tune on the winners.

    Starts from SFT or, in later rounds, from the last best-of-K.
    """
    # 1. Load the policy to start from and the reward.
    stage, settings = suffixed("best_of_k", round_), ctx.settings.best_of_k
    sampler = "sft" if round_ == 1 else suffixed("best_of_k", round_ - 1)
    ctx.load("policy", sampler)
    if ctx.settings.reward.source == "judge":
        ctx.load("sft", "sft")
    else:
        ctx.load("reward", suffixed("reward", round_))

    # 2. Sample and score candidates, and choose the winners.
    pool = candidates(ctx, round_, sampler=sampler)
    sampled = list(chain.from_iterable(pool.values()))
    winners = choose(sampled, keep=settings.keep, threshold=settings.threshold)

    # 3. The control, unless an earlier sitting has it: as many completions, chosen by chance.
    control, started = control_of(stage), time.perf_counter()
    if settings.control and ctx.run.done(control) is None:
        seed = derived_seed(ctx.settings.seed, "round", round_)
        at_random = choose_at_random(sampled, len(winners.examples), seed=seed)
        _fine_tune(ctx, control, at_random.examples)
        ctx.finish(control, {"mean_score": at_random.mean_best})
        ctx.load("policy", sampler)
    control_seconds = time.perf_counter() - started

    # 4. Fine-tune on the winners, and save.
    result = _fine_tune(ctx, stage, winners.examples)

    # 5. Report.
    best = expected_best([prompt_candidates.scores for prompt_candidates in pool[round_]])
    facts = {
        "k": settings.k,
        "candidates": sum(len(prompt_candidates.scores) for prompt_candidates in sampled),
        "finished": sum(
            completion.finished
            for prompt_candidates in sampled
            for completion in prompt_candidates.completions
        ),
        "winners": len(winners.examples),
        "batch_size": result.batch_size,
        "mean_score": best[0],
        "mean_best_score": winners.mean_best,
        "expected_best_score": best,
        "sampler_kl_bound_nats": best_of_n_kl(settings.k),
        **({"control_seconds": control_seconds} if settings.control else {}),
    }
    summary = f"winners score {winners.mean_best:+.2f}, all candidates {best[0]:+.2f}"
    if ctx.settings.sft.batch_size is None:
        chosen = f"{len(winners.examples):,} winners"
        summary += f"; {ctx.note_batch_size(stage, result.batch_size, chosen)}"
    return Outcome(len(winners.examples), result.tokens, summary, facts)


def _fine_tune(ctx: Context, stage: str, examples: Sequence[Example]) -> SFTResult:
    """Fine-tune `policy` on chosen completions as best-of-K does, and save it as a stage's."""
    settings = ctx.settings.best_of_k
    _, dot, number = stage.partition(".")
    result = train_sft(
        ctx.adapters,
        "policy",
        examples,
        [],
        replace(ctx.settings.sft, lr=settings.lr, epochs=settings.epochs),
        seed=ctx.settings.seed,
        checkpoints=ctx.checkpoints(stage),
        log=ctx.log(stage),
        stage=f"best_of_k{dot}{number}",  # a control has no flags of its own
        largest=TokenCounts.of_largest([[example] for example in examples]),
    )
    ctx.save("policy", stage)
    return result
