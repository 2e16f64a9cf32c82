"""The sample and rank stages: K completions a prompt, and their order."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.records import Completion, Instruction, Ranking
from alpaca_rlhf.core.scorers import Response
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data import write_instructions
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.rollout import SampledCompletion, sample
from alpaca_rlhf.preferences import DATABASE, JUDGE, ScoreJudge, read_snapshot, wrong_share
from alpaca_rlhf.preferences.assignment import Candidates, pairs
from alpaca_rlhf.preferences.judges import JudgeIdentity, tied_pairs
from alpaca_rlhf.preferences.snapshot import Ranked
from alpaca_rlhf.preferences.standing import Standing
from alpaca_rlhf.preferences.store import Store
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.sources import RunPrompts
from alpaca_rlhf.sources.sampled import candidate_sets, origin_of_stage, read_sheets
from alpaca_rlhf.sources.standing import standing_of_stage
from alpaca_rlhf.sources.verdicts import SNAPSHOT, open_store
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.llm_judge import BATCH_RANKINGS, LLMJudge, outcomes
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.uncertainty import order_by_uncertainty


class PeopleNeeded(UserError):
    """The run waits for people's rankings."""


def sample_completions(ctx: Context, round_: int) -> Outcome:
    """K completions of each new prompt, from SFT or, in later rounds, from the first policy."""
    # 1. The adapter that answers.
    stage, settings = suffixed("sample", round_), ctx.settings.rank
    prompts = ctx.source.prompts(suffixed("rank", round_))
    role = "sft" if round_ == 1 else "policy"
    policy = ctx.settings.policy_stages[0]
    ctx.load(role, "sft" if round_ == 1 else suffixed(policy, round_ - 1))

    # 2. Its completions.
    seed = derived_seed(ctx.settings.seed, "round", round_)
    samples_by_prompt = _sample(ctx, role, prompts, k=settings.k, seed=seed, stage=stage)
    fingerprint, sampling = ctx.adapters.digest(role), _sampling_words(ctx)
    completions = [
        Completion(
            prompt_id=prompt.id,
            text=answer(ctx.base, ctx.settings.template, tokens.ids),
            adapter=fingerprint,
            sampling=sampling,
            seed=seed,
            sample=j,
            finish_reason="eos" if tokens.finished else "length",
            n_tokens=len(tokens.ids),
        )
        for prompt, samples in zip(prompts, samples_by_prompt, strict=True)
        for j, tokens in enumerate(samples)
    ]

    # 3. Their files, with the prompts in the order in which people are given them.
    ctx.run.folder(stage)
    if ctx.settings.rank.queue == "uncertain":
        prompts = order_by_uncertainty(ctx, round_, prompts, samples_by_prompt)
    write_instructions(ctx.run.path / stage / "prompts.jsonl", prompts)
    rows = [completion.to_json() for completion in completions]
    ctx.run.write_jsonl(f"{stage}/completions.jsonl", rows)
    n_tokens = sum(completion.n_tokens for completion in completions)
    return Outcome(
        len(completions), n_tokens, f"{settings.k} completions for each of {len(prompts)} prompts"
    )


def rank(ctx: Context, round_: int) -> Outcome:
    """Put the completions of each prompt in order: by people, by a scorer, or by a model.

    All verdicts go to the run's database; the stage ends with a snapshot of it, which training
    reads.
    """
    if ctx.settings.inputs.scorer:
        return _by_scorer(ctx, round_)
    by_judge = {"human": _by_people, "llm": _by_llm}
    return by_judge[ctx.settings.inputs.judge](ctx, round_)


