"""Weights into safetensors files: made and written one shard after the other, then read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alpaca_rlhf.core.files import atomic_write, writing
from alpaca_rlhf.models.merging import Weight

SHARD = 2 * 2**30
"""Bytes a shard at most, so that little more than this is ever in memory."""

_INDEX = "model.safetensors.index.json"

Progress = Callable[[int, int], None]
"""Told how many tensors of how many are done."""


def write_shards(
    folder: Path,
    weights: Sequence[Weight],
    dtype: torch.dtype,
    *,
    progress: Progress,
    shard: int = SHARD,
) -> None:
    """Write weights as a checkpoint that transformers reads; one file where they fit into one.

    Raises:
        UserError: The disk is full, or the folder cannot be written.
    """
    groups = list(_groups(weights, dtype.itemsize, shard))
    names = _names(len(groups))
    places: dict[str, str] = {}
    done = 0
    for name, group in zip(names, groups, strict=True):
        tensors: dict[str, Tensor] = {}
        for weight in group:
            tensors[weight.name] = weight.make().to(dtype).contiguous()
            places[weight.name] = name
            done += 1
            progress(done, 2 * len(weights))
        with writing(folder / name):
            save_file(tensors, str(folder / name), {"format": "pt"})
    if len(groups) > 1:
        size = sum(prod(one.shape) for one in weights) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": places}
        atomic_write(folder / _INDEX, json.dumps(index, indent=2) + "\n")


def first_difference(
    folder: Path, weights: Sequence[Weight], dtype: torch.dtype, *, progress: Progress
) -> str | None:
    """The first tensor of a checkpoint that is not, bit for bit, the one it was made from."""
    done, by_name = 0, {one.name: one for one in weights}
    seen: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():
                seen.add(name)
                done += 1
                progress(len(weights) + done, 2 * len(weights))
                if name not in by_name:
                    return str(name)
                if not torch.equal(file.get_tensor(name), by_name[name].make().to(dtype)):
                    return str(name)
    return min(by_name.keys() - seen, default=None)


def _groups(weights: Sequence[Weight], itemsize: int, shard: int) -> Iterator[list[Weight]]:
    group: list[Weight] = []
    size = 0
    for one in weights:
        own = prod(one.shape) * itemsize
        if group and size + own > shard:
            yield group
            group, size = [], 0
        group.append(one)
        size += own
    yield group


def _names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
