"""What the three calls of a card's day share: the refusal, the clock, energy, and their bases."""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from alpaca_rlhf.planner import Shape, shape_of
from benchmarks import measure

CALL_SECONDS = 8 * 60
"""Longest that a call may take."""
BASES = ("llama-2-7b", "llama-3.1-8b")
MATMUL = 8192
"""Rows and columns of the product whose speed is the ceiling."""


@dataclass
class Call:
    """One call: what is measured goes into its file, after each part."""

    name: str
    rehearsed: bool
    out: Path | None
    scratch: Path | None = None
    """Where random bases go; 16 GB each."""
    began: float = field(default_factory=time.monotonic)
    parts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> str:
        """Device of the models."""
        return "cpu" if self.rehearsed else "cuda"

    @property
    def left(self) -> float:
        """Seconds until the call must have ended."""
        return CALL_SECONDS - (time.monotonic() - self.began)

    def part(self, name: str, seconds: float, work: Callable[[], dict[str, Any]]) -> None:
        """Do a part if so many seconds are left for it, and write the file; a failure is kept."""
        if self.left < seconds:
            self.leave_out(name, f"{self.left:.0f} s were left, and it may take {seconds:.0f}")
            return
        row: dict[str, Any] = {"name": name}
        start = time.perf_counter()
        try:
            row |= work()
        except Exception as error:  # the parts after it can still be measured
            row["failed"] = f"{type(error).__name__}: {error}"
        row["part_seconds"] = time.perf_counter() - start
        self._keep(row)

    def leave_out(self, name: str, why: str) -> None:
        """Say that a part is not measured."""
        self._keep({"name": name, "left_out": why})

    def _keep(self, row: dict[str, Any]) -> None:
        self.parts.append(row)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()
        self._write()

    def _write(self) -> None:
        if self.out is None:
            return
        made_on = measure.machine()
        if not self.rehearsed:
            made_on |= {
                "gpu": torch.cuda.get_device_name(),
                "capability": list(torch.cuda.get_device_capability()),
                "gpu_gib": torch.cuda.get_device_properties(0).total_memory / 2**30,
            }
        seconds = time.monotonic() - self.began
        measure.write(
            self.out, self.name, made_on, self.parts, {"seconds": seconds}, rehearsed=self.rehearsed
        )

    def code(self) -> int:
        """Exit code: 1 if a part failed."""
        return 1 if any("failed" in row for row in self.parts) else 0


def begin(name: str, doc: str | None, arguments: list[str] | None) -> Call:
    """Read the command line; end with one line and exit code 2 where there is no card."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny random models, on the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="where random bases go")
    given = parser.parse_args(arguments)
    if not given.rehearse and not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA card is seen here; --rehearse goes without one\n")
        raise SystemExit(2)
    return Call(name, given.rehearse, given.json, given.scratch)


def shape_for(call: Call, base: str) -> Shape:
    """The sizes of a base; tiny ones of the same architecture in a rehearsal."""
    from benchmarks.gpu.plan import shrunken

    shape = shape_of(base)
    return replace(shrunken(shape), layers=1) if call.rehearsed else shape


def synchronize(call: Call) -> None:
    """Wait until the card has done what it was asked."""
    if not call.rehearsed:
        torch.cuda.synchronize()


def matmul_ceiling(call: Call) -> float:
    """TFLOP a second of one large product in bfloat16, the best of five."""
    size = 64 if call.rehearsed else MATMUL
    a, b = (torch.randn(size, size, device=call.device).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(6):  # the first is a warm-up
        synchronize(call)
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        synchronize(call)
        best = min(best, (time.perf_counter() - start) / 10)
    return 2 * size**3 / best / 1e12


# --- energy ---------------------------------------------------------------------------------------


@dataclass
class Energy:
    """Joules that the card took within a block; None where NVML cannot tell."""

    joules: float | None = None


def _millijoules() -> int | None:
    """What the first card has taken since its driver was loaded, by NVML."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        handle, total = ctypes.c_void_p(), ctypes.c_ulonglong()
        for failed in (
            nvml.nvmlInit_v2(),
            nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)),
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(total)),
        ):
            if failed:
                return None
    except (OSError, AttributeError):
        return None
    return total.value


@contextmanager
def energy() -> Iterator[Energy]:
    """Measure a block; synchronise before it ends."""
    taken = Energy()
    before = _millijoules()
    yield taken
    after = _millijoules()
    if before is not None and after is not None:
        taken.joules = (after - before) / 1000
