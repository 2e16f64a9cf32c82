"""On a card: its own kernels against what a CPU's tests hold them to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alpaca_rlhf.models import attention, dense
from alpaca_rlhf.models.batches import collate
from alpaca_rlhf.models.forward import token_logprobs
from tests.test_shared_prompts import SHARED, gradient

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a graphics card, which is not here"
)
BOUND = 0.03
"""Relative distance of gradients that differ by the rounding of bf16 alone; an estimate."""


def gradient_on_card(tiny: Any) -> torch.Tensor:
    """The gradient of rows of three sizes, most of them behind a shared prompt."""
    adapters = tiny("policy", dtype=torch.bfloat16, device="cuda")
    adapters.trainable("policy")
    with adapters.using("policy"), adapters.training():
        logprobs = token_logprobs(adapters, collate(adapters.base, SHARED))
        logprobs.square().sum().backward()
    result: torch.Tensor = gradient(adapters).double()
    return result


def test_segments_have_the_gradients_of_tables(tiny: Any, monkeypatch: Any) -> None:
    config = tiny(device="cuda").base.model.config
    if attention.packed_kernel(torch.device("cuda"), torch.bfloat16, config) != "varlen":
        pytest.skip("needs a card of sm80 or newer")
    segments = gradient_on_card(tiny)
    monkeypatch.setattr(attention, "packed_kernel", lambda *_: "flash")
    tables = gradient_on_card(tiny)
    assert (segments - tables).norm() <= BOUND * tables.norm()


def test_the_fused_product_has_the_gradients_of_pefts_layers(tiny: Any, monkeypatch: Any) -> None:
    fused = gradient_on_card(tiny)
    monkeypatch.setattr(dense, "fuses", lambda device: False)
    peft = gradient_on_card(tiny)
    assert (fused - peft).norm() <= BOUND * peft.norm()
