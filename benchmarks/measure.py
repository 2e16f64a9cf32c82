"""What the benchmarks share: workers that take turns, FLOPs, live bytes, medians, the JSON file.

Every side of a comparison lives in a process of its own, because mixed precision and resident
memory are states of a process. The processes take turns, so a noisy minute hits all sides alike,
and only one of them works at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import bitsandbytes  # noqa: F401  (registers the 4-bit operations)
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from alpaca_rlhf.core import provenance

SCHEMA = 1
QUICK = "--quick" in sys.argv or os.environ.get("ALPACA_RLHF_QUICK") == "1"
"""Whether this is a look only: less work a run, so the figures are not those of a full run."""
if QUICK:
    os.environ["ALPACA_RLHF_QUICK"] = "1"  # for the workers

# --- FLOPs ----------------------------------------------------------------------------------------


def _four_bit_flop(
    a: Sequence[int], b: Sequence[int], shape: Sequence[int], *args: Any, out_shape: Any = None
) -> int:
    """(..., K) times a 4-bit (N, K) weight: 2 M N K, as for any other weight."""
    return 2 * math.prod(a) * shape[0]


def _cpu_attention_flop(
    q: Sequence[int],
    k: Sequence[int],
    v: Sequence[int],
    *args: Any,
    out_shape: Any = None,
    **kw: Any,
) -> int:
    return int(sdpa_flop_count(tuple(q), tuple(k), tuple(v)))


def _cpu_attention_backward_flop(
    grad: Sequence[int],
    q: Sequence[int],
    k: Sequence[int],
    v: Sequence[int],
    *args: Any,
    out_shape: Any = None,
    **kw: Any,
) -> int:
    return int(sdpa_backward_flop_count(tuple(grad), tuple(q), tuple(k), tuple(v)))


def _formulas() -> dict[Any, Callable[..., int]]:
    """What torch's counter does not know.

    Without gradients bitsandbytes multiplies in one operation of its own; with gradients it makes
    the weight 16-bit and calls an ordinary product, which torch counts. Attention on a CPU is an
    operation that torch's counter passes over. Both are counted as torch counts their kin, so every
    side is counted alike; attention counts the whole square, causal or not, as torch does.
    """
    return {
        torch.ops.bitsandbytes.gemm_4bit: _four_bit_flop,
        torch.ops.bitsandbytes.gemv_4bit: _four_bit_flop,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flop,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            _cpu_attention_backward_flop
        ),
    }


def flop_counter() -> FlopCounterMode:
    """Torch's FLOP counter with 4-bit products and attention on the CPU."""
    return FlopCounterMode(display=False, custom_mapping=_formulas())


# --- memory ---------------------------------------------------------------------------------------

