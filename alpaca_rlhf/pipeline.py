"""The whole loop: stages in order with a ledger.

A run that was interrupted anywhere goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from alpaca_rlhf import stages
from alpaca_rlhf.core import allocator, gpu_lock, processes
from alpaca_rlhf.core.bases import is_local
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.provenance import measure, sha256_of
from alpaca_rlhf.core.runs import RunFolder, finished
from alpaca_rlhf.judges import JudgeFailure
from alpaca_rlhf.models.base import read_texts, weights_digest
from alpaca_rlhf.models.text_base import Texts
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.earlier import (
    begun_policies,
    begun_reward_source,
    config_of,
    with_earlier_defaults,
)
from alpaca_rlhf.settings.leaves import leaves_of
from alpaca_rlhf.settings.loop import SAMPLING_SECTIONS
from alpaca_rlhf.settings.policies import POLICY_STAGES, REWARDED_STAGES
from alpaca_rlhf.settings.steps import Step, order, suffixed
from alpaca_rlhf.sources import Source, deals_alike, input_files, source_of
from alpaca_rlhf.sources.verdicts import take_up_earlier
from alpaca_rlhf.stages import forecast, judging, preflight
from alpaca_rlhf.stages.context import Context, Reporter, forget
from alpaca_rlhf.stages.summary import write_summary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopStage:
    """A stage as the loop runs it."""

    run: stages.Stage
    """Does its work."""
    intent: str
    """Its intent, for the person who watches."""
    shared: bool = False
    """True if several processes share its work; the others wait while the main one does it."""
    needs_model: bool = True
    """False if it neither loads the base nor takes room on the card."""


# fmt: off
STAGES = {
    "generate": LoopStage(stages.generate,
        "the base or another teacher writes new tasks after the pattern of the seed tasks"),
    "sft": LoopStage(stages.sft,
        "fine-tune the sft adapter on seed and generated tasks", shared=True),
    "sample": LoopStage(stages.sample_completions,
        "draw several completions of each new prompt"),
    "rank": LoopStage(stages.rank,
        "put the completions of each prompt in order", needs_model=False),
    "reward": LoopStage(stages.reward,
        "train the reward adapter on all pairs", shared=True),
    "ppo": LoopStage(stages.ppo,
        "train the policy adapter against the reward adapter, anchored to sft", shared=True),
    "best_of_k": LoopStage(stages.best_of_k,
        "fine-tune on the reward adapter's favourite of several completions", shared=True),
    "dpo": LoopStage(stages.dpo,
        "train the policy adapter on all pairs themselves, anchored to sft", shared=True),
    "grpo": LoopStage(stages.grpo,
        "train the policy adapter on groups of completions that the reward adapter compares",
        shared=True),
    "rloo": LoopStage(stages.rloo,
        "train the policy adapter on completions scored against the others of their prompt",
        shared=True),
    "evaluate": LoopStage(stages.evaluate,
        "compare every policy on prompts that no stage has seen"),
}
# fmt: on
"""The stages by their names in the report, in order."""

OWN_ROWS = "fine-tune the sft adapter on your rows"
"""The intent of the stage `sft` where the rows are the user's own."""

ADOPTION = "take the sft adapter that is given"
"""The intent of the stage `sft` where an adapter is given."""

UNTRAINED = "take the base as it is, since no rows are given"
"""The intent of the stage `sft` where rankings come without rows."""

ANSWERS = "the teacher answers prompts, and the answers that the judge likes are kept"
"""The intent of the stage `generate` with the recipe `answers`."""

BY_JUDGE = {
    "ppo": "train the policy adapter against the judge, anchored to sft",
    "best_of_k": "fine-tune on the judge's favourite of several completions",
    "grpo": "train the policy adapter on groups of completions that the judge compares",
    "rloo": "train the policy adapter on completions that the judge scores, against each other",
}
"""The intents of stages whose reward a judge gives."""

TRAINED = ("sft", "reward", "ppo", "dpo", "grpo", "rloo")
"""Stages with batches of their own in memory."""

