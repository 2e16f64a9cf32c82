"""Checkpoints of 7B and 8B bases that are as large as real ones but take no room on the disk."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from alpaca_rlhf.planner import Shape
from benchmarks import little_llama

BASES = {
    "llama-2-7b": Shape("llama-2-7b", 4096, 11008, 32, 32, 32, 128, 32000, 4096),
    "llama-3-8b": Shape("llama-3-8b", 4096, 14336, 32, 32, 8, 128, 128256, 8192),
}


def write_hollow(folder: Path, shape: Shape) -> Path:
    """A LLaMA in bf16 whose weights are a hole in a file: each reads as zero."""
    import transformers

    config = transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=shape.vocabulary - 1,
    )
    config.save_pretrained(folder)
    little_llama.write_tokenizer(folder, shape.vocabulary)
    header, size = {}, 0
    for name, numbers in _weights(shape).items():
        end = size + 2 * _product(numbers)
        header[name] = {"dtype": "BF16", "shape": numbers, "data_offsets": [size, end]}
        size = end
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return folder


def _weights(shape: Shape) -> dict[str, list[int]]:
    hidden, inner, queries, keys = shape.hidden, shape.inner, shape.queries, shape.keys
    weights = {"model.embed_tokens.weight": [shape.vocabulary, hidden]}
    for layer in range(shape.layers):
        weights |= {
            f"model.layers.{layer}.{name}.weight": size
            for name, size in {
                "self_attn.q_proj": [queries, hidden],
                "self_attn.k_proj": [keys, hidden],
                "self_attn.v_proj": [keys, hidden],
                "self_attn.o_proj": [hidden, queries],
                "mlp.gate_proj": [inner, hidden],
                "mlp.up_proj": [inner, hidden],
                "mlp.down_proj": [hidden, inner],
                "input_layernorm": [hidden],
                "post_attention_layernorm": [hidden],
            }.items()
        }
    return weights | {"model.norm.weight": [hidden], "lm_head.weight": [shape.vocabulary, hidden]}


def _product(numbers: list[int]) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product
