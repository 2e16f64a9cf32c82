"""What is to be exported, and how large it will be."""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.models.base import base_config
from alpaca_rlhf.settings import Loop

Target = Literal["adapter", "merged", "reward", "gguf"]
"""What an export is."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""--dtype to torch's."""
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "q8_0": 34 / 32}
_SPARE = 64 * 2**20
"""Bytes for tokenizer, cards and the like."""


@dataclass(frozen=True)
class Request:
    """One export."""

    settings: Loop
    """Those of the run."""
    run: Path
    """Its folder."""
    policy: str
    """Which of its adapters: `sft`, `ppo`, `reward` ..."""
    adapter: Path
    """The adapter's folder."""
    target: Target
    """What it becomes."""
    dtype: str
    """What the weights are stored in: `float32`, `bfloat16`, `float16` or (GGUF) `q8_0`."""
    out: Path
    """Folder to make."""
    llama_cpp: Path | None = None
    """llama.cpp's folder, whose converter then makes the GGUF."""
    command: str = "alpaca-rlhf export"
    """What the user typed, for the card."""

    @property
    def name(self) -> str:
        """What the model is called: that of the base, the run and the policy."""
        base = self.settings.base.rstrip("/").rpartition("/")[2]
        return f"{base}-{self.run.resolve().name}-{self.policy}".lower()


def configuration(name: str) -> Any:
    """The configuration of an unquantised base.

    Raises:
        UserError: The checkpoint is quantised already, or cannot be read.
    """
    config = base_config(name)
    found = getattr(config, "quantization_config", None)
    if found:
        how = dict(found).get("quant_method", "quantised") if isinstance(found, dict) else found
        raise UserError(
            f"--to merged: --base {name} is there only quantised ({how}), and nothing is merged "
            "into quantised weights; train on the 16-bit checkpoint, or give --to adapter"
        )
    made = copy.deepcopy(config)
    if not made.architectures:  # vLLM and llama.cpp's converter go by it
        made.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    return made


def weights_of(config: Any) -> int:
    """Number of weights of a causal language model, without making it."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return sum(prod(parameter.shape) for parameter in model.parameters())


def check_disk(request: Request, config: Any) -> None:
    """Refuse an export that the disk has no room for.

    Raises:
        UserError: It is too small.
    """
    if request.target == "adapter":
        needed = sum(file.stat().st_size for file in request.adapter.iterdir()) + _SPARE
    else:
        count = weights_of(config)
        needed = int(count * _BYTES[request.dtype]) + _SPARE
        if request.llama_cpp is not None:  # the converter reads a merged model
            needed += count * 4
    place = request.out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"--out {request.out}: needs {needed / 2**30:.1f} GiB, and the disk has "
            f"{free / 2**30:.1f} GiB left; free some space or give another folder"
        )
