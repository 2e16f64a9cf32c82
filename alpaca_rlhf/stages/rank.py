"""The sample and rank stages: K completions a prompt, and their order."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from alpaca_rlhf.config import UserError
from alpaca_rlhf.context import Context, suffixed
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.rollout import Sampled, sample
from alpaca_rlhf.preferences import (
    DATABASE,
    ScoreJudge,
    append,
    read,
    read_snapshot,
    wrong_share,
)
from alpaca_rlhf.randomness import derived_seed
from alpaca_rlhf.records import Completion, Instruction, Ranking
from alpaca_rlhf.stages.outcome import Outcome


class PeopleNeeded(UserError):
    """The run waits for people's rankings."""


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
    """Put the completions of each prompt in order: by the gold judge with noise, or by people."""
    stage, settings = suffixed("rank", round_), ctx.settings.rank
    prompts, completions = sampled(ctx, round_)
    by_prompt: dict[str, list[Completion]] = {}
    for one in completions.values():
        by_prompt.setdefault(one.prompt_id, []).append(one)
    path = ctx.run.folder(stage) / "rankings.jsonl"
    if ctx.settings.inputs.judge == "human":
        rankings = _by_people(ctx.run.path, path, prompts, completions)
        return Outcome(
            len(rankings), 0, f"{len(rankings)} rankings by people", {"noise": 0.0, "verdicts": 0}
        )
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


def _by_people(
    run: Path, path: Path, prompts: Mapping[str, Instruction], completions: Mapping[str, Completion]
) -> list[Ranking]:
    """What people said: in the terminal, in `path`, and in the app, in the run's database.

    The app's rankings come by way of a snapshot beside `path`, which stays.

    Raises:
        PeopleNeeded: There are prompts that nobody has ranked.
    """
    rankings = read(path, completions) if path.exists() else []
    left = prompts.keys() - {one.prompt_id for one in rankings}
    file = run / DATABASE
    if file.exists():
        from alpaca_rlhf.preferences.store import Store

        with Store(file) as store:
            left -= store.settled(left)
            if not left:
                kept = {(one.prompt_id, one.annotator, one.revision) for one in rankings}
                snapshot = path.with_name("snapshot")
                shutil.rmtree(snapshot, ignore_errors=True)  # of a sitting that was broken off
                store.export(snapshot)
                new = [
                    one
                    for _, _, one in read_snapshot(snapshot)
                    if all(key in completions for tier in one.tiers for key in tier)
                    and (one.prompt_id, one.annotator, one.revision) not in kept
                ]
                append(path, *new)
                rankings = read(path, completions)
    if left:
        where = shlex.quote(str(run))
        raise PeopleNeeded(
            f"{len(left)} of {len(prompts)} prompts are not ranked yet: rank them in a browser "
            f"with `alpaca-rlhf app --run {where}`, or here with `alpaca-rlhf rank --out {where}`; "
            "then run the same command again"
        )
    return rankings


def sampled(ctx: Context, round_: int) -> tuple[dict[str, Instruction], dict[str, Completion]]:
    """Prompts and completions of a finished sample stage, by id."""
    stage = suffixed("sample", round_)
    prompts = [Instruction.from_json(row) for row in ctx.run.read_jsonl(f"{stage}/prompts.jsonl")]
    completions = []
    for row in ctx.run.read_jsonl(f"{stage}/completions.jsonl"):
        row.pop("id")
        completions.append(Completion(**row))
    return {p.id: p for p in prompts}, {c.id: c for c in completions}


def _sample(
    ctx: Context, role: str | None, rows: list[Instruction], *, k: int, seed: int, stage: str
) -> list[list[Sampled]]:
    done = 0

    def on_batch(n: int) -> None:
        nonlocal done
        done += n
        ctx.reporter.step(stage, done, len(rows) * k, {})

    return sample(
        ctx.adapters,
        role,
        [prompt_ids(ctx.base, ctx.settings.template, row) for row in rows],
        [row.id for row in rows],
        k=k,
        sampling=ctx.settings.sampling,
        seed=seed,
        on_batch=on_batch,
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