_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.bitsandbytes.gemm_4bit.default,
}
_HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _product_in_fp32(func: Any, args: Any, kwargs: Any) -> Any:
    """A product of bf16 tensors, computed in fp32 and rounded.

    A processor without bf16 takes twenty times as long for it otherwise. The result has the storage
    that it would have had, so the bytes that outlive the operation are the same.
    """
    if not any(tensor.dtype == torch.bfloat16 for tensor in _tensors((args, kwargs))):
        return func(*args, **kwargs)

    def widened(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype == torch.bfloat16 else tensor

    args, kwargs = tree_map_only(Tensor, widened, (args, kwargs))
    return func(*args, **kwargs).bfloat16()


class LiveBytes(TorchDispatchMode):
    """Bytes of tensors alive at once: every storage that an operation reads or makes, till it dies.

    A storage counts once however many views it has, from when an operation first touches it (those
    of `known` from the start) until nothing refers to it, autograd's saved tensors included. What
    an operation allocates and frees within itself (such as the 16-bit copy of a 4-bit weight inside
    one fused product) is not seen, on any side.

    Args:
        known: Tensors that are there before the first operation, such as weights.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        for tensor in known:
            self._see(tensor)
        self.start = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._see(tensor)
        kwargs = kwargs or {}
        if func in _PRODUCTS and not _HAS_BF16:
            result = _product_in_fp32(func, args, kwargs)
        else:
            result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        before = self._alive.get(key)
        size = storage.nbytes()
        if before is not None:
            if before[0] == size:
                return
            self.live += size - before[0]
            self._alive[key] = (size, before[1])
        else:
            self.live += size
            self._alive[key] = (size, weakref.ref(storage, lambda _: self._gone(key)))
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int) -> None:
        self.live -= self._alive.pop(key)[0]


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, (tuple, list)):
        for one in found:
            yield from _tensors(one)
    elif isinstance(found, dict):
        yield from _tensors(list(found.values()))


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module, and what its 4-bit weights need besides their codes."""
    yield from module.parameters()
    yield from module.buffers()
    for parameter in module.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            states = [state, *([state.state2] if state.nested else [])]
            yield from _tensors([[s.absmax, s.code] for s in states])


# --- sides that take turns ------------------------------------------------------------------------


class Side(Protocol):
    """One side of a comparison, inside its own process."""

    phases: dict[str, float]
    """Seconds of each phase of the last run."""

    def modules(self) -> list[nn.Module]:
        """Models that are in memory before a run."""

    def probe(self) -> dict[str, float]:
        """Numbers that every side must agree on, before anything was trained."""

    def prepare(self) -> None:
        """Get ready for a run, off the clock: the same weights at the start of each."""

    def run(self) -> dict[str, Any]:
        """Do the measured work once; returns what shows that it was the same work."""


class Worker:
    """A side in a process of its own.

    Args:
        name: Name of its row.
        make: Makes the side; a module-level function or class.
        args: Its arguments.
        env: Environment variables of the process.
    """

    def __init__(
        self, name: str, make: Callable[..., Side], *args: Any, env: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, make, args, dict(env or {})), daemon=True
        )
        self._process.start()
        there.close()

    def ready(self) -> Worker:
        """Wait until the side is made."""
        self._answer()
        return self

    def ask(self, what: str) -> dict[str, Any]:
        """`probe`, `count` (one run with FLOPs and live bytes) or `time` (one run by the clock)."""
        self._pipe.send(what)
        return self._answer()

    def stop(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()

    def _answer(self) -> dict[str, Any]:
        try:
            good, answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.name}: its process ended") from None
        if not good:
            raise RuntimeError(f"{self.name}:\n{answer}")
        found: dict[str, Any] = answer
        return found


def _serve(pipe: Connection, make: Callable[..., Side], args: Any, env: dict[str, str]) -> None:
    os.environ.update(env)
    silent = os.open(os.devnull, os.O_WRONLY)  # libraries print progress and logs of their own
    for stream in (1, 2):
        os.dup2(silent, stream)
    try:
        side = make(*args)
        pipe.send((True, {}))
        while True:
            try:
                what = pipe.recv()
            except EOFError:
                return
            pipe.send(
                (
                    True,
                    {"probe": side.probe, "count": _count, "time": _time}[what](
                        *([] if what == "probe" else [side])
                    ),
                )
            )
    except Exception:
        pipe.send((False, traceback.format_exc()))


def _count(side: Side) -> dict[str, Any]:
    """Two runs: the FLOP counter's hooks keep tensors alive that checkpointing would free."""
    steps = 0

    def stepped(*_: Any) -> None:
        nonlocal steps
        steps += 1

    # 1. FLOPs and optimiser steps.
    side.prepare()
    hook = register_optimizer_step_post_hook(stepped)
    try:
        with flop_counter() as flops:
            work = side.run()
    finally:
        hook.remove()
    # 2. Live bytes.
    side.prepare()
    known = [tensor for module in side.modules() for tensor in tensors_of(module)]
    with LiveBytes(known) as live:
        side.run()
    del known
    by_operation = {str(k): v for k, v in flops.get_flop_counts()["Global"].items()}
    return {
        "flops": flops.get_total_flops(),
        "flops_by_operation": by_operation,
        "peak_live_bytes": live.peak,
        "live_bytes_before": live.start,
        "optimizer_steps": steps,
        "work": work,
    }


