"""Linear layers with an adapter, made ready for many small products: what decoding needs.

A step of decoding multiplies each weight with a few rows. On a 4-bit weight most of that time goes
into making it 16-bit, casting LoRA's matrices, and the calls around them. Here that is done once
for a whole rollout: the products are those of the layer itself, on the same numbers, so the tokens
are the same. It costs a 16-bit copy of the 4-bit weights for as long as the rollout lasts, where
that fits a limit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn.functional import linear


@contextlib.contextmanager
def ready(
    layers: Sequence[LoraLayer], adapter: str | None, dtype: torch.dtype, *, limit: int
) -> Iterator[None]:
    """Give layers a forward for one adapter, without gradients and without autocast.

    Args:
        layers: PEFT's LoRA layers on linear ones.
        adapter: The one whose products are added; None for the bare base.
        dtype: What they compute in.
        limit: 4-bit weights are copied to `dtype` if all together take at most so many bytes.
    """
    states = [_quant_state(layer) for layer in layers]
    size = sum(s.shape.numel() for s in states if s is not None) * dtype.itemsize
    try:
        for layer in layers:
            vars(layer)["forward"] = _forward(layer, adapter, dtype, copy=size <= limit)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)  # the class's own again


def _quant_state(layer: Any) -> Any:
    return getattr(layer.base_layer.weight, "quant_state", None)


def _forward(
    layer: Any, adapter: str | None, dtype: torch.dtype, *, copy: bool
) -> Callable[[Tensor], Tensor]:
    base = layer.base_layer
    state = _quant_state(layer)
    whole: Callable[[Tensor], Tensor] = base
    if state is None or copy:
        weight = base.weight if state is None else dequantize_4bit(base.weight.data, state)
        weight = weight.detach().to(dtype)
        bias = None if base.bias is None else base.bias.detach().to(dtype)

        def whole(x: Tensor) -> Tensor:
            return linear(x.to(dtype), weight, bias)

    if adapter is None:
        return whole
    down, up = (part[adapter].weight.detach().to(dtype) for part in (layer.lora_A, layer.lora_B))
    scaling = layer.scaling[adapter]
    return lambda x: whole(x) + linear(linear(x.to(dtype), down), up) * scaling
