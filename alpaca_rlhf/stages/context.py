"""What every stage of a run shares.

Settings, run folder, tasks, and the base with its adapters, loaded when first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from alpaca_rlhf.core import processes
from alpaca_rlhf.core.prompts import Segment
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.data import read_instructions
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base, load_base
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.settings import Loop, Sampling
from alpaca_rlhf.sources import Source
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.trackers import tracker


class Reporter(Protocol):
    """Shows a person where a run stands."""

    def start(self, stage: str, what: str) -> None:
        """A stage begins, and will do `what`."""
        ...

    def step(self, stage: str, done: int, total: int, metrics: dict[str, Any]) -> None:
        """`done` of `total` steps are done."""
        ...

    def preview(self, stage: str, what: str, segments: Sequence[Segment]) -> None:
        """One row that is learned from, before the first step, and what of it carries loss."""
        ...

    def say(self, text: str) -> None:
        """Something worth a line of its own."""
        ...

    def finish(self, stage: str, what: str) -> None:
        """A stage ended with `what`."""
        ...


def suffixed(name: str, round_: int) -> str:
    """`ppo`, in later rounds `ppo.2` ..."""
    return name if round_ == 1 else f"{name}.{round_}"


def forget(run: RunFolder, stage: str) -> None:
    """Let a stage that is under way begin anew; with a reward model its control."""
    for name in (stage, f"{stage}_shuffled"):
        _checkpoints(run, name).clear()
        run.undo(name)


def _checkpoints(run: RunFolder, stage: str) -> Checkpoints:
    bad_batches = run.path / "bad_batch" / stage
    return Checkpoints(run.path / "checkpoints" / stage, bad_batches=bad_batches)


@dataclass
class Context:
    """A run in progress."""

    settings: Loop
    """Every number."""
    run: RunFolder
    """Where everything is written."""
    source: Source
    """Tasks and verdicts."""
    reporter: Reporter
    """Shows progress."""

    @cached_property
    def base(self) -> Base:
        """The frozen base."""
        return load_base(self.settings.base)

    @cached_property
    def adapters(self) -> Adapters:
        """The adapters on the base; checkpointed activations on CUDA, where memory is dear."""
        adapters = Adapters(
            self.base,
            self.settings.lora,
            template=self.settings.template,
            dense_gib=self.settings.sampling.dense_gib,
        )
        if self.base.device.type == "cuda":
            adapters.checkpointing(True)
        return adapters

    @cached_property
    def track(self) -> Callable[[Mapping[str, Any]], None]:
        """Where metrics go beside the run folder."""
        return tracker(self.settings.track if processes.main() else "none", self.run.path)

    def splits(self) -> dict[str, list[Instruction]]:
        """What SFT trains on, under `sft`, and the prompts of every other split.

        That is the user's rows, or the seed tasks and the generated ones; none where the adapter
        is somebody else's.
        """
        if self.settings.inputs.rows is not None:
            rows = read_instructions(self.settings.inputs.rows)
        elif self.settings.inputs.sft_adapter is not None:
            rows = []  # what somebody trained it on is not known
        else:
            generated = read_instructions(self.run.path / "generate" / "rows.jsonl")
            rows = self.source.seeds() + generated
        return {"sft": rows, **{name: self.source.prompts(name) for name in self.source.names()}}

    def adapter_folder(self, stage: str) -> Path:
        """Where a stage keeps its adapter."""
        return self.run.path / stage / "adapter"

    def load(self, role: str, stage: str) -> None:
        """Read the adapter that a finished stage made, as `role`."""
        self.adapters.load(role, self.adapter_folder(stage))

    def save(self, role: str, stage: str, head: ScalarHead | None = None) -> None:
        """Write the adapter that a stage made, once for all processes, and its head beside it."""
        if processes.main():
            self.adapters.save(role, self.adapter_folder(stage), head)
        processes.wait()

    def load_head(self, stage: str) -> ScalarHead:
        """Read the scalar head that a finished reward stage made."""
        head = ScalarHead.load(self.adapter_folder(stage), int(self.base.model.config.hidden_size))
        return head.to(self.base.device)

    def checkpoints(self, stage: str) -> Checkpoints:
        """Checkpoints of a stage.

        Metrics that come after the newest one are dropped: they will be logged again.
        """
        checkpoints = _checkpoints(self.run, stage)
        done = checkpoints.step()
        self.run.truncate_metrics(lambda row: row["stage"] != stage or row["step"] <= done)
        return checkpoints

    def finish(self, stage: str, facts: dict[str, Any]) -> None:
        """Note in the ledger that a stage, or a part of one, is done; it needs no checkpoint."""
        self.run.finish(stage, facts)
        _checkpoints(self.run, stage).clear()

    def log(self, stage: str) -> Callable[[dict[str, Any]], None]:
        """Receives a stage's metrics: for the run folder, a tracker, and the person who watches."""

        def log(row: dict[str, Any]) -> None:
            self.run.log({"stage": stage, **row})
            self.track({"stage": stage, **row})
            self.reporter.step(stage, row["step"], row["steps"], row)

        return log

    def counting(self, stage: str, total: int) -> Callable[[int], None]:
        """Shows how many of `total` are done, told how many more are."""
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self.reporter.step(stage, done, total, {})

        return count

    def sampling(self, **changes: Any) -> Sampling:
        """The run's sampling settings, with changes."""
        return replace(self.settings.sampling, **changes)
