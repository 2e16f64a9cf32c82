"""A base and one of its adapters merged into plain weights, one tensor at a time.

The adapter is merged into what it was trained on: the dequantised NF4 weights, never the original
16-bit ones, which are another function, and never 4-bit codes, whose rounding error is as large as
the adapter itself (huggingface/peft issue 2321). They are dequantised in float32, as bitsandbytes
does for a layer that computes in float32; a layer that computes in 16 bit rounds the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor

from alpaca_rlhf.models.base import Base, compute_in


@dataclass(frozen=True)
class Weight:
    """A tensor of the merged model that is computed on demand."""

    name: str
    """Its name in a checkpoint of the base, e.g. `model.layers.0.self_attn.q_proj.weight`."""
    shape: tuple[int, ...]
    """Shape of the tensor."""
    make: Callable[[], Tensor]
    """Computes it: float32, on the CPU."""


def merged(base: Base, adapter: str | None) -> Iterator[Weight]:
    """Every tensor of a base with an adapter merged in; a tied head appears once.

    Args:
        base: A base, with or without LoRA layers.
        adapter: Name of the adapter; None for the dequantised base alone.
    """
    for path, module in base.model.named_modules():
        if ".lora_" in f".{path}" or path.endswith(".base_layer"):
            continue
        layer: Any = module
        inner = layer.base_layer if isinstance(module, LoraLayer) else module
        for key, parameter in inner.named_parameters(recurse=False):
            if path == "lm_head" and parameter is base.model.get_input_embeddings().weight:
                continue  # tied: the file holds it once
            adapted = isinstance(module, LoraLayer) and key == "weight"
            yield Weight(
                f"{path}.{key}",
                _shape(parameter),
                _maker(parameter, layer if adapted else None, adapter),
            )


def in_float32(base: Base) -> Base:
    """Let a base compute in float32 with the weights it has; changes it in place."""
    compute_in(base.model, torch.float32)
    return replace(base, dtype=torch.float32)


def _shape(parameter: Any) -> tuple[int, ...]:
    state = getattr(parameter, "quant_state", None)
    return tuple(parameter.shape if state is None else state.shape)


def _maker(parameter: Any, layer: Any, adapter: str | None) -> Callable[[], Tensor]:
    @torch.no_grad()
    def make() -> Tensor:
        state = getattr(parameter, "quant_state", None)
        if state is None:
            weight = parameter.detach().float().cpu()
        else:
            float32_state = copy.copy(state)
            float32_state.dtype = torch.float32
            weight = dequantize_4bit(parameter.data, float32_state).cpu()
        if layer is None or adapter is None:
            return cast(Tensor, weight)
        lora_a, lora_b = (matrices[adapter].weight for matrices in (layer.lora_A, layer.lora_B))
        delta = lora_b.detach().float().cpu() @ lora_a.detach().float().cpu()
        return torch.add(weight, delta, alpha=layer.scaling[adapter])

    return make
