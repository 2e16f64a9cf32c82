"""Answers of the evaluation's arms, kept on the disk as soon as an arm has given them.

An evaluation that was interrupted, or one after a further round, samples only from the arms that
have not answered yet. What was kept counts only for the same weights, prompts and sampling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from alpaca_rlhf.core.records import Instruction, content_hash
from alpaca_rlhf.stages.arm_answers import Answers, Completion, arm_prompt, evaluation_sampling
from alpaca_rlhf.stages.arms import Arm
from alpaca_rlhf.stages.context import Context

FOLDER = "evaluate"
"""Folder of a run that holds a file of answers an arm."""
_FORMAT = 1
"""Number to raise where sampling or the KL gives other results than before."""
Pool = list[list[Completion]]
"""Samples of each prompt."""


def kept_answers(
    ctx: Context,
    arm: Arm,
    rows: Sequence[Instruction],
    k: int,
    answer: Callable[[], tuple[Answers, Pool]],
) -> tuple[Answers, Pool]:
    """The answers that an arm has given before, or else gives now.

    Args:
        ctx: The run, with the arm's adapter loaded.
        arm: The arm.
        rows: The prompts.
        k: Samples of each prompt.
        answer: Lets the arm answer: its answers, and all samples of each prompt.
    """
    name = f"{FOLDER}/{arm.name}.jsonl"
    key = _key(ctx, arm, rows, k)
    if (ctx.run.path / name).is_file():
        lines = ctx.run.read_jsonl(name)
        if len(lines) == 1 + len(rows) and lines[0].get("key") == key:
            return _read(lines[1:])
    answers, pool = answer()
    ctx.run.folder(FOLDER)
    ctx.run.write_jsonl(name, [{"arm": arm.name, "key": key}, *_rows(rows, answers, pool)])
    return answers, pool


def _key(ctx: Context, arm: Arm, rows: Sequence[Instruction], k: int) -> str:
    """Hash of all that an arm's answers depend on."""
    weights = [
        "base" if role is None else ctx.adapters.digest(role)
        for role in dict.fromkeys(["sft", arm.role])
    ]
    sampling = asdict(evaluation_sampling(ctx, arm, "sampled"))
    facts = {
        "format": _FORMAT,
        "base": ctx.base.fingerprint,
        "computed_in": [str(ctx.base.dtype), ctx.base.device.type],
        "weights": weights,
        "seed": ctx.settings.seed,
        "sampling": sampling,
        "k": k,
        # Their ids hold the template, its date, and the demonstrations of the few-shot control.
        "prompts": [[row.id, arm_prompt(ctx, row, few_shot=arm.few_shot)] for row in rows],
    }
    return content_hash(json.dumps(facts, sort_keys=True, default=str))


def _rows(rows: Sequence[Instruction], answers: Answers, pool: Pool) -> list[dict[str, Any]]:
    return [
        {
            "prompt": row.id,
            "samples": [asdict(completion) for completion in samples],
            "greedy": asdict(greedy),
            "kl": {name: estimates[position] for name, estimates in answers.kl.items()},
        }
        for position, (row, samples, greedy) in enumerate(
            zip(rows, pool, answers.greedy, strict=True)
        )
    ]


def _read(kept: Sequence[dict[str, Any]]) -> tuple[Answers, Pool]:
    pool = [[_completion(sample) for sample in row["samples"]] for row in kept]
    greedy = [_completion(row["greedy"]) for row in kept]
    names = kept[0]["kl"] if kept else {}
    kl = {name: [row["kl"][name] for row in kept] for name in names}
    return Answers([samples[0] for samples in pool], greedy, kl), pool


def _completion(entry: dict[str, Any]) -> Completion:
    return Completion(entry["text"], entry["finished"], tuple(entry["ids"]))
