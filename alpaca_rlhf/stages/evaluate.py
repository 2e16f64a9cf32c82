"""The evaluate stage: every policy of a run on prompts that no stage has seen.

All policies answer the same prompts with the same noise, so that differences are paired. There are
two controls: the base on the SFT template, which it has never seen, and the base with solved
examples in its own worksheet format, which has room for the last turn of a conversation only.
Two arms train nothing: K samples of SFT reranked by the reward model, and by the judge, which is
the most that any choice among them can reach.
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
from alpaca_rlhf.data import clusters
from alpaca_rlhf.evaluation.reward_accuracy import accuracy_of
from alpaca_rlhf.evaluation.win_rate import best_of_n_kl, bootstrap_ci, paired_gain, win_rate
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
from alpaca_rlhf.models.rollout import SampledCompletion, sample
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.arms import JUDGE, Arm, arms
from alpaca_rlhf.stages.context import CONTROLS, Context, control_of
from alpaca_rlhf.stages.outcome import Outcome
from alpaca_rlhf.stages.reward import ranking_groups, reference_examples
from alpaca_rlhf.training.best_of_k import best_sample
from alpaca_rlhf.training.losses import kl_k1, kl_k3
from alpaca_rlhf.training.reward import train_reward

DEMONSTRATIONS = 3
"""Solved examples in the prompts of the few-shot control."""
PARTS = ("held_out_kinds", "held_out_phrasings")
"""Slices of the evaluation prompts that stand in each policy's figures too."""
_KL = {"kl_from_sft_nats": kl_k1, "kl_from_sft_k3_nats": kl_k3}
_DECODINGS = ("sampled", "greedy")


@dataclass(frozen=True)
class _Completion:
    text: str
    finished: bool
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Answers:
    """Answers of an arm, one for each prompt."""

    sampled: Sequence[_Completion]
    greedy: Sequence[_Completion]
    kl: Mapping[str, Sequence[float]]
    """Estimates of the KL from SFT on the sampled ones, in nats a completion."""


def evaluate(ctx: Context, round_: int) -> Outcome:
    """Sample at the stage's temperature and greedily, judge without noise, compare with SFT."""
    # 1. The prompts; those of the development split come last.
    rows = ctx.source.prompts(ctx.settings.evaluate.split)
    evaluated = range(len(rows))
    rows = [*rows, *_dev_rows(ctx)]
    ctx.load("sft", "sft")
    ctx.adapters.add("policy", copy_of="sft")
    reward_stages = _reward_stages(ctx)
    all_arms = arms(ctx.settings, reward_stages)
    # 2. Answer every prompt, sampled and greedily, and measure the distance from SFT.
    answers: dict[str, _Answers] = {}
    for arm in all_arms:
        if arm.reranked_by is None:
            answers[arm.name] = _answers(ctx, arm, rows)
            ctx.reporter.step("evaluate", len(answers), len(all_arms), {})
    pool = _pool(ctx, rows, answers["sft"].sampled)
    # 3. Scores of the reward models, before a judge may take their place.
    rewards = {stage: _rewarded(ctx, stage, rows, pool) for stage in reward_stages}
    chosen = {stage: _picks(scores, pool) for stage, scores in rewards.items()}
    proxy = {
        arm.name: _reward_scores(ctx, rows, answers[arm.name].sampled, few_shot=arm.few_shot)
        for arm in all_arms
        if arm.name in answers and reward_stages
    }
    # 4. Judge everything, without the annotator's noise.
    judge = _judge(ctx)
    judgements = {
        name: {decoding: judge(rows, getattr(of_arm, decoding)) for decoding in _DECODINGS}
        for name, of_arm in answers.items()
    }
    judged_pool = _judged(judge, rows, pool)
    chosen[JUDGE] = [
        max(range(len(scores)), key=lambda j: scores[j].score) for scores in judged_pool
    ]
    # 5. The arms that choose among samples of SFT; K greedy answers would all be SFT's.
    for arm in all_arms:
        if arm.reranked_by is not None:
            picks = chosen[arm.reranked_by]
            bound = best_of_n_kl(ctx.settings.best_of_k.k)
            answers[arm.name] = _Answers(
                [samples[pick] for samples, pick in zip(pool, picks, strict=True)],
                answers["sft"].greedy,
                {"kl_from_sft_nats": [bound] * len(rows)},
            )
            if reward_stages:
                scores_of_pool = rewards[reward_stages[-1]]
                proxy[arm.name] = [
                    scores[pick] for scores, pick in zip(scores_of_pool, picks, strict=True)
                ]
            judgements[arm.name] = {
                "sampled": [scores[j] for scores, j in zip(judged_pool, picks, strict=True)],
                "greedy": judgements["sft"]["greedy"],
            }
            ctx.reporter.step("evaluate", len(answers), len(all_arms), {})
    answers = {arm.name: answers[arm.name] for arm in all_arms}
    # 6. Compare every policy with SFT, prompt by prompt.
    cluster_of = _clusters(ctx, rows)
    figures = _Figures(ctx, rows, answers, judgements, proxy, cluster_of)
    slices = ctx.source.slices(rows[: len(evaluated)])
    dev = range(len(evaluated), len(rows))
    reports = {
        name: figures.of(name, evaluated)
        | {part: figures.part(name, slices[part]) for part in PARTS if slices.get(part)}
        | ({"dev": figures.part(name, dev)} if dev else {})
        for name in answers
    }
    by_slice = {
        name: {part: figures.score(name, indices) for part, indices in slices.items() if indices}
        for name in answers
    }
    shown = rows[: len(evaluated)]
    ctx.run.write_jsonl("answers.jsonl", _answer_rows(shown, answers, judgements))
    trained = [arm.name for arm in all_arms if arm.reranked_by is None]
    best = max(trained, key=lambda name: reports[name]["gold_score"])
    scores = ", ".join(f"{name} {report['gold_score']:.2f}" for name, report in reports.items())
    tokens = sum(
        len(completion.ids)
        for completions in (
            *(getattr(answers[name], decoding) for name in trained for decoding in _DECODINGS),
            *pool,
        )
        for completion in completions
    )
    summary = f"{scores}; best: {best}"
    facts = {
        "policies": reports,
        "slices": by_slice,
        "clusters": len({cluster_of[index] for index in evaluated}),
    }
    return Outcome(len(evaluated), tokens, summary, facts)


