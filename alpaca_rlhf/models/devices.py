"""The device that a base computes on, and what it cannot do.

Apple's MPS has no float64, and bitsandbytes multiplies with 4-bit weights there since 0.50 (its
`backends/mps/ops.py`), as the plain operations of torch where its Metal kernels are not installed.
Nothing has run on a Mac.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from alpaca_rlhf.core.errors import UserError

VARIABLE = "ALPACA_RLHF_DEVICE"
"""Names the device instead: `cpu` where MPS lacks an operation."""


def default_device() -> torch.device:
    """CUDA (ROCm among it) if torch sees a card, else Apple's MPS, else the CPU.

    Raises:
        UserError: `ALPACA_RLHF_DEVICE` names none that torch can use here.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return _named_device(named)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"{VARIABLE}={name} is no device; give cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    elif device.type == "mps":
        count = int(torch.backends.mps.is_available())
    else:
        count = 1
    if (device.index or 0) >= count:
        devices = f"{count} of this kind" if count else "none of this kind"
        raise UserError(
            f"{VARIABLE}={name}: torch sees {devices} here; give cpu, or leave the variable out"
        )
    return device


def multiplies_in_4_bit(device: torch.device) -> bool:
    """True if bitsandbytes has a kernel for NF4 weights on the device."""
    if device.type != "mps":
        return True
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return bool(has_kernel("bitsandbytes::dequantize_4bit", "MPS"))


def float64(tensor: Tensor) -> Tensor:
    """The tensor in float64, on the CPU where its device has none."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def exact_dtype(device: torch.device) -> torch.dtype:
    """The widest float of a device."""
    return torch.float32 if device.type == "mps" else torch.float64
