"""A merged LLaMA as a GGUF file, tensor by tensor, through the `gguf` package.

Source: ggml-org/llama.cpp convert_hf_to_gguf.py, `LlamaModel`: names, the order of the rotary
halves, which tensors stay in 32 bit, the factors of Llama-3's rotary scaling.
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
"""GGUF's name for each value of `--dtype`."""
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
    """Refuse a base that GGUF's `llama` architecture cannot express.

    Raises:
        UserError: The architecture or the rotary scaling is unknown to this writer.
    """
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if config.model_type not in ("llama", "mistral") or rope not in ("default", "linear", "llama3"):
        raise UserError(
            f"--to gguf: --base {base} is {config.model_type} with {rope} rotary positions, which "
            "this writer does not know; give --llama-cpp, the folder of llama.cpp"
        )


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
    writer: Any = gguf.GGUFWriter(str(path), "llama")
    file_type = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
    _describe(writer, config, model.name, getattr(gguf.LlamaFileType, file_type))
    _add_vocabulary(writer, model)

    # 2. Name, shape and dtype of every tensor.
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(config.num_hidden_layers))
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
            array = _rotated(weight, config).numpy()
            raw_dtype = getattr(gguf.GGMLQuantizationType, _kind(weight, kind))
            writer.write_tensor_data(gguf.quants.quantize(array, raw_dtype))
            progress(done, len(weights))
        writer.close()


def _describe(writer: Any, config: Any, name: str, file_type: Any) -> None:
    import gguf

    rope = config.rope_parameters or {}
    head = _head_size(config)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(int(config.vocab_size))
    writer.add_context_length(int(config.max_position_embeddings))
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


def _rotated(source: Weight, config: Any) -> torch.Tensor:
    """Compute a weight, with the rows of queries and keys in llama.cpp's order.

    llama.cpp rotates neighbouring rows; transformers rotates row i of a head with row i + half.
    """
    tensor = source.make()
    if ".q_proj." in source.name:
        heads = int(config.num_attention_heads)
    elif ".k_proj." in source.name:
        heads = int(config.num_key_value_heads)
    else:
        return tensor.contiguous()
    # Swapping the axes (2, half) of each head interleaves its two halves.
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def _rope_factors(config: Any) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The numbers that Llama-3 divides its rotary frequencies by; None for another scaling."""
    rope = config.rope_parameters or {}
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