def _dev_rows(ctx: Context) -> list[Instruction]:
    """Prompts of the development split, where they are asked for beside the evaluation's."""
    settings = ctx.settings.evaluate
    return ctx.source.prompts("dev") if settings.dev and settings.split != "dev" else []


def _clusters(ctx: Context, rows: Sequence[Instruction]) -> list[int]:
    """Cluster of near-duplicates of each prompt; they are not independent of each other."""
    numbers = {
        row.id: number
        for number, cluster in enumerate(clusters(rows, ctx.source.key))
        for row in cluster
    }
    return [numbers[row.id] for row in rows]


def _reward_stages(ctx: Context) -> list[str]:
    """Reward stages of the run that made a model, round after round."""
    stages = [suffixed("reward", round_) for round_ in range(1, ctx.settings.rounds + 1)]
    return [stage for stage in stages if ctx.adapter_folder(stage).is_dir()]


def _answers(ctx: Context, arm: Arm, rows: Sequence[Instruction]) -> _Answers:
    """Answer every prompt with one arm's adapter."""
    if arm.role == "policy" and arm.stage is not None:
        ctx.load("policy", arm.stage)
    sampled, greedy = (_complete(ctx, arm, rows, decoding) for decoding in _DECODINGS)
    if arm.name == "sft":
        return _Answers(sampled, greedy, dict.fromkeys(_KL, [0.0] * len(rows)))
    kl = _kl(ctx, arm.role, rows, sampled, few_shot=arm.few_shot)
    return _Answers(sampled, greedy, kl)


def _pool(
    ctx: Context, rows: Sequence[Instruction], sampled: Sequence[_Completion]
) -> list[list[_Completion]]:
    """K samples of SFT for each prompt; the first is the one that SFT answers with."""
    samples = sample(
        ctx.adapters,
        "sft",
        [_prompt(ctx, row, few_shot=False) for row in rows],
        [f"evaluate/{row.id}" for row in rows],
        k=ctx.settings.best_of_k.k,
        sampling=ctx.sampling("evaluate", top_p=1.0),
        seed=ctx.settings.seed,
    )
    return [
        [first, *(_in_words(ctx, completion) for completion in of_prompt[1:])]
        for first, of_prompt in zip(sampled, samples, strict=True)
    ]


def _rewarded(
    ctx: Context,
    stage: str,
    rows: Sequence[Instruction],
    pool: Sequence[Sequence[_Completion]],
) -> list[list[float]]:
    """Scores of a stage's reward model of every sample of each prompt."""
    repeated, completions = _flat(rows, pool)
    scores = iter(_reward_scores(ctx, repeated, completions, stage=stage))
    return [[next(scores) for _ in samples] for samples in pool]


