"""The stages that train a policy: ppo and best_of_k."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.evaluation.win_rate import best_of_n_kl, expected_best
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.stages.candidates import candidates
from alpaca_rlhf.stages.context import Context, suffixed
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.training.best_of_k import choose
from alpaca_rlhf.training.ppo import PPOPrompt, train_ppo
from alpaca_rlhf.training.sft import train_sft


def ppo(ctx: Context, round_: int) -> Outcome:
    """PPO from SFT or, in later rounds, from the last policy; SFT stays the reference."""
    stage, settings = suffixed("ppo", round_), ctx.settings.ppo
    ctx.load("sft", "sft")
    ctx.load("reward", suffixed("reward", round_))
    head = ctx.load_head(suffixed("reward", round_))
    ctx.load("policy", "sft" if round_ == 1 else suffixed("ppo", round_ - 1))
    rows = ctx.source.prompts(suffixed("ppo", round_))
    prompts = [PPOPrompt(row.id, prompt_ids(ctx.base, ctx.settings.template, row)) for row in rows]
    by_key = {row.id: row for row in rows}
    gold = ctx.source.gold

    def completion_metrics(asked: Any, completions: Any) -> dict[str, float]:
        if gold is None:
            return {}
        seen = [
            gold(by_key[p.key], answer(ctx.base, ctx.settings.template, c.ids), c.finished)
            for p, c in zip(asked, completions, strict=True)
        ]
        return {
            "gold_score": sum(g.score for g in seen) / len(seen),
            "gold_correct": sum(g.parts["correct"] for g in seen) / len(seen),
        }

    train_ppo(
        ctx.adapters,
        head,
        prompts,
        settings,
        seed=derived_seed(ctx.settings.seed, "round", round_),
        rollout_batch_size=ctx.settings.sampling.batch_size,
        checkpoints=ctx.checkpoints(stage),
        log=ctx.log(stage),
        completion_metrics=completion_metrics,
    )
    ctx.save("policy", stage)
    rows_logged = [row for row in ctx.run.metrics() if row["stage"] == stage]
    first, last = rows_logged[0], rows_logged[-1]
    tokens = round(sum(row["mean_tokens"] for row in rows_logged) * settings.batch_size)
    scores = f"score {first['score']:+.2f} -> {last['score']:+.2f}"
    summary = f"{scores}, KL {last['kl']:.2f} nats a completion"
    return Outcome(
        settings.updates * settings.batch_size, tokens, summary, {"kl_at_start": first["kl"]}
    )


def best_of_k(ctx: Context, round_: int) -> Outcome:
    """Sample K, keep the reward model's favourite, fine-tune on the winners.

    From SFT, later from the last best-of-K.
    """
    stage, settings = suffixed("best_of_k", round_), ctx.settings.best_of_k
    before = "sft" if round_ == 1 else suffixed("best_of_k", round_ - 1)
    ctx.load("policy", before)
    ctx.load("reward", suffixed("reward", round_))
    pool = candidates(ctx, round_, sampler=before)
    winners = choose(
        [one for own in pool.values() for one in own],
        keep=settings.keep,
        threshold=settings.threshold,
    )
    result = train_sft(
        ctx.adapters,
        "policy",
        winners.examples,
        [],
        replace(ctx.settings.sft, lr=settings.lr, epochs=settings.epochs),
        seed=ctx.settings.seed,
        checkpoints=ctx.checkpoints(stage),
        log=ctx.log(stage),
        stage=stage,
    )
    ctx.save("policy", stage)
    best = expected_best([one.scores for one in pool[round_]])
    facts = {
        "k": settings.k,
        "candidates": sum(len(one.scores) for own in pool.values() for one in own),
        "finished": sum(
            one.finished for own in pool.values() for each in own for one in each.completions
        ),
        "winners": len(winners.examples),
        "mean_score": best[0],
        "mean_best_score": winners.mean_best,
        "expected_best_score": best,
        "sampler_kl_bound_nats": best_of_n_kl(settings.k),
    }
    summary = f"winners score {winners.mean_best:+.2f}, all candidates {best[0]:+.2f}"
    return Outcome(len(winners.examples), result.tokens, summary, facts)