def _by_scorer(ctx: Context, round_: int) -> Outcome:
    """Let a judge that rates one completion at a time rank everything that was sampled."""
    settings, judge, stage = ctx.settings.rank, ctx.judges.ranks, suffixed("rank", round_)
    assert judge is not None
    noise = settings.noise if judge.name.kind == "gold" else 0.0
    # 1. A score for each completion. Equal texts stay in: the reward model sees all of them.
    sets = sampled_sets(ctx, round_)
    completions = [(prompt, completion) for prompt, group in sets for completion in group]
    judged = judge.scores(
        [
            Response(prompt, completion.text, completion.finish_reason == "eos")
            for prompt, completion in completions
        ],
        stage=stage,
        on_progress=lambda done: ctx.reporter.step(stage, done, len(completions), {}),
    )
    scores = {
        completion.id: rating.score
        for (_, completion), rating in zip(completions, judged, strict=True)
    }

    # 2. A verdict on each prompt, in the store; and the snapshot of it that training reads.
    ranker = ScoreJudge(
        judge.title,
        lambda _, completion: scores[completion.id],
        noise=noise,
        tie_below=settings.tie_below,
        seed=ctx.settings.seed,
    )
    rankings = [ranker.rank(prompt, group) for prompt, group in sets]
    verdicts, tied = sum(pairs(ranking.tiers) for ranking in rankings), tied_pairs(rankings, scores)
    with open_store(ctx.run.path) as store:
        origin = origin_of_stage(ctx.run.path, suffixed("sample", round_))
        store.add_sets(sets, origin=origin)
        # People may have ranked some, ties may be learned from, and later rounds have the earlier
        # ones' rankings.
        learnable = verdicts or ctx.settings.reward.ties == "soft" or store.ranked(sets)
        if not learnable and round_ == 1:
            raise UserError(_all_ties(judge.title, scores.values(), settings.tie_below, tied))
        store.add_rankings(rankings, judge=ranker.identity)
        _take_snapshot(ctx, round_, store, ranker.identity)

    # 3. Report.
    heard, (others, others_text, facts) = rankings_of_round(ctx, round_), _others(ctx, round_)
    facts |= {
        "judge": judge.title,
        "noise": noise,
        "verdicts": verdicts,
        "tied_pairs": tied,
        "measured_wrong_share": wrong_share(rankings, scores),
        "mean_gold": sum(scores.values()) / len(scores),
        "by_people": sum(not _by_judge(ranking) for _, _, ranking in heard),
    }
    wrong = f"{100 * facts['measured_wrong_share']:.1f}% of them wrong on purpose"
    summary = f"{verdicts} verdicts, {wrong if noise else f'by {judge.title}'}"
    if tied:
        summary += f", {tied} pairs tied below --rank.tie-below {settings.tie_below:g}"
    if not learnable:
        summary += "; every ranking is a tie, so the rankings of earlier rounds alone are learned"
    if facts["by_people"]:
        summary += f"; {facts['by_people']} rankings by people stand above them"
    return Outcome(len(heard) + others, 0, summary + others_text, facts)


def _all_ties(judge: str, scores: Collection[float], tie_below: float, tied: int) -> str:
    """One line about scores of which no two completions of a prompt differ enough."""
    low, high = min(scores), max(scores)
    if not tied:
        return (
            f"--inputs.judge {judge}: gives all completions of each prompt the same score "
            f"({low:g} to {high:g}), so every ranking is a tie and nothing can be learned; take "
            "another judge, or begin another --out with a higher --rank.temperature"
        )
    return (
        f"--rank.tie-below {tie_below:g}: no two completions of a prompt differ by so much under "
        f"{judge}, whose scores lie between {low:g} and {high:g}, so every ranking is a tie; give "
        "--rank.tie-below 0, which ties equal scores alone"
    )


def _by_people(ctx: Context, round_: int) -> Outcome:
    """Take what people have ranked, in the terminal or in the app, once it is enough.

    Raises:
        PeopleNeeded: Prompts must still be ranked.
    """
    stage, at_least = suffixed("sample", round_), ctx.settings.rank.at_least
    if (ctx.run.path / DATABASE).exists():
        with open_store(ctx.run.path) as store:
            standing = standing_of_stage(ctx.run.path, stage, store)
    else:
        standing = Standing(waiting=len(candidate_sets(ctx.run.path, stage)))
    if standing.missing(at_least):
        raise PeopleNeeded(_wait_for_people(standing, at_least, ctx.run.path))
    with open_store(ctx.run.path) as store:
        _take_snapshot(ctx, round_, store, None)
    heard, (others, others_text, facts) = rankings_of_round(ctx, round_), _others(ctx, round_)
    facts |= {"noise": 0.0, "verdicts": 0, "standing": standing.facts()}
    summary = f"{len(heard)} rankings by people{others_text}"
    unranked = standing.prompts - standing.ranked
    if unranked:
        summary += f"; {standing.line(at_least)}: {unranked} left out of training"
    return Outcome(len(heard) + others, 0, summary, facts)


