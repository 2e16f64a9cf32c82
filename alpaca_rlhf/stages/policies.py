"""The stages that train a policy: PPO and best-of-K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.scorers import Response
from alpaca_rlhf.evaluation.win_rate import best_of_n_kl, expected_best
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.rollout import SampledCompletion
from alpaca_rlhf.stages.candidates import candidates
from alpaca_rlhf.stages.context import Context, suffixed
from alpaca_rlhf.stages.judge_reward import judge_reward
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.training.best_of_k import choose
from alpaca_rlhf.training.ppo import PPOPrompt, train_ppo
from alpaca_rlhf.training.sft import train_sft


def ppo(ctx: Context, round_: int) -> Outcome:
    """Run PPO from SFT or, in later rounds, from the last policy; SFT stays the reference."""
    # 1. Load the reference, the reward, and the policy to start from.
    stage = suffixed("ppo", round_)
    settings = replace(ctx.settings.ppo, temperature=ctx.settings.temperature_of("ppo"))
    ctx.load("sft", "sft")
    by_judge = judge_reward(ctx, round_) if ctx.settings.reward.source == "judge" else None
    head = None
    if by_judge is None:
        ctx.load("reward", suffixed("reward", round_))
        head = ctx.load_head(suffixed("reward", round_))
    ctx.load("policy", "sft" if round_ == 1 else suffixed("ppo", round_ - 1))

    # 2. Prompts, and the judge of the evaluation, which watches where it is a rule of the kit's.
    rows = ctx.source.prompts(suffixed("ppo", round_))
    prompts = [PPOPrompt(row.id, prompt_ids(ctx.base, ctx.settings.template, row)) for row in rows]
    by_key = {row.id: row for row in rows}

    def responses(
        batch: Sequence[PPOPrompt], completions: Sequence[SampledCompletion]
    ) -> list[Response]:
        template = ctx.settings.template
        return [
            Response(
                by_key[prompt.key], answer(ctx.base, template, completion.ids), completion.finished
            )
            for prompt, completion in zip(batch, completions, strict=True)
        ]

    def completion_metrics(
        batch: Sequence[PPOPrompt], completions: Sequence[SampledCompletion]
    ) -> dict[str, float]:
        watching = ctx.judges.watches
        if watching is None:
            return {}
        verdicts = watching.scores(responses(batch, completions), stage=stage)
        metrics = {"gold_score": sum(verdict.score for verdict in verdicts) / len(verdicts)}
        if "correct" in verdicts[0].parts:
            correct = sum(verdict.parts["correct"] for verdict in verdicts)
            metrics["gold_correct"] = correct / len(verdicts)
        return metrics

    def reward_scores(
        batch: Sequence[PPOPrompt], completions: Sequence[SampledCompletion]
    ) -> list[float]:
        assert by_judge is not None
        return by_judge.scores(responses(batch, completions), stage=stage)

    # 3. Train from the last checkpoint, and save.
    train_ppo(
        ctx.adapters,
        reward_scores if head is None else head,
        prompts,
        settings,
        seed=derived_seed(ctx.settings.seed, "round", round_),
        rollout_batch_size=ctx.settings.sampling.batch_size,
        checkpoints=ctx.checkpoints(stage),
        log=ctx.log(stage),
        completion_metrics=completion_metrics,
    )
    ctx.save("policy", stage)

    # 4. Report from the metrics of all sittings.
    rows_logged = [row for row in ctx.run.metrics() if row["stage"] == stage]
    first, last = rows_logged[0], rows_logged[-1]
    tokens = round(sum(row["mean_tokens"] for row in rows_logged) * settings.batch_size)
    scores = f"score {first['score']:+.2f} -> {last['score']:+.2f}"
    summary = f"{scores}, KL {last['kl']:.2f} nats a completion"
    return Outcome(
        settings.updates * settings.batch_size, tokens, summary, {"kl_at_start": first["kl"]}
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

    # 3. Fine-tune on the winners, and save.
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

    # 4. Report.
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
        "mean_score": best[0],
        "mean_best_score": winners.mean_best,
        "expected_best_score": best,
        "sampler_kl_bound_nats": best_of_n_kl(settings.k),
    }
    summary = f"winners score {winners.mean_best:+.2f}, all candidates {best[0]:+.2f}"
    return Outcome(len(winners.examples), result.tokens, summary, facts)
