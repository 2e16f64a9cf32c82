"""The context that all stages of a run share.

Settings, run folder, tasks, and the base with its adapters, which are loaded on first use.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.prompts import Segment
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.runs import RunFolder, day_of
from alpaca_rlhf.data import read_own_tasks
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base, load_base, weights_digest
from alpaca_rlhf.models.compiled import compile_regions
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.settings import Loop, Sampling
from alpaca_rlhf.settings.loop import MAX_HALVINGS
from alpaca_rlhf.sources import Source, read_rows
from alpaca_rlhf.stages.judging import Judges
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.trackers import tracker

logger = logging.getLogger(__name__)

CONTROLS = {"reward": "reward_shuffled", "best_of_k": "random_of_k", "ppo": "ppo_shuffled"}
"""Stages that can train a control beside, and its name."""


class Reporter(Protocol):
    """Shows the progress of a run to a person."""

    def start(self, stage: str, what: str) -> None:
        """Announce a stage and its work."""
        ...

    def step(self, stage: str, done: int, total: int, metrics: dict[str, Any]) -> None:
        """Report that `done` of `total` steps are finished."""
        ...

    def preview(self, stage: str, what: str, segments: Sequence[Segment]) -> None:
        """Show one training row before the first step, and which of its text carries loss."""
        ...

    def say(self, text: str) -> None:
        """Show a message on a line of its own."""
        ...

    def finish(self, stage: str, what: str) -> None:
        """Announce the end of a stage and its result."""
        ...


def control_of(stage: str) -> str:
    """Name of a stage's control, in any round: `reward.2` has `reward_shuffled.2`."""
    stem, dot, round_ = stage.partition(".")
    return f"{CONTROLS[stem]}{dot}{round_}"


def second_of(stage: str) -> str:
    """Name of the second reward model of a reward stage: `reward.2` has `reward_second.2`."""
    stem, dot, round_ = stage.partition(".")
    return f"{stem}_second{dot}{round_}"


def subset_of(stage: str, halvings: int) -> str:
    """Name of a reward model on a share of the rankings: `reward.2` has `reward_subset_4.2`."""
    stem, dot, round_ = stage.partition(".")
    return f"{stem}_subset_{2**halvings}{dot}{round_}"


def forget(run: RunFolder, stage: str) -> None:
    """Delete the progress of an unfinished stage and of the models it trains beside, and say so."""
    steps = _checkpoints(run, stage).step()
    if steps:
        logger.warning(
            "%s begins anew after %d steps: its settings, or what it learns from, have changed",
            stage,
            steps,
        )
    stem = stage.partition(".")[0]
    beside = [control_of(stage)] if stem in CONTROLS else []
    if stem == "reward":
        subsets = range(1, MAX_HALVINGS + 1)
        beside += [second_of(stage), *(subset_of(stage, halvings) for halvings in subsets)]
    for name in (stage, *beside):
        _checkpoints(run, name).clear()
        run.undo(name)


def _checkpoints(run: RunFolder, stage: str) -> Checkpoints:
    bad_batches = run.path / "bad_batch" / stage
    return Checkpoints(run.path / "checkpoints" / stage, bad_batches=bad_batches)


