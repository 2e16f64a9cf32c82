"""Every stage of a base on a simulated card, as a table of what each part of it took.

    python -m tests.cuda_sim.simulate llama-3-8b tests/cuda_sim/budgets/llama-3-8b.json

The base is loaded whole. The stages run on one of the same widths with two of its layers, so that
it takes seconds; what they do a layer is the same.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
from torch.nn.functional import layer_norm

from alpaca_rlhf.models import base as base_module
from alpaca_rlhf.models import dense, rollout, scoring
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.heads import ScalarHead
from alpaca_rlhf.planner import Device, Lengths, PeakMemory, Shape
from alpaca_rlhf.settings import (
    DPO,
    GRPO,
    PPO,
    SFT,
    BestOfK,
    Loop,
    Rank,
    Reward,
    Sampling,
    Value,
)
from alpaca_rlhf.settings.loop import RECOMPUTED_EVERY
from alpaca_rlhf.training.dpo import ReferencedGroup, train_dpo
from alpaca_rlhf.training.group_policy import train_in_groups
from alpaca_rlhf.training.grpo import grpo_method
from alpaca_rlhf.training.rollouts import RolloutPrompt
from benchmarks.stage_memory import Stages
from tests.cuda_sim.bases import BASES, write_hollow
from tests.cuda_sim.simulated_gpu import SimulatedGPU, simulated_gpu

LAYERS = 2
"""Layers of the base that the stages run on."""
PROMPT, NEW = 256, 17
"""Tokens of a prompt, and of a completion: one after the prompt, then 16 until the next look."""
MICRO = 2
BEFORE_FLASH = (7, 5)
"""Compute capability of a T4."""
TRUNKS = ("detached", "shared", "separate")
PHASES = ("rollout", "scoring", "update")
KEPT = "ppo, detached, checkpointing off: update"
SETTINGS = Loop(
    policies=("ppo", "best-of-k", "dpo", "grpo"),
    sampling=Sampling(max_new_tokens=NEW, batch_size=8),
    sft=SFT(batch_size=2 * MICRO, micro_batch_size=MICRO, max_length=512, epochs=1),
    rank=Rank(k=2),
    reward=Reward(batch_size=2 * MICRO, micro_batch_size=MICRO, max_length=PROMPT + NEW),
    best_of_k=BestOfK(k=2, epochs=1),
    dpo=DPO(batch_size=2 * MICRO, micro_batch_size=MICRO, max_length=PROMPT + NEW),
    ppo=PPO(
        updates=2,
        batch_size=4 * MICRO,
        minibatch_size=2 * MICRO,
        micro_batch_size=MICRO,
        epochs=1,
        max_new_tokens=NEW,
        value=Value(warmup=0),
    ),
    grpo=GRPO(
        updates=1,
        prompts=2 * MICRO,
        k=2,
        minibatch_size=2 * MICRO,
        micro_batch_size=MICRO,
        max_new_tokens=NEW,
    ),
)


class Counting:
    """The cost of each part of a stage on the card, the last time it ran.

    Args:
        gpu: The card.
    """

    def __init__(self, gpu: SimulatedGPU) -> None:
        self.gpu = gpu
        self.rows: dict[str, dict[str, Any]] = {}
        self.peaks: dict[str, int] = {}  # `rows` has them

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count a block; `phase` may cut it."""
        self.gpu.clear()
        yield
        self.note(name)

    def phase(self, name: str, before: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted apart from what was before it."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.note(before)
            result = work(*args, **kwargs)
            self.note(name)
            return result

        return counted

    def note(self, name: str) -> None:
        """Keep what was counted under a name, and count anew."""
        gpu = self.gpu
        peak = max(gpu.peak, self.rows.get(name, {"bytes": 0})["bytes"])
        self.rows[name] = {
            "kernels": sum(gpu.kernels.values()),
            "reads": sum(gpu.reads.values()),
            "uploads": gpu.uploads,
            "bytes": peak,
            "by_kernel": dict(gpu.kernels.most_common()),
            "by_read": dict(gpu.reads.most_common()),
        }
        gpu.clear()


class NoCheckpoints:
    """Checkpoints that are neither there nor kept; a batch that is bad is an error."""

    folder = Path("none")

    def latest(self) -> None:
        """There is none."""

    def step(self) -> int:
        """No step is done."""
        return 0

    def save(self, step: int, state: dict[str, Any], *, best: int | None = None) -> None:
        """Keep nothing."""

    def save_bad_batch(self, step: int, rows: Any) -> Path:
        """Name a file that is not written."""
        return self.folder


@dataclass(frozen=True)
class SimulatedStages(Stages):
    """The stages of `benchmarks/stage_memory.py`, and those of the other policies."""

    def _checkpoints(self, name: str) -> Any:
        return NoCheckpoints()

    def evaluate(self, head: ScalarHead) -> None:
        """Sample and be greedy, score with the reward model, and take log-probabilities."""
        adapters, sampling = self.adapters, self.settings.sampling
        with self.meter.stage("evaluate"):
            self._draw("policy", sampling)
            self._draw("sft", replace(sampling, temperature=0.0))
            examples = self._examples(sampling.batch_size, NEW)
            scoring.score(adapters, "reward", head, examples, batch_size=sampling.batch_size)
            scoring.completion_logprobs(adapters, "sft", examples, batch_size=MICRO)

    def dpo(self) -> None:
        """Two steps on rankings, and the loss on those held out."""
        rows = [ReferencedGroup(group, (0.0,) * 2) for group in self._groups(6 * MICRO, seed=0)]
        with self.meter.stage("dpo"):
            train_dpo(
                self.adapters,
                "policy",
                rows[2 * MICRO :],
                rows[: 2 * MICRO],
                replace(self.settings.dpo, epochs=1),
                seed=0,
                checkpoints=self._checkpoints("dpo"),
                log=lambda row: None,
            )

    def grpo(self, head: ScalarHead) -> None:
        """One update."""
        prompts = self._prompts(2 * MICRO)
        with self.meter.stage("grpo"):
            train_in_groups(
                self.adapters,
                head,
                [RolloutPrompt(str(number), ids) for number, ids in enumerate(prompts)],
                grpo_method(self.settings.grpo),
                seed=0,
                rollout_batch_size=self.settings.sampling.batch_size,
                checkpoints=self._checkpoints("grpo"),
                log=lambda row: None,
            )


def simulate(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Run everything; returns counts and planned bytes by stage."""
    shape = BASES[name]
    small = replace(shape, layers=LAYERS)
    checkpoints = [write_hollow(folder / str(s.layers), s) for s in (shape, small)]
    # The fingerprint reads parts of every weight: here gigabytes of nothing.
    unread = mock.patch.object(base_module, "fingerprint_of", lambda *args: "simulated")
    # There is nothing to capture: each step is launched, and its kernels counted.
    plain = mock.patch.object(rollout, "captured", lambda step, device: step)
    # On a card it is one kernel, as a layer norm is; this build of torch writes it out.
    one_kernel = mock.patch.object(
        dense, "rms_norm", lambda x, size, weight, eps: layer_norm(x, size, weight, None, eps)
    )
    with simulated_gpu() as gpu, unread, plain, one_kernel:
        counting = Counting(gpu)
        _refuses_mixtures(gpu)
        # 1. The whole base.
        with counting.stage("load"):
            base = load_base(str(checkpoints[0]), device="cuda", dtype=torch.bfloat16)
            gc.collect()
            loaded = gpu.live
        counting.rows["load"]["bytes"] = loaded
        del base
        gc.collect()
        # 2. The stages; of a base with as many key heads as query heads, with one trunk.
        for trunk in TRUNKS if shape.kv_heads < shape.heads else TRUNKS[:1]:
            base = load_base(str(checkpoints[1]), device="cuda", dtype=torch.bfloat16)
            base = replace(base, stop_ids=frozenset())  # every completion is as long as may be
            _run_stages(Adapters(base, SETTINGS.lora, template="brief"), trunk, counting)
            del base
            gc.collect()
        # 3. A card of an earlier kind, where heads that share keys need plain products.
        if shape.kv_heads < shape.heads:
            with mock.patch.object(torch.cuda, "get_device_capability", lambda *_: BEFORE_FLASH):
                base = load_base(str(checkpoints[1]), device="cuda", dtype=torch.float16)
                _run_before_flash(Adapters(base, SETTINGS.lora, template="brief"), counting)
                del base
    _add_plans(shape, small, counting.rows)
    return counting.rows


def _refuses_mixtures(gpu: SimulatedGPU) -> None:
    """See that a mixture of devices is found, and a read counted: else no test here could fail."""
    numbers = torch.arange(4).to("cuda")
    try:
        numbers + torch.arange(4)
    except RuntimeError as error:
        assert "same device" in str(error), error
    else:
        raise AssertionError("a mixture of devices was not refused")
    assert numbers.tolist() == [0, 1, 2, 3] and (numbers > 1).sum().item() == 2
    assert (sum(gpu.reads.values()), gpu.uploads) == (2, 1), (gpu.reads, gpu.uploads)


def _run_stages(adapters: Adapters, trunk: str, counting: Counting) -> None:
    """All stages with PPO's first trunk; PPO alone with the others."""
    first = trunk == TRUNKS[0]
    value = replace(SETTINGS.ppo.value, trunk=trunk)
    ppo = replace(SETTINGS.ppo, value=value, updates=2 if first else 1)
    settings = replace(SETTINGS, ppo=ppo)
    meter: Any = counting
    stages = SimulatedStages(adapters, settings, PROMPT, meter, Path("none"))
    if first:
        adapters.add("sft")
        for how, every in RECOMPUTED_EVERY.items():
            adapters.checkpointing(every)
            with counting.stage(f"sft, checkpointing {how}"):
                stages._fine_tune("sft", "sft", settings.sft.max_length - PROMPT)
    adapters.checkpointing(1)
    only = ("sample", "reward", "best_of_k") if first else ()
    stages.all(only)
    if first:
        counting.rows["sample"]["decode_step"] = _launches_of_a_step(stages, counting.gpu)
    hidden = int(adapters.base.model.config.hidden_size)
    head = ScalarHead(hidden).to(adapters.base.device)
    adapters.add("policy", copy_of="sft")
    if first:
        stages.evaluate(head)
        stages.dpo()
        stages.grpo(head)
    stages._ppo(head)
    rows = {phase: counting.rows.pop(f"ppo: {phase}") for phase in (*PHASES, "between")}
    # Where there is one update only, its rollout and scoring come before there are moments.
    for phase in PHASES if first else PHASES[-1:]:
        counting.rows[f"ppo, {trunk}: {phase}"] = rows[phase]
    if first:
        adapters.checkpointing(0)
        stages._ppo(head)
        rows = {phase: counting.rows.pop(f"ppo: {phase}") for phase in (*PHASES, "between")}
        counting.rows[KEPT] = rows["update"]


def _launches_of_a_step(stages: SimulatedStages, gpu: SimulatedGPU) -> dict[str, int]:
    """Kernels of a decode step, and those of one of its layers."""
    layer = stages.adapters.base.model.model.layers[-1]
    counts: dict[str, list[int]] = {"step": [], "layer": []}

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            before = gpu.kernels.total()
            result = work(*args, **options)
            counts[name].append(gpu.kernels.total() - before)
            return result

        return run

    step = counted("step", rollout._Batch._step_in_place)
    with (
        mock.patch.object(rollout._Batch, "_step_in_place", step),
        mock.patch.object(layer, "forward", counted("layer", layer.forward)),
    ):
        stages._draw("sft", stages.settings.sampling)
    return {name: launches[-1] for name, launches in counts.items()}


def _run_before_flash(adapters: Adapters, counting: Counting) -> None:
    """SFT alone."""
    meter: Any = counting
    stages = SimulatedStages(adapters, SETTINGS, PROMPT, meter, Path("none"))
    adapters.add("sft")
    adapters.checkpointing(1)
    with counting.stage("sft, before sm80"):
        stages._fine_tune("sft", "sft", SETTINGS.sft.max_length - PROMPT)


def _add_plans(shape: Shape, small: Shape, rows: dict[str, dict[str, Any]]) -> None:
    lengths = Lengths(prompt=PROMPT, worksheet=PROMPT, chat=PROMPT)
    whole = PeakMemory(shape, Device("cuda", 2), SETTINGS, lengths)
    items = next(whole.sft()).items
    rows["load"]["planned"] = items["weights in 4 bit"] + items["embeddings, head and norms"]
    for trunk in TRUNKS:
        ppo = replace(SETTINGS.ppo, value=replace(SETTINGS.ppo.value, trunk=trunk))
        plan = PeakMemory(small, Device("cuda", 2), replace(SETTINGS, ppo=ppo), lengths)
        for phase in plan.ppo():
            part = phase.name if phase.name in ("rollout", "scoring") else "update"
            row = rows.get(f"ppo, {trunk}: {part}")
            if row is not None:
                row["planned"] = max(phase.peak, row.get("planned", 0))
    plan = PeakMemory(small, Device("cuda", 2), SETTINGS, lengths)
    ppo = replace(SETTINGS.ppo, value=replace(SETTINGS.ppo.value, trunk=TRUNKS[0]))
    kept = PeakMemory(
        small, Device("cuda", 2), replace(SETTINGS, ppo=ppo), lengths, checkpointing=0
    )
    updates = [phase.peak for phase in kept.ppo() if phase.name not in PHASES]
    rows[KEPT]["planned"] = max(updates)
    for how, every in RECOMPUTED_EVERY.items():
        plan_of_sft = PeakMemory(small, Device("cuda", 2), SETTINGS, lengths, checkpointing=every)
        rows[f"sft, checkpointing {how}"]["planned"] = plan_of_sft.peak("sft")
    if "sft, before sm80" in rows:
        earlier = Device("cuda", 2, BEFORE_FLASH)
        rows["sft, before sm80"]["planned"] = PeakMemory(small, earlier, SETTINGS, lengths).peak(
            "sft"
        )
    for name in ("sample", "reward", "best_of_k", "evaluate", "dpo", "grpo"):
        rows[name]["planned"] = plan.peak(name)


def main(name: str, out: str) -> None:
    """Simulate a base and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        Path(out).write_text(json.dumps(simulate(name, Path(folder)), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