def _wait_for_people(standing: Standing, at_least: int | None, path: Path) -> str:
    """One line about the rankings that a run still waits for."""
    run, missing = quoted(path), standing.missing(at_least)
    if missing > standing.waiting:
        # Not even all that wait would do: most were skipped, or more are asked for than there are.
        possible = standing.ranked + standing.waiting
        lower = f", or go on with fewer: --rank.at-least {possible}" if possible else ""
        return (
            f"{standing.line(at_least)}: {missing} more must be ranked; rank skipped ones after "
            f"all with `alpaca-rlhf rank --out {run}`{lower}; then run the same command again"
        )
    plain = at_least is None and standing.prompts == standing.ranked + standing.waiting
    more = "" if plain else f" ({standing.line(at_least)})"
    return (
        f"{missing} of {standing.prompts} prompts are not ranked yet: rank them in a browser "
        f"with `alpaca-rlhf app --run {run}`, or here with `alpaca-rlhf rank --out {run}`; "
        f"then run the same command again{more}"
    )


def _by_llm(ctx: Context, round_: int) -> Outcome:
    """Let the model at --judge.url rank what no person has ranked.

    Replies it gave before a stop are not paid for again.
    """
    stage, settings = suffixed("rank", round_), ctx.settings.judge
    sample_stage = suffixed("sample", round_)
    sets = candidate_sets(ctx.run.path, sample_stage)
    outcome_counts: Counter[str] = Counter()
    decided = 0
    spent = _spent_before(ctx, round_)
    with (
        open_store(ctx.run.path) as store,
        LLMJudge(settings, ctx.run.folder(stage), spent=spent) as judge,
    ):
        # 1. The sets that no person has ranked.
        store.add_sets(sets, origin=origin_of_stage(ctx.run.path, sample_stage))
        ranked = store.ranked(sets)
        sets = [row for row in sets if row[0].id not in ranked]
        total = len(sets)

        # 2. The judge's verdicts, saved batch by batch. A replay after a stop adds nothing.
        def judged() -> Iterator[Ranking]:
            nonlocal decided
            for prompt, order in judge.rank(
                sets, on_progress=lambda done: ctx.reporter.step(stage, done, total, {})
            ):
                outcome_counts.update(order.pairs)
                if order.tiers is not None:
                    decided += 1
                    yield Ranking(prompt.id, order.tiers, judge.identity.annotator)

        store.add_rankings(judged(), judge=judge.identity, batch=BATCH_RANKINGS)
        account = judge.account
        if not decided and not ranked:
            raise UserError(
                f"--judge.url {settings.url}: no ranking came of {total} prompts "
                f"({outcomes(outcome_counts)}); this model is no judge, take another --judge.model"
            )

        # 3. The snapshot that training reads.
        _take_snapshot(ctx, round_, store, judge.identity)

    heard, (others, others_text, facts) = rankings_of_round(ctx, round_), _others(ctx, round_)
    by_people = sum(not _by_judge(ranking) for _, _, ranking in heard)
    left_out = total - decided
    summary = f"{decided} rankings by {settings.model}"
    summary += f", {by_people} by people{others_text}" if by_people or others else others_text
    summary += f"; {outcomes(outcome_counts)}"
    if left_out:
        summary += f"; {left_out} prompts left out: nothing decided"
    facts |= {"noise": 0.0, "verdicts": outcome_counts["decided"], "pairs": dict(outcome_counts)}
    facts |= {"left_out": left_out, "by_people": by_people, "endpoint": account.facts()}
    ctx.reporter.say(f"  {account.line()}")
    tokens = account.tokens_in + account.tokens_out
    return Outcome(decided + by_people + others, tokens, summary, facts)


def sampled_sets(ctx: Context, round_: int) -> list[Candidates]:
    """Each prompt of a round with all of its completions, in the order in which they were drawn."""
    sheets = read_sheets(ctx.run.path, suffixed("sample", round_))
    return [(sheet.prompt, sheet.completions) for sheet in sheets]


def rankings_of_round(ctx: Context, round_: int) -> list[Ranked]:
    """The rankings that count of what a round has sampled, in the order of its prompts.

    Of judges only the run's own one counts there; where people rank, all do.
    """
    sets = sampled_sets(ctx, round_)
    place = {prompt.id: n for n, (prompt, _) in enumerate(sets)}
    sampled_ids = {completion.id for _, completions in sets for completion in completions}
    annotator = _judge_of_run(ctx)
    rows = [
        (prompt, completions, ranking)
        for prompt, completions, ranking in read_snapshot(_snapshot(ctx, round_), sets)
        if all(completion.id in sampled_ids for completion in completions)
        and (annotator is None or not _by_judge(ranking) or ranking.annotator == annotator)
    ]
    return sorted(rows, key=lambda row: place[row[0].id])


