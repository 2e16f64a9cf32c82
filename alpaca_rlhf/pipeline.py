"""The whole loop: stages in order with a ledger.

A run that was interrupted anywhere goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from alpaca_rlhf import processes, stages
from alpaca_rlhf.config import to_yaml
from alpaca_rlhf.context import Context, Reporter, forget, suffixed
from alpaca_rlhf.data import seed_file
from alpaca_rlhf.given import leaves_of
from alpaca_rlhf.models.base import weights_digest
from alpaca_rlhf.preferences import manifest_of
from alpaca_rlhf.provenance import measure
from alpaca_rlhf.runs import RunFolder
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.summary import write_summary

logger = logging.getLogger(__name__)

BODIES: dict[str, stages.Stage] = {
    "generate": stages.generate,
    "sft": stages.sft,
    "sample": stages.sample_completions,
    "rank": stages.rank,
    "reward": stages.reward,
    "ppo": stages.ppo,
    "best_of_k": stages.best_of_k,
    "evaluate": stages.evaluate,
}
"""What each stage runs, by its name in the report, in order."""

INTENT = {
    "generate": "the base or another teacher writes new tasks after the pattern of the seed tasks",
    "sft": "fine-tune the sft adapter on seed and generated tasks",
    "sample": "draw several completions of each new prompt",
    "rank": "put the completions of each prompt in order",
    "reward": "train the reward adapter on all pairs, and a control on shuffled verdicts",
    "ppo": "train the policy adapter against the reward adapter, anchored to sft",
    "best_of_k": "fine-tune on the reward adapter's favourite of several completions",
    "evaluate": "compare every policy on prompts that no stage has seen",
}

TOGETHER = ("sft", "reward", "ppo", "best_of_k")
"""Stages that several processes share; the others are the main process's, and the rest wait."""

FREE = (
    *(f"{stage}.micro_batch_size" for stage in ("sft", "reward", "ppo")),
    *(f"{stage}.save_every" for stage in ("sft", "reward", "ppo")),
    "sampling.batch_size",
    *(f"generate.endpoint.{name}" for name in ("url", "licence", "key_env")),
    *(f"generate.endpoint.{name}" for name in ("concurrency", "timeout", "retries")),
    *(f"generate.endpoint.max_{name}" for name in ("tokens_total", "usd", "minutes")),
    *(f"generate.endpoint.usd_per_1k_{name}" for name in ("in", "out")),
    "sampling.dense_gib",
    "track",
    "reward.gate",
    "evaluate.shown",
    "evaluate.watts",
    "evaluate.usd_per_kwh",
)
"""Settings that may change within a run: what they cost changes, not what is learnt."""

DEALING = (
    "rank.prompts",
    "ppo.updates",
    "ppo.batch_size",
    "best_of_k.prompts",
    "evaluate.prompts",
    "evaluate.split",
)
"""Settings that say which prompts go where, which is settled when a run begins."""


def order(settings: Loop) -> list[tuple[str, int]]:
    """The stages of a run, each with its round."""
    inputs = settings.inputs
    first = ["sft"] if inputs.rows is not None else ["generate", "sft"]
    again = (
        ["reward", "ppo", "best_of_k"]
        if inputs.rankings is not None
        else ["sample", "rank", "reward", "ppo", "best_of_k"]
    )
    rounds = [(name, r) for r in range(1, settings.rounds + 1) for name in again]
    return [(name, 1) for name in first] + rounds + [("evaluate", settings.rounds)]


