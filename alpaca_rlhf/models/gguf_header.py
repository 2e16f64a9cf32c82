"""The header of a GGUF file: what it holds, and why it cannot be a base. No torch.

Keys: ggml-org/ggml docs/gguf.md. Each file that transformers would read as another function than
the one that was trained, without saying so, is refused here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError

ARCHITECTURES = ("llama", "qwen2")
"""Values of `general.architecture` whose layers are those of a LLaMA; Mistral's is `llama`."""
PLAIN_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Tensor types that are numbers as they are, with torch's names."""
_MERGE = "join the parts with `llama-gguf-split --merge FIRST_PART OUT.gguf`"
_LLAMA3_CONTEXT, _LLAMA3_LOW, _LLAMA3_HIGH = 8192, 1.0, 4.0
"""Original context and the turns between which frequencies are interpolated, in Llama-3.1 on."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file's table."""

    name: str
    """GGUF's name, e.g. `blk.0.attn_q.weight`."""
    type: str
    """GGUF's name of its type, e.g. `Q4_1`."""
    weights: int
    """Number of weights."""


@dataclass(frozen=True)
class Header:
    """A LLaMA-like GGUF file, checked."""

    path: Path
    architecture: str
    """`llama` or `qwen2`."""
    fields: Mapping[str, Any]
    """Every key with its value; long arrays too."""
    tensors: Sequence[Tensor]
    rope_factors: Sequence[float] | None
    """Divisors of the rotary frequencies (`rope_freqs.weight`), or None."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The sizes as a config.json of transformers has them."""
        heads, hidden = self._size("attention.head_count"), self._size("embedding_length")
        tokens = self.fields.get("tokenizer.ggml.tokens")
        vocabulary = self._get("vocab_size", len(tokens) if tokens else None)
        return {
            "model_type": self.architecture,
            "hidden_size": hidden,
            "intermediate_size": self._size("feed_forward_length"),
            "num_hidden_layers": self._size("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._get("attention.head_count_kv", heads),
            "head_dim": self._get("attention.key_length", hidden // max(1, heads)),
            "vocab_size": vocabulary,
            "max_position_embeddings": self._size("context_length"),
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in self.tensors),
        }

    @property
    def weights(self) -> int:
        """Number of weights in the file."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def dtype(self) -> str:
        """Dtype that keeps the weights: the file's own, or bfloat16 for quantised ones."""
        largest = max(self.tensors, key=lambda tensor: tensor.weights)
        types = {tensor.type for tensor in self.tensors if tensor.weights > largest.weights // 64}
        return PLAIN_TYPES.get(types.pop(), "bfloat16") if len(types) == 1 else "bfloat16"

    @cached_property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary positions as transformers writes them; its reader leaves scaling out.

        Raises:
            UserError: The scaling is of another kind than Llama-3's and linear interpolation.
        """
        theta = float(self._get("rope.freq_base", 10000.0))
        kind = str(self._get("rope.scaling.type", "none"))
        if self.rope_factors is not None and not all(factor == 1 for factor in self.rope_factors):
            return self._llama3_scaling(theta)
        if kind == "none":
            return {"rope_type": "default", "rope_theta": theta}
        if kind == "linear":
            factor = float(self._get("rope.scaling.factor", 1.0))
            return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
        raise refusal(self.path, f"scales its rotary positions by `{kind}`, which is not read yet")

    def _llama3_scaling(self, theta: float) -> dict[str, Any]:
        """Llama-3's scaling, whose divisors the file holds in place of its four numbers."""
        divisors = self.rope_factors or ()
        size = 2 * len(divisors)
        # 1. The largest divisor is the factor; each one between gives the original context.
        factor = round(max(divisors), 4)
        contexts = []
        for i, divisor in zip(range(0, size, 2), divisors, strict=True):
            smooth = (1 / divisor - 1 / factor) / (1 - 1 / factor)
            if 0.02 < smooth < 0.98:
                turns = smooth * (_LLAMA3_HIGH - _LLAMA3_LOW) + _LLAMA3_LOW
                contexts.append(turns * 2 * math.pi * theta ** (i / size))
        context = round(statistics.median(contexts)) if contexts else _LLAMA3_CONTEXT
        # 2. The numbers must give the divisors back.
        again = _llama3_divisors(theta, factor, context, size)
        if not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(divisors, again, strict=True)):
            raise refusal(
                self.path, "scales its rotary frequencies by factors that are not Llama-3's"
            )
        return {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": _LLAMA3_LOW,
            "high_freq_factor": _LLAMA3_HIGH,
            "original_max_position_embeddings": context,
        }

    def _get(self, key: str, default: Any) -> Any:
        return self.fields.get(f"{self.architecture}.{key}", default)

    def _size(self, key: str) -> int:
        value = self._get(key, None)
        if not isinstance(value, int) or value < 1:
            raise refusal(self.path, f"its header gives {value} for {self.architecture}.{key}")
        return value


def refusal(path: Path, reason: str) -> UserError:
    """The one line about a GGUF file that cannot be a base."""
    return UserError(f"--base {path}: {reason}; give another GGUF file, a folder or a hub id")


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file; no weights are read.

    Raises:
        UserError: It is not there, broken, one part of several, or not a LLaMA-like model.
    """
    # 1. The file itself.
    if not path.is_file():
        raise UserError(f"--base {path}: no such file; check the path of the GGUF file")
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
        if magic != b"GGUF":
            raise refusal(path, "is not a GGUF file: it does not begin with GGUF")
        fields, tensors, factors = _read(path)
    except UserError:
        raise
    except Exception as error:  # whatever a cut or foreign file provokes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise refusal(path, f"is cut short or damaged ({reason}), so download it again") from error
    # 2. A whole model.
    parts = fields.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        number = int(fields.get("split.no", 0)) + 1
        raise refusal(path, f"is part {number} of {parts}: {_MERGE}")
    kind = fields.get("general.type", "model")
    if kind != "model" or not tensors:
        raise refusal(path, f"holds no model but {kind if tensors else 'a vocabulary'}")
    # 3. A LLaMA.
    architecture = str(fields.get("general.architecture"))
    experts = fields.get(f"{architecture}.expert_count", 0)
    if architecture not in ARCHITECTURES or experts:
        name = f"{architecture} with {experts} experts" if experts else architecture
        raise refusal(path, f"its architecture is {name}, and a base must be LLaMA-like")
    header = Header(path, architecture, fields, tensors, factors)
    for check in ("config", "rope_parameters"):
        getattr(header, check)  # raises
    return header


def _read(path: Path) -> tuple[dict[str, Any], list[Tensor], list[float] | None]:
    """Fields, tensor table and rotary divisors."""
    import gguf

    reader = gguf.GGUFReader(str(path))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = [
        Tensor(tensor.name, tensor.tensor_type.name, int(tensor.n_elements))
        for tensor in reader.tensors
    ]
    factors = next((t.data for t in reader.tensors if t.name == "rope_freqs.weight"), None)
    return fields, tensors, None if factors is None else [float(value) for value in factors]


def _llama3_divisors(theta: float, factor: float, context: int, size: int) -> list[float]:
    """The numbers that Llama-3 divides its rotary frequencies by.

    Source: transformers modeling_rope_utils.py, `_compute_llama3_parameters`.
    """
    divisors = []
    for i in range(0, size, 2):
        turns = context / (2 * math.pi * theta ** (i / size))
        smooth = min(max((turns - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors
