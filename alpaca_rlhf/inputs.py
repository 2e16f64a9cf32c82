"""Which files of the user's own a run reads, and who judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Inputs:
    """The user's own files and judge; what is left out comes from the small world."""

    data: Path | None = None
    """Rows to train on (Alpaca columns, JSON or JSONL); self-instruct is then left out."""
    seeds: Path | None = None
    """Seed tasks with outputs (the same columns), for self-instruct with the base; the base trains
    on them and on what it makes of them."""
    prompts: Path | None = None
    """Prompts to rank, to train the policy on and to evaluate on; dealt to the splits by clusters
    of near-duplicates."""
    rankings: Path | None = None
    """Pairs (chosen, rejected), ranking trees, or the folder of a snapshot, to train the reward
    model on instead of ranking completions."""
    judge: Literal["gold", "human"] = "gold"
    """Who ranks: the small world's gold judge, or people."""

    def __post_init__(self) -> None:
        if self.judge == "human" and self.prompts is None:
            raise ValueError("--inputs.judge human needs prompts to rank; give --inputs.prompts")
        if self.judge == "human" and self.data is None and self.seeds is None:
            raise ValueError(
                "--inputs.judge human needs rows to train on; give --inputs.data, or "
                "--inputs.seeds to make them from"
            )
        if self.data is not None and self.seeds is not None:
            raise ValueError(
                "--inputs.seeds: --inputs.data gives the rows to train on already; leave one out"
            )
        for name in ("prompts", "rankings", "seeds"):
            if getattr(self, name) is not None and self.judge == "gold":
                raise ValueError(
                    f"--inputs.{name}: --inputs.judge gold knows only the small world; "
                    "with files of your own give --inputs.judge human"
                )
