"""Tensors of a checkpoint as they are stored, from the headers of its safetensors files.

What is read here depends on the checkpoint alone: not on the machine, nor on the dtype that the
base computes in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.shell_words import quoted

_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
_WHOLE = 2**16
"""Elements up to which a tensor is sampled whole."""
_RUNS, _RUN = 256, 64
"""Evenly spaced runs, and elements of each, that are sampled of a larger tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file."""

    name: str
    path: Path
    """The file."""
    dtype: str
    """safetensors' name of its dtype, e.g. `BF16`."""
    shape: tuple[int, ...]
    begin: int
    """First byte in the file."""
    end: int
    """One more than the last byte."""

    @property
    def is_weight(self) -> bool:
        """True for weights and biases; False for scales and tables of a quantisation."""
        return self.name.endswith((".weight", ".bias"))

    def load(self) -> Tensor:
        """Read the tensor, on the CPU."""
        with safe_open(str(self.path), framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.name)
        return tensor

    def sample(self) -> bytes:
        """Evenly spaced elements: floats as float32, so that exact copies in two dtypes agree."""
        # 1. View the bytes as elements; what is no float is taken byte by byte.
        width = _BYTES.get(self.dtype, 1)
        count = (self.end - self.begin) // width
        if count == 0:
            return b""
        stored = np.memmap(
            self.path, mode="r", dtype=np.uint8, offset=self.begin, shape=(count * width,)
        ).view(np.dtype((np.void, width)))
        # 2. Take all of a small tensor, and runs of a large one, the first and last included.
        if count > _WHOLE:
            starts = np.linspace(0, count - _RUN, _RUNS).astype(np.int64)
            indices = (starts[:, None] + np.arange(_RUN)).reshape(-1)
        else:
            indices = np.arange(count)
        taken = np.ascontiguousarray(stored[indices])
        if self.dtype not in _FLOATS:
            return taken.tobytes()
        values = torch.frombuffer(bytearray(taken.tobytes()), dtype=_FLOATS[self.dtype])
        return values.float().numpy().tobytes()


def stored_tensors(source: str) -> dict[str, StoredTensor]:
    """Tensors of a checkpoint by name; empty if it has no safetensors files.

    Args:
        source: A folder or a hub id, whose files are downloaded if they are not in the cache.
    """
    # 1. The files: one, or those that an index names.
    single = cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    paths: list[str] = []
    if single is not None:
        paths = [str(single)]
    else:
        index = cached_file(
            source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False
        )
        if index is not None:
            paths = list(get_checkpoint_shard_files(source, index)[0])  # type: ignore[no-untyped-call]
    # 2. Their headers.
    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        if not Path(path).exists():
            raise UserError(f"{path}: is missing; download it again")
        tensors |= _header(Path(path))
    return tensors


def _header(path: Path) -> dict[str, StoredTensor]:
    """The tensors that a file's header lists.

    Raises:
        UserError: The file is a pointer of git-lfs, or does not hold what its header lists.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        if _LFS_POINTER.startswith(first) and first:
            raise UserError(
                f"{path}: is a pointer of git-lfs and not the weights; fetch them: "
                f"git -C {quoted(path.parent)} lfs pull"
            )
        length = int.from_bytes(first, "little")
        if len(first) < 8 or 8 + length > size:
            raise UserError(f"{path}: is cut short or damaged; download it again")
        entries = json.loads(file.read(length))
    start = 8 + length
    tensors = [entry for name, entry in entries.items() if name != "__metadata__"]
    end = start + max((entry["data_offsets"][1] for entry in tensors), default=0)
    if end > size:
        raise UserError(
            f"{path}: is cut short, {size:,} of {end:,} bytes are there; download it again"
        )
    return {
        name: StoredTensor(
            name,
            path,
            entry["dtype"],
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for name, entry in entries.items()
        if name != "__metadata__"
    }


def stored_dtype(tensors: Mapping[str, StoredTensor]) -> torch.dtype | None:
    """The narrowest dtype that holds every weight exactly; None if there is no float.

    Float64 is read as float32, the widest that can be quantised.
    """
    dtype: torch.dtype | None = None
    for tensor in tensors.values():
        if tensor.is_weight and tensor.dtype in _FLOATS:
            stored_as = _FLOATS[tensor.dtype]
            dtype = stored_as if dtype is None else torch.promote_types(dtype, stored_as)
    return torch.float32 if dtype == torch.float64 else dtype


def eight_bit_kind(tensors: Mapping[str, StoredTensor]) -> str | None:
    """`FP8` or `int8` if linear layers are stored so, whatever the configuration says."""
    for tensor in tensors.values():
        if tensor.is_weight and len(tensor.shape) == 2:
            if tensor.dtype.startswith("F8"):
                return "FP8"
            if tensor.dtype == "I8":
                return "int8"
    return None
