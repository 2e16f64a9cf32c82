"""The evaluate stage: every policy of a run on prompts that no stage has seen.

All policies answer the same prompts with the same noise, so that differences are paired. There are
two controls: the base on the SFT template, which it has never seen, and the base with solved
examples in its own worksheet format, which has room for the last turn of a conversation only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alpaca_rlhf.core.prompts import worksheet_question
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.scorers import Response, Scores
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
from alpaca_rlhf.stages.context import Context, suffixed
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.reward import ranking_groups, reference_examples
from alpaca_rlhf.training.losses import kl_k1, kl_k3
from alpaca_rlhf.training.reward import train_reward

DEMONSTRATIONS = 3
"""Solved examples in the prompts of the few-shot control."""
_KL = {"kl_from_sft_nats": kl_k1, "kl_from_sft_k3_nats": kl_k3}
_DECODINGS = ("sampled", "greedy")


@dataclass(frozen=True)
class _Policy:
    """A policy under its name in the report."""

    name: str
    stage: str | None
    """The stage that made its adapter; None for the bare base."""

    @property
    def role(self) -> str | None:
        """The adapter that answers; None for the bare base."""
        return None if self.stage is None else "sft" if self.stage == "sft" else "policy"

    @property
    def few_shot(self) -> bool:
        """True for the control that sees solved examples."""
        return self.name == "base_few_shot"


@dataclass(frozen=True)
class _Completion:
    text: str
    finished: bool
    ids: tuple[int, ...]


def evaluate(ctx: Context, round_: int) -> Outcome:
    """Sample at the stage's temperature and greedily, judge without noise, compare with SFT."""
    rows = ctx.source.prompts(ctx.settings.evaluate.split)
    ctx.load("sft", "sft")
    ctx.adapters.add("policy", copy_of="sft")
    judge = _judge(ctx)
    judgements: dict[str, dict[str, list[Scores]]] = {}
    completions: dict[str, dict[str, list[_Completion]]] = {}
    facts: dict[str, dict[str, float]] = {}
    policies = _policies(round_)
    for position, policy in enumerate(policies):
        name = policy.name
        if policy.role == "policy" and policy.stage is not None:
            ctx.load("policy", policy.stage)
        # 1. Answer every prompt, sampled and greedily.
        completions[name] = {
            decoding: _complete(ctx, policy, rows, decoding) for decoding in _DECODINGS
        }
        # 2. Judge both, without the annotator's noise.
        judgements[name] = {
            decoding: judge(rows, answers) for decoding, answers in completions[name].items()
        }
        # 3. Measure the distance from SFT on the sampled completions.
        sampled = completions[name]["sampled"]
        facts[name] = {
            **(
                dict.fromkeys(_KL, 0.0)
                if name == "sft"
                else _kl(ctx, policy.role, rows, sampled, few_shot=policy.few_shot)
            ),
            "stop_rate": sum(answer.finished for answer in sampled) / len(rows),
            "mean_tokens": sum(len(answer.ids) for answer in sampled) / len(rows),
        }
        ctx.reporter.step("evaluate", position + 1, len(policies), {})
    # 4. Compare every policy with SFT, prompt by prompt.
    reports = {
        name: _figures(ctx, judgements[name], judgements["sft"]) | facts[name] for name in facts
    }
    slices = {name: _slices(ctx, rows, judgements[name]["sampled"]) for name in facts}
    ctx.run.write_jsonl("answers.jsonl", _answer_rows(rows, completions, judgements))
    best = max(reports, key=lambda name: reports[name]["gold_score"])
    scores = ", ".join(f"{name} {report['gold_score']:.2f}" for name, report in reports.items())
    tokens = sum(
        len(answer.ids)
        for by_decoding in completions.values()
        for answers in by_decoding.values()
        for answer in answers
    )
    summary = f"{scores}; best: {best}"
    return Outcome(len(rows), tokens, summary, {"policies": reports, "slices": slices})


