"""A merged LLaMA as a GGUF file, tensor by tensor, through the `gguf` package.

Source: ggml-org/llama.cpp convert_hf_to_gguf.py, `LlamaModel`: names, the order of the rotary
halves, which tensors stay in 32 bit, the factors of Llama-3's rotary scaling.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
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
"""--dtype to GGUF's name of it."""
_FILE_TYPES = {
    "F32": "ALL_F32",
    "F16": "MOSTLY_F16",
    "BF16": "MOSTLY_BF16",
    "Q8_0": "MOSTLY_Q8_0",
}
_BLOCK = 32
"""Weights of a row that Q8_0 packs together."""


def need_gguf() -> None:
    """Refuse where the `gguf` package is missing.

    Raises:
        UserError: It is.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("--to gguf needs the package gguf: pip install 'alpaca-rlhf[gguf]'")


def check_architecture(config: Any, base: str) -> None:
    """Refuse what GGUF's `llama` does not compute.

    Raises:
        UserError: Another architecture, or a rotary scaling that this writer does not know.
    """
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if config.model_type not in ("llama", "mistral") or rope not in ("default", "linear", "llama3"):
        raise UserError(
            f"--to gguf: --base {base} is {config.model_type} with {rope} rotary positions, which "
            "this writer does not know; give --llama-cpp, the folder of llama.cpp"
        )


def write_gguf(
    path: Path,
    weights: Sequence[Weight],
    config: Any,
    tokenizer: Any,
    *,
    kind: str,
    name: str,
    base: str,
    progress: Callable[[int, int], None],
) -> None:
    """Write a GGUF file.

    Args:
        path: Where.
        weights: The merged model's.
        config: Its configuration.
        tokenizer: With the chat template.
        kind: F32, F16, BF16 or Q8_0, for the matrices; the rest stays in 32 bit.
        name: What the model is called.
        base: The base's name, for messages.
        progress: Told how many tensors are done.

    Raises:
        UserError: The tokenizer is none that is known, or the file cannot be written.
    """
    import gguf

    writer: Any = gguf.GGUFWriter(str(path), "llama")
    _describe(writer, config, name, getattr(gguf.LlamaFileType, _FILE_TYPES[kind]))
    _add_vocabulary(writer, tokenizer, config, base)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, int(config.num_hidden_layers))
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(
            "rope_freqs.weight", factors.shape, np.dtype(np.float32), factors.nbytes
        )
    for one in weights:
        own = _kind(one, kind)
        dtype, shape, size = _stored(own, one.shape)
        target = names.get_name(one.name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor_info(
            target, shape, dtype, size, raw_dtype=getattr(gguf.GGMLQuantizationType, own)
        )
    with writing(path):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for done, one in enumerate(weights, 1):
            array = _rotated(one, config).numpy()
            own = getattr(gguf.GGMLQuantizationType, _kind(one, kind))
            writer.write_tensor_data(gguf.quants.quantize(array, own))
            progress(done, len(weights))
        writer.close()


def _describe(writer: Any, config: Any, name: str, file_type: Any) -> None:
    import gguf

    rope = config.rope_parameters or {}
    head = int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
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


def _add_vocabulary(writer: Any, tokenizer: Any, config: Any, base: str) -> None:
    words = vocabulary(tokenizer, int(config.vocab_size), base)
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
        writer.add_add_space_prefix(words.space_prefix)
    writer.add_token_types(words.types)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    for what in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{what}_token_id")
        if number is not None and number < config.vocab_size:
            getattr(writer, f"add_{what}_token_id")(int(number))
    writer.add_add_bos_token(puts_bos(tokenizer))
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.chat_template)


def _kind(one: Weight, kind: str) -> str:
    if len(one.shape) < 2:
        return "F32"
    return "F16" if kind == "Q8_0" and one.shape[-1] % _BLOCK else kind


def _stored(kind: str, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...], int]:
    """Numpy's dtype of the bytes, their shape, and how many they are."""
    if kind == "Q8_0":
        rows = (*shape[:-1], shape[-1] // _BLOCK * (_BLOCK + 2))
        return np.dtype(np.uint8), rows, prod(rows)
    if kind == "BF16":
        rows = (*shape[:-1], shape[-1] * 2)
        return np.dtype(np.uint8), rows, prod(rows)
    dtype = np.dtype(np.float16 if kind == "F16" else np.float32)
    return dtype, shape, prod(shape) * dtype.itemsize


def _rotated(one: Weight, config: Any) -> torch.Tensor:
    """A weight with the rows of queries and keys in llama.cpp's order.

    It turns neighbours; transformers turns row i of a head with row i + half.
    """
    weight = one.make()
    if ".q_proj." in one.name:
        heads = int(config.num_attention_heads)
    elif ".k_proj." in one.name:
        heads = int(config.num_key_value_heads)
    else:
        return weight.contiguous()
    parts = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return parts.transpose(1, 2).reshape(weight.shape).contiguous()


def _rope_factors(config: Any) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """What Llama-3 divides each rotary frequency by."""
    rope = config.rope_parameters or {}
    if rope.get("rope_type") != "llama3":
        return None
    size = int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factor, context = float(rope["factor"]), float(rope["original_max_position_embeddings"])
    out = []
    for i in range(0, size, 2):
        turns = context / (2 * math.pi * float(rope["rope_theta"]) ** (i / size))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, dtype=np.float32)