FREE = (
    *(f"{stage}.{name}" for stage in TRAINED for name in ("micro_batch_size", "save_every")),
    "sampling.batch_size",
    *(f"generate.endpoint.{name}" for name in ("url", "licence", "key_env")),
    *(f"generate.endpoint.{name}" for name in ("concurrency", "timeout", "retries")),
    *(f"generate.endpoint.max_{name}" for name in ("tokens_total", "usd", "minutes")),
    *(f"generate.endpoint.usd_per_1k_{name}" for name in ("in", "out")),
    *(f"judge.{name}" for name in ("url", "key_env", "concurrency", "timeout", "retries")),
    *(f"judge.max_{name}" for name in ("tokens_total", "usd", "minutes")),
    *(f"judge.usd_per_1k_{name}" for name in ("in", "out")),
    "sampling.dense_gib",
    "checkpointing",
    "compile",
    "track",
    "more_rounds",
    "rank.at_least",
    "rank.queue",
    "reward.gate",
    "evaluate.shown",
    "evaluate.watts",
    "evaluate.usd_per_kwh",
)
"""Settings that may change when a run is resumed; they affect cost, never results."""

READING = frozenset({"inputs.columns", "inputs.broken", "inputs.leaks"})
"""Settings that say how the user's files are read."""

DEALING = (
    "rank.prompts",
    "ppo.updates",
    "ppo.batch_size",
    "best_of_k.prompts",
    *(f"{stage}.{name}" for stage in ("grpo", "rloo") for name in ("prompts", "updates")),
    "evaluate.prompts",
    "evaluate.split",
    "evaluate.max_cluster",
    "evaluate.dev_prompts",
)
"""Settings that deal the prompts to the splits, which is settled when a run begins."""


def run_loop(
    settings: Loop, reporter: Reporter, *, kind: str, command: str, until: str | None = None
) -> Path:
    """Run the loop, or go on with it.

    Args:
        settings: Every number.
        reporter: Shows progress.
        kind: What the run folder is for, e.g. `quickstart`: another kind of run is refused there.
        command: What the user typed, for the report.
        until: The last step to run, by its name in the ledger: `reward`, `ppo.2`; None runs all.

    Returns:
        The run folder.

    Raises:
        UserError: Anything the user can mend; what was made so far stays.
    """
    # 1. Check everything. Nothing has been written yet.
    settings = with_earlier_defaults(settings)
    steps = _up_to(until, order(settings))
    _check_temperatures(settings, steps)
    inputs = _checked_inputs(settings, steps)
    processes.join()
    pending = _pending(steps, settings.out)
    with_model = [step for step in pending if _needs_model(step, settings)]
    processes.by_main(lambda: _check_disk(settings, with_model))
    # What is still on the hub is checked when it is loaded.
    begins = not finished(settings.out)
    texts: list[Texts] = []
    if begins and with_model and is_local(settings.base):
        processes.by_main(lambda: texts.append(read_texts(settings.base)))
        processes.by_main(lambda: _refuse_huge_prompts(settings, texts))
    # A wrong judge is told of before prompts that are too few.
    dealt = cache(lambda: _checked_source(settings))
    judges = judging.open_judges(settings, dealt)
    if steps[-1].stage == "evaluate":
        judging.refuse_only_judge(settings, judges)
    source = dealt()
    judging.refuse_unknown_prompts(settings, judges, source, pending)
    if begins and any(step.stage == "sft" for step in steps):
        processes.by_main(lambda: _refuse_own_files(settings, source, texts))
    # 2. Open the folder, which locks it. Its settings are pinned when the card is known to do.
    with (
        _opened(settings, inputs, kind) as run,
        gpu_lock.Loan(settings.out, logger.warning) as loan,
    ):
        processes.by_main(lambda: judging.refuse_changed(run, judges, settings, finished(run.path)))
        context = Context(settings, run, source, reporter, judges)
        if pending and processes.main():
            for line in (line for account in source.accounts for line in account.lines()):
                reporter.say(line)
        starts_with_model = pending[:1] == with_model[:1]
        if with_model and starts_with_model:
            processes.by_main(lambda: _take_card(settings, loan, with_model))
        processes.by_main(run.pin)
        processes.by_main(lambda: judging.note_files(run, judges))
        _ = context.track  # a package that is missing is told of before anything is done
        # 3. Run the stages. People who are yet to rank need no card, so it is taken after them.
        if settings.reward.source == "judge" and pending and processes.main():
            reporter.say(judging.LEFT_OUT.format(judge=settings.inputs.judge))
        for step in steps:
            if step in with_model[:1] and not starts_with_model:
                processes.by_main(lambda: _take_card(settings, loan, with_model))
            _run_stage(context, step)
        # 4. Summarise.
        if until is None:
            processes.by_main(lambda: _summarise(context, command, steps))
    return run.path