def _answer_rows(
    rows: Sequence[Instruction],
    completions: Mapping[str, Mapping[str, Sequence[_Completion]]],
    judgements: Mapping[str, Mapping[str, Sequence[Scores]]],
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
                    "text": completions[name]["sampled"][position].text,
                    "gold": judgements[name]["sampled"][position].score,
                    "greedy": completions[name]["greedy"][position].text,
                    "gold_greedy": judgements[name]["greedy"][position].score,
                }
                for name in completions
            },
        }
        for position, row in enumerate(rows)
    ]


Judge = Callable[[Sequence[Instruction], Sequence[_Completion]], list[Scores]]
"""Scores a completion of each prompt."""


def _judge(ctx: Context) -> Judge:
    """The run's judge, or a reward model trained on nothing but the held-out rankings."""
    judge_of_run = ctx.judges.evaluates
    if judge_of_run is not None:
        return lambda rows, answers: judge_of_run.scores(
            [
                Response(row, answer.text, answer.finished)
                for row, answer in zip(rows, answers, strict=True)
            ],
            stage="evaluate",
        )
    groups = ranking_groups(ctx, ctx.settings.rounds)
    ctx.adapters.add("reward", copy_of="sft", seed=ctx.settings.seed + 1)
    # The two sets change places: this model learns from what the reward model has not seen.
    head, result = train_reward(
        ctx.adapters,
        "reward",
        groups.held_out,
        groups.train,
        ctx.settings.reward,
        seed=ctx.settings.seed + 1,
        checkpoints=ctx.checkpoints("judge"),
        log=ctx.log("judge"),
        stage="judge",
    )
    # The loss does not depend on an offset of the scores, but the sigmoid below does.
    reference = reference_examples(ctx, groups.train)
    size = ctx.settings.sampling.batch_size
    head.normalise(score(ctx.adapters, "reward", head, reference, batch_size=size))
    ctx.finish("judge", {"accuracy": result.accuracy})

    def judge(rows: Sequence[Instruction], answers: Sequence[_Completion]) -> list[Scores]:
        examples = [
            example(ctx.base, ctx.settings.template, row, answer.text, finished=answer.finished)
            for row, answer in zip(rows, answers, strict=True)
        ]
        scores = score(ctx.adapters, "reward", head, examples, batch_size=size)
        return [Scores(value, {}) for value in torch.sigmoid(scores.double()).tolist()]

    return judge


def _policies(rounds: int) -> list[_Policy]:
    """The controls, SFT, and the policies that each round trained."""
    trained = [
        suffixed(stage, round_) for round_ in range(1, rounds + 1) for stage in ("best_of_k", "ppo")
    ]
    controls = [_Policy("base", None), _Policy("base_few_shot", None)]
    return [*controls, *(_Policy(stage, stage) for stage in ("sft", *trained))]


def _complete(
    ctx: Context, policy: _Policy, rows: Sequence[Instruction], decoding: str
) -> list[_Completion]:
    """A completion of each prompt."""
    samples = sample(
        ctx.adapters,
        policy.role,
        [_prompt(ctx, row, few_shot=policy.few_shot) for row in rows],
        [f"evaluate/{row.id}" for row in rows],
        sampling=ctx.sampling(
            "evaluate",
            **({"temperature": 0.0} if decoding == "greedy" else {}),
            top_p=1.0,
            batch_size=_batch_rows(ctx, few_shot=policy.few_shot),
        ),
        seed=ctx.settings.seed,
    )
    completions = []
    for (completion,) in samples:
        ids, finished = completion.ids, completion.finished
        if policy.few_shot:  # an answer on a worksheet ends with its line
            text, newline, _ = decode(ctx.base, ids).strip(" ").partition("\n")
            ids, finished = _first_line(ctx, ids) if newline else ids, bool(newline) or finished
        else:
            text = answer(ctx.base, ctx.settings.template, ids)
        completions.append(_Completion(text, finished, ids))
    return completions


