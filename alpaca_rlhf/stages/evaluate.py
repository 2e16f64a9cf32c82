"""The evaluate stage: every policy of a run on prompts that no stage has seen.

There are two controls: the base on the SFT template, which it has never seen, and the base with
solved examples in its own worksheet format, which has room for the last turn of a conversation
only. `arm_answers` answers, `kept_answers` keeps what was answered, `evaluation_judge` judges,
`reranking` chooses among samples of SFT, and `arm_figures` makes figures of it all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Scores
from alpaca_rlhf.data import cluster_numbers
from alpaca_rlhf.stages.arm_answers import (
    DECODINGS,
    Answers,
    Completion,
    Decoding,
    answers_of,
)
from alpaca_rlhf.stages.arm_figures import ArmFigures
from alpaca_rlhf.stages.arms import arms
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.evaluation_judge import bootstrap_options, evaluation_judge
from alpaca_rlhf.stages.kept_answers import kept_answers
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.reranking import (
    Pool,
    pool_judged,
    pool_rewards,
    reward_scores,
    reward_stages,
)

PARTS = ("held_out_kinds", "held_out_phrasings")
"""Slices of the evaluation prompts that stand in each policy's figures too."""


def evaluate(ctx: Context, round_: int) -> Outcome:
    """Sample at the stage's temperature and greedily, judge without noise, compare with SFT."""
    # 1. The prompts; those of the development split come last.
    rows = ctx.source.prompts(ctx.settings.evaluate.split)
    evaluated = range(len(rows))
    rows = [*rows, *_dev_rows(ctx)]
    ctx.load("sft", "sft")
    ctx.adapters.add("policy", copy_of="sft")
    rewarded_by = reward_stages(ctx)
    all_arms = arms(ctx.settings, rewarded_by)
    answering = [arm for arm in all_arms if arm.reranked_by is None]
    reranking = [arm for arm in all_arms if arm.reranked_by is not None]
    # 2. Answer every prompt, sampled and greedily, and measure the distance from SFT. SFT samples
    # all that is reranked at once.
    answers: dict[str, Answers] = {}
    samples: list[list[Completion]] = []
    for arm in answering:
        if arm.role == "policy" and arm.stage is not None:
            ctx.load("policy", arm.stage)
        k = ctx.settings.best_of_k.k if arm.name == "sft" and reranking else 1
        answering_now = partial(answers_of, ctx, arm, rows, k)
        answers[arm.name], pool_of_arm = kept_answers(ctx, arm, rows, k, answering_now)
        if arm.name == "sft":
            samples = pool_of_arm
        ctx.reporter.step("evaluate", len(answers), len(all_arms), {})
    # 3. Scores of the reward models, before a judge may take their place.
    rewards = {stage: pool_rewards(ctx, stage, rows, samples) for stage in rewarded_by if reranking}
    proxy = {
        arm.name: reward_scores(
            ctx, rewarded_by[-1], rows, answers[arm.name].sampled, few_shot=arm.few_shot
        )
        for arm in answering
        if rewarded_by
    }
    # 4. Judge everything, without the annotator's noise.
    judge = evaluation_judge(ctx)
    judgements: dict[str, dict[Decoding, list[Scores]]] = {
        name: {decoding: judge(rows, of_arm.of(decoding)) for decoding in DECODINGS}
        for name, of_arm in answers.items()
    }
    # 5. The arms that choose among samples of SFT.
    if reranking:
        pool = Pool(samples, rewards, pool_judged(judge, rows, samples))
        for arm in reranking:
            assert arm.reranked_by is not None
            picks = pool.picks(arm.reranked_by)
            answers[arm.name] = pool.answers(picks, answers["sft"])
            greedy = judgements["sft"]["greedy"]
            judgements[arm.name] = {"sampled": pool.scores(picks), "greedy": greedy}
            if rewarded_by:
                proxy[arm.name] = pool.proxy(picks)
            ctx.reporter.step("evaluate", len(answers), len(all_arms), {})
    answers = {arm.name: answers[arm.name] for arm in all_arms}
    # 6. Compare every policy with SFT, prompt by prompt.
    clusters = cluster_numbers(rows, ctx.source.key)
    figures = ArmFigures(answers, judgements, proxy, clusters, bootstrap_options(ctx))
    reports, by_slice = _reports(ctx, figures, rows, len(evaluated))
    shown = rows[: len(evaluated)]
    ctx.run.write_jsonl("answers.jsonl", _answer_rows(shown, answers, judgements))
    best = max((arm.name for arm in answering), key=lambda name: reports[name]["gold_score"])
    scores = ", ".join(f"{name} {report['gold_score']:.2f}" for name, report in reports.items())
    facts = {
        "policies": reports,
        "slices": by_slice,
        "clusters": figures.clusters_among(evaluated),
    }
    tokens = _tokens([answers[arm.name] for arm in answering], samples)
    return Outcome(len(evaluated), tokens, f"{scores}; best: {best}", facts)


def _dev_rows(ctx: Context) -> list[Instruction]:
    """Prompts of the development split, where they are asked for beside the evaluation's."""
    settings = ctx.settings.evaluate
    return ctx.source.prompts("dev") if settings.dev and settings.split != "dev" else []


def _reports(
    ctx: Context, figures: ArmFigures, rows: Sequence[Instruction], n_evaluated: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every arm's figures, with those of its parts and of `dev`, and its scores by slice."""
    slices = ctx.source.slices(rows[:n_evaluated])
    dev = range(n_evaluated, len(rows))
    reports = {
        name: figures.of(name, range(n_evaluated))
        | {part: figures.part(name, slices[part]) for part in PARTS if slices.get(part)}
        | ({"dev": figures.part(name, dev)} if dev else {})
        for name in figures.answers
    }
    by_slice = {
        name: {part: figures.score(name, indices) for part, indices in slices.items() if indices}
        for name in figures.answers
    }
    return reports, by_slice


def _tokens(answers: Sequence[Answers], pool: Sequence[Sequence[Completion]]) -> int:
    """Tokens that were sampled, SFT's first sample of each prompt counted once."""
    sampled = [
        *(completion for of_arm in answers for completion in (*of_arm.sampled, *of_arm.greedy)),
        *(completion for samples in pool for completion in samples[1:]),
    ]
    return sum(len(completion.ids) for completion in sampled)


def _answer_rows(
    rows: Sequence[Instruction],
    answers: Mapping[str, Answers],
    judgements: Mapping[str, Mapping[Decoding, Sequence[Scores]]],
) -> list[dict[str, Any]]:
    """Rows of `answers.jsonl`: a prompt, and every policy's answers with their scores."""
    return [
        {
            "instruction": row.instruction,
            "input": row.input,
            **({"history": row.history} if row.history else {}),
            **({"system": row.system} if row.system else {}),
            "answers": {
                name: {
                    "text": answers[name].sampled[position].text,
                    "gold": judgements[name]["sampled"][position].score,
                    "greedy": answers[name].greedy[position].text,
                    "gold_greedy": judgements[name]["greedy"][position].score,
                }
                for name in answers
            },
        }
        for position, row in enumerate(rows)
    ]