def _up_to(until: str | None, steps: list[Step]) -> list[Step]:
    if until is None:
        return steps
    return steps[: 1 + [step.entry for step in steps].index(until)]


def _check_temperatures(settings: Loop, steps: Sequence[Step]) -> None:
    """Refuse temperature 0 for stages that sample.

    Raises:
        UserError: A stage would draw the same completion again and again; greedy answers are
            evaluated in any case.
    """
    for stage in dict.fromkeys(step.stage for step in steps if step.stage in SAMPLING_SECTIONS):
        if settings.temperature_of(stage) == 0:
            flag = f"--{SAMPLING_SECTIONS[stage].replace('_', '-')}.temperature"
            raise UserError(
                f"--sampling.temperature 0 is greedy, and {suffixed(stage, 1)} needs completions "
                f"that differ; give {flag} above 0, or leave --sampling.temperature out"
            )


def _checked_inputs(settings: Loop, steps: Sequence[Step]) -> dict[str, Path]:
    """The files that the run reads, under their names.

    Raises:
        UserError: The steps need prompts and none are given, or the adapter's files are missing.
    """
    # Rows alone suffice up to sft; a file of rankings brings the prompts of the reward model.
    last = steps[-1].stage
    if last not in ("generate", "sft") and (last != "reward" or not settings.inputs.rankings):
        settings.inputs.require_prompts()
    if settings.inputs.untrained and settings.template != "chat":
        raise UserError(
            f"--inputs.rankings without rows: --base {settings.base} is taken as it is only in its "
            "own chat template, which an instruct base has; give rows to fine-tune it on with "
            "--inputs.data, or --template chat"
        )
    inputs = input_files(settings.inputs)
    for name, path in inputs.items():
        if name.startswith("sft_adapter.") and not path.is_file():
            raise UserError(
                f"--inputs.sft-adapter {path.parent}: no {path.name} there; give the folder of a "
                "PEFT LoRA adapter saved as safetensors"
            )
    return inputs


def _checked_source(settings: Loop) -> Source:
    """The run's tasks and verdicts; before its first stage has ended, every split is drawn.

    Raises:
        UserError: A file cannot be read, or there are too few prompts.
    """
    # The small world draws a split when it is first read; drawing all of them finds what is short.
    source = source_of(settings)
    # A reward model from rankings alone evaluates nothing, and says nothing of splits.
    if settings.evaluate.dev and "eval" in source.names() and "dev" not in source.names():
        raise UserError(
            "--evaluate.dev: these prompts are dealt to no split `dev`; leave the flag out"
        )
    if settings.watch.every and settings.rewarded and "dev" not in source.names():
        raise UserError(
            f"--watch.every {settings.watch.every}: these prompts are dealt to no split `dev`; "
            "give more prompts, or leave the flag out"
        )
    if not finished(settings.out):
        for split in source.names():
            source.prompts(split)
        if settings.generate.recipe == "answers" and order(settings)[0].stage == "generate":
            source.unanswered()
    return source


def _pending(steps: Sequence[Step], out: Path) -> list[Step]:
    done = finished(out)
    return [step for step in steps if step.entry not in done]


def _needs_model(step: Step, settings: Loop) -> bool:
    """True if a step loads the base: ranking does where a reward model judges."""
    by_model = step.stage == "rank" and settings.inputs.judge_name.kind == "reward"
    return STAGES[step.stage].needs_model or by_model


