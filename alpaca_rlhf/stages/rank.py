"""The sample and rank stages: K completions a prompt, and their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.rollout import SampledCompletion, sample
from alpaca_rlhf.preferences import ScoreJudge, append, wrong_share
from alpaca_rlhf.preferences.assignment import FEWEST, distinct
from alpaca_rlhf.sources import RunPrompts
from alpaca_rlhf.stages.context import Context, suffixed
from alpaca_rlhf.stages.llm_judge import LLMJudge, Row, outcomes
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.people import Ranked, by_people, of_other_answers, people_so_far


def sample_completions(ctx: Context, round_: int) -> Outcome:
    """K completions of each new prompt, from SFT or, in later rounds, from the last policy."""
    stage, settings = suffixed("sample", round_), ctx.settings.rank
    prompts = ctx.source.prompts(suffixed("rank", round_))
    role = "sft" if round_ == 1 else "policy"
    ctx.load(role, "sft" if round_ == 1 else suffixed("ppo", round_ - 1))
    seed = derived_seed(ctx.settings.seed, "round", round_)
    drawn = _sample(ctx, role, prompts, k=settings.k, seed=seed, stage=stage)
    fingerprint, how = ctx.adapters.digest(role), _sampling_words(ctx)
    completions = [
        Completion(
            prompt_id=prompt.id,
            text=answer(ctx.base, ctx.settings.template, one.ids),
            adapter=fingerprint,
            sampling=how,
            seed=seed,
            sample=j,
            finish_reason="eos" if one.finished else "length",
            n_tokens=len(one.ids),
        )
        for prompt, own in zip(prompts, drawn, strict=True)
        for j, one in enumerate(own)
    ]
    ctx.run.folder(stage)
    write_instructions(ctx.run.path / stage / "prompts.jsonl", prompts)
    ctx.run.write_jsonl(f"{stage}/completions.jsonl", [one.to_json() for one in completions])
    tokens = sum(one.n_tokens for one in completions)
    return Outcome(
        len(completions), tokens, f"{settings.k} completions for each of {len(prompts)} prompts"
    )


def rank(ctx: Context, round_: int) -> Outcome:
    """Put the completions of each prompt in order: by the gold judge, by people or by a model."""
    stage, settings = suffixed("rank", round_), ctx.settings.rank
    prompts, completions = sampled(ctx, round_)
    by_prompt: dict[str, list[Completion]] = {}
    for one in completions.values():
        by_prompt.setdefault(one.prompt_id, []).append(one)
    path = ctx.run.folder(stage) / "rankings.jsonl"
    if ctx.settings.inputs.judge == "human":
        differ = [key for key, own in by_prompt.items() if len(distinct(own)) >= FEWEST]
        rankings = by_people(ctx.run.path, path, differ, completions)
        more, summary, facts = _others(ctx, round_)
        facts |= {"noise": 0.0, "verdicts": 0}
        return Outcome(
            len(rankings) + more, 0, f"{len(rankings)} rankings by people{summary}", facts
        )
    if ctx.settings.inputs.judge == "llm":
        rows = [(prompts[key], distinct(own, len(own))) for key, own in by_prompt.items()]
        rows = [row for row in rows if len(row[1]) >= FEWEST]
        return _by_llm(ctx, round_, path, rows, completions)
    gold = ctx.source.gold
    assert gold is not None
    scores: dict[str, float] = {}

    def score_of(prompt: Instruction, completion: Completion) -> float:
        scores[completion.id] = gold(
            prompt, completion.text, completion.finish_reason == "eos"
        ).score
        return scores[completion.id]

    judge = ScoreJudge(
        "gold", score_of, noise=settings.noise, tie_below=settings.tie_below, seed=ctx.settings.seed
    )
    rankings = [judge.rank(prompts[key], own) for key, own in by_prompt.items()]
    path.unlink(missing_ok=True)
    append(path, *rankings)
    verdicts = sum(len(_pairs(r)) for r in rankings)
    facts = {
        "noise": settings.noise,
        "verdicts": verdicts,
        "measured_wrong_share": wrong_share(rankings, scores),
        "mean_gold": sum(scores.values()) / len(scores),
    }
    summary = (
        f"{verdicts} verdicts, {100 * facts['measured_wrong_share']:.1f}% of them wrong on purpose"
    )
    return Outcome(len(rankings), 0, summary, facts)


def _by_llm(
    ctx: Context,
    round_: int,
    path: Path,
    rows: Sequence[Row],
    completions: Mapping[str, Completion],
) -> Outcome:
    """Let the model at --judge.url rank what no person has ranked.

    What it said before a stop is not asked again.
    """
    stage, settings = suffixed("rank", round_), ctx.settings.judge
    people = people_so_far(ctx.run.path, path, completions)
    ranked = {one.prompt_id for one in people}
    rows = [row for row in rows if row[0].id not in ranked]
    pairs: Counter[str] = Counter()
    rankings = []
    with LLMJudge(settings, path.parent, spent=_spent_before(ctx, round_)) as judge:
        total = len(rows)
        for prompt, order in judge.rank(
            rows, told=lambda sets: ctx.reporter.step(stage, sets, total, {})
        ):
            pairs.update(order.pairs)
            if order.tiers is not None:
                rankings.append(Ranking(prompt.id, order.tiers, judge.annotator))
        account = judge.account
    if not rankings and not people:
        raise UserError(
            f"--judge.url {settings.url}: no ranking came of {total} prompts "
            f"({outcomes(pairs)}); this model is no judge, take another --judge.model"
        )
    append(path, *rankings)
    left = total - len(rankings)
    more, others, facts = _others(ctx, round_)
    summary = f"{len(rankings)} rankings by {settings.model}"
    summary += f", {len(people)} by people{others}" if people or more else others
    summary += f"; {outcomes(pairs)}"
    if left:
        summary += f"; {left} prompts left out: nothing decided"
    facts |= {"noise": 0.0, "verdicts": pairs["decided"], "pairs": dict(pairs)}
    facts |= {"left_out": left, "by_people": len(people), "endpoint": account.facts()}
    ctx.reporter.say(f"  {account.line()}")
    examples = len(rankings) + len(people) + more
    return Outcome(examples, account.tokens_in + account.tokens_out, summary, facts)


def _spent_before(ctx: Context, round_: int) -> tuple[int, int]:
    """Tokens in and out of earlier rounds: a limit is one for the whole run."""
    done = [ctx.run.done(suffixed("rank", one)) or {} for one in range(1, round_)]
    said = [one.get("facts", {}).get("endpoint", {}) for one in done]
    total = [sum(one.get(name, 0) for one in said) for name in ("tokens_in", "tokens_out")]
    return total[0], total[1]


def _others(ctx: Context, round_: int) -> tuple[int, str, dict[str, Any]]:
    """The app's rankings of answers that the run has not sampled: how many, in words, as facts."""
    more, near = other_rankings(ctx, round_)
    words = f", and {len(more)} in the app of other answers" if more else ""
    if near:
        words += f"; {near} left out: their prompts lie near those of another stage"
    return len(more), words, {"of_other_answers": len(more), "near": near}


