"""Planned against measured memory on a graphics card: 7B and 8B bases under 24 and 12 GiB.

    python benchmarks/gpu/plan.py --json benchmarks/results/gpu_plan.json
    python benchmarks/gpu/plan.py --dry-run         tiny models of the same architecture, on a CPU

A random LLaMA-2-7B (every query head has keys of its own) and a random Llama-3.1-8B (four share
them) run SFT, reward, PPO's rollout, scoring and update with the settings that the planner chooses
for the cap. A larger card is made as small: another process holds what is above the cap, and
torch's own memory fraction ends at it. Nothing is paged to the host: the optimiser is plain AdamW.
Every pair of a base and a cap is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from alpaca_rlhf.core import allocator
from alpaca_rlhf.planner import (
    Budget,
    Device,
    GpuSpec,
    Lengths,
    Shape,
    find_gpu,
    largest_fitting,
    shape_of,
)
from alpaca_rlhf.settings import PPO, SFT, Loop, Rank, Reward, Sampling, Value
from benchmarks import measure
from benchmarks.stage_memory import Meter, Stages, adapters_of, planned, write_base

BASES = ("llama-2-7b", "llama-3.1-8b")
CAPS_GIB = (24.0, 12.0)
PROMPT = 256
"""Tokens of every prompt."""
ONLY = ("sft", "reward", "ppo: rollout", "ppo: scoring", "ppo: update")
"""What is run."""
LEFT_GIB = 0.25
"""Of the cap, left to what neither process allocates through torch."""


def shrunken(shape: Shape) -> Shape:
    """Tiny, with the same share of key heads and the same kind of output head."""
    heads = 8
    return replace(
        shape,
        hidden=256,
        inner=round(256 * shape.inner / shape.hidden / 64) * 64,
        layers=2,
        heads=heads,
        kv_heads=heads * shape.kv_heads // shape.heads,
        head_size=32,
        vocabulary=shape.vocabulary // 32,
        context=1024,
    )


def settings_of(base: str, *, dry: bool) -> Loop:
    """The defaults of a 7-8B base; few steps, as the peak is that of the second."""
    new, length = (16, 32) if dry else (256, 512)
    return Loop(
        base=base,
        sampling=Sampling(max_new_tokens=new),
        sft=SFT(max_length=length, batch_size=8 if dry else 128),
        rank=Rank(k=4),
        reward=Reward(max_length=length, batch_size=4 if dry else 16),
        ppo=PPO(
            updates=3,
            batch_size=16 if dry else 64,
            minibatch_size=8 if dry else 32,
            epochs=1,
            max_new_tokens=new,
            value=Value(warmup=1),
        ),
    )


def run(base: str, cap_gib: float, folder: Path, *, dry: bool) -> dict[str, Any]:
    """Choose for the cap, run, and tell what was planned and what it took."""
    shape = shrunken(shape_of(base)) if dry else shape_of(base)
    kind = Device("cpu" if dry else "cuda", 2)
    prompt = 16 if dry else PROMPT
    card = replace(find_gpu(f"{cap_gib:g}"), gib=cap_gib)
    budget = Budget(shape, GpuSpec(card.name, cap_gib, 1, 1, 1), Lengths(prompt=prompt), kind)
    settings = largest_fitting(budget, settings_of(base, dry=dry))
    sft, reward = settings.sft, settings.reward
    settings = replace(  # two micro-batches a step, as the stages are run
        settings,
        sft=replace(sft, batch_size=2 * sft.micro_batch_size),
        reward=replace(reward, batch_size=2 * reward.micro_batch_size),
    )
    if dry:  # of a tiny model everything fits: keep the work small
        settings = replace(settings, sampling=replace(settings.sampling, batch_size=8))
    if not folder.is_dir():
        write_base(folder, shape)
    said = planned(shape, kind, settings, prompt, checkpointing=True)
    adapters = adapters_of(
        folder,
        settings,
        dtype=torch.bfloat16,
        checkpointing=True,
        device="cpu" if dry else "cuda",
    )
    meter = Meter(adapters, on_card=not dry)
    with tempfile.TemporaryDirectory() as scratch:
        took = Stages(adapters, settings, prompt, meter, Path(scratch)).all(ONLY)
    rows = {
        name: {
            "planned_gib": said[name] / 2**30,
            "measured_gib": took[name] / 2**30,
            "error": said[name] / took[name] - 1,
        }
        for name in ONLY
    }
    reserved = None if dry else torch.cuda.max_memory_reserved() / 2**30
    return {
        "name": f"{base}, {cap_gib:g} GiB",
        "chosen": {
            "--sft.micro-batch-size": settings.sft.micro_batch_size,
            "--reward.micro-batch-size": settings.reward.micro_batch_size,
            "--ppo.micro-batch-size": settings.ppo.micro_batch_size,
            "--sampling.batch-size": settings.sampling.batch_size,
        },
        "stages": rows,
        "reserved_gib": reserved,
        "fits": reserved is None or reserved <= cap_gib,
    }


# --- a card made smaller --------------------------------------------------------------------------


def _hold(size: int, pipe: Connection) -> None:
    held = torch.empty(size, dtype=torch.uint8, device="cuda")
    pipe.send(held.numel())
    pipe.recv()  # until the other side has done


@contextmanager
def ballast(cap_gib: float) -> Iterator[None]:
    """Another process holds what the card has above a cap, and this one may not go beyond it."""
    free, total = torch.cuda.mem_get_info()
    cap = int(cap_gib * 2**30)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    holder = context.Process(target=_hold, args=(max(2**20, free - cap), there), daemon=True)
    holder.start()
    try:
        here.recv()
        fraction = (cap_gib - LEFT_GIB) * 2**30 / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, fraction))
        yield
    finally:
        here.send("done")
        holder.join(30)


def _one(base: str, cap_gib: float, folder: Path, dry: bool, out: Path) -> None:
    if dry:
        out.write_text(json.dumps(run(base, cap_gib, folder, dry=True)))
        return
    with ballast(cap_gib):
        out.write_text(json.dumps(run(base, cap_gib, folder, dry=False)))


def main() -> int:
    """Every base under every cap; print a table, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="tiny models, on a CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--scratch", type=Path, help="where the random bases go (16 GB each)")
    given = parser.parse_args()
    if not given.dry_run and not torch.cuda.is_available():
        sys.stderr.write("error: no graphics card is seen here; --dry-run goes without one\n")
        return 2
    made_on = measure.machine()
    if not given.dry_run:
        made_on["gpu"] = torch.cuda.get_device_name()
    allocator.expand_segments()
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        for base in BASES:
            for cap in CAPS_GIB[:1] if given.dry_run else CAPS_GIB:
                out = Path(scratch) / f"{base}-{cap:g}.json"
                # not a daemon: it starts the process that holds the ballast
                process = context.Process(
                    target=_one, args=(base, cap, Path(scratch) / base, given.dry_run, out)
                )
                process.start()
                process.join()
                if not out.is_file():
                    sys.stderr.write(f"{base} under {cap:g} GiB failed\n")
                    return 1
                rows.append(json.loads(out.read_text()))
                _tell(rows[-1])
    errors = [abs(one["error"]) for row in rows for one in row["stages"].values()]
    summary = {"largest_error": max(errors), "all_fit": all(row["fits"] for row in rows)}
    if given.json:
        measure.write(
            given.json, "gpu_plan", made_on, rows, summary, measured_on_gpu=not given.dry_run
        )
    return 0 if summary["all_fit"] else 1


def _tell(row: dict[str, Any]) -> None:
    lines = [
        f"  {name:14} planned {one['planned_gib']:.3f}, measured {one['measured_gib']:.3f} GiB"
        for name, one in row["stages"].items()
    ]
    sys.stdout.write("\n".join([row["name"], *lines]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
