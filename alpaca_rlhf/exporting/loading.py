"""Loading the base and the adapter as they were in training."""

from __future__ import annotations

import json
import logging

import torch

from alpaca_rlhf.core.runs import day_of
from alpaca_rlhf.exporting.request import ExportRequest
from alpaca_rlhf.models.adapter_files import FINGERPRINT
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base, load_base
from alpaca_rlhf.models.merging import in_float32

logger = logging.getLogger(__name__)

_DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def trained_base(request: ExportRequest) -> Base:
    """Load the run's base in the dtype that it was trained in.

    Another machine may load a base in another dtype, which can round it to other 4-bit codes. The
    fingerprint beside the adapter identifies the right one.
    """
    day = day_of(request.settings.out)
    base = load_base(request.settings.base, day=day)
    path = request.adapter / FINGERPRINT
    fingerprint = json.loads(path.read_text()).get("base") if path.is_file() else base.fingerprint
    for dtype in _DTYPES:
        if base.fingerprint == fingerprint:
            return base
        reloaded = load_base(request.settings.base, dtype=dtype, day=day)
        if reloaded.fingerprint == fingerprint:
            return reloaded
    return base  # loading the adapter refuses it with a message


def trained(request: ExportRequest, role: str) -> tuple[Base, Adapters]:
    """Load the base with its training weights, computing in float32, and the adapter as `role`.

    Returns:
        The base as it was trained, for its dtype, and the adapters on its float32 version.

    Raises:
        UserError: The adapter belongs to another base, template or shape.
    """
    base = trained_base(request)
    settings = request.settings
    adapters = Adapters(in_float32(base), settings.lora, template=settings.template, dense_gib=0.0)
    adapters.load(role, request.adapter)
    return base, adapters