def sampled(ctx: Context, round_: int) -> tuple[dict[str, Instruction], dict[str, Completion]]:
    """Prompts and completions of a finished sample stage, by id."""
    stage = suffixed("sample", round_)
    prompts = [Instruction.from_json(row) for row in ctx.run.read_jsonl(f"{stage}/prompts.jsonl")]
    completions = []
    for row in ctx.run.read_jsonl(f"{stage}/completions.jsonl"):
        row.pop("id")
        completions.append(Completion(**row))
    return {p.id: p for p in prompts}, {c.id: c for c in completions}


def other_rankings(ctx: Context, round_: int) -> tuple[list[Ranked], int]:
    """The app's rankings of answers that no round so far has sampled, and how many are left out."""
    drawn = {key for one in range(1, round_ + 1) for key in sampled(ctx, one)[1]}
    prompts = RunPrompts(ctx.run.path, ctx.settings)
    return of_other_answers(ctx.run.path / suffixed("rank", round_), drawn, prompts)


def _sample(
    ctx: Context, role: str | None, rows: list[Instruction], *, k: int, seed: int, stage: str
) -> list[list[SampledCompletion]]:
    return sample(
        ctx.adapters,
        role,
        [prompt_ids(ctx.base, ctx.settings.template, row) for row in rows],
        [row.id for row in rows],
        k=k,
        sampling=ctx.settings.sampling,
        seed=seed,
        on_batch=ctx.counting(stage, len(rows) * k),
    )


def _sampling_words(ctx: Context) -> str:
    sampling = ctx.settings.sampling
    return f"temperature={sampling.temperature:g} top_p={sampling.top_p:g}"


def _pairs(ranking: Ranking) -> list[tuple[str, str]]:
    tiers = ranking.tiers
    return [
        (a, b)
        for i, tier in enumerate(tiers)
        for later in tiers[i + 1 :]
        for a in tier
        for b in later
    ]
