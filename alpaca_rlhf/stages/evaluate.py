"""The evaluate stage: every policy of a run on prompts that no stage has seen.

All policies answer the same prompts with the same noise, so that differences are paired. Controls:
the base on the SFT
template, which it has never seen, and the base with solved examples in its own worksheet format,
which has room for the last turn of a conversation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alpaca_rlhf.core.prompts import worksheet_question
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.sizes import LOGPROBS_BATCH_DIVISOR
from alpaca_rlhf.evaluation.win_rate import bootstrap_ci, paired_gain, win_rate
from alpaca_rlhf.models.batches import (
    Example,
    answer,
    collate,
    decode,
    example,
    prompt_ids,
    text_ids,
)
from alpaca_rlhf.models.forward import token_stats
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.sources import Gold
from alpaca_rlhf.stages.context import Context, suffixed
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.reward import ranking_groups, reference_examples
from alpaca_rlhf.training.losses import kl_k1, kl_k3
from alpaca_rlhf.training.reward import train_reward

DEMONSTRATIONS = 3
"""Solved examples that the few-shot control sees."""
_KL = {"kl_from_sft_nats": kl_k1, "kl_from_sft_k3_nats": kl_k3}


@dataclass(frozen=True)
class _Answer:
    text: str
    finished: bool
    ids: tuple[int, ...]


def evaluate(ctx: Context, round_: int) -> Outcome:
    """Sample at temperature 1 and greedily, judge without noise, compare with SFT."""
    rows = ctx.source.prompts(ctx.settings.evaluate.split)
    ctx.load("sft", "sft")
    ctx.adapters.add("policy", copy_of="sft")
    scorer = _scorer(ctx)
    judged: dict[str, dict[str, list[Gold]]] = {}
    answers: dict[str, dict[str, list[_Answer]]] = {}
    facts: dict[str, Any] = {}
    tokens = 0
    policies = _policies(ctx, round_)
    for done, (name, stage) in enumerate(policies):
        role = None if stage is None else "sft" if stage == "sft" else "policy"
        if role == "policy" and stage is not None:
            ctx.load("policy", stage)
        answers[name] = {
            "sampled": _answers(ctx, role, rows, 1.0, few_shot=name == "base_few_shot"),
            "greedy": _answers(ctx, role, rows, 0.0, few_shot=name == "base_few_shot"),
        }
        judged[name] = {
            how: scorer(rows, [(a.text, a.finished) for a in own])
            for how, own in answers[name].items()
        }
        sampled = answers[name]["sampled"]
        tokens += sum(len(a.ids) for own in answers[name].values() for a in own)
        facts[name] = {
            **(
                dict.fromkeys(_KL, 0.0)
                if name == "sft"
                else _kl(ctx, role, rows, sampled, few_shot=name == "base_few_shot")
            ),
            "stop_rate": sum(a.finished for a in sampled) / len(rows),
            "mean_tokens": sum(len(a.ids) for a in sampled) / len(rows),
        }
        ctx.reporter.step("evaluate", done + 1, len(policies), {})
    reports = {
        name: _figures(ctx, judged[name], judged["sft"]) | facts[name] for name, _ in policies
    }
    slices = {name: _slices(ctx, rows, judged[name]["sampled"]) for name, _ in policies}
    ctx.run.write_jsonl(
        "answers.jsonl",
        [
            {
                "instruction": row.instruction,
                "input": row.input,
                **({"history": row.history} if row.history else {}),
                "answers": {
                    name: {
                        "text": answers[name]["sampled"][i].text,
                        "gold": judged[name]["sampled"][i].score,
                        "greedy": answers[name]["greedy"][i].text,
                        "gold_greedy": judged[name]["greedy"][i].score,
                    }
                    for name, _ in policies
                },
            }
            for i, row in enumerate(rows)
        ],
    )
    best = max(reports, key=lambda name: reports[name]["gold_score"])
    summary = (
        ", ".join(f"{name} {reports[name]['gold_score']:.2f}" for name, _ in policies)
        + f"; best: {best}"
    )
    return Outcome(len(rows), tokens, summary, {"policies": reports, "slices": slices})


Scorer = Callable[[Sequence[Instruction], Sequence[tuple[str, bool]]], list[Gold]]
"""Judges (completion, finished) of each prompt."""


def _scorer(ctx: Context) -> Scorer:
    """The gold judge.

    Where there is none, a reward model that has seen only the held-out rankings.
    """
    gold = ctx.source.gold
    if gold is not None:
        return lambda rows, said: [gold(row, *one) for row, one in zip(rows, said, strict=True)]
    given = ranking_groups(ctx, ctx.settings.rounds)
    ctx.adapters.add("reward", copy_of="sft", seed=ctx.settings.seed + 1)
    head, result = train_reward(
        ctx.adapters,
        "reward",
        given.held_out,
        given.train,
        ctx.settings.reward,
        seed=ctx.settings.seed + 1,
        checkpoints=ctx.checkpoints("judge"),
        log=ctx.log("judge"),
        stage="judge",
    )
    # the loss knows no offset, and the sigmoid below does
    reference = reference_examples(ctx, given.train)
    size = ctx.settings.sampling.batch_size
    head.normalise(score(ctx.adapters, "reward", head, reference, batch_size=size))
    ctx.finish("judge", {"accuracy": result.accuracy})

    def judge(rows: Sequence[Instruction], said: Sequence[tuple[str, bool]]) -> list[Gold]:
        examples = [
            example(ctx.base, ctx.settings.template, row, text, finished=finished)
            for row, (text, finished) in zip(rows, said, strict=True)
        ]
        scores = score(ctx.adapters, "reward", head, examples, batch_size=size)
        return [Gold(one, {}) for one in torch.sigmoid(scores.double()).tolist()]

    return judge


def _policies(ctx: Context, rounds: int) -> list[tuple[str, str | None]]:
    """Name in the report, and the stage that made the adapter; None is the bare base."""
    trained = [
        (suffixed(name, r), suffixed(name, r))
        for r in range(1, rounds + 1)
        for name in ("best_of_k", "ppo")
    ]
    return [("base", None), ("base_few_shot", None), ("sft", "sft"), *trained]


def _answers(
    ctx: Context,
    role: str | None,
    rows: Sequence[Instruction],
    temperature: float,
    *,
    few_shot: bool,
) -> list[_Answer]:
    size = _rows_at_once(ctx, few_shot=few_shot)
    drawn = sample(
        ctx.adapters,
        role,
        [_prompt(ctx, row, few_shot=few_shot) for row in rows],
        [f"evaluate/{row.id}" for row in rows],
        sampling=ctx.sampling(temperature=temperature, top_p=1.0, batch_size=size),
        seed=ctx.settings.seed,
    )
    out = []
    for (one,) in drawn:
        if few_shot:  # an answer on a worksheet ends with its line
            line, newline, _ = decode(ctx.base, one.ids).strip(" ").partition("\n")
            ids = _first_line(ctx, one.ids) if newline else one.ids
            out.append(_Answer(line, bool(newline) or one.finished, ids))
        else:
            text = answer(ctx.base, ctx.settings.template, one.ids)
            out.append(_Answer(text, one.finished, one.ids))
    return out


def _rows_at_once(ctx: Context, *, few_shot: bool) -> int:
    """Completions a batch; fewer of the control, whose prompts hold the demonstrations too."""
    return max(1, ctx.settings.sampling.batch_size // (1 + DEMONSTRATIONS if few_shot else 1))


def _first_line(ctx: Context, ids: tuple[int, ...]) -> tuple[int, ...]:
    """The ids up to their first newline, and with it: what follows is no part of the answer."""
    ends = (n for n in range(1, len(ids)) if "\n" in decode(ctx.base, ids[:n]))
    return ids[: next(ends, len(ids))]


def _prompt(ctx: Context, row: Instruction, *, few_shot: bool) -> tuple[int, ...]:
    if not few_shot:
        return prompt_ids(ctx.base, ctx.settings.template, row)
    demos = [one for one in ctx.source.seeds() if not one.history][:DEMONSTRATIONS]
    return text_ids(ctx.base, worksheet_question(demos, row))


@torch.no_grad()
def _kl(
    ctx: Context,
    role: str | None,
    rows: Sequence[Instruction],
    answers: Sequence[_Answer],
    *,
    few_shot: bool,
) -> dict[str, float]:
    """Means over samples of k1 and k3, each summed over the completion's tokens, in nats.

    k1 is log p(completion) - log p_sft(completion). Each policy sees its own prompt.
    """
    total = dict.fromkeys(_KL, 0.0)
    size = max(1, _rows_at_once(ctx, few_shot=few_shot) // LOGPROBS_BATCH_DIVISOR)
    for start in range(0, len(rows), size):
        part = range(start, min(start + size, len(rows)))
        own = [Example(_prompt(ctx, rows[i], few_shot=few_shot), answers[i].ids) for i in part]
        reference = [Example(_prompt(ctx, rows[i], few_shot=False), answers[i].ids) for i in part]
        with ctx.adapters.using(role):
            mine = token_stats(ctx.adapters, collate(ctx.base, own)).logprobs.double()
        with ctx.adapters.using("sft"):
            sft = token_stats(ctx.adapters, collate(ctx.base, reference)).logprobs.double()
        for name, estimate in _KL.items():
            total[name] += float(estimate(mine, sft).sum())
    return {name: one / len(rows) for name, one in total.items()}


def _figures(
    ctx: Context, own: dict[str, list[Gold]], sft: dict[str, list[Gold]]
) -> dict[str, Any]:
    settings = ctx.settings.evaluate
    options: dict[str, Any] = {"resamples": settings.bootstrap, "seed": ctx.settings.seed}
    sampled, greedy = ([g.score for g in own[how]] for how in ("sampled", "greedy"))
    against = [g.score for g in sft["sampled"]]
    score, greedy_score = bootstrap_ci(sampled, **options), bootstrap_ci(greedy, **options)
    gain, wins = paired_gain(sampled, against, **options), win_rate(sampled, against, **options)
    return {
        "gold_score": score.mean,
        "ci95": score.ci95,
        "gold_score_greedy": greedy_score.mean,
        "gold_score_greedy_ci95": greedy_score.ci95,
        "paired_gain_vs_sft": gain.mean,
        "paired_gain_ci95": gain.ci95,
        "gold_parts": _parts(own["sampled"]),
        "gold_parts_greedy": _parts(own["greedy"]),
        "win_rate_vs_sft": wins.mean,
        "win_rate_ci95": wins.ci95,
    }


def _parts(verdicts: Sequence[Gold]) -> dict[str, float]:
    return {
        name: sum(v.parts[name] for v in verdicts) / len(verdicts) for name in verdicts[0].parts
    }


def _slices(ctx: Context, rows: Sequence[Instruction], verdicts: Sequence[Gold]) -> dict[str, Any]:
    out = {}
    for name, indices in ctx.source.slices(rows).items():
        if indices:
            found = bootstrap_ci(
                [verdicts[i].score for i in indices],
                resamples=ctx.settings.evaluate.bootstrap,
                seed=ctx.settings.seed,
            )
            out[name] = {"gold_score": found.mean, "ci95": found.ci95, "n": len(indices)}
    return out
