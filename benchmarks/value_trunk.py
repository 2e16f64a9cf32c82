"""Where PPO's value function should live: an adapter of its own, or a head on the policy's states.

    make quickstart ARGS="--out runs/quickstart"
    python benchmarks/value_trunk.py runs/quickstart --json benchmarks/results/value_trunk.json

From the SFT adapter and the reward model of a finished quickstart, PPO with the quickstart's
numbers is run for each kind of value function and each of three seeds, in turn. Each policy then
answers prompts of the development split, with the same noise, and the gold judge compares it with
SFT. Memory is measured by `ppo_vs_trl.py`, which has a row for each. CPU only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.evaluation.win_rate import paired_gain
from alpaca_rlhf.models.batches import answer, prompt_ids
from alpaca_rlhf.models.rollout import sample
from alpaca_rlhf.settings import Value
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.ppo import train_ppo
from alpaca_rlhf.training.rollouts import RolloutPrompt
from benchmarks import measure

PROMPTS = 300
KINDS: dict[str, Value] = {
    "separate": Value(trunk="separate", lr=1e-3, warmup=1),
    "shared": Value(trunk="shared", lr=1e-3, warmup=1),
    "shared, head lr 1e-2": Value(trunk="shared", lr=1e-2, warmup=1),
    "detached": Value(trunk="detached", lr=1e-3, warmup=1),
    "detached, head lr 1e-2": Value(trunk="detached", lr=1e-2, warmup=1),
}


class Bench:
    """A finished quickstart, from which PPO starts again and again.

    Args:
        folder: Its run folder, which is only read.
    """

    def __init__(self, folder: Path) -> None:
        settings = replace(
            QUICKSTART,
            out=folder,
            evaluate=replace(QUICKSTART.evaluate, prompts=PROMPTS, split="dev"),
        )
        self.ctx = Context(settings, RunFolder.follow(folder), source_of(settings), Terminal())
        self.ctx.load("sft", "sft")
        self.ctx.load("reward", "reward")
        self.rows = self.ctx.source.prompts("dev")
        self.of_sft = self.gold("sft")

    def gold(self, role: str) -> list[float]:
        """Gold score of a sampled answer to each development prompt."""
        ctx = self.ctx
        gold = ctx.source.gold
        assert gold is not None
        template = ctx.settings.template
        drawn = sample(
            ctx.adapters,
            role,
            [prompt_ids(ctx.base, template, row) for row in self.rows],
            [f"value_trunk/{row.id}" for row in self.rows],
            sampling=ctx.sampling("evaluate", temperature=1.0, top_p=1.0),
            seed=0,
        )
        return [
            gold(row, answer(ctx.base, template, one.ids), one.finished).score
            for row, (one,) in zip(self.rows, drawn, strict=True)
        ]

    def run(self, value: Value, seed: int) -> dict[str, Any]:
        """PPO with this value function, and what it was worth."""
        ctx = self.ctx
        ctx.adapters.load("policy", ctx.adapter_folder("sft"))
        prompts = [
            RolloutPrompt(row.id, prompt_ids(ctx.base, ctx.settings.template, row))
            for row in ctx.source.prompts("ppo")
        ]
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            began, began_cpu = time.perf_counter(), time.process_time()
            train_ppo(
                ctx.adapters,
                ctx.load_head("reward"),
                prompts,
                replace(ctx.settings.ppo, value=value),
                seed=seed,
                rollout_batch_size=ctx.settings.sampling.batch_size,
                checkpoints=Checkpoints(Path(folder)),
                log=rows.append,
            )
            seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        gold = self.gold("policy")
        gain = paired_gain(gold, self.of_sft, resamples=2000, seed=0)
        return {
            "seed": seed,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "gold_score": statistics.mean(gold),
            "gain": gain.mean,
            "gain_ci95": gain.ci95,
            "score": rows[-1]["score"],
            "kl": rows[-1]["kl"],
            "explained_variance": [row["explained_variance"] for row in rows],
        }


def main() -> None:
    """All kinds in turn, for each seed; print a table, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished quickstart")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    given = parser.parse_args()
    if not (given.run / "reward" / "adapter").is_dir():
        parser.error(f"{given.run} is not the folder of a finished quickstart")
    made_on = measure.machine()
    bench = Bench(given.run)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
    for seed in range(given.seeds):
        for name, value in KINDS.items():
            runs[name].append(bench.run(value, seed))
            sys.stderr.write(f"{name}, seed {seed}: {runs[name][-1]}\n")
    rows = [{"name": name, **mean_of(own), "runs": own} for name, own in runs.items()]
    sys.stdout.write(
        measure.table(
            [
                {
                    "value function": row["name"],
                    "gain over SFT": f"{row['gain']:+.3f}",
                    "of each seed": " ".join(f"{one['gain']:+.3f}" for one in row["runs"]),
                    "CPU seconds": f"{row['cpu_seconds']:.0f}",
                    "gain a CPU minute": f"{60 * row['gain'] / row['cpu_seconds']:.3f}",
                    "KL": f"{row['kl']:.2f}",
                    "explained variance": f"{row['explained_variance']:.2f}",
                }
                for row in rows
            ]
        )
        + "\n"
    )
    if given.json:
        summary = {f"gain_{row['name']}": row["gain"] for row in rows}
        measure.write(given.json, "value_trunk", made_on, rows, summary, prompts=PROMPTS)


def mean_of(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the seeds; of the explained variance, that of the last update."""
    names = ("seconds", "cpu_seconds", "gold_score", "gain", "score", "kl")
    means = {name: statistics.mean(one[name] for one in runs) for name in names}
    last = statistics.mean(one["explained_variance"][-1] for one in runs)
    return {**means, "explained_variance": last}


if __name__ == "__main__":
    main()