def _picks(
    scores_by_prompt: Sequence[Sequence[float]], pool: Sequence[Sequence[_Completion]]
) -> list[int]:
    """Number of the sample of each prompt that a reward model prefers."""
    return [
        best_sample(scores, [completion.finished for completion in samples])
        for scores, samples in zip(scores_by_prompt, pool, strict=True)
    ]


def _reward_scores(
    ctx: Context,
    rows: Sequence[Instruction],
    completions: Sequence[_Completion],
    *,
    stage: str | None = None,
    few_shot: bool = False,
) -> list[float]:
    """Scores of a stage's reward model, by default the last round's.

    Answers on a worksheet are read as answers to the run's own template.
    """
    stage = stage or _reward_stages(ctx)[-1]
    ctx.load("reward", stage)
    base, template = ctx.base, ctx.settings.template
    examples = [
        example(base, template, row, completion.text, finished=completion.finished)
        if few_shot
        else Example(prompt_ids(base, template, row), completion.ids)
        for row, completion in zip(rows, completions, strict=True)
    ]
    size = ctx.settings.sampling.batch_size
    head = ctx.load_head(stage)
    scores: list[float] = score(ctx.adapters, "reward", head, examples, batch_size=size).tolist()
    return scores


def _judged(
    judge: Judge, rows: Sequence[Instruction], pool: Sequence[Sequence[_Completion]]
) -> list[list[Scores]]:
    """The judge's scores of every sample of each prompt."""
    scores = iter(judge(*_flat(rows, pool)))
    return [[next(scores) for _ in samples] for samples in pool]


def _flat(
    rows: Sequence[Instruction], pool: Sequence[Sequence[_Completion]]
) -> tuple[list[Instruction], list[_Completion]]:
    """Every sample of a pool, and the prompt of each."""
    repeated = [row for row, samples in zip(rows, pool, strict=True) for _ in samples]
    return repeated, [completion for samples in pool for completion in samples]


def _answer_rows(
    rows: Sequence[Instruction],
    answers: Mapping[str, _Answers],
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
    reference = reference_examples(ctx, groups.train).examples
    size = ctx.settings.sampling.batch_size
    head.normalise(score(ctx.adapters, "reward", head, reference, batch_size=size))
    pairs = result.held_out.pairs
    accuracy = accuracy_of(pairs, **_bootstrap(ctx))
    facts = {
        "trained_pairs": result.pairs,
        "pairs": len(pairs),
        "prompts": len({pair.prompt_id for pair in pairs}),
        "accuracy": accuracy.mean,
        "ci95": accuracy.ci95,
    }
    ctx.finish("judge", facts)

    def judge(rows: Sequence[Instruction], answers: Sequence[_Completion]) -> list[Scores]:
        examples = [
            example(ctx.base, ctx.settings.template, row, answer.text, finished=answer.finished)
            for row, answer in zip(rows, answers, strict=True)
        ]
        scores = score(ctx.adapters, "reward", head, examples, batch_size=size)
        return [Scores(value, {}) for value in torch.sigmoid(scores.double()).tolist()]

    return judge


def _complete(
    ctx: Context, arm: Arm, rows: Sequence[Instruction], decoding: str
) -> list[_Completion]:
    """A completion of each prompt."""
    samples = sample(
        ctx.adapters,
        arm.role,
        [_prompt(ctx, row, few_shot=arm.few_shot) for row in rows],
        [f"evaluate/{row.id}" for row in rows],
        sampling=ctx.sampling(
            "evaluate",
            **({"temperature": 0.0} if decoding == "greedy" else {}),
            top_p=1.0,
            batch_size=_batch_rows(ctx, few_shot=arm.few_shot),
        ),
        seed=ctx.settings.seed,
    )
    completions = []
    for (completion,) in samples:
        ids, finished = completion.ids, completion.finished
        if not arm.few_shot:
            completions.append(_in_words(ctx, completion))
            continue
        # An answer on a worksheet ends with its line.
        text, newline, _ = decode(ctx.base, ids).strip(" ").partition("\n")
        ids, finished = _first_line(ctx, ids) if newline else ids, bool(newline) or finished
        completions.append(_Completion(text, finished, ids))
    return completions


def _in_words(ctx: Context, completion: SampledCompletion) -> _Completion:
    text = answer(ctx.base, ctx.settings.template, completion.ids)
    return _Completion(text, completion.finished, completion.ids)


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
) -> dict[str, list[float]]:
    """k1 and k3 of each completion, summed over its tokens, in nats.

    k1 is log p(completion) - log p_sft(completion), both at the temperature of the samples. Each
    policy sees its own prompt.
    """
    temperature = ctx.settings.temperature_of("evaluate")
    estimates: dict[str, list[float]] = {name: [] for name in _KL}
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
            estimates[name] += estimate(policy, sft).sum(1).tolist()
    return estimates


