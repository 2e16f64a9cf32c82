"""What scoring reference, reward and value in one pass over the base could save at most.

    python benchmarks/one_pass.py --json benchmarks/results/one_pass.json

PPO scores its completions three times, once with each adapter. In one pass over all three copies
of the rows, the 4-bit weights would be read once instead of thrice; the products stay the same, and
each row would still need its own adapter. So the most that it can save is the difference between
three passes over N rows and one pass over 3 N rows with a single adapter, which is measured here:
without gradients, on the small LLaMA of `little_llama.py`, lengths of Alpaca. CPU only.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from alpaca_rlhf.models.adapters import Adapters
from alpaca_rlhf.models.base import load_base
from alpaca_rlhf.models.batches import Batch, Example, collate
from alpaca_rlhf.settings import Lora
from benchmarks import measure
from benchmarks.lengths import spread
from benchmarks.little_llama import SHAPE, random_ids, write_checkpoint

SIZES = (1, 4, 16)


@torch.no_grad()
def seconds(adapters: Adapters, batch: Batch, passes: int) -> float:
    """Seconds of so many passes over a batch."""
    with adapters.using("reward"):
        began = time.perf_counter()
        for _ in range(passes):
            adapters.hidden(batch)
        return time.perf_counter() - began


def main() -> None:
    """Both ways in turn, for each number of rows; print a table, write the file."""
    given = measure.arguments(__doc__, repeats=15, quick=3)
    made_on = measure.machine()
    with tempfile.TemporaryDirectory() as scratch:
        base = load_base(str(write_checkpoint(Path(scratch) / "llama")), device="cpu")
    adapters = Adapters(base, Lora(r=SHAPE.rank), template="brief")
    adapters.add("reward")
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        examples = [
            Example(tuple(random_ids(p, seed=i)), tuple(random_ids(c, seed=100 + i)))
            for i, (p, c) in enumerate(spread(size))
        ]
        once, thrice = collate(base, examples), collate(base, examples * 3)
        seconds(adapters, thrice, 1)
        found = [
            (seconds(adapters, once, 3), seconds(adapters, thrice, 1)) for _ in range(given.repeats)
        ]
        three, one = (measure.spread_of(times) for times in zip(*found, strict=True))
        rows.append(
            {
                "name": f"{size} rows",
                "three_passes": three,
                "one_pass": one,
                "ratio": one["median"] / three["median"],
            }
        )
    sys.stdout.write(
        measure.table(
            [
                {
                    "rows at once": row["name"],
                    "three passes, s": measure.seconds({"seconds": row["three_passes"]}),
                    "one pass over all, s": measure.seconds({"seconds": row["one_pass"]}),
                    "ratio": f"{row['ratio']:.2f}",
                }
                for row in rows
            ]
        )
        + "\n"
    )
    if given.json:
        summary = {f"ratio, {row['name']}": row["ratio"] for row in rows}
        measure.write(given.json, "one_pass", made_on, rows, summary)


if __name__ == "__main__":
    main()
