"""How fast a CPU trains and samples a model of SmolLM2 135M's shape, in bf16 and in fp32.

    python benchmarks/smollm2_cpu.py --json benchmarks/results/smollm2_cpu.json

The weights are random: they change what is written, not how long it takes, since every completion
is as long as it may be. The rate of products that SFT reaches is what `alpaca-rlhf plan --card cpu`
counts with; rows of 128 tokens, 4 in memory at once.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from alpaca_rlhf import planner
from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.settings import SFT, Loop, Sampling
from benchmarks import measure
from benchmarks.stage_memory import Meter, StageWork, adapters_of, write_base

PROMPT, COMPLETION = 64, 64
MICRO = 4
SETTINGS = Loop(
    sampling=Sampling(max_new_tokens=COMPLETION, batch_size=16),
    sft=SFT(micro_batch_size=MICRO, max_length=PROMPT + COMPLETION),
)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Clock(Meter):
    """Seconds of each phase instead of bytes."""

    def __init__(self, adapters: Adapters) -> None:
        super().__init__(adapters, on_card=False)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def rates(dtype: torch.dtype, scratch: Path, sizes: Loop) -> dict[str, float]:
    """Tokens a second of training and of sampling, and the products that training reaches."""
    shape = planner.shape_of("smollm2-135m")
    folder = write_base(scratch / "base", shape)
    adapters = adapters_of(folder, sizes, dtype=dtype, checkpointing=False, device="cpu")
    clock = Clock(adapters)
    StageWork(adapters, sizes, PROMPT, clock, scratch).all(("sft", "sample"))
    rows, length = 4 * sizes.sft.micro_batch_size, PROMPT + COMPLETION
    twice = replace(sizes, sft=replace(sizes.sft, epochs=1, max_length=2 * length))
    work = planner.StageWork(shape, twice, planner.Lengths(), rows, checkpointing=False).all()[
        "sft"
    ]
    drawn = sizes.sampling.batch_size * COMPLETION
    return {
        "sft_tokens_per_second": rows * length / clock.seconds["sft"],
        "sampled_tokens_per_second": drawn / clock.seconds["sample"],
        "tflops": work.flops / clock.seconds["sft"] / 1e12,
    }


def main() -> None:
    """Both precisions in turn; print a table, write the file."""
    given = measure.arguments(__doc__, repeats=3, quick=1)
    made_on = measure.machine()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in DTYPES}
    for _ in range(given.repeats):
        for name, dtype in DTYPES.items():
            with tempfile.TemporaryDirectory() as scratch:
                found[name].append(rates(dtype, Path(scratch), SETTINGS))
    rows: list[dict[str, Any]] = [
        {"name": name, **{key: measure.spread_of([one[key] for one in all_]) for key in all_[0]}}
        for name, all_ in found.items()
    ]
    shown = [
        {"precision": row["name"]} | {key: f"{row[key]['median']:.3g}" for key in found["bf16"][0]}
        for row in rows
    ]
    sys.stdout.write(measure.table(shown) + "\n")
    if given.json:
        summary = {f"{row['name']}_{k}": row[k]["median"] for row in rows for k in found["bf16"][0]}
        measure.write(given.json, "smollm2_cpu", made_on, rows, summary)


if __name__ == "__main__":
    main()
