"""On a card: what the planner says of a random LLaMA of 1.1 billion weights holds there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alpaca_rlhf.settings import Loop
from benchmarks.gpu import plan

needs_card = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a graphics card, which is not here"
)


@needs_card
def test_planned_memory_holds_on_a_card(tmp_path: Path) -> None:
    found = plan.run("tinyllama-1.1b", 8.0, tmp_path / "base", dry=False)
    assert found["fits"]
    for name, one in found["stages"].items():
        assert abs(one["error"]) <= 0.1, (name, one)


@needs_card
def test_the_ballast_leaves_no_more_than_the_cap() -> None:
    with plan.ballast(4.0):
        free, _ = torch.cuda.mem_get_info()
        assert free <= 4.5 * 2**30
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(5 * 2**30, dtype=torch.uint8, device="cuda")


def test_the_settings_are_those_of_a_large_base() -> None:
    settings = plan.settings_of("llama-2-7b", dry=False)
    assert settings.lora == Loop().lora
    assert settings.sft.max_length == Loop().sft.max_length
