"""The user's own files that a run reads, and its judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings.judge_names import JudgeName, canonical, parse_judge

SPLITS = ("sft", "rank", "ppo", "eval")
"""The files that a folder of splits must hold, each with `.jsonl` after its name."""

DEV = "dev"
"""The file that it may hold too; folders of earlier versions have none."""

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a PEFT adapter."""


@dataclass(frozen=True)
class Inputs:
    """The user's own files and judge; what is left out comes from the small world."""

    data: Path | None = None
    """Rows to train on (Alpaca columns, JSON or JSONL); self-instruct is then left out."""
    seeds: Path | None = None
    """Seed tasks with outputs (the same columns, or Self-Instruct's `instances`), for self-instruct
    with the base; the base trains on them and on what it makes of them. `shipped` is this kit's own
    set, `shipped-en` and `shipped-zh` its English or Chinese part."""
    prompts: Path | None = None
    """Prompts to rank, to train the policy on and to evaluate on; dealt to the splits by clusters
    of near-duplicates."""
    splits: Path | None = None
    """A folder that `alpaca-rlhf split` made: rows to train on and the prompts of every stage,
    instead of --inputs.data and --inputs.prompts."""
    rankings: Path | None = None
    """Pairs (chosen, rejected), ranking trees, or the folder of a snapshot, to train the reward
    model on instead of ranking completions. Without rows to train on an instruct base is taken
    as it is."""
    sft_adapter: Path | None = None
    """Somebody's SFT adapter on the base (a plain PEFT LoRA folder) to start from, instead of
    self-instruct and SFT. Give with --inputs.data what it was trained on, if you have it, so that
    no later prompt lies near it."""
    judge: str = "gold"
    """The judge that ranks: `gold` (the small world's), `human` (or `people`), `llm` (the model at
    --judge.url), `checks` (verifiable instructions), `reward:FOLDER`, or a function of your own as
    `FILE.py:function` or `package.module:function`."""

    languages: Literal["en", "zh", "both"] = "en"
    """Languages of the kit's own prompts for `checks`."""

    columns: str = ""
    """New names for columns of these files, as `question=instruction,answer=output`; `NAME=-`
    leaves a column out."""
    broken: Literal["refuse", "drop"] = "refuse"
    """Treatment of broken rows of these files: refuse the file, or leave the rows out, counted."""
    leaks: Literal["refuse", "drop"] = "refuse"
    """Treatment of prompts near a row to train on: refuse the run, or leave the prompts out,
    counted."""

    def __post_init__(self) -> None:
        try:
            parse_judge(self.judge)
        except ValueError as error:
            raise ValueError(f"--inputs.judge {error}") from None
        object.__setattr__(self, "judge", canonical(self.judge))  # frozen: how dataclasses set it
        for name in ("data", "seeds", "prompts"):
            if self.splits is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"--inputs.{name}: --inputs.splits gives rows and prompts already; leave one "
                    "out"
                )
        has_adapter = self.sft_adapter is not None
        has_rows = self.rows is not None or self.seeds is not None or has_adapter
        if (
            not has_rows
            and self.rankings is None
            and (not self.scorer or (self.has_prompts and self.judge != "gold"))
        ):
            raise ValueError(
                f"--inputs.judge {self.judge} needs rows to train on; give --inputs.data, or "
                "--inputs.seeds to make them from"
            )
        if has_adapter and self.seeds is not None:
            raise ValueError(
                "--inputs.seeds: nothing is generated with --inputs.sft-adapter; leave one out"
            )
        if self.data is not None and self.seeds is not None:
            raise ValueError(
                "--inputs.seeds: --inputs.data gives the rows to train on already; leave one out"
            )
        for name in ("prompts", "splits", "rankings", "seeds"):
            if getattr(self, name) is not None and self.judge == "gold":
                raise ValueError(
                    f"--inputs.{name}: --inputs.judge gold knows only the small world; "
                    "with files of your own give --inputs.judge human, or FILE.py:function"
                )

    @property
    def untrained(self) -> bool:
        """True if rankings come without rows: an instruct base is then the SFT policy as it is."""
        rows = (self.rows, self.seeds, self.sft_adapter)
        return self.rankings is not None and all(path is None for path in rows)

    @property
    def makes_rows(self) -> bool:
        """True if the rows to train on are generated."""
        return self.rows is None and self.sft_adapter is None and not self.untrained

    @property
    def judge_name(self) -> JudgeName:
        """The judge that ranks, read by the grammar."""
        return parse_judge(self.judge)

    @property
    def scorer(self) -> bool:
        """True if the judge rates one completion at a time: not people and not `llm`."""
        return self.judge_name.is_scorer

    @property
    def has_prompts(self) -> bool:
        """True if the user gave prompts, or rankings, which bring theirs."""
        return any(path is not None for path in (self.prompts, self.splits, self.rankings))

    @property
    def prompts_from(self) -> Literal["small world", "checks", "files"]:
        """The source of the prompts: the kit's own tasks, or the user's files."""
        if self.judge == "gold":
            return "small world"
        if self.has_prompts or not self.scorer:
            return "files"
        if self.judge == "checks":
            return "checks"
        has_rows = self.data is not None or self.seeds is not None
        return "files" if has_rows or self.sft_adapter is not None else "small world"

    def require_prompts(self) -> None:
        """Refuse a run that goes beyond rows and SFT without prompts for it.

        Raises:
            UserError: The prompts are to come from the user's files, and there are none.
        """
        if self.prompts_from == "files" and self.prompts is None and self.splits is None:
            raise UserError(
                f"--inputs.judge {self.judge} needs prompts to rank; give --inputs.prompts, or "
                "--inputs.splits"
            )

    @property
    def rows(self) -> Path | None:
        """The file of rows to train on, of `data` or of `splits`; None if they are made."""
        return self.data if self.splits is None else self.splits / "sft.jsonl"

    @property
    def dev_file(self) -> Path | None:
        """The file of the dev split in `splits`; None where there is none, or an empty one."""
        path = None if self.splits is None else self.splits / f"{DEV}.jsonl"
        return path if path is not None and path.is_file() and path.stat().st_size else None

    def files(self) -> dict[str, Path]:
        """Every file that a run reads, under its name; of `splits`, `splits.sft` and so on."""
        paths = {name: getattr(self, name) for name in ("data", "seeds", "prompts", "rankings")}
        files = {name: path for name, path in paths.items() if path is not None}
        if self.splits is not None:
            files |= {f"splits.{name}": self.splits / f"{name}.jsonl" for name in SPLITS}
            if self.dev_file is not None:
                files[f"splits.{DEV}"] = self.dev_file
        if self.sft_adapter is not None:
            files |= {f"sft_adapter.{name}": self.sft_adapter / name for name in ADAPTER}
        return files