@dataclass
class Context:
    """A run in progress."""

    settings: Loop
    """Every number of the run."""
    run: RunFolder
    """Folder that all results are written to."""
    source: Source
    """Tasks and prompts."""
    reporter: Reporter
    """Shows progress."""
    judges: Judges = field(default_factory=Judges)
    """The judges that its settings name."""

    def __post_init__(self) -> None:
        self.judges.lend(lambda: self.adapters)

    @cached_property
    def base(self) -> Base:
        """The frozen base model."""
        return load_base(self.settings.base, day=day_of(self.run.path))

    @cached_property
    def base_digest(self) -> str:
        """Digest of the base's bytes on this machine, taken before this process trains."""
        return weights_digest(self.base)

    @cached_property
    def adapters(self) -> Adapters:
        """The adapters on the base, with activation checkpointing where the settings want it."""
        adapters = Adapters(
            self.base,
            self.settings.lora,
            template=self.settings.template,
            dense_gib=self.settings.sampling.dense_gib,
        )
        if self.settings.compile:
            compile_regions(self.base.model)
        adapters.checkpointing(self.settings.checkpoints_on(self.base.device.type))
        self.judges.refuse_other_base(adapters)  # now, not when the first score is asked for
        return adapters

    @cached_property
    def track(self) -> Callable[[Mapping[str, Any]], None]:
        """Sends metrics to the tracker, which comes on top of the run folder."""
        return tracker(self.settings.track if processes.main() else "none", self.run.path)

    def splits(self) -> dict[str, list[Instruction]]:
        """Collect SFT's training rows under `sft`, and the prompts of every other split.

        The rows are the user's own, or the seed tasks and the generated ones; none are known for
        an adapter that was trained elsewhere, or for a base that is taken as it is.
        """
        if self.settings.inputs.rows is not None:
            rows, _ = read_rows(self.settings.inputs)
        elif not self.settings.inputs.makes_rows:
            rows = []
        else:
            generated = read_own_tasks(self.run.path / "generate" / "rows.jsonl", answered=True)
            rows = self.source.seeds() + generated
        return {"sft": rows, **{name: self.source.prompts(name) for name in self.source.names()}}

    def adapter_folder(self, stage: str) -> Path:
        """Folder of a stage's adapter."""
        return self.run.path / stage / "adapter"

    def load(self, role: str, stage: str) -> None:
        """Load the adapter of a finished stage as `role`."""
        self.adapters.load(role, self.adapter_folder(stage))

    def save(
        self, role: str, stage: str, head: ScalarHead | None = None, *, trained: bool = True
    ) -> None:
        """Save a stage's adapter, and its head beside it, from the main process alone."""
        if processes.main():
            self.adapters.save(role, self.adapter_folder(stage), head, trained=trained)
        processes.wait()

    def load_head(self, stage: str) -> ScalarHead:
        """Load the scalar head of a finished reward stage."""
        head = ScalarHead.load(self.adapter_folder(stage), int(self.base.model.config.hidden_size))
        return head.to(self.base.device)

    def checkpoints(self, stage: str) -> Checkpoints:
        """Open the checkpoints of a stage.

        Metrics logged after the newest one are dropped: those steps run again.
        """
        checkpoints = _checkpoints(self.run, stage)
        last_step = checkpoints.step()
        self.run.truncate_metrics(lambda row: row["stage"] != stage or row["step"] <= last_step)
        return checkpoints

    def finish(self, stage: str, facts: dict[str, Any]) -> None:
        """Enter a finished stage, or part of one, in the ledger, and delete its checkpoints."""
        self.run.finish(stage, facts)
        _checkpoints(self.run, stage).clear()

    def log(self, stage: str) -> Callable[[dict[str, Any]], None]:
        """Return a function that logs a stage's metrics to the run folder, tracker and reporter."""

        def log(row: dict[str, Any]) -> None:
            self.run.log({"stage": stage, **row})
            self.track({"stage": stage, **row})
            self.reporter.step(stage, row["step"], row["steps"], row)

        return log

    def note_batch_size(self, stage: str, size: int, rows: str) -> str:
        """Keep the batch size that a stage took in the provenance; what the terminal says of it."""
        self.run.note(batch_sizes={**self.run.noted("batch_sizes"), stage: size})
        return f"batches of {size} for {rows}"

    def counting(self, stage: str, total: int) -> Callable[[int], None]:
        """Return a counter of finished work, which is called with each newly finished number."""
        done = 0

        def count(newly_done: int) -> None:
            nonlocal done
            done += newly_done
            self.reporter.step(stage, done, total, {})

        return count

    def sampling(self, stage: str, **changes: Any) -> Sampling:
        """Return the run's sampling settings at a stage's temperature, with changes."""
        temperature = self.settings.temperature_of(stage)
        return replace(self.settings.sampling, **{"temperature": temperature, **changes})