def run_loop(
    settings: Loop, reporter: Reporter, *, kind: str, command: str, until: str | None = None
) -> Path:
    """Run the loop, or go on with it.

    Args:
        settings: Every number.
        reporter: Shows progress.
        kind: What the run folder is for, e.g. `quickstart`: another kind of run is refused there.
        command: What the user typed, for the report.
        until: The last stage to run (of the first round); None runs all.

    Returns:
        The run folder.

    Raises:
        UserError: Anything the user can mend; what was made so far stays.
    """
    todo = order(settings)
    if until is not None:
        todo = todo[: 1 + [name for name, _ in todo].index(until)]
    if todo[-1][0] not in ("generate", "sft"):
        settings.inputs.require_prompts()
    inputs = settings.inputs.files()
    if settings.inputs.seeds is not None:
        inputs["seeds"] = seed_file(settings.inputs.seeds)
    if settings.inputs.rankings is not None:
        inputs["rankings"] = manifest_of(settings.inputs.rankings) or settings.inputs.rankings
    processes.join()
    opened = []

    def begin() -> None:
        run = RunFolder.open(settings.out, to_yaml(settings), kind=kind, inputs=inputs, free=_free)
        opened.append(run)
        for name in {key.partition(".")[0] for key in run.changed if key not in FREE}:
            forget(run, name)

    processes.by_main(begin)
    with opened[0] if opened else RunFolder.follow(settings.out) as run:
        ctx = Context(settings, run, source_of(settings), reporter)
        _ = ctx.track  # a package that is missing is told of before anything is done
        for name, round_ in todo:
            _run_stage(ctx, name, round_)
        if until is None:
            processes.by_main(lambda: _end(ctx, command, todo))
        return run.path


def _free(finished: Collection[str]) -> set[str]:
    """Settings that may differ from those the run was begun with: of stages yet to come, any."""
    done = [name.partition(".")[0] for name in finished]
    if "sample" in done:
        done.append("rank")  # its settings are those of both
    groups = ("sft", "rank", "reward", "ppo", "best_of_k", "evaluate")
    coming = {*groups} - {*done}
    names = {
        leaf.path
        for leaf in leaves_of(Loop, required=False)
        if leaf.path.partition(".")[0] in coming
    }
    return {*FREE, *(names - {*DEALING})}


def _run_stage(ctx: Context, name: str, round_: int) -> None:
    stage = suffixed(name, round_ if name != "evaluate" else 1)
    if ctx.run.done(stage) is not None:
        logger.info("%s is done already", stage)
        return
    ctx.reporter.start(stage, INTENT[name])
    if name in TOGETHER:
        _work(ctx, name, round_, stage)
    else:
        processes.by_main(lambda: _work(ctx, name, round_, stage))


def _work(ctx: Context, name: str, round_: int, stage: str) -> None:
    by_http = name == "generate" and ctx.settings.generate.endpoint.url is not None
    if name != "rank" and not by_http and ctx.run.done("base") is None:
        # taken before the first adapter is trained, and again at the end: invariant 1
        facts = {"digest": weights_digest(ctx.base), "parameters": ctx.base.parameters}
        ctx.run.finish(
            "base",
            facts | {"quantization": ctx.base.quantization, "fingerprint": ctx.base.fingerprint},
        )
    with measure() as used:
        outcome = BODIES[name](ctx, round_)
    ctx.finish(
        stage,
        {
            "name": name,
            "round": round_,
            "seconds": used.seconds,
            "peak_memory_gib": used.peak_memory_gib,
            "examples": outcome.examples,
            "tokens": outcome.tokens,
            "facts": dict(outcome.facts),
        },
    )
    ctx.reporter.finish(stage, outcome.summary)


def _end(ctx: Context, command: str, todo: Sequence[tuple[str, int]]) -> None:
    _check_base(ctx)
    write_summary(ctx, command=command, stages=_rows(ctx, todo))


def _check_base(ctx: Context) -> None:
    before = ctx.run.done("base")
    assert before is not None
    if weights_digest(ctx.base) != before["digest"]:
        raise RuntimeError("the frozen base changed during the run")


def _rows(ctx: Context, todo: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    rows = []
    for name, round_ in todo:
        row = ctx.run.done(suffixed(name, round_ if name != "evaluate" else 1))
        assert row is not None
        rows.append(row)
    return rows
