"""Reward models on a real LLaMA, from what people judged: `python -m tests.prove people`.

Each file is given to `alpaca-rlhf reward` as it was published.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

SFT_ROWS = 100
"""Rows of Dolly, written by people, that SFT learns from: the reward model starts from SFT."""
SETTINGS = (
    "--base smollm2 --template chat --inputs.judge human --lora.r 16 --lora.alpha 32 "
    "--sft.lr 5e-4 --sft.epochs 1 --sft.batch-size 8 --sft.max-length 192 "
    "--reward.lr 3e-4 --reward.batch-size 8 --reward.micro-batch-size 1 --reward.held-out 0.3 "
    "--reward.gate 0"
).split()
"""Those of the recipe for this base; no gate, since the figures are wanted whatever they are."""


@dataclass(frozen=True)
class Judgements:
    """A published file of people's judgements."""

    file: str
    """Its name in the folder of real data."""
    what: str
    """The quality that people were asked to prefer."""
    max_length: int
    """Tokens of a prompt with a completion; longer ones are left out and counted."""


FILES = {
    "hh_harmless": Judgements(
        "hh_harmless_pairs_1156.jsonl.gz", "the less harmful of two replies in a dialogue", 192
    ),
    "oasst": Judgements(
        "oasst_en_100_tree.jsonl.gz", "the order of all replies to a turn of a dialogue", 256
    ),
}


def trained(key: str, data: Path, folder: Path) -> dict[str, Any]:
    """Train a reward model on one of `FILES`, and return the command and its figures.

    Args:
        key: Key of the file.
        data: Folder of the real data.
        folder: An empty folder to work in.
    """
    judgements = FILES[key]
    rows = json.loads((data / "dolly_2000.json").read_text())
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in islice(rows, SFT_ROWS)]
    (folder / "dolly.jsonl").write_text("".join(lines))
    (folder / judgements.file).symlink_to(data / judgements.file)
    words = ["reward", *SETTINGS, "--inputs.data", "dolly.jsonl"]
    words += ["--inputs.rankings", judgements.file, "--inputs.leaks", "drop"]
    words += ["--reward.max-length", str(judgements.max_length), "--out", key]
    command = [sys.executable, "-m", "alpaca_rlhf", *words]
    began = time.monotonic()
    subprocess.run(command, check=True, cwd=folder)
    return {
        "file": judgements.file,
        "people_preferred": judgements.what,
        "command": shlex.join(["alpaca-rlhf", *words]),
        "seconds": round(time.monotonic() - began),
        **json.loads((folder / key / "ledger.json").read_text())["reward"]["facts"],
    }


def line_of(figures: dict[str, Any]) -> str:
    """Accuracy with its interval, log-loss, and what rules that learn nothing reach."""
    low, high = figures["ci95"]
    rules = ", ".join(f"{row['is']} {row['accuracy']:.3f}" for row in figures["baselines"])
    return (
        f"accuracy {figures['held_out_accuracy']:.3f} [{low:.3f}, {high:.3f}] on "
        f"{figures['held_out_pairs']} pairs, log-loss {figures['log_loss']:.3f} "
        f"(a constant score: 0.693); {rules}"
    )
