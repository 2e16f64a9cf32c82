"""Where a model that was exported is read again: the card that trained it in 4 bit may not hold it.

A checkpoint is dealt out by accelerate, to the card, the processor's memory and the disk in turn. A
GGUF file is read whole, on the card or beside the processor, in 32 bit where that fits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

SPARE = 1.15
"""What a model takes of memory, in its weights' bytes: its own, activations and the cache."""


def free_bytes(device: torch.device) -> int:
    """Memory that is free now: the card's, or the processor's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def dealt_out(device: torch.device, offload: Path) -> dict[str, Any]:
    """Options of `from_pretrained` for a checkpoint of any size.

    Args:
        device: Where training computed.
        offload: A folder for the map of what stays on the disk.
    """
    most: dict[int | str, int] = {}
    if device.type == "cuda":
        most[device.index or 0] = int(free_bytes(device) / SPARE)
    most["cpu"] = int(free_bytes(torch.device("cpu")) / SPARE)
    return {"device_map": "auto", "max_memory": most, "offload_folder": str(offload)}


def whole(
    weights: int, half: torch.dtype, device: torch.device
) -> tuple[torch.device, torch.dtype] | None:
    """Where, and in which dtype, so many weights fit in one piece; None if nowhere.

    32 bit comes before `half`, and the card before the processor.
    """
    for dtype in (torch.float32, half):
        for place in dict.fromkeys((device, torch.device("cpu"))):
            if weights * dtype.itemsize * SPARE <= free_bytes(place):
                return place, dtype
    return None


def entry(model: Any) -> torch.device:
    """The device that a model takes its ids on, which weights left on the disk do not tell."""
    places = getattr(model, "hf_device_map", None)
    if places is None:
        return torch.device(model.device)
    first = next((one for one in places.values() if one not in ("cpu", "disk")), "cpu")
    return torch.device(first)