def other_rankings(ctx: Context, round_: int) -> tuple[list[Ranked], int]:
    """The rankings of answers that no round so far has sampled, and how many more are left out.

    These are prompts typed in the chat, and answers that `alpaca-rlhf sample --run` drew. Those
    whose prompts lie near a prompt of another stage are left out.
    """
    sets = [row for r in range(1, round_ + 1) for row in sampled_sets(ctx, r)]
    sampled_ids = {completion.id for _, completions in sets for completion in completions}
    rows = [
        row
        for row in read_snapshot(_snapshot(ctx, round_), sets)
        if any(completion.id not in sampled_ids for completion in row[1])
    ]
    prompts = RunPrompts(ctx.run.path, ctx.settings)
    apart = [row for row in rows if prompts.leak(row[0]) is None]
    return apart, len(rows) - len(apart)


def _others(ctx: Context, round_: int) -> tuple[int, str, dict[str, Any]]:
    """Rankings of other answers than the run's own: their count, in words, as facts."""
    rows, near = other_rankings(ctx, round_)
    text = f", and {len(rows)} in the app of other answers" if rows else ""
    if near:
        text += f"; {near} left out: their prompts lie near those of another stage"
    return len(rows), text, {"of_other_answers": len(rows), "near": near}


def _snapshot(ctx: Context, round_: int) -> Path:
    return ctx.run.path / suffixed("rank", round_) / SNAPSHOT


def _take_snapshot(ctx: Context, round_: int, store: Store, judge: JudgeIdentity | None) -> None:
    """Write the snapshot of a round, in place of one that a broken-off sitting left."""
    ctx.run.folder(suffixed("rank", round_))
    shutil.rmtree(_snapshot(ctx, round_), ignore_errors=True)
    left_out = store.left_out()
    store.export(_snapshot(ctx, round_), judge=judge)
    settings = None if judge is None else judge.settings
    ctx.run.finish(_snapshot_entry(round_), {"judge_settings": settings, "left_out": left_out})


def renew_snapshots(ctx: Context, round_: int) -> None:
    """Take the snapshots up to a round anew if people or sets were left out or taken in since."""
    if not (ctx.run.path / DATABASE).exists():
        return
    with open_store(ctx.run.path) as store:
        left_out, annotator = store.left_out(), _judge_of_run(ctx)
        for number in range(1, round_ + 1):
            taken = ctx.run.done(_snapshot_entry(number)) or {}
            if taken.get("left_out", []) == left_out or not _snapshot(ctx, number).exists():
                continue
            settings = taken.get("judge_settings")
            known = annotator is not None and settings is not None
            judge = JudgeIdentity(annotator or "", settings or "") if known else None
            ctx.reporter.say(
                f"  rankings were left out or taken in since round {number} was ranked: its "
                "snapshot is taken anew"
            )
            _take_snapshot(ctx, number, store, judge)


def _snapshot_entry(round_: int) -> str:
    return f"{suffixed('rank', round_)}_snapshot"


def _judge_of_run(ctx: Context) -> str | None:
    """The annotator's name of the judge that ranks in people's place; None where people rank."""
    if ctx.judges.ranks is not None:
        return ctx.judges.ranks.annotator
    by_llm = ctx.settings.inputs.judge == "llm"
    return f"{JUDGE}llm:{ctx.settings.judge.model}" if by_llm else None


def _by_judge(ranking: Ranking) -> bool:
    return ranking.annotator.startswith(JUDGE)


def _spent_before(ctx: Context, round_: int) -> tuple[int, int]:
    """Tokens in and out of earlier rounds: a limit is one for the whole run."""
    rows = [ctx.run.done(suffixed("rank", r)) or {} for r in range(1, round_)]
    accounts = [row.get("facts", {}).get("endpoint", {}) for row in rows]
    tokens_in, tokens_out = (
        sum(account.get(name, 0) for account in accounts) for name in ("tokens_in", "tokens_out")
    )
    return tokens_in, tokens_out


def _sample(
    ctx: Context, role: str | None, prompts: list[Instruction], *, k: int, seed: int, stage: str
) -> list[list[SampledCompletion]]:
    return sample(
        ctx.adapters,
        role,
        [prompt_ids(ctx.base, ctx.settings.template, prompt) for prompt in prompts],
        [prompt.id for prompt in prompts],
        k=k,
        sampling=ctx.sampling("sample"),
        seed=seed,
        on_batch=ctx.counting(stage, len(prompts) * k),
    )


def _sampling_words(ctx: Context) -> str:
    sampling = ctx.sampling("sample")
    return f"temperature={sampling.temperature:g} top_p={sampling.top_p:g}"
