"""Placement of an exported model that is read again: the GPU that trained it may be too small.

Accelerate spreads a checkpoint over the GPU, main memory and the disk, in this order. A GGUF file
is read in one piece, on the GPU or in main memory, in 32 bit where that fits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

SPARE = 1.15
"""Memory of a model with activations and cache, as a multiple of its weights' bytes."""


def free_bytes(device: torch.device) -> int:
    """Free bytes of GPU memory, or of main memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def dealt_out(device: torch.device, offload: Path) -> dict[str, Any]:
    """Options of `from_pretrained` for a checkpoint of any size.

    Args:
        device: Device of training.
        offload: Folder for the index of weights that stay on the disk.
    """
    max_memory: dict[int | str, int] = {}
    if device.type == "cuda":
        max_memory[device.index or 0] = int(free_bytes(device) / SPARE)
    max_memory["cpu"] = int(free_bytes(torch.device("cpu")) / SPARE)
    return {"device_map": "auto", "max_memory": max_memory, "offload_folder": str(offload)}


def whole(
    weights: int, half: torch.dtype, device: torch.device
) -> tuple[torch.device, torch.dtype] | None:
    """Choose the device and dtype in which a model fits in one piece; None if it fits nowhere.

    Prefers 32 bit to `half`, and the GPU to the processor.
    """
    for dtype in (torch.float32, half):
        for candidate in dict.fromkeys((device, torch.device("cpu"))):
            if weights * dtype.itemsize * SPARE <= free_bytes(candidate):
                return candidate, dtype
    return None


def entry(model: Any) -> torch.device:
    """The device of a model's input ids; weights left on the disk have none."""
    device_map = getattr(model, "hf_device_map", None)
    if device_map is None:
        return torch.device(model.device)
    first = next((device for device in device_map.values() if device not in ("cpu", "disk")), "cpu")
    return torch.device(first)