def _batch_rows(ctx: Context, *, few_shot: bool) -> int:
    """Completions per batch; fewer for the control, whose prompts hold the demonstrations too."""
    return max(1, ctx.settings.sampling.batch_size // (1 + DEMONSTRATIONS if few_shot else 1))


def _first_line(ctx: Context, ids: tuple[int, ...]) -> tuple[int, ...]:
    """The ids up to and with their first newline: the rest is not part of the answer."""
    ends = (length for length in range(1, len(ids)) if "\n" in decode(ctx.base, ids[:length]))
    return ids[: next(ends, len(ids))]


def _prompt(ctx: Context, row: Instruction, *, few_shot: bool) -> tuple[int, ...]:
    if not few_shot:
        return prompt_ids(ctx.base, ctx.settings.template, row)
    demonstrations = [seed for seed in ctx.source.seeds() if not seed.history][:DEMONSTRATIONS]
    return text_ids(ctx.base, worksheet_question(demonstrations, row))


@torch.no_grad()
def _kl(
    ctx: Context,
    role: str | None,
    rows: Sequence[Instruction],
    completions: Sequence[_Completion],
    *,
    few_shot: bool,
) -> dict[str, float]:
    """Means over completions of k1 and k3, each summed over a completion's tokens, in nats.

    k1 is log p(completion) - log p_sft(completion), both at the temperature of the samples. Each
    policy sees its own prompt.
    """
    temperature = ctx.settings.temperature_of("evaluate")
    totals = dict.fromkeys(_KL, 0.0)
    size = max(1, _batch_rows(ctx, few_shot=few_shot) // LOGPROBS_BATCH_DIVISOR)
    pairs = list(zip(rows, completions, strict=True))
    for start in range(0, len(pairs), size):
        batch = pairs[start : start + size]
        policy_batch, sft_batch = (
            [Example(_prompt(ctx, row, few_shot=shots), answer.ids) for row, answer in batch]
            for shots in (few_shot, False)
        )
        with ctx.adapters.using(role):
            packed = collate(ctx.base, policy_batch)
            policy = token_stats(ctx.adapters, packed, temperature=temperature).logprobs.double()
        with ctx.adapters.using("sft"):
            packed = collate(ctx.base, sft_batch)
            sft = token_stats(ctx.adapters, packed, temperature=temperature).logprobs.double()
        for name, estimate in _KL.items():
            totals[name] += float(estimate(policy, sft).sum())
    return {name: total / len(rows) for name, total in totals.items()}


def _figures(
    ctx: Context, judgements: Mapping[str, Sequence[Scores]], sft: Mapping[str, Sequence[Scores]]
) -> dict[str, Any]:
    """Figures of a policy for `report.json`, from its judgements and those of SFT by decoding."""
    sampled, greedy, reference = (
        [gold.score for gold in golds]
        for golds in (judgements["sampled"], judgements["greedy"], sft["sampled"])
    )
    options = _bootstrap(ctx)
    score, greedy_score = bootstrap_ci(sampled, **options), bootstrap_ci(greedy, **options)
    gain = paired_gain(sampled, reference, **options)
    wins = win_rate(sampled, reference, **options)
    return {
        "gold_score": score.mean,
        "ci95": score.ci95,
        "gold_score_greedy": greedy_score.mean,
        "gold_score_greedy_ci95": greedy_score.ci95,
        "paired_gain_vs_sft": gain.mean,
        "paired_gain_ci95": gain.ci95,
        "gold_parts": _mean_parts(judgements["sampled"]),
        "gold_parts_greedy": _mean_parts(judgements["greedy"]),
        "win_rate_vs_sft": wins.mean,
        "win_rate_ci95": wins.ci95,
    }


def _bootstrap(ctx: Context) -> dict[str, int]:
    return {"resamples": ctx.settings.evaluate.bootstrap, "seed": ctx.settings.seed}


def _mean_parts(golds: Sequence[Scores]) -> dict[str, float]:
    return {part: sum(gold.parts[part] for gold in golds) / len(golds) for part in golds[0].parts}


def _slices(ctx: Context, rows: Sequence[Instruction], golds: Sequence[Scores]) -> dict[str, Any]:
    """Gold score of each slice of the prompts that holds any."""
    slices = {}
    for name, indices in ctx.source.slices(rows).items():
        if indices:
            score = bootstrap_ci([golds[index].score for index in indices], **_bootstrap(ctx))
            slices[name] = {"gold_score": score.mean, "ci95": score.ci95, "n": len(indices)}
    return slices
