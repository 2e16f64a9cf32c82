"""Memory of the whole process in each stage on SmolLM2's shape, beside what its tensors take.

    python benchmarks/process_memory.py --json benchmarks/results/process_memory.json

The weights are random: they change no size. Each setting of the C library's allocator gets a
process of its own, in which all stages follow one another as in a run. `peak` is the most resident
memory of the process, `left` what stays resident when the stage has ended, `trimmed` what stays
after the allocator was asked to return free memory: `left` minus `trimmed` is memory that nobody
uses.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpaca_rlhf.core import allocator
from alpaca_rlhf.settings import PPO, SFT, BestOfK, Loop, Reward, Sampling, Value
from benchmarks import measure

SETTINGS = Loop(
    sampling=Sampling(max_new_tokens=32, batch_size=16),
    sft=SFT(batch_size=8, micro_batch_size=4, max_length=192),
    reward=Reward(batch_size=4, micro_batch_size=2, max_length=192),
    ppo=PPO(
        updates=2,
        batch_size=16,
        minibatch_size=16,
        micro_batch_size=8,
        epochs=1,
        max_new_tokens=32,
        value=Value(warmup=0),
    ),
    best_of_k=BestOfK(k=4),
)
PROMPT = 128
ALLOCATORS = {"as the kit sets it": "--kit", "as the system sets it": "--system"}
"""A word for each process."""


def resident(kind: str = "VmRSS") -> float:
    """Resident memory of this process in MiB: `VmRSS` now, or `VmHWM` at its highest."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def child(quick: bool) -> dict[str, dict[str, float]]:
    """Every stage in this process."""
    if ALLOCATORS["as the kit sets it"] in sys.argv:
        allocator.return_memory()
    from alpaca_rlhf import planner
    from alpaca_rlhf.models.adapters import Adapters
    from benchmarks.stage_memory import STAGES, Meter, Stages, adapters_of, planned, write_base

    class Resident(Meter):
        """Resident memory of each phase."""

        def __init__(self, adapters: Adapters) -> None:
            super().__init__(adapters, on_card=False)
            self.rows: dict[str, dict[str, float]] = {}

        @contextmanager
        def stage(self, name: str) -> Iterator[None]:
            """Measure a block."""
            Path("/proc/self/clear_refs").write_text("5")
            start = time.perf_counter()
            yield
            self._note(name)
            row = self.rows[name] | {"left": resident(), "seconds": time.perf_counter() - start}
            allocator.trim()
            self.rows[name] = row | {"trimmed": resident()}
            sys.stderr.write(f"{name} {self.rows[name]}\n")

        def _note(self, name: str) -> None:
            self.rows[name] = {"peak": max(resident("VmHWM"), self._before(name))}
            Path("/proc/self/clear_refs").write_text("5")

        def _before(self, name: str) -> float:
            return self.rows.get(name, {}).get("peak", 0.0)

    name = "smollm2-135m"
    shape = planner.shape_of(name)
    if quick:
        shape = replace(shape, layers=6)
    rows = {"imports": {"peak": resident("VmHWM"), "left": resident()}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_base(Path(scratch) / "base", shape)
        allocator.trim()
        adapters = adapters_of(folder, SETTINGS, dtype=None, checkpointing=False, device="cpu")
        rows["base"] = {"peak": resident("VmHWM"), "left": resident()}
        meter = Resident(adapters)
        only = [stage for stage in STAGES if stage not in ("generate", "chat")]
        Stages(adapters, SETTINGS, PROMPT, meter, Path(scratch)).all(only)
        rows |= meter.rows
        device = planner.Device("cpu", adapters.base.dtype.itemsize)
        plan = planned(shape, device, SETTINGS, PROMPT, checkpointing=False)
    for stage, size in plan.items():
        if stage in rows:
            rows[stage]["tensors"] = size / 2**20
    return rows


def main() -> None:
    """A process for each allocator; print a table, write the file."""
    if set(ALLOCATORS.values()) & set(sys.argv):
        sys.stdout.write(json.dumps(child(measure.QUICK)) + "\n")
        return
    given = measure.arguments(__doc__, repeats=1, quick=1)
    made_on = measure.machine()
    rows: list[dict[str, Any]] = []
    for name, word in ALLOCATORS.items():
        words = [sys.executable, __file__, word, *["--quick"] * measure.QUICK]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        stages = json.loads(done.stdout.splitlines()[-1])
        for stage, row in stages.items():
            rows.append(
                {"allocator": name, "stage": stage, **{k: round(v) for k, v in row.items()}}
            )
    columns = ("allocator", "stage", "tensors", "peak", "left", "trimmed", "seconds")
    sys.stdout.write(
        measure.table([{key: str(row.get(key, "-")) for key in columns} for row in rows]) + "\n"
    )
    if given.json:
        peaks = {
            f"peak_mib, {name}": max(row["peak"] for row in rows if row["allocator"] == name)
            for name in ALLOCATORS
        }
        measure.write(given.json, "process_memory", made_on, rows, peaks)


if __name__ == "__main__":
    main()
