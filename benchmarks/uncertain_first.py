"""Uncertain prompts first against a random order: rankings that are saved, on the embedded base.

    python benchmarks/uncertain_first.py --out runs/uncertain_first --json FILE

Each seed is a quickstart up to its rankings. Of the rankings to train on both orders begin with the
same ones. Then one adds rankings at random; the other trains a reward model on those it has, and
adds those of the rest that this model is least sure of (`stages/uncertainty.py`), as people with
`--rank.queue uncertain` would be given them. Both are measured on the same held-out rankings. The
target is what the random order reaches with three quarters of the rankings. Run again, it goes on
with the first reward model that is missing. CPU only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alpaca_rlhf.cli.terminal import Terminal
from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.core.records import content_hash
from alpaca_rlhf.core.runs import RunFolder
from alpaca_rlhf.models.scoring import score
from alpaca_rlhf.pipeline import run_loop
from alpaca_rlhf.settings.quickstart import QUICKSTART
from alpaca_rlhf.sources import source_of
from alpaca_rlhf.stages.context import Context
from alpaca_rlhf.stages.reward import ranking_groups
from alpaca_rlhf.stages.uncertainty import order_entropy
from alpaca_rlhf.training.groups import Group
from alpaca_rlhf.training.loop import Checkpoints
from alpaca_rlhf.training.reward import train_reward
from benchmarks import measure

SIZES = (30, 60, 90, 120, 180, 240, 300)
"""Rankings after which both orders are measured; the first are the same."""
TARGET_AT = 0.75
"""Share of the largest size whose accuracy, in random order, is the target."""
WORTH = 0.2
"""Share of the rankings that an order must save to be worth it: a day of a week's ranking."""

Points = Sequence[tuple[int, float]]
"""(rankings, held-out accuracy), fewest first."""


def rankings_to_reach(points: Points, target: float) -> float | None:
    """Rankings at which a curve first reaches an accuracy, by straight lines; None if never."""
    before: tuple[int, float] | None = None
    for rankings, accuracy in points:
        if accuracy >= target:
            if before is None or accuracy == before[1]:
                return float(rankings)
            share = (target - before[1]) / (accuracy - before[1])
            return before[0] + share * (rankings - before[0])
        before = rankings, accuracy
    return None


class Bench:
    """One seed: rankings of a quickstart, and the reward models of both orders.

    Args:
        folder: Everything of the seed; what is there already is not made again.
        seed: The seed.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        settings = replace(QUICKSTART, out=folder / "run", seed=seed)
        run_loop(settings, Terminal(), kind="loop", command="benchmark", until="rank")
        run = RunFolder.follow(settings.out)
        self.ctx = Context(settings, run, source_of(settings), Terminal())
        self.ctx.load("sft", "sft")
        self.folder, self.seed = folder, seed
        rankings = ranking_groups(self.ctx, 1)
        self.held_out = rankings.held_out
        self.pool = sorted(rankings.train, key=lambda group: content_hash(group.prompt_id))

    def accuracy(self, order: str, groups: Sequence[Group]) -> float:
        """Train on these rankings, unless that is done, and measure; the adapter is `reward`."""
        done = self.folder / order / f"{len(groups)}.json"
        self.head = None
        if done.is_file():
            return float(json.loads(done.read_text())["accuracy"])
        adapters = self.ctx.adapters
        adapters.add("reward", copy_of="sft", seed=self.seed)
        self.head, result = train_reward(
            adapters,
            "reward",
            groups,
            self.held_out,
            self.ctx.settings.reward,
            seed=self.seed,
            checkpoints=Checkpoints(self.folder / order / f"checkpoints-{len(groups)}"),
            log=lambda row: None,
        )
        prompts = [group.prompt_id for group in groups]
        row = {"accuracy": result.accuracy, "prompts": prompts}
        row["next"] = self._least_certain(groups) if order == "uncertain" else []
        done.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(done, json.dumps(row))
        return result.accuracy

    def _least_certain(self, groups: Sequence[Group]) -> list[str]:
        """Prompts of the rest of the pool, from the one that the model is least sure of."""
        assert self.head is not None
        chosen = {group.prompt_id for group in groups}
        rest = [group for group in self.pool if group.prompt_id not in chosen]
        examples = [example for group in rest for example in group.examples]
        scores = score(self.ctx.adapters, "reward", self.head, examples, batch_size=256)
        sizes = [len(group.examples) for group in rest]
        entropies = [order_entropy(of.tolist()) for of in scores.double().split_with_sizes(sizes)]
        ordered = sorted(zip(rest, entropies, strict=True), key=lambda row: -row[1])
        return [group.prompt_id for group, _ in ordered]

    def curve(self, order: str) -> list[tuple[int, float]]:
        """Held-out accuracy after each size, in one of the orders."""
        by_prompt = {group.prompt_id: group for group in self.pool}
        groups, points = list(self.pool[: SIZES[0]]), []
        for size in [size for size in SIZES if size <= len(self.pool)]:
            if order == "random":
                groups = list(self.pool[:size])
            elif len(groups) < size:
                file = self.folder / order / f"{len(groups)}.json"
                queue = json.loads(file.read_text())["next"]
                groups += [by_prompt[key] for key in queue[: size - len(groups)]]
            points.append((size, self.accuracy(order, groups)))
        return points


def compared(curves: Mapping[str, Points]) -> dict[str, Any]:
    """Rankings that each order needs for the target, and the share that is saved."""
    random = curves["random"]
    at = TARGET_AT * random[-1][0]
    target = next(accuracy for rankings, accuracy in random if rankings >= at)
    needed = {order: rankings_to_reach(points, target) for order, points in curves.items()}
    fewest, usual = needed["uncertain"], needed["random"]
    assert usual is not None
    saved = None if fewest is None else 1 - fewest / usual
    return {"target": target, "needed": needed, "saved": saved}


def main() -> None:
    """Both orders for each seed; print a table, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to work in, and to go on in"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    given = parser.parse_args()
    made_on = measure.machine()
    rows = []
    for seed in given.seeds:
        bench = Bench(given.out / f"seed-{seed}", seed)
        curves = {order: bench.curve(order) for order in ("random", "uncertain")}
        rows.append({"seed": seed, "curves": curves, **compared(curves)})
        sys.stdout.write(f"seed {seed}: {json.dumps(rows[-1])}\n")
    saved = [row["saved"] for row in rows]
    holds = all(share is not None and share >= WORTH for share in saved)
    known = [share for share in saved if share is not None]
    sys.stdout.write(f"at least {WORTH:.0%} fewer in every seed: {'yes' if holds else 'no'}\n")
    if given.json is not None:
        mean = statistics.mean(known) if known else None
        summary = {"mean_saved": mean, "holds": holds}
        measure.write(given.json, "uncertain_first", made_on, rows, summary, sizes=list(SIZES))


if __name__ == "__main__":
    main()
