"""First call of a card's day: does it run, and does the plan hold?

    python benchmarks/gpu/checks.py --json benchmarks/results/gpu_checks.json
    python benchmarks/gpu/checks.py --rehearse

The tests that need a card, loading and quantising an 8B base, the doctor, and planned against
measured memory of a 7B and an 8B base under 24 and 12 GiB (`plan.py`).
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

# As every command of the kit sets it (core/allocator.py); torch reads it when it is loaded.
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch

from alpaca_rlhf.models.base import load_base
from benchmarks.gpu import card
from benchmarks.stage_memory import write_base

BASE = card.BASES[1]
ROOT = Path(__file__).resolve().parent.parent.parent
PLAN = "benchmarks/results/gpu_plan.json"
COMMANDS: dict[str, tuple[float, list[str]]] = {
    "tests": (60, ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]),
    "doctor": (30, ["-m", "alpaca_rlhf", "doctor"]),
    "plan": (240, ["benchmarks/gpu/plan.py"]),
}
"""Seconds that must be left for each part, and its command."""


def command(name: str, call: card.Call) -> dict[str, Any]:
    """Run a part's command within what is left; returns its exit code and its last lines."""
    arguments = list(COMMANDS[name][1])
    if name == "plan":
        arguments += ["--dry-run"] if call.rehearsed else ["--json", PLAN]
        arguments += [] if call.scratch is None else ["--scratch", str(call.scratch)]
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=call.left,
    )
    if ran.returncode:
        raise RuntimeError(f"exit code {ran.returncode}: {ran.stdout[-2000:]}")
    return {"command": ["python", *arguments], "last_lines": ran.stdout.splitlines()[-40:]}


def load(call: card.Call) -> dict[str, Any]:
    """Seconds from a 16-bit checkpoint on the disk to the base in 4 bit, and its memory."""
    shape = replace(card.shape_for(call, BASE), name=BASE)
    with tempfile.TemporaryDirectory(dir=call.scratch) as scratch:
        folder = write_base(Path(scratch) / "base", shape)
        start = time.perf_counter()
        base = load_base(str(folder), dtype=torch.bfloat16, device=call.device)
        card.synchronize(call)
        seconds = time.perf_counter() - start
    allocated = None if call.rehearsed else torch.cuda.memory_allocated() / 2**30
    return {"base": BASE, "seconds": seconds, "weights": base.parameters, "gib": allocated}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts in order."""
    call = card.begin("gpu_checks", __doc__, arguments)
    call.part("matmul", 10, lambda: {"bf16_tflops": card.matmul_ceiling(call)})
    for name, (seconds, _) in COMMANDS.items():
        call.part(name, seconds, partial(command, name, call))
        if name == "tests":
            call.part("load", 100, partial(load, call))
            gc.collect()
            if not call.rehearsed:
                torch.cuda.empty_cache()  # the commands after it need the card
    return call.code()


if __name__ == "__main__":
    sys.exit(main())
