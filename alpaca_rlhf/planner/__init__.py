"""What a run will take before it is started: memory, time, cost, and the settings that fit.

From the model's configuration alone: no weights and no torch. `layers` and `decoding` follow the
real forwards tensor by tensor, `memory` stage by stage, `work` counts products, `disk` what is
written, `cards` knows cards, `choosing` looks for the largest settings.
"""

from alpaca_rlhf.planner.cards import (
    CARDS,
    CPU,
    REACHED_BANDWIDTH,
    REACHED_FLOPS,
    RESERVE,
    Card,
    card_of,
)
from alpaca_rlhf.planner.choosing import Budget, changes, chosen, device_of, refuse_too_small
from alpaca_rlhf.planner.disk import written
from alpaca_rlhf.planner.layers import Device
from alpaca_rlhf.planner.memory import Lengths, Memory, Phase
from alpaca_rlhf.planner.shapes import KNOWN, Shape, from_config, shape_of
from alpaca_rlhf.planner.work import Rates, Stages, Work

__all__ = [
    "CARDS",
    "CPU",
    "KNOWN",
    "REACHED_BANDWIDTH",
    "REACHED_FLOPS",
    "RESERVE",
    "Budget",
    "Card",
    "Device",
    "Lengths",
    "Memory",
    "Phase",
    "Rates",
    "Shape",
    "Stages",
    "Work",
    "card_of",
    "changes",
    "chosen",
    "device_of",
    "from_config",
    "refuse_too_small",
    "shape_of",
    "written",
]
