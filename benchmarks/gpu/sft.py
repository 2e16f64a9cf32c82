"""Second call of a card's day: fine-tuning a 7B and an 8B base, beside TRL's SFTTrainer.

    python benchmarks/gpu/sft.py --json benchmarks/results/gpu_sft.json
    python benchmarks/gpu/sft.py --rehearse

QLoRA on a random base in NF4, rows as long as Alpaca's, loss on completions, bf16 autocast, the
same micro-batch on both sides, with and without checkpointing. Tokens are real ones, never padding.
TRL's side runs where trl 1.12.0 is installed, and has never run on a card.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
# As every command of the kit sets it (core/allocator.py); torch reads it when it is loaded.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import Example
from alpaca_rlhf.planner import Lengths, Shape, StageWork
from alpaca_rlhf.settings import SFT, Loop, Lora
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.sft import train_sft
from benchmarks import little_llama
from benchmarks.gpu import card
from benchmarks.lengths import spread
from benchmarks.stage_memory import write_base

TRL = "1.12.0"
MICRO = 8


def examples(count: int, shape: Shape) -> list[Example]:
    """Rows of Alpaca's lengths."""
    sizes = little_llama.Shape(vocabulary=shape.vocabulary)
    rows = []
    for number, (prompt, completion) in enumerate(spread(count)):
        ids = little_llama.random_ids(prompt + completion, number, sizes)
        rows.append(Example(tuple(ids[:prompt]), tuple(ids[prompt:])))
    return rows


def ours(call: card.Call, folder: Path, rows: list[Example], checkpointing: bool) -> dict[str, Any]:
    """Two steps to warm up, then the rows again by the clock."""
    base = load_base(str(folder), dtype=torch.bfloat16, device=call.device)
    adapters = Adapters(base, Lora(), template="brief")
    adapters.checkpointing(checkpointing)
    settings = SFT(epochs=1, batch_size=len(rows) // 2, micro_batch_size=MICRO, held_out=0.0)

    def train() -> None:
        adapters.add("sft")
        with tempfile.TemporaryDirectory() as scratch:
            train_sft(
                adapters,
                "sft",
                rows,
                [],
                settings,
                seed=0,
                checkpoints=Checkpoints(Path(scratch)),
                log=lambda row: None,
            )

    return timed(call, train, sum(len(row) for row in rows))


def theirs(
    call: card.Call, folder: Path, rows: list[Example], checkpointing: bool
) -> dict[str, Any]:
    """The same rows through TRL's SFTTrainer, padded as by its defaults."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map={"": call.device},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    lora = Lora()
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt, *row.completion],
                "labels": [-100] * len(row.prompt) + list(row.completion),
            }
            for row in rows
        ]
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            get_peft_model(model, config),
            args=SFTConfig(
                output_dir=scratch,
                per_device_train_batch_size=MICRO,
                gradient_accumulation_steps=len(rows) // 2 // MICRO,
                num_train_epochs=1,
                bf16=True,
                use_cpu=call.rehearsed,
                gradient_checkpointing=checkpointing,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(folder),
        )
        return timed(call, trainer.train, sum(len(row) for row in rows))


def timed(call: card.Call, train: Callable[[], Any], tokens: int) -> dict[str, Any]:
    """Train once to warm up and once by the clock."""
    train()
    if not call.rehearsed:
        torch.cuda.reset_peak_memory_stats()
    card.synchronize(call)
    with card.energy() as taken:
        start = time.perf_counter()
        train()
        card.synchronize(call)
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "joules_per_token": None if taken.joules is None else taken.joules / tokens,
        "allocated_gib": None if call.rehearsed else torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": None if call.rehearsed else torch.cuda.max_memory_reserved() / 2**30,
    }


def flops(shape: Shape, rows: list[Example]) -> float:
    """FLOPs that the rows need, with nothing computed twice."""
    mean = sum(len(row) for row in rows) / len(rows)
    # The planner takes rows to be half as long as their limit.
    settings = Loop(sft=SFT(epochs=1, max_length=round(2 * mean)))
    work = StageWork(shape, settings, Lengths(), len(rows), checkpointing=False)
    return work.all()["sft"].flops


def trl_version() -> str | None:
    """Version of trl here, or None."""
    try:
        return metadata.version("trl")
    except metadata.PackageNotFoundError:
        return None


def _measure_base(call: card.Call, base: str, count: int, seconds: float, ceiling: float) -> None:
    """Both sides on one base, activations kept and recomputed."""
    shape = card.shape_for(call, base)
    rows = examples(count, shape)
    needed = flops(shape, rows) / 1e12
    with tempfile.TemporaryDirectory(dir=call.scratch) as scratch:
        folder = write_base(Path(scratch) / "base", replace(shape, name=base))

        def work(side: Any, checkpointing: bool) -> dict[str, Any]:
            row: dict[str, Any] = side(call, folder, rows, checkpointing)
            return {**row, "share_of_ceiling": needed / row["seconds"] / ceiling}

        for name, side in (("ours", ours), ("TRL", theirs)):
            if side is theirs and trl_version() != TRL:
                call.leave_out(f"{base}, TRL", f"needs trl=={TRL}")
                continue
            for how, checkpointing in (("kept", False), ("recomputed", True)):
                call.part(f"{base}, {name}, {how}", seconds, partial(work, side, checkpointing))


def main(arguments: list[str] | None = None) -> int:
    """Both bases, both sides, with checkpointing and without."""
    call = card.begin("gpu_sft", __doc__, arguments)
    count, seconds = (2 * MICRO, 0.0) if call.rehearsed else (8 * MICRO, 60.0)
    ceiling = 0.0

    def measure_ceiling() -> dict[str, Any]:
        nonlocal ceiling
        ceiling = card.matmul_ceiling(call)
        return {"bf16_tflops": ceiling}

    call.part("matmul", 0.0, measure_ceiling)
    for base in card.BASES:
        _measure_base(call, base, count, seconds, ceiling)
    return call.code()


if __name__ == "__main__":
    sys.exit(main())