def _time(side: Side) -> dict[str, Any]:
    side.prepare()
    side.phases.clear()
    with provenance.measure() as measured:
        work = side.run()
    return {
        "seconds": measured.seconds,
        "resident_gib": measured.peak_memory_gib,
        "phases": dict(side.phases),
        "work": work,
    }


@contextmanager
def phase(phases: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds of a block to a phase."""
    start = time.perf_counter()
    try:
        yield
    finally:
        phases[name] = phases.get(name, 0.0) + time.perf_counter() - start


def timed(phases: dict[str, float], name: str, module: Any, function: str) -> None:
    """Add the seconds of every call of `module.function` to a phase."""
    inner = getattr(module, function)

    def outer(*args: Any, **kwargs: Any) -> Any:
        with phase(phases, name):
            return inner(*args, **kwargs)

    setattr(module, function, outer)


def compare(workers: Sequence[Worker], repeats: int) -> list[dict[str, Any]]:
    """A row for each side: a probe, a counted run (which warms up too), then timed runs in turn."""
    rows = []
    for worker in workers:
        rows.append({"name": worker.ready().name, "probe": worker.ask("probe")})
    for worker, row in zip(workers, rows, strict=True):
        row |= worker.ask("count")
        _say(
            f"{worker.name}: {row['flops'] / 1e9:.0f} GFLOP, "
            f"{row['peak_live_bytes'] / 2**20:.0f} MiB"
        )
    runs: list[list[dict[str, Any]]] = [[] for _ in workers]
    for repeat in range(repeats):
        for i, worker in enumerate(workers):
            runs[i].append(worker.ask("time"))
            _say(f"{repeat + 1}/{repeats} {worker.name}: {runs[i][-1]['seconds']:.2f} s")
    for row, own in zip(rows, runs, strict=True):
        row["seconds"] = spread_of([one["seconds"] for one in own])
        row["resident_gib"] = max(one["resident_gib"] for one in own)
        names = own[0]["phases"]
        row["phases"] = {
            n: statistics.median(one["phases"].get(n, 0.0) for one in own) for n in names
        }
    return rows


def spread_of(values: Sequence[float]) -> dict[str, Any]:
    """Median, range and the values themselves."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "all": list(values),
    }


def seconds(row: Mapping[str, Any]) -> str:
    """Median and range of a row, for the table."""
    return "{median:.2f} ({min:.2f}-{max:.2f})".format(**row["seconds"])


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


# --- command line and file ------------------------------------------------------------------------


def arguments(doc: str | None, *, repeats: int, quick: int) -> argparse.Namespace:
    """`--quick`, `--json FILE` and `--repeats N`, by default `repeats`, or `quick` of them."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"less work a run, {quick} timed runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--repeats", type=int, metavar="N", help="timed runs a side")
    given = parser.parse_args()
    if given.repeats is None:
        given.repeats = quick if given.quick else repeats
    return given


def need(package: str, version: str, *, extra: str = "bench") -> None:
    """End with exit code 2 and one line if a library to compare with is not installed."""
    from importlib import metadata

    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        found = None
    if found != version:
        have = "is not installed" if found is None else f"is version {found}"
        sys.stderr.write(
            f"this comparison needs {package}=={version}, which {have}; "
            f"pip install -c constraints.txt -e '.[{extra}]'\n"
        )
        raise SystemExit(2)


def machine() -> dict[str, Any]:
    """What the numbers depend on: hardware, threads, versions, and what else was running."""
    return {
        **provenance.hardware(),
        "threads": torch.get_num_threads(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "versions": provenance.versions(),
        "time": provenance.now(),
    }


def write(
    path: Path,
    name: str,
    made_on: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    **more: Any,
) -> None:
    """Write a result: name, commit, machine, rows, summary, and what else the benchmark tells."""
    content = {
        "schema": SCHEMA,
        "name": name,
        "commit": provenance.commit(),
        "quick": QUICK,
        "machine": dict(made_on),
        "rows": list(rows),
        "summary": dict(summary),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of text under their keys, in aligned columns."""
    heads = list(rows[0])
    widths = [max(len(h), *(len(row[h]) for row in rows)) for h in heads]
    lines = [heads, *([row[h] for h in heads] for row in rows)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
