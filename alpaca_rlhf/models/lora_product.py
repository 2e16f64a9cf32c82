"""LoRA's product beside a frozen linear layer, in one step of autograd, on a card.

PEFT copies the frozen output, scales the adapter's and adds the two, and the gradients go the same
way back: some kernels over all outputs of every layer. Here the product is added where the frozen
output lies, scaled on the way, and so is the gradient of the input. The modules, their weights and
their files stay PEFT's. A CPU keeps PEFT's forward, because its results may not change by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from alpaca_rlhf.models.dense import add_product, frozen_weight
from alpaca_rlhf.models.vocabulary import exact_product


def fuse(layers: Sequence[LoraLayer], dtype: torch.dtype) -> None:
    """Give PEFT's layers the fused product, for whichever of their adapters is active.

    Args:
        layers: LoRA layers around linear ones, without dropout.
        dtype: Compute dtype.
    """
    for layer in layers:
        # An attribute of the instance hides the method of its class.
        vars(layer)["forward"] = partial(_forward, layer, dtype)


def _forward(layer: Any, dtype: torch.dtype, x: Tensor) -> Tensor:
    if not layer.active_adapters:
        output: Tensor = layer.base_layer(x)
        return output
    (name,) = layer.active_adapters
    lora_a, lora_b = layer.lora_A[name].weight, layer.lora_B[name].weight
    scaling = layer.scaling[name]
    output = _LoraLinear.apply(x.to(dtype), lora_a, lora_b, layer.base_layer, scaling)  # type: ignore[no-untyped-call]
    return output


class _LoraLinear(torch.autograd.Function):
    """y = W x + scaling * B A x, with gradients of x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lora_a: Tensor, lora_b: Tensor, linear: Any, scaling: float
    ) -> Tensor:
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        down = rows @ a.T
        ctx.save_for_backward(rows, down, a, b)
        ctx.linear, ctx.scaling, ctx.shape = linear, scaling, x.shape
        ctx.dtypes = lora_a.dtype, lora_b.dtype
        return add_product(linear(x), down, b.T, scaling)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        rows, down, a, b = ctx.saved_tensors
        needs_x, needs_a, needs_b = ctx.needs_input_grad[:3]
        output_grads = grad.reshape(-1, grad.shape[-1])
        # 1. The adapter's own gradients, summed over all rows and scaled once.
        down_grads = output_grads @ b
        grad_a = grad_b = grad_x = None
        if needs_a:
            grad_a = exact_product(down_grads.T, rows).mul_(ctx.scaling).to(ctx.dtypes[0])
        if needs_b:
            grad_b = exact_product(output_grads.T, down).mul_(ctx.scaling).to(ctx.dtypes[1])
        # 2. The input's: through the frozen weight, then the adapter's added to it.
        if needs_x:
            grad_x = output_grads @ frozen_weight(ctx.linear, grad.dtype)
            grad_x = add_product(grad_x, down_grads, a, ctx.scaling).view(ctx.shape)
        return grad_x, grad_a, grad_b, None, None
