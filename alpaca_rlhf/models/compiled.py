"""Regions of a base that torch compiles for training: norms and gated activations (`--compile`).

Each is some kernels over all hidden states, of which a compiler makes one, forward and backward.
The products between them, attention and LoRA stay as they are, so nothing breaks a graph. Passes
without gradients stay too: decoding has its own kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from alpaca_rlhf.core.errors import UserError

_GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""Parts of a gated feed-forward layer, as transformers names them in every family that is taken."""


def compile_regions(model: nn.Module, *, backend: Any = "inductor") -> int:
    """Give norms and gated activations a compiled forward for passes with gradients.

    Args:
        model: A model of transformers. Norms that it writes in another way than LLaMA's stay.
        backend: Backend of `torch.compile`.

    Returns:
        Regions that are compiled: each norm, and the activation of each layer.

    Raises:
        UserError: torch cannot compile on this machine.
    """
    compiled = partial(torch.compile, dynamic=True, backend=backend)
    _refuse_without_compiler(compiled, next(model.parameters()).device)
    norm, gates, regions = compiled(_rms_norm), {}, 0
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            forward = partial(_norm, norm, module)
        elif all(hasattr(module, name) for name in _GATED):
            activation: Any = module.act_fn
            kind = type(activation)
            if kind not in gates:
                gates[kind] = compiled(partial(_gated, activation))
            forward = partial(_feed_forward, gates[kind], module)
        else:
            continue
        # An attribute of the instance hides the method of its class, which is for passes without
        # gradients.
        vars(module)["forward"] = partial(_with_gradients, forward, module.forward)
        regions += 1
    return regions


def _with_gradients(
    compiled: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], hidden: Tensor
) -> Tensor:
    return (compiled if torch.is_grad_enabled() else plain)(hidden)


def _norm(compiled: Callable[..., Tensor], norm: Any, hidden: Tensor) -> Tensor:
    return compiled(hidden, norm.weight, norm.variance_epsilon)


def _feed_forward(compiled: Callable[..., Tensor], layer: Any, hidden: Tensor) -> Tensor:
    output: Tensor = layer.down_proj(compiled(layer.gate_proj(hidden), layer.up_proj(hidden)))
    return output


def _rms_norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """LLaMA's norm: computed in fp32, scaled in the dtype of the hidden states."""
    wide = hidden.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * (wide * scale).to(hidden.dtype)


def _gated(activation: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    product: Tensor = activation(gate) * up
    return product


def _refuse_without_compiler(compiled: Callable[..., Any], device: torch.device) -> None:
    """Compile a line, so that a machine without a compiler is known before the first step."""
    try:
        compiled(_probe)(torch.ones(2, device=device))
    except Exception as error:  # whatever a missing or broken tool chain raises
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            f"--compile: torch cannot compile here ({reason[:120] or type(error).__name__}); it "
            "needs a C++ compiler, and on a card Triton: install them, or give --compile False"
        ) from None


def _probe(numbers: Tensor) -> Tensor:
    return numbers * 2 + 1
