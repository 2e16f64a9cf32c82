"""A merged base as a GGUF file, tensor by tensor, through the `gguf` package.

Source: ggml-org/llama.cpp convert_hf_to_gguf.py, `LlamaModel`, `Qwen2Model`, `Qwen3Model` and
`Gemma3Model`: names, the order of the rotary halves, which tensors stay in 32 bit, the factors of
Llama-3's rotary scaling, the norms of Gemma.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import writing
from alpaca_rlhf.exporting.gguf_vocabulary import vocabulary
from alpaca_rlhf.exporting.tokenizer import puts_bos
from alpaca_rlhf.models.merging import Weight

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
"""GGUF's name for each value of `--dtype`, without the K-quants of `quantize`."""
_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
}
"""llama.cpp's name for each family of bases."""
_GEMMA_PATTERN, _GEMMA_THETA = 6, 10000.0
"""Every so many layers one of Gemma 3 attends to everything; the rotary base of all others. Both
are fixed in llama.cpp's code (src/llama-model.cpp)."""
_BLOCK = 32
"""Weights of a row in one block of Q8_0."""


def need_gguf() -> None:
    """Refuse an export to GGUF without the `gguf` package.

    Raises:
        UserError: The package is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("--to gguf needs the package gguf: pip install gguf")


def check_architecture(config: Any, base: str) -> None:
    """Refuse a base that llama.cpp's architectures, or this writer, cannot express.

    Raises:
        UserError: The architecture, its windows or the rotary scaling is unknown to this writer.
    """
    kind = str(config.model_type)
    rope = _rope(config)
    scaling = str(rope.get("rope_type", "default"))
    known = (
        ("default", "linear", "llama3") if kind in ("llama", "mistral") else ("default", "linear")
    )
    reason = None
    if kind not in _ARCHITECTURES:
        reason = f"is {kind}"
    elif scaling not in known:
        reason = f"is {kind} with {scaling} rotary positions"
    elif kind == "gemma3_text" and not _is_plain_gemma(config):
        reason = "has other windows, rotary bases or attention scales than Gemma 3 as published"
    if reason is not None:
        raise UserError(
            f"--to gguf: --base {base} {reason}, which this writer does not know; get llama.cpp's "
            "converter with `git clone https://github.com/ggml-org/llama.cpp` and add "
            "--llama-cpp llama.cpp"
        )


def _is_plain_gemma(config: Any) -> bool:
    """True where llama.cpp's own numbers for Gemma 3 are those of the base."""
    layers = int(config.num_hidden_layers)
    pattern = [
        "sliding_attention" if (index + 1) % _GEMMA_PATTERN else "full_attention"
        for index in range(layers)
    ]
    local = config.rope_parameters["sliding_attention"]
    scales = {int(config.head_dim)}
    if layers == 62:  # the 27B model, for which llama.cpp has a rule of its own
        scales.add(int(config.hidden_size) // int(config.num_attention_heads))
    return (
        list(config.layer_types) == pattern
        and local.get("rope_type", "default") == "default"
        and float(local["rope_theta"]) == _GEMMA_THETA
        and int(config.query_pre_attn_scalar) in scales
    )


def _rope(config: Any) -> dict[str, Any]:
    """Parameters of the rotary positions; of Gemma's layers that attend to everything."""
    parameters = config.rope_parameters or {}
    return dict(parameters.get("full_attention", parameters))


@dataclass(frozen=True)
class GGUFModel:
    """A merged model to write as a GGUF file."""

    weights: Sequence[Weight]
    config: Any
    """Configuration of transformers."""
    tokenizer: Any
    """Tokenizer with the chat template."""
    name: str
    """Name of the model."""
    base: str
    """Name of the base, for messages."""


def write_gguf(
    path: Path, model: GGUFModel, kind: str, *, progress: Callable[[int, int], None]
) -> None:
    """Write a GGUF file.

    Args:
        path: File to write.
        model: The merged model.
        kind: F32, F16, BF16 or Q8_0, for the matrices; vectors stay in 32 bit.
        progress: Receives the number of finished tensors and the total.

    Raises:
        UserError: The kind of tokenizer is unknown, or the file cannot be written.
    """
    import gguf

    # 1. Metadata and vocabulary.
    weights, config = model.weights, model.config
    architecture = _ARCHITECTURES[config.model_type]
    writer: Any = gguf.GGUFWriter(str(path), architecture)
    file_type = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
    _describe(writer, config, model.name, getattr(gguf.LlamaFileType, file_type))
    _add_vocabulary(writer, model)

    # 2. Name, shape and dtype of every tensor.
    model_arch = getattr(gguf.MODEL_ARCH, architecture.upper())
    names = gguf.get_tensor_name_map(model_arch, int(config.num_hidden_layers))
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(
            "rope_freqs.weight", factors.shape, np.dtype(np.float32), factors.nbytes
        )
    for weight in weights:
        stored_kind = _kind(weight, kind)
        dtype, shape, size = _stored(stored_kind, weight.shape)
        target = names.get_name(weight.name, try_suffixes=(".weight", ".bias"))
        raw_dtype = getattr(gguf.GGMLQuantizationType, stored_kind)
        writer.add_tensor_info(target, shape, dtype, size, raw_dtype=raw_dtype)

    # 3. The data, one tensor in memory at a time.
    with writing(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for done, weight in enumerate(weights, 1):
            array = _in_order(weight, config).numpy()
            raw_dtype = getattr(gguf.GGMLQuantizationType, _kind(weight, kind))
            writer.write_tensor_data(gguf.quants.quantize(array, raw_dtype))
            progress(done, len(weights))
        writer.close()


def _describe(writer: Any, config: Any, name: str, file_type: Any) -> None:
    import gguf

    rope = _rope(config)
    head = _head_size(config)
    gemma = config.model_type == "gemma3_text"
    window = getattr(config, "sliding_window", None)
    context = int(config.max_position_embeddings)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(int(config.vocab_size))
    # llama.cpp has the windows of Gemma alone; up to its length a window changes nothing.
    writer.add_context_length(context if gemma or not window else min(context, int(window)))
    writer.add_embedding_length(int(config.hidden_size))
    writer.add_block_count(int(config.num_hidden_layers))
    writer.add_feed_forward_length(int(config.intermediate_size))
    writer.add_head_count(int(config.num_attention_heads))
    writer.add_head_count_kv(int(config.num_key_value_heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if gemma:
        writer.add_sliding_window(int(config.sliding_window))
        writer.add_sliding_window_pattern(_GEMMA_PATTERN)
        writer.add_rope_freq_base_swa(_GEMMA_THETA)


def _head_size(config: Any) -> int:
    return int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )


def _add_vocabulary(writer: Any, model: GGUFModel) -> None:
    tokenizer, config = model.tokenizer, model.config
    vocabulary_of_file = vocabulary(tokenizer, int(config.vocab_size), model.base)
    writer.add_tokenizer_model(vocabulary_of_file.model)
    writer.add_tokenizer_pre(vocabulary_of_file.pre)
    writer.add_token_list(vocabulary_of_file.tokens)
    if vocabulary_of_file.scores is not None:
        writer.add_token_scores(vocabulary_of_file.scores)
        writer.add_add_space_prefix(vocabulary_of_file.space_prefix)
    writer.add_token_types(vocabulary_of_file.types)
    if vocabulary_of_file.merges is not None:
        writer.add_token_merges(vocabulary_of_file.merges)
    for token in ("bos", "eos", "unk", "pad"):
        token_id = getattr(tokenizer, f"{token}_token_id")
        # Added tokens beyond the embedding are not in the list.
        if token_id is not None and token_id < config.vocab_size:
            getattr(writer, f"add_{token}_token_id")(int(token_id))
    writer.add_add_bos_token(puts_bos(tokenizer))
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _kind(weight: Weight, matrix_kind: str) -> str:
    """Storage of a weight: vectors in 32 bit, and rows that Q8_0 cannot block in 16 bit."""
    if len(weight.shape) < 2:
        return "F32"
    return "F16" if matrix_kind == "Q8_0" and weight.shape[-1] % _BLOCK else matrix_kind


def _stored(kind: str, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...], int]:
    """Numpy's dtype of the stored bytes, their shape, and their number."""
    if kind in ("Q8_0", "BF16"):  # numpy has neither
        # A block of Q8_0 is 32 numbers of 8 bits and a scale of 16.
        width = shape[-1] * 2 if kind == "BF16" else shape[-1] // _BLOCK * (_BLOCK + 2)
        rows = (*shape[:-1], width)
        return np.dtype(np.uint8), rows, prod(rows)
    dtype = np.dtype(np.float16 if kind == "F16" else np.float32)
    return dtype, shape, prod(shape) * dtype.itemsize


def _in_order(source: Weight, config: Any) -> torch.Tensor:
    """Compute a weight as llama.cpp expects it.

    In a LLaMA it rotates neighbouring rows of queries and keys, where transformers rotates row i of
    a head with row i + half; in Qwen and Gemma it rotates as transformers does. Gemma's norms
    multiply with 1 + weight, and the file holds the sum.
    """
    tensor = source.make()
    if config.model_type == "gemma3_text" and source.name.endswith("norm.weight"):
        return (tensor + 1).contiguous()
    heads = 0
    if _ARCHITECTURES[config.model_type] == "llama":
        if ".q_proj." in source.name:
            heads = int(config.num_attention_heads)
        elif ".k_proj." in source.name:
            heads = int(config.num_key_value_heads)
    if not heads:
        return tensor.contiguous()
    # Swapping the axes (2, half) of each head interleaves its two halves.
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def _rope_factors(config: Any) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The numbers that Llama-3 divides its rotary frequencies by; None for another scaling."""
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    size = _head_size(config)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factor, context = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    divisors = []
    for i in range(0, size, 2):
        # Turns within the original context: a frequency with many stays, one with few is divided by
        # the whole factor, and those between are interpolated.
        turns = context / (2 * math.pi * float(rope["rope_theta"]) ** (i / size))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)
