"""Every stage on little random LLaMAs, and the live bytes that a plan of it must forecast."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alpaca_rlhf.planner import Device, Shape
from alpaca_rlhf.settings import (
    PPO,
    SFT,
    BestOfK,
    Generate,
    Loop,
    Lora,
    Rank,
    Reward,
    Sampling,
    Value,
)
from benchmarks.stage_memory import STAGES, Meter, Stages, adapters_of, planned, write_base


@dataclass(frozen=True)
class Case:
    """A little LLaMA and the sizes of a run."""

    name: str
    hidden: int = 192
    inner: int = 512
    layers: int = 3
    heads: int = 6
    kv_heads: int = 6
    vocabulary: int = 1024
    tied: bool = False
    rank: int = 8
    fp32: bool = False
    checkpointing: bool = False
    micro: int = 2
    rows: int = 8
    prompt: int = 32
    completion: int = 32
    k: int = 2
    separate: bool = False
    dense: bool = True
    family: str = "llama"
    head_size: int | None = None

    @property
    def shape(self) -> Shape:
        """Its sizes in the planner's terms."""
        return Shape(
            self.name,
            self.hidden,
            self.inner,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_size or self.hidden // self.heads,
            self.vocabulary,
            1024,
            tied=self.tied,
            family=self.family,
            window=1024 if self.family == "gemma3_text" else None,
        )

    @property
    def settings(self) -> Loop:
        """The loop in these sizes."""
        length, micro = self.prompt + self.completion, self.micro
        return Loop(
            lora=Lora(r=self.rank, alpha=2 * self.rank),
            generate=Generate(batch_size=self.rows, max_new_tokens=self.completion),
            sampling=Sampling(
                max_new_tokens=self.completion,
                batch_size=self.rows,
                dense_gib=4.0 if self.dense else 0.0,
            ),
            sft=SFT(batch_size=2 * micro, micro_batch_size=micro, max_length=length, epochs=1),
            rank=Rank(k=self.k),
            reward=Reward(batch_size=2 * micro, micro_batch_size=micro, max_length=length),
            best_of_k=BestOfK(k=self.k, epochs=1),
            ppo=PPO(
                updates=3,
                batch_size=4 * micro,
                minibatch_size=2 * micro,
                micro_batch_size=micro,
                epochs=1,
                max_new_tokens=self.completion,
                value=Value(trunk="separate" if self.separate else "detached", warmup=1),
            ),
        )


CASES = (
    Case("MHA"),
    Case("GQA", heads=8, kv_heads=2, hidden=256, inner=704),
    Case("MHA, checkpointed, long", checkpointing=True, prompt=64, completion=128, layers=4),
    Case("GQA, tied, large vocabulary", kv_heads=2, tied=True, vocabulary=16384, completion=64),
    Case(  # logits in two chunks
        "logits in chunks, checkpointed",
        hidden=128,
        inner=256,
        layers=2,
        heads=4,
        kv_heads=4,
        vocabulary=65536,
        checkpointing=True,
        micro=6,
        completion=64,
    ),
    Case("fp32, GQA, checkpointed", fp32=True, kv_heads=3, checkpointing=True, rank=16),
    Case(
        "fp32, tied, deep",
        fp32=True,
        tied=True,
        layers=6,
        hidden=128,
        inner=384,
        heads=4,
        kv_heads=4,
    ),
    Case("one row, separate value, no copy", micro=1, separate=True, dense=False, kv_heads=1),
    Case("wide batch, K of 4, separate value", micro=4, k=4, rows=16, separate=True, rank=32),
)
"""Shapes and sizes that plans are compared on."""

FAMILY_CASES = (
    Case("Qwen 3", family="qwen3", kv_heads=2, head_size=64, layers=2, checkpointing=True),
    Case("Gemma 3", family="gemma3_text", kv_heads=2, head_size=64, layers=2, tied=True),
)
"""The same for families whose layers have more norms than those of a LLaMA."""


def forecast(case: Case) -> dict[str, int]:
    """Planned bytes of every stage."""
    device = Device("cpu", 4 if case.fp32 else 2)
    return planned(case.shape, device, case.settings, case.prompt, checkpointing=case.checkpointing)


def compared(case: Case) -> dict[str, Any]:
    """Compare planned and measured bytes of a case."""
    planned_bytes = forecast(case)
    with tempfile.TemporaryDirectory() as scratch:
        adapters = adapters_of(
            write_base(Path(scratch) / "base", case.shape),
            case.settings,
            dtype=torch.float32 if case.fp32 else torch.bfloat16,
            checkpointing=case.checkpointing,
            device="cpu",
        )
        meter = Meter(adapters, on_card=False)
        measured_bytes = Stages(adapters, case.settings, case.prompt, meter, Path(scratch)).all()
    rows = {
        name: {
            "planned": planned_bytes[name],
            "measured": measured_bytes[name],
            "error": planned_bytes[name] / measured_bytes[name] - 1,
        }
        for name in STAGES
    }
    return {"case": asdict(case), "stages": rows}
