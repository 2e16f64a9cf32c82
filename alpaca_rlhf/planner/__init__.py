"""Forecast of a run's memory, time and cost, and the largest settings that fit a GPU.

Works from the model's configuration alone, without weights or torch. `layers` and `decoding` follow
the real forwards tensor by tensor, `peak_memory` adds them up stage by stage, `work` counts
operations, `disk` the bytes written; `gpu_specs` describes GPUs, `choosing` finds the settings.
"""

from alpaca_rlhf.planner.choosing import (
    Budget,
    changed_flags,
    device_of,
    fitted,
    largest_fitting,
    refuse_too_small,
)
from alpaca_rlhf.planner.disk import disk_needs
from alpaca_rlhf.planner.gpu_specs import (
    CPU,
    LIBRARIES_GIB,
    PROCESS,
    RESERVE,
    GpuSpec,
    find_gpu,
)
from alpaca_rlhf.planner.layers import Device
from alpaca_rlhf.planner.peak_memory import Lengths, PeakMemory, Phase
from alpaca_rlhf.planner.shapes import Shape, shape_from_config, shape_of
from alpaca_rlhf.planner.work import Rates, StageWork

__all__ = [
    "CPU",
    "LIBRARIES_GIB",
    "PROCESS",
    "RESERVE",
    "Budget",
    "Device",
    "GpuSpec",
    "Lengths",
    "PeakMemory",
    "Phase",
    "Rates",
    "Shape",
    "StageWork",
    "changed_flags",
    "device_of",
    "disk_needs",
    "find_gpu",
    "fitted",
    "largest_fitting",
    "refuse_too_small",
    "shape_from_config",
    "shape_of",
]