@dataclass(frozen=True)
class _Figures:
    """Figures of every arm for `report.json`, on any of the prompts."""

    ctx: Context
    rows: Sequence[Instruction]
    answers: Mapping[str, _Answers]
    judgements: Mapping[str, Mapping[str, Sequence[Scores]]]
    proxy: Mapping[str, Sequence[float]]
    """Scores of the last round's reward model, where there is one."""
    clusters: Sequence[int]
    """Cluster of near-duplicates of each prompt."""

    def of(self, name: str, indices: Sequence[int]) -> dict[str, Any]:
        """All figures of an arm on the prompts at `indices`."""
        golds, greedy = self._golds(name, "sampled", indices), self._golds(name, "greedy", indices)
        reference = self._golds("sft", "sampled", indices)
        options = self._resampling(indices)
        score, greedy_score = bootstrap_ci(golds, **options), bootstrap_ci(greedy, **options)
        gain = paired_gain(golds, reference, **options)
        wins = win_rate(golds, reference, **options)
        sampled = [self.answers[name].sampled[index] for index in indices]
        return {
            "gold_score": score.mean,
            "ci95": score.ci95,
            "gold_score_greedy": greedy_score.mean,
            "gold_score_greedy_ci95": greedy_score.ci95,
            "paired_gain_vs_sft": gain.mean,
            "paired_gain_ci95": gain.ci95,
            "gold_parts": _mean_parts([self.judgements[name]["sampled"][i] for i in indices]),
            "gold_parts_greedy": _mean_parts([self.judgements[name]["greedy"][i] for i in indices]),
            "win_rate_vs_sft": wins.mean,
            "win_rate_ci95": wins.ci95,
            **self._against_control(name, indices),
            **({"proxy_score": _mean(self.proxy[name], indices)} if name in self.proxy else {}),
            **{key: _mean(values, indices) for key, values in self.answers[name].kl.items()},
            "stop_rate": sum(completion.finished for completion in sampled) / len(sampled),
            "mean_tokens": sum(len(completion.ids) for completion in sampled) / len(sampled),
        }

    def part(self, name: str, indices: Sequence[int]) -> dict[str, Any]:
        """The figures that a part of the prompts has: scores, and gain over SFT."""
        golds, reference = (self._golds(arm, "sampled", indices) for arm in (name, "sft"))
        gain = paired_gain(golds, reference, **self._resampling(indices))
        greedy = self._golds(name, "greedy", indices)
        return {
            **self.score(name, indices),
            "gold_score_greedy": sum(greedy) / len(greedy),
            "paired_gain_vs_sft": gain.mean,
            "paired_gain_ci95": gain.ci95,
        }

    def score(self, name: str, indices: Sequence[int]) -> dict[str, Any]:
        """An arm's gold score on a part of the prompts, and their number."""
        score = bootstrap_ci(self._golds(name, "sampled", indices), **self._resampling(indices))
        return {"gold_score": score.mean, "ci95": score.ci95, "n": len(indices)}

    def _against_control(self, name: str, indices: Sequence[int]) -> dict[str, Any]:
        """Gain over the same training on a choice or a reward that means nothing, if there is."""
        stem = name.partition(".")[0]
        control = control_of(name) if stem in CONTROLS else ""
        if control not in self.answers:
            return {}
        golds, reference = (self._golds(arm, "sampled", indices) for arm in (name, control))
        gain = paired_gain(golds, reference, **self._resampling(indices))
        return {"paired_gain_vs_control": gain.mean, "paired_gain_vs_control_ci95": gain.ci95}

    def _resampling(self, indices: Sequence[int]) -> dict[str, Any]:
        """Options of a bootstrap that resamples whole clusters of near-duplicates."""
        return {"groups": [self.clusters[index] for index in indices], **_bootstrap(self.ctx)}

    def _golds(self, name: str, decoding: str, indices: Sequence[int]) -> list[float]:
        return [self.judgements[name][decoding][index].score for index in indices]


def _mean(values: Sequence[float], indices: Sequence[int]) -> float:
    return sum(values[index] for index in indices) / len(indices)


def _bootstrap(ctx: Context) -> dict[str, int]:
    return {"resamples": ctx.settings.evaluate.bootstrap, "seed": ctx.settings.seed}


def _mean_parts(golds: Sequence[Scores]) -> dict[str, float]:
    return {part: sum(gold.parts[part] for gold in golds) / len(golds) for part in golds[0].parts}