def _check_disk(settings: Loop, with_model: Sequence[Step]) -> None:
    if with_model:
        preflight.check_disk(preflight.shape_of_run(settings), settings, with_model)


def _refuse_huge_prompts(settings: Loop, texts: Sequence[Texts]) -> None:
    for base in texts:
        preflight.refuse_huge_prompts_of(settings, base)


def _refuse_own_files(settings: Loop, source: Source, texts: Sequence[Texts]) -> None:
    preflight.refuse_leaks(settings, source)
    for base in texts:
        preflight.refuse_unfit(settings, source, base)


def _take_card(settings: Loop, loan: gpu_lock.Loan, with_model: Sequence[Step]) -> None:
    loan.take()
    preflight.check_gpu(preflight.shape_of_run(settings), settings, with_model)


def _opened(settings: Loop, inputs: Mapping[str, Path], kind: str) -> RunFolder:
    """The run folder, opened by the main process; stages with other settings begin anew."""
    opened: list[RunFolder] = []
    config = config_of(settings)

    def open_folder() -> None:
        run = RunFolder.open(
            settings.out,
            config.text,
            kind=kind,
            inputs=inputs,
            free=lambda done: _changeable(done, settings),
            before=config.before,
            pin=False,
        )
        opened.append(run)
        for stage in {path.partition(".")[0] for path in run.changed if path not in FREE}:
            forget(run, stage)
        if run.done("sft") is None and not READING.isdisjoint(run.changed):
            forget(run, "sft")  # half-trained on other rows
        if "reward.source" in run.changed:  # half-trained policies learned from the other reward
            for stage in REWARDED_STAGES:
                forget(run, stage)
        if "more_rounds" in run.changed:
            forget(run, "evaluate")  # the new round's policies are to be compared too
        take_up_earlier(run.path, logger.warning)

    processes.by_main(open_folder)
    return opened[0] if opened else RunFolder.follow(settings.out)


def _changeable(done: Collection[str], settings: Loop) -> set[str]:
    """Settings that may differ from those the run was begun with: of stages yet to come, any."""
    ended = {name.partition(".")[0] for name in done}
    coming = {"sft", "rank", "reward", *POLICY_STAGES, "evaluate"} - ended
    begun = replace(settings, policies=begun_policies(settings))
    if takes_policies(settings, done):
        coming.add("policies")
    if ended.isdisjoint(("rank", "evaluate")):
        coming.add("judge")
    if "sample" in ended:
        coming.discard("rank")  # its settings are those of both
    # Sampling reads nothing of these.
    ranking = {"rank.tie_below", "rank.noise"} if "rank" not in ended else set()
    reading = set(READING)
    if not ended.isdisjoint(("generate", "sft")):
        # Their rows were read already, and none was broken; a later version may refuse more.
        reading = {"inputs.broken"}
    left_out = {*POLICY_STAGES} - {*begun.policy_stages}  # their numbers have dealt nothing
    dealing = [path for path in DEALING if path.partition(".")[0] not in left_out]
    paths = {leaf.path for leaf in leaves_of(Loop, required=False)}
    changeable = {path for path in paths if path.partition(".")[0] in coming} - {*dealing}
    changeable |= {"inputs.judge"} if "judge" in coming else set()
    # A policy learned from this judge's scores, which the others and the report are to share.
    if begun_reward_source(settings) == "judge" and not ended.isdisjoint(REWARDED_STAGES):
        changeable -= {"inputs.judge", "reward.source"}
    return {*FREE, *changeable, *reading, *ranking}


def takes_policies(settings: Loop, done: Collection[str]) -> bool:
    """True if the run in the folder goes on with the chosen policies, so that none is in the way.

    Args:
        settings: The settings, with the policies that are chosen now.
        done: Names of the finished stages.
    """
    begun = replace(settings, policies=begun_policies(settings))
    return "evaluate" not in done and deals_alike(settings, begun)


