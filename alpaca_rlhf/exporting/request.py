"""The request for an export, and the size of its result."""

from __future__ import annotations

import copy
import shlex
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
from alpaca_rlhf.core.files import nearest_folder
from alpaca_rlhf.exporting.quantize import INTERMEDIATE, K_QUANTS, is_k_quant
from alpaca_rlhf.models.base import base_config
from alpaca_rlhf.settings import Loop

Target = Literal["adapter", "merged", "reward", "gguf"]
"""The form of an export."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""torch's dtype for each value of `--dtype`."""
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "q8_0": 34 / 32}
_BYTES |= {dtype: bits / 8 + _BYTES[INTERMEDIATE] for dtype, bits in K_QUANTS.items()}
_SPARE = 64 * 2**20
"""Bytes for the tokenizer, the model card and the like."""


@dataclass(frozen=True)
class ExportRequest:
    """The request for one export."""

    settings: Loop
    """Settings of the run."""
    run: Path
    """Folder of the run."""
    policy: str
    """Name of the adapter: `sft`, `ppo`, `reward` ..."""
    adapter: Path
    """The adapter's folder."""
    target: Target
    """Form of the export."""
    dtype: str
    """Dtype of the stored weights: `float32`, `bfloat16`, `float16`, or for a GGUF file `q8_0` or a
    K-quant such as `q4_k_m`."""
    out: Path
    """Folder to create."""
    llama_cpp: Path | None = None
    """llama.cpp's folder, if its converter is to make the GGUF file."""
    command: str = "alpaca-rlhf export"
    """The command as the user typed it, for the model card."""

    @property
    def written_dtype(self) -> str:
        """Dtype of the weights as we write them: a K-quant is made of 16 bit."""
        return INTERMEDIATE if is_k_quant(self.dtype) else self.dtype

    @property
    def unquantized_command(self) -> str:
        """The command of the same export in the dtype that a K-quant is made of."""
        words = ["alpaca-rlhf", "export", "--run", str(self.run), "--policy", self.policy]
        words += ["--to", self.target, "--dtype", INTERMEDIATE, "--out", str(self.out)]
        words += [] if self.llama_cpp is None else ["--llama-cpp", str(self.llama_cpp)]
        return shlex.join(words)

    @property
    def name(self) -> str:
        """Name of the model, from the base, the run and the policy."""
        base = self.settings.base.rstrip("/").rpartition("/")[2]
        return f"{base}-{self.run.resolve().name}-{self.policy}".lower()


def configuration(name: str) -> Any:
    """Read the configuration of the dequantised base.

    Raises:
        UserError: The base is refused, or its configuration cannot be read.
    """
    copied = copy.deepcopy(base_config(name))
    if getattr(copied, "quantization_config", None) is not None:
        del copied.quantization_config  # in NF4, or it would have been refused
    if not copied.architectures:  # vLLM and llama.cpp's converter rely on it
        copied.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[copied.model_type]]
    return copied


def count_weights(config: Any) -> int:
    """Count the weights of a causal language model without allocating them."""
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return sum(prod(parameter.shape) for parameter in model.parameters())


def check_disk(request: ExportRequest, config: Any) -> None:
    """Refuse an export that the disk has no room for.

    Raises:
        UserError: The disk is too small.
    """
    if request.target == "adapter":
        needed = sum(file.stat().st_size for file in request.adapter.iterdir()) + _SPARE
    else:
        count = count_weights(config)
        needed = int(count * _BYTES[request.dtype]) + _SPARE
        if request.llama_cpp is not None:  # the converter reads a merged model
            needed += count * 4
    free = shutil.disk_usage(nearest_folder(request.out)).free
    if free < needed:
        raise UserError(
            f"--out {request.out}: needs {needed / 2**30:.1f} GiB, and the disk has "
            f"{free / 2**30:.1f} GiB left; free some space or give another folder"
        )
