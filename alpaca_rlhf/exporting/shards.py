"""Weights in safetensors files: computed and written shard by shard, then read again."""

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
"""Maximum bytes of a shard; little more than this is ever in memory."""

_INDEX = "model.safetensors.index.json"

Progress = Callable[[int, int], None]
"""Receives the number of finished tensors and the total."""


def write_shards(
    folder: Path,
    weights: Sequence[Weight],
    dtype: torch.dtype,
    *,
    progress: Progress,
    shard: int = SHARD,
) -> None:
    """Write weights as a checkpoint of transformers, in one file where they fit.

    Raises:
        UserError: The disk is full, or the folder cannot be written to.
    """
    shards = list(_split(weights, dtype.itemsize, shard))
    names = _names(len(shards))
    file_of_weight: dict[str, str] = {}
    done = 0
    # 1. Compute the tensors of a shard and write them; the next shard frees their memory.
    for name, weights_of_shard in zip(names, shards, strict=True):
        tensors: dict[str, Tensor] = {}
        for weight in weights_of_shard:
            tensors[weight.name] = weight.make().to(dtype).contiguous()
            file_of_weight[weight.name] = name
            done += 1
            progress(done, 2 * len(weights))
        with writing(folder / name):
            save_file(tensors, str(folder / name), {"format": "pt"})
    # 2. With several files, transformers looks tensors up in an index.
    if len(shards) > 1:
        size = sum(prod(weight.shape) for weight in weights) * dtype.itemsize
        index = {"metadata": {"total_size": size}, "weight_map": file_of_weight}
        atomic_write(folder / _INDEX, json.dumps(index, indent=2) + "\n")


def first_difference(
    folder: Path, weights: Sequence[Weight], dtype: torch.dtype, *, progress: Progress
) -> str | None:
    """Name of the first tensor in a checkpoint that differs in any bit from its source."""
    done, by_name = 0, {weight.name: weight for weight in weights}
    names: set[str] = set()
    # 1. Every stored tensor against its source, computed once more.
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():
                names.add(name)
                done += 1
                progress(len(weights) + done, 2 * len(weights))
                if name not in by_name:
                    return str(name)
                if not torch.equal(file.get_tensor(name), by_name[name].make().to(dtype)):
                    return str(name)
    # 2. A tensor that no file holds.
    return min(by_name.keys() - names, default=None)


def _split(weights: Sequence[Weight], itemsize: int, limit: int) -> Iterator[list[Weight]]:
    """Split weights, in order, into shards up to the limit; a larger weight gets its own."""
    weights_of_shard: list[Weight] = []
    size = 0
    for weight in weights:
        weight_size = prod(weight.shape) * itemsize
        if weights_of_shard and size + weight_size > limit:
            yield weights_of_shard
            weights_of_shard, size = [], 0
        weights_of_shard.append(weight)
        size += weight_size
    yield weights_of_shard


def _names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