def _run_stage(context: Context, step: Step) -> None:
    if context.run.done(step.entry) is not None:
        logger.info("%s is done already", step.entry)
        return
    stage = STAGES[step.stage]
    settings = context.settings
    intent, inputs = stage.intent, settings.inputs
    if settings.reward.source == "judge" and step.stage in BY_JUDGE:
        intent = BY_JUDGE[step.stage]
    if step.stage == "generate" and settings.generate.recipe == "answers":
        intent = ANSWERS
    if step.stage == "sft" and not inputs.makes_rows:
        intent = ADOPTION if inputs.sft_adapter is not None else OWN_ROWS
        intent = UNTRAINED if inputs.untrained else intent
    context.reporter.start(step.entry, intent)
    if stage.shared:
        _work(context, step)
    else:
        processes.by_main(lambda: _work(context, step))


def _work(context: Context, step: Step) -> None:
    """Do a stage's work and enter it in the ledger, with what it took."""
    stage, settings = STAGES[step.stage], context.settings
    # A teacher behind HTTP writes without the base; there it is not even loaded.
    by_http = step.stage == "generate" and settings.generate.endpoint.url is not None
    if _needs_model(step, settings) and not by_http:
        _note_base(context)
    allocator.trim()  # or what the stage before has left would count as this one's
    forecast.begin_measuring()
    with measure() as used:
        try:
            outcome = stage.run(context, step.round)
        except JudgeFailure as failure:
            done = finished(context.run.path)
            raise judging.noted_failure(context.run, settings, done, failure) from None
    row = {
        "name": step.stage,
        "round": step.round,
        "seconds": used.seconds,
        "peak_memory_gib": used.peak_memory_gib,
        "examples": outcome.examples,
        "tokens": outcome.tokens,
        "facts": dict(outcome.facts),
        **({"sft_sha256": _sft_sha256(context)} if step.stage in POLICY_STAGES else {}),
        **(_memory_gib(context, step) if stage.needs_model else {}),
    }
    context.finish(step.entry, row)
    context.reporter.finish(step.entry, outcome.summary + forecast.in_words(row))


def _sft_sha256(context: Context) -> str:
    """Digest of the SFT adapter, which every policy is anchored to: a duel is from one alone."""
    return sha256_of(context.adapter_folder("sft") / "adapter_model.safetensors")


def _note_base(context: Context) -> None:
    """Note the base before an adapter is trained; `_check_base` compares at the end.

    A run may go on on another machine, where other bytes compute the same base: each process
    compares with its own beginning.

    Raises:
        UserError: The run was begun with a base of other weights.
    """
    base, digest = context.base, context.base_digest
    noted = context.run.done("base")
    begun = None if noted is None else noted.get("fingerprint")
    if begun not in (None, base.fingerprint) and not context.adapters.fits_earlier(begun):
        raise UserError(
            f"{context.run.path}: was begun with another base ({begun}, here it is "
            f"{base.fingerprint}); go on with the version that began it, or give another --out"
        )
    if noted is None:
        facts = {
            "digest": digest,
            "parameters": base.parameters,
            "quantization": base.quantization,
            "fingerprint": base.fingerprint,
        }
        context.run.finish("base", facts)


def _memory_gib(context: Context, step: Step) -> dict[str, float]:
    """Memory that a stage was planned to take, and its measured peak on the card, in GiB."""
    planned = {"planned_memory_gib": forecast.planned_gib(context, step.stage, step.round)}
    measured = forecast.measured_gib(context.base.device)
    return planned if measured is None else planned | {"gpu_memory_gib": measured}


def _summarise(context: Context, command: str, steps: Sequence[Step]) -> None:
    _check_base(context)
    rows: list[dict[str, Any]] = []
    for step in steps:
        row = context.run.done(step.entry)
        assert row is not None
        rows.append(row)
    write_summary(context, command=command, stages=rows)


def _check_base(context: Context) -> None:
    trained_here = "base_digest" in vars(context)
    if trained_here and weights_digest(context.base) != context.base_digest:
        raise RuntimeError("the frozen base changed during the run")
