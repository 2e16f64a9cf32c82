"""The whole loop: stages in order with a ledger.

A run that was interrupted anywhere goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from alpaca_rlhf import stages
from alpaca_rlhf.core import gpu_lock as card
from alpaca_rlhf.core import processes
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.provenance import measure
from alpaca_rlhf.core.runs import RunFolder, finished
from alpaca_rlhf.data import seed_file
from alpaca_rlhf.models.base import weights_digest
from alpaca_rlhf.preferences import manifest_of
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.given import leaves_of
from alpaca_rlhf.settings.parsing import to_yaml
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.sources.verdicts import take_up_earlier
from alpaca_rlhf.stages import forecast, room
from alpaca_rlhf.stages.context import Context, Reporter, forget, suffixed
from alpaca_rlhf.stages.summary import write_summary

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

ADOPTION = "take the sft adapter that is given"
"""What the stage `sft` does where there is one."""

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
    *(f"judge.{name}" for name in ("url", "key_env", "concurrency", "timeout", "retries")),
    *(f"judge.max_{name}" for name in ("tokens_total", "usd", "minutes")),
    *(f"judge.usd_per_1k_{name}" for name in ("in", "out")),
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
    given = inputs.rows is not None or inputs.sft_adapter is not None
    first = ["sft"] if given else ["generate", "sft"]
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
    last = todo[-1][0]
    if last not in ("generate", "sft") and (last != "reward" or not settings.inputs.rankings):
        settings.inputs.require_prompts()
    inputs = settings.inputs.files()
    for name, path in inputs.items():
        if name.startswith("sft_adapter.") and not path.is_file():
            raise UserError(
                f"--inputs.sft-adapter {path.parent}: no {path.name} there; give the folder of a "
                "PEFT LoRA adapter saved as safetensors"
            )
    if settings.inputs.seeds is not None:
        inputs["seeds"] = seed_file(settings.inputs.seeds)
    if settings.inputs.rankings is not None:
        inputs["rankings"] = manifest_of(settings.inputs.rankings) or settings.inputs.rankings
    processes.join()
    opened = []
    done = finished(settings.out)
    left = [one for one in todo if one[0] != "rank" and _stage(*one) not in done]

    def begin() -> None:
        if left:
            room.check_disk(room.shape_of_run(settings), settings, left)
        run = RunFolder.open(settings.out, to_yaml(settings), kind=kind, inputs=inputs, free=_free)
        opened.append(run)
        for name in {key.partition(".")[0] for key in run.changed if key not in FREE}:
            forget(run, name)
        take_up_earlier(run.path, logger.warning)

    processes.by_main(begin)
    with (
        opened[0] if opened else RunFolder.follow(settings.out) as run,
        card.Loan(settings.out, logger.warning) as loan,
    ):
        ctx = Context(settings, run, source_of(settings), reporter)
        _ = ctx.track  # a package that is missing is told of before anything is done
        for name, round_ in todo:
            if (name, round_) in left[:1]:
                processes.by_main(lambda: _make_room(settings, loan, left))
            _run_stage(ctx, name, round_)
        if until is None:
            processes.by_main(lambda: _end(ctx, command, todo))
        return run.path


def _make_room(settings: Loop, loan: card.Loan, left: Sequence[tuple[str, int]]) -> None:
    loan.take()
    room.check_card(room.shape_of_run(settings), settings, left)


def _stage(name: str, round_: int) -> str:
    return suffixed(name, round_ if name != "evaluate" else 1)


def _free(stages: Collection[str]) -> set[str]:
    """Settings that may differ from those the run was begun with: of stages yet to come, any."""
    done = [name.partition(".")[0] for name in stages]
    if "sample" in done:
        done.append("rank")  # its settings are those of both
    groups = ("sft", "rank", "reward", "ppo", "best_of_k", "evaluate")
    coming = {*groups} - {*done}
    if "rank" not in [name.partition(".")[0] for name in stages]:
        coming.add("judge")
    names = {
        leaf.path
        for leaf in leaves_of(Loop, required=False)
        if leaf.path.partition(".")[0] in coming
    }
    who = {"inputs.judge"} if "judge" in coming else set()
    return {*FREE, *(names - {*DEALING}), *who}


def _run_stage(ctx: Context, name: str, round_: int) -> None:
    stage = _stage(name, round_)
    if ctx.run.done(stage) is not None:
        logger.info("%s is done already", stage)
        return
    adopted = name == "sft" and ctx.settings.inputs.sft_adapter is not None
    ctx.reporter.start(stage, ADOPTION if adopted else INTENT[name])
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
    forecast.begin_measuring()
    with measure() as used:
        outcome = BODIES[name](ctx, round_)
    row = {
        "name": name,
        "round": round_,
        "seconds": used.seconds,
        "peak_memory_gib": used.peak_memory_gib,
        "examples": outcome.examples,
        "tokens": outcome.tokens,
        "facts": dict(outcome.facts),
        **_memory(ctx, name, round_),
    }
    ctx.finish(stage, row)
    ctx.reporter.finish(stage, outcome.summary + forecast.in_words(row))


def _memory(ctx: Context, name: str, round_: int) -> dict[str, float]:
    """What a stage was planned to take, and what it took of the card."""
    if name == "rank":
        return {}
    planned = {"planned_memory_gib": forecast.planned_gib(ctx, name, round_)}
    measured = forecast.measured_gib()
    return planned if measured is None else planned | {"gpu_memory_gib": measured}


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
        row = ctx.run.done(_stage(name, round_))
        assert row is not None
        rows.append(row)
    return rows
