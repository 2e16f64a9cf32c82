"""Loading the base and the adapter as they were in training."""

from __future__ import annotations

import torch

from alpaca_rlhf.core.runs import day_of
from alpaca_rlhf.exporting.request import ExportRequest
from alpaca_rlhf.models.adapter_files import saved_fingerprint
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import Base, load_base
from alpaca_rlhf.models.merging import in_float32

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def trained_base(request: ExportRequest) -> Base:
    """Load the run's base with the very weights that the adapter was trained on.

    The 4-bit weights are those of the checkpoint everywhere; embeddings, norms and head were in the
    compute dtype of the machine that trained, which stands beside the adapter. An earlier version
    rounded all weights to that dtype before it quantised them, and its fingerprint tells which.
    """
    name, day = request.settings.base, day_of(request.settings.out)
    saved = saved_fingerprint(request.adapter, f"{request.adapter}") or {}
    base = load_base(name, day=day, dtype=_DTYPES.get(str(saved.get("dtype"))))
    if base.earlier is None or base.fingerprint == saved.get("base"):
        return base
    rounded_to, stored = base.earlier.dtype_of(saved.get("base")), base.quantized_from
    if rounded_to is None or stored is None:
        return base  # loading the adapter refuses it with a message
    if torch.promote_types(stored, rounded_to) == rounded_to:
        return base  # that rounding changed nothing
    return load_base(name, day=day, dtype=rounded_to, rounded_to=rounded_to)


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
