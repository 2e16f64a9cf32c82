"""Provenance of a run: versions, commit, machine, inputs, seconds and memory. No torch."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from alpaca_rlhf import __version__
from alpaca_rlhf.core.errors import UserError

if sys.platform != "win32":
    import resource

LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
)
"""Libraries whose versions can change a result."""


def made_with() -> dict[str, Any]:
    """Versions, commit and hardware, for `provenance.json`."""
    return {"versions": versions(), "commit": commit(), "hardware": hardware()}


def now() -> str:
    """The time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the installed `LIBRARIES`; none is imported."""
    version_of = {"alpaca-rlhf": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            version_of[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return version_of


def commit() -> str | None:
    """The checkout's git commit, with `-dirty` if files were changed; None without a checkout."""
    root = Path(__file__).parent.parent.parent
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if head and changed else head or None


def hardware() -> dict[str, Any]:
    """The machine: processor, cores this process may use, memory in GiB, operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ram = psutil.virtual_memory().total / 2**30
    return {
        "cpu": _cpu(),
        "cores": cores,
        "ram_gib": round(ram, 1),
        "platform": platform.platform(),
    }


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None


@dataclass
class Measured:
    """Seconds and memory of a block of code; filled in when the block ends."""

    seconds: float = 0.0
    """Wall-clock time."""
    peak_memory_gib: float = 0.0
    """Most resident memory of the process during the block."""


@contextmanager
def measure() -> Iterator[Measured]:
    """Seconds and peak resident memory of a block. Blocks must not be nested.

    Linux can restart its peak at the start of the block (`man 5 proc`, clear_refs). Where it
    cannot, the figure is the peak of the process so far. Memory of a GPU is not in it.
    """
    measured = Measured()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # not Linux, or a container without it: see above
    start = time.perf_counter()
    try:
        yield measured
    finally:
        measured.seconds = time.perf_counter() - start
        measured.peak_memory_gib = _peak_bytes() / 2**30


def _peak_bytes() -> int:
    try:
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        peak = None
    if peak:
        return int(peak[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    # ru_maxrss is in kilobytes on Linux and in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _git(root: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _cpu() -> str:
    try:
        model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return model[1].strip() if model else platform.processor() or platform.machine()
