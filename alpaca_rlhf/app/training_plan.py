"""Planned time and memory of each stage of a run, for this machine, without torch."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.planner import (
    CPU,
    Budget,
    GpuSpec,
    Rates,
    StageWork,
    device_of,
    find_gpu,
    shape_of,
)
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.sources import read_rows

_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_SMI_TIMEOUT_S = 20
_MIB_PER_GIB = 1024
_ONCE = ("generate", "sft", "evaluate")
"""Stages that a run has once, whatever its rounds."""


@dataclass(frozen=True)
class PlannedStage:
    """The plan of one stage of one round."""

    seconds: float
    """Time."""
    peak_gib: float
    """Peak memory."""
    fits: bool
    """False if that is more than the card has."""


def plan_of(settings: Loop, card: GpuSpec) -> Mapping[str, PlannedStage]:
    """The plan of every stage that needs the model.

    Raises:
        UserError: The base or the rows cannot be read.
    """
    shape = shape_of(settings.base)
    budget = Budget(shape, card, device=device_of(card))
    rates = Rates.reached(card)
    if settings.inputs.rows is not None:
        rows = len(read_rows(settings.inputs)[0])
    else:
        rows = settings.generate.target + settings.generate.seeds
    checkpointing = settings.checkpoints_on(budget.device.kind)
    work = StageWork(shape, settings, budget.lengths, rows, checkpointing).all()
    plan = {}
    for stage, phases in budget.phases(settings).items():
        if stage in work:
            rounds = 1 if stage in _ONCE else settings.all_rounds
            peak = max(phase.peak for phase in phases)
            seconds = work[stage].seconds(rates, shape.layers) / rounds
            plan[stage] = PlannedStage(seconds, peak / 2**30, peak <= budget.bytes)
    return plan


def local_card() -> GpuSpec:
    """This machine's graphics card as its driver names it; the CPU without one."""
    if shutil.which(_NVIDIA_SMI[0]) is None:
        return CPU
    try:
        output = subprocess.run(
            _NVIDIA_SMI, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=True
        ).stdout
        name, mib = output.splitlines()[0].rsplit(",", 1)
        gib = float(mib) / _MIB_PER_GIB
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return CPU
    try:
        return find_gpu(name.strip())
    except UserError:
        return find_gpu(f"{gib:.3g}")
