"""Linear layers with a copy of their 4-bit weights, prepared for many products.

A step of decoding multiplies each weight with a few rows. On a 4-bit weight most of that time goes
into dequantising it, casting LoRA's matrices, and the calls around them. Here that is done once for
a whole rollout: the products are those of the layer itself, on the same numbers, so the tokens are
the same. It costs a copy of the 4-bit weights in the compute dtype as long as the rollout lasts,
where that fits a limit. In float32 the adapter's product is added into that copy, so that a layer
is one product instead of three; in 16 bits it is not, because the sum would be rounded to them.
On a card, where each kernel is a launch, products are added as they are made, and norms are one
kernel: the same numbers but for rounding.

On a CPU a training step would dequantise every weight twice for each micro-batch, and a pass
without gradients once for each batch; a copy is made once for all of them
(`benchmarks/training_copy.py`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm


@contextlib.contextmanager
def prepared(
    layers: Sequence[nn.Module], adapter: str | None, dtype: torch.dtype, *, max_copy_bytes: int
) -> Iterator[None]:
    """Give layers a forward for one adapter, without gradients and without autocast.

    Args:
        layers: PEFT's LoRA layers around linear ones, or linear ones where there is no adapter.
        adapter: Adapter whose products are added; None for the bare base.
        dtype: Compute dtype.
        max_copy_bytes: 4-bit weights are copied to `dtype` if all together fit into so many bytes.
    """
    outer = [vars(layer).get("forward") for layer in layers]
    states = [_quant_state(layer) for layer in layers]
    copy_bytes = sum(s.shape.numel() for s in states if s is not None) * dtype.itemsize
    try:
        for layer in layers:
            # An attribute of the instance hides the method of its class.
            vars(layer)["forward"] = _forward(
                layer, adapter, dtype, copy=copy_bytes <= max_copy_bytes
            )
        yield
    finally:
        for layer, forward in zip(layers, outer, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                vars(layer)["forward"] = forward


_ROTATED_ALIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Families whose module in transformers rotates queries and keys as `_rotated` does."""


@contextlib.contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Launch fewer kernels for a model's norms and rotary positions, without gradients.

    Each RMS norm is one kernel instead of eight; queries and keys are rotated together. What
    transformers writes in another way, as Gemma's norms, stays as it is.

    Args:
        model: A model of transformers without its output head.
    """
    norms: list[Any] = []
    modeling: Any = None
    if fuses(next(model.parameters()).device):
        norms = [
            module
            for module in model.modules()
            if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
        ]
        if getattr(model.config, "model_type", "") in _ROTATED_ALIKE:
            modeling = sys.modules[type(model).__module__]
    rotated = None if modeling is None else modeling.apply_rotary_pos_emb
    outer = [vars(norm).get("forward") for norm in norms]
    try:
        for norm in norms:
            vars(norm)["forward"] = _norm(norm)
        if modeling is not None:  # its layers call it by this name; one thread has the model
            modeling.apply_rotary_pos_emb = _rotated
        yield
    finally:
        if modeling is not None:
            modeling.apply_rotary_pos_emb = rotated
        for norm, forward in zip(norms, outer, strict=True):
            vars(norm).pop("forward", None)
            if forward is not None:
                vars(norm)["forward"] = forward


def _norm(norm: Any) -> Callable[[Tensor], Tensor]:
    weight, epsilon = norm.weight.detach(), norm.variance_epsilon
    return lambda x: rms_norm(x, weight.shape, weight.to(x.dtype), epsilon)


def _rotated(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    """Apply rotary positions to (B, heads, T, D) queries and keys together."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    both = torch.cat([query, key], 1)
    first, second = both.chunk(2, -1)
    turned = torch.addcmul(both * cos, torch.cat([-second, first], -1), sin)
    heads = query.shape[1]
    return turned[:, :heads], turned[:, heads:]


@contextlib.contextmanager
def copied(layers: Sequence[nn.Module], *, max_copy_bytes: int) -> Iterator[None]:
    """Keep a copy of the 4-bit weights under layers, with gradients or without.

    The products are those of bitsandbytes on the same numbers, forward and backward.

    Args:
        layers: PEFT's LoRA layers around linear ones, or linear ones.
        max_copy_bytes: Weights are copied, in the dtype in which they compute, if all together fit
            into so many bytes.
    """
    states = [(_linear_of(layer), _quant_state(layer)) for layer in layers]
    quantized = [
        (base, state)
        for base, state in states
        if state is not None and "forward" not in vars(base)  # the copy of an outer block serves
    ]
    if sum(s.shape.numel() * s.dtype.itemsize for _, s in quantized) > max_copy_bytes:
        quantized = []
    try:
        for base, state in quantized:
            vars(base)["forward"] = _product(base, dequantize_4bit(base.weight.data, state))
        yield
    finally:
        for base, _ in quantized:
            vars(base).pop("forward", None)


def _product(base: Any, weight: Tensor) -> Callable[[Tensor], Tensor]:
    bias = None if base.bias is None else base.bias.to(weight.dtype)
    return lambda x: linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def _quant_state(layer: Any) -> Any:
    return getattr(_linear_of(layer).weight, "quant_state", None)


def _linear_of(layer: Any) -> Any:
    return layer.base_layer if isinstance(layer, LoraLayer) else layer


def fuses(device: torch.device) -> bool:
    """True where fewer kernels are worth another rounding: each is a launch that a card waits for.

    A CPU keeps the rounding of the plain operations.
    """
    return device.type == "cuda"


def add_product(output: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """Add scaling * down @ up to (..., b) outputs in place, and return them.

    Args:
        output: (..., b) outputs that nothing else needs.
        down: (N, r) states.
        up: (r, b) matrix.
        scaling: Factor of the product.
    """
    output.view(-1, output.shape[-1]).addmm_(down, up, alpha=scaling)
    return output


def frozen_weight(linear: Any, dtype: torch.dtype) -> Tensor:
    """(out, in) weight of a frozen linear layer in a dtype, dequantised where it is in 4 bits."""
    state = getattr(linear.weight, "quant_state", None)
    weight = linear.weight if state is None else dequantize_4bit(linear.weight.data, state)
    return weight.detach().to(dtype)


def _forward(
    layer: Any, adapter: str | None, dtype: torch.dtype, *, copy: bool
) -> Callable[[Tensor], Tensor]:
    # 1. The adapter's matrices, cast once.
    if adapter is not None:
        lora_a, lora_b = (
            matrices[adapter].weight.detach().to(dtype) for matrices in (layer.lora_A, layer.lora_B)
        )
        scaling = layer.scaling[adapter]
    # 2. The base's product: on a copy, or on the 4-bit weight where a copy does not fit.
    base = _linear_of(layer)
    merged = False
    state = _quant_state(layer)
    base_product: Callable[[Tensor], Tensor] = base.forward
    if state is None or copy:
        weight = frozen_weight(base, dtype)
        merged = adapter is not None and state is not None and dtype.itemsize >= 4
        if merged:
            weight.addmm_(lora_b, lora_a, alpha=scaling)
        bias = None if base.bias is None else base.bias.detach().to(dtype)

        def base_product(x: Tensor) -> Tensor:
            return linear(x.to(dtype), weight, bias)

    if adapter is None or merged:
        return base_product
    if not fuses(lora_a.device):
        return lambda x: base_product(x) + linear(linear(x.to(dtype), lora_a), lora_b) * scaling

    def fused(x: Tensor) -> Tensor:
        down = linear(x.to(dtype).flatten(0, -2), lora_a)
        return add_product(base_product(x), down, lora_b.T, scaling)

    return fused
