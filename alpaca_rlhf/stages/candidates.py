"""Best-of-K's candidates in the run folder: `best_of_k/candidates.jsonl`, in later rounds `.2` ...

They cost most of the stage, so a run that was interrupted in the fine-tuning reads them back. The
ledger says what they were made of and the file's sha256; candidates of another policy, reward
model, seed or setting are made anew.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.provenance import sha256_of
from alpaca_rlhf.core.randomness import derived_seed
from alpaca_rlhf.core.records import content_hash
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.heads import HEAD
from alpaca_rlhf.stages.context import Context, forget, suffixed
from alpaca_rlhf.training.candidates import Candidates, draw, rescore

logger = logging.getLogger(__name__)


Pool = dict[int, list[Candidates]]
"""Round to the candidates that were drawn in it, a prompt each."""


def candidates(ctx: Context, round_: int, *, sampler: str) -> Pool:
    """Candidates of each round that is to be chosen from, all scored by this round's reward model.

    The adapters `policy` and `reward` must be loaded.

    Args:
        ctx: The run.
        round_: The round.
        sampler: The stage that `policy` comes from.

    Raises:
        UserError: With `--best-of-k.pool`, the file of an earlier round is not what it was.
    """
    settings, sampling = ctx.settings.best_of_k, ctx.settings.sampling
    judge = suffixed("reward", round_)
    rows = ctx.source.prompts(suffixed("ppo", round_))[: settings.prompts]
    prompts = [prompt_ids(ctx.base, ctx.settings.template, row) for row in rows]
    seed = derived_seed(ctx.settings.seed, "round", round_)
    pool = {r: _of_round(ctx, r) for r in range(1, round_) if settings.pool}
    made_of = {
        "policy": sha256_of(ctx.adapter_folder(sampler) / "adapter_model.safetensors"),
        "reward": sha256_of(ctx.adapter_folder(judge) / "adapter_model.safetensors"),
        "reward_head": sha256_of(ctx.adapter_folder(judge) / HEAD),
        "prompts": content_hash(*(row.id for row in rows), *map(str, prompts)),
        "k": settings.k,
        "seed": seed,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_new_tokens": sampling.max_new_tokens,
        "pool": [_noted(ctx, r)["sha256"] for r in pool],
    }
    kept = _kept(ctx, round_, made_of)
    if kept is not None:
        return kept
    head, size = ctx.load_head(judge), sampling.batch_size
    pool = {r: rescore(ctx.adapters, head, own, batch_size=size) for r, own in pool.items()}
    pool[round_] = draw(
        ctx.adapters,
        "policy",
        head,
        prompts,
        [row.id for row in rows],
        k=settings.k,
        sampling=sampling,
        seed=seed,
        score_batch_size=size,
        on_batch=ctx.counting(
            suffixed("candidates", round_), len(processes.share(prompts)) * settings.k
        ),
    )
    if processes.main():
        _keep(ctx, round_, pool, made_of)
    processes.wait()
    return pool


def _keep(ctx: Context, round_: int, pool: Pool, made_of: Mapping[str, Any]) -> None:
    def text(ids: Sequence[int]) -> str:
        return answer(ctx.base, ctx.settings.template, ids)

    rows = [{"round": r, **one.to_json(text)} for r, own in pool.items() for one in own]
    ctx.run.write_jsonl(_file(round_), rows)
    written = sha256_of(ctx.run.path / _file(round_))
    ctx.run.finish(_part(round_), {"sha256": written, "made_of": made_of})


def _kept(ctx: Context, round_: int, made_of: Mapping[str, Any]) -> Pool | None:
    """What an earlier sitting kept, if it is made of the same."""
    noted = _noted(ctx, round_)
    if noted.get("made_of") != made_of:
        if noted and processes.main():  # what was learned from the others so far belongs to them
            forget(ctx.run, suffixed("best_of_k", round_))
        processes.wait()
        return None
    if not _is_whole(ctx, round_):
        logger.warning("%s is not what was written; made anew", ctx.run.path / _file(round_))
        return None
    return _read(ctx, round_)


def _of_round(ctx: Context, round_: int) -> list[Candidates]:
    """The candidates that an earlier round drew."""
    if not _is_whole(ctx, round_):
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


def _is_whole(ctx: Context, round_: int) -> bool:
    path = ctx.run.path / _file(round_)
    return path.is_file() and sha256_of(path) == _noted(ctx, round_).get("sha256")


def _noted(ctx: Context, round_: int) -> dict[str, Any]:
    return ctx.run.done(_part(round_)) or {}


def _part(round_: int) -> str:
    return f"{suffixed('best_of_k', round_)}_candidates"


def _file(round_: int) -> str:
    return f"{suffixed('best_of_k', round_)}/candidates.jsonl"
