"""Best-of-K's candidates in the run folder: `best_of_k/candidates.jsonl`, in later rounds `.2` ...

They cost most of the stage, so a run that was interrupted during fine-tuning reads them back. The
ledger holds the file's sha256 and everything that determines the candidates; those of another
policy, reward model, seed or setting are sampled again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.provenance import sha256_of
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.records import content_hash
from alpaca_rlhf.core.scorers import Response
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.heads import HEAD
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.stages.context import Context, forget
from alpaca_rlhf.stages.judge_reward import JudgeReward, judge_reward
from alpaca_rlhf.training.candidates import Candidates, ScoreCandidates, draw, rescore

logger = logging.getLogger(__name__)


Pool = dict[int, list[Candidates]]
"""Candidates by the round that sampled them, one entry for each prompt."""


def candidates(ctx: Context, round_: int, *, sampler: str) -> Pool:
    """Collect the candidates to choose from, all scored by this round's reward model or the judge.

    The adapters `policy` and `reward` must be loaded; where a judge gives the reward, `sft`.

    Args:
        ctx: The run.
        round_: The current round.
        sampler: Stage of the adapter `policy`.

    Raises:
        UserError: With `--best-of-k.pool`, the file of an earlier round has changed.
    """
    # 1. Prompts, candidates of earlier rounds, and everything that determines the new ones.
    settings, sampling = ctx.settings.best_of_k, ctx.sampling("best_of_k")
    by_judge = judge_reward(ctx, round_) if ctx.settings.reward.source == "judge" else None
    rows = ctx.source.prompts(suffixed("ppo", round_))[: settings.prompts]
    prompts = [prompt_ids(ctx.base, ctx.settings.template, row) for row in rows]
    seed = derived_seed(ctx.settings.seed, "round", round_)
    pool = {earlier: _of_round(ctx, earlier) for earlier in range(1, round_) if settings.pool}
    made_of = {
        "policy": sha256_of(ctx.adapter_folder(sampler) / "adapter_model.safetensors"),
        **_reward_digests(ctx, round_, by_judge),
        "prompts": content_hash(*(row.id for row in rows), *map(str, prompts)),
        "k": settings.k,
        "seed": seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "pool": [_entry(ctx, earlier)["sha256"] for earlier in pool],
    }

    # 2. An earlier sitting may have saved them.
    saved_pool = _saved(ctx, round_, made_of)
    if saved_pool is not None:
        return saved_pool

    # 3. Score the old candidates with the new reward, and sample new ones.
    score_candidates = _score_candidates(ctx, round_, by_judge)
    pool = {
        earlier: score_candidates(round_candidates) for earlier, round_candidates in pool.items()
    }
    pool[round_] = draw(
        ctx.adapters,
        "policy",
        prompts,
        [row.id for row in rows],
        k=settings.k,
        sampling=sampling,
        seed=seed,
        score_candidates=score_candidates,
        on_batch=ctx.counting(
            suffixed("candidates", round_), len(processes.share(prompts)) * settings.k
        ),
    )
    if processes.main():
        _save(ctx, round_, pool, made_of)
    processes.wait()
    return pool


def _reward_digests(ctx: Context, round_: int, by_judge: JudgeReward | None) -> dict[str, Any]:
    """Everything that determines the scores."""
    if by_judge is not None:
        judge = by_judge.judge
        digests = {"name": judge.name.text, "digest": judge.digest}
        return {"judge": {**digests, "mean": by_judge.mean, "std": by_judge.std}}
    folder = ctx.adapter_folder(suffixed("reward", round_))
    return {
        "reward": sha256_of(folder / "adapter_model.safetensors"),
        "reward_head": sha256_of(folder / HEAD),
    }


def _score_candidates(ctx: Context, round_: int, by_judge: JudgeReward | None) -> ScoreCandidates:
    """Scores candidates with the round's reward model, or with the judge."""
    if by_judge is None:
        head = ctx.load_head(suffixed("reward", round_))
        size = ctx.settings.sampling.batch_size
        return lambda pool: rescore(ctx.adapters, head, pool, batch_size=size)

    def score_candidates(pool: Sequence[Candidates]) -> list[Candidates]:
        rows = {
            row.id: row
            for earlier in range(1, round_ + 1)
            for row in ctx.source.prompts(suffixed("ppo", earlier))
        }
        responses = [
            Response(
                rows[candidates.key],
                answer(ctx.base, ctx.settings.template, completion.ids),
                completion.finished,
            )
            for candidates in pool
            for completion in candidates.completions
        ]
        scores = iter(by_judge.scores(responses, stage=suffixed("best_of_k", round_)))
        return [
            replace(candidates, scores=tuple(next(scores) for _ in candidates.completions))
            for candidates in pool
        ]

    return score_candidates


def _save(ctx: Context, round_: int, pool: Pool, made_of: Mapping[str, Any]) -> None:
    def text(ids: Sequence[int]) -> str:
        return answer(ctx.base, ctx.settings.template, ids)

    rows = [
        {"round": source_round, **prompt_candidates.to_json(text)}
        for source_round, round_candidates in pool.items()
        for prompt_candidates in round_candidates
    ]
    ctx.run.write_jsonl(_file(round_), rows)
    digest = sha256_of(ctx.run.path / _file(round_))
    ctx.run.finish(_part(round_), {"sha256": digest, "made_of": made_of})


def _saved(ctx: Context, round_: int, made_of: Mapping[str, Any]) -> Pool | None:
    """Load the pool that an earlier sitting saved, if it was made of the same."""
    entry = _entry(ctx, round_)
    if entry.get("made_of") != made_of:
        if entry and processes.main():  # checkpoints were trained on the other candidates
            forget(ctx.run, suffixed("best_of_k", round_))
        processes.wait()
        return None
    if not _is_unchanged(ctx, round_):
        logger.warning(
            "%s was changed after it was written; sampling again", ctx.run.path / _file(round_)
        )
        return None
    return _read(ctx, round_)


def _of_round(ctx: Context, round_: int) -> list[Candidates]:
    """Load the candidates that an earlier round sampled."""
    if not _is_unchanged(ctx, round_):
        raise UserError(
            f"{ctx.run.path / _file(round_)}: is not what round {round_} wrote, and "
            "--best-of-k.pool needs it; put it back, or use another --out"
        )
    return _read(ctx, round_)[round_]


def _read(ctx: Context, round_: int) -> Pool:
    pool: Pool = {}
    for row in ctx.run.read_jsonl(_file(round_)):
        pool.setdefault(row["round"], []).append(Candidates.from_json(row))
    return pool


def _is_unchanged(ctx: Context, round_: int) -> bool:
    path = ctx.run.path / _file(round_)
    return path.is_file() and sha256_of(path) == _entry(ctx, round_).get("sha256")


def _entry(ctx: Context, round_: int) -> dict[str, Any]:
    """The ledger's entry on the candidates of a round; empty if there is none."""
    return ctx.run.done(_part(round_)) or {}


def _part(round_: int) -> str:
    return f"{suffixed('best_of_k', round_)}_candidates"


def _file(round_: int) -> str:
    return f"{suffixed('best_of_k', round_)}/candidates.jsonl"
