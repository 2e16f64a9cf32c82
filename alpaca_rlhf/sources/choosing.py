"""The choice of a run's source of tasks and verdicts, by its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    Firewall,
    answered_prompts,
    ranked_prompts,
    read_instructions,
    read_prompts,
    read_seeds,
    split_prompts,
)
from alpaca_rlhf.preferences import manifest_of, read_snapshot
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.sources.files import Files
from alpaca_rlhf.sources.small_world import SmallWorld
from alpaca_rlhf.sources.source import Source


def source_of(settings: Loop) -> Source:
    """The tasks and verdicts that a run's settings ask for.

    Raises:
        UserError: A file cannot be read, or has too few prompts.
    """
    # 1. Count the prompts that each split needs.
    sizes: dict[str, int] = {}
    for r in range(1, settings.rounds + 1):
        if settings.inputs.rankings is None:
            sizes[_of_round("rank", r)] = settings.rank.prompts
        sizes[_of_round("ppo", r)] = max(settings.best_of_k.prompts, settings.ppo.batch_size)
    sizes["eval"] = settings.evaluate.prompts
    # 2. With the gold judge, tasks of the small world.
    if settings.inputs.judge == "gold":
        policy_prompts = max(
            settings.best_of_k.prompts, settings.ppo.batch_size * settings.ppo.updates
        )
        for name in sizes:
            if name.startswith("ppo"):
                sizes[name] = policy_prompts
        return SmallWorld(
            settings.seed, settings.generate.seeds, {**sizes, "dev": settings.evaluate.prompts}
        )
    # 3. Otherwise the user's rows, and prompts dealt to the splits.
    inputs = settings.inputs
    rows: list[Instruction] = []
    if inputs.rows is not None:
        rows = read_instructions(inputs.rows)
    elif inputs.seeds is not None:
        rows = read_seeds(inputs.seeds)
    splits: dict[str, list[Instruction]] = {}
    if inputs.prompts is not None:
        once = {row.id: row for row in read_prompts(inputs.prompts)}
        splits |= split_prompts(list(once.values()), sizes=sizes, seed=settings.seed)
    if inputs.splits is not None:
        for file in ("rank", "ppo", "eval"):
            of_file = {name: n for name, n in sizes.items() if name.partition(".")[0] == file}
            if of_file:
                splits |= _dealt(inputs.splits / f"{file}.jsonl", of_file, settings.seed)
    # 4. Existing rankings bring their own prompts, less those near another split.
    if inputs.rankings is not None:
        wall = Firewall()
        for name, prompts in {"sft": answered_prompts(rows), **splits}.items():
            wall.note(name, prompts)
        ranked = _ranked(inputs.rankings)
        splits["rank"] = [row for row in ranked if wall.leak("rank", row) is None]
        if not splits["rank"]:
            raise UserError(
                f"--inputs.rankings {inputs.rankings}: each of its {len(ranked)} prompts lies near "
                "a row to train on or near one of --inputs.prompts, and no prompt may serve twice"
            )
    return Files(rows, splits)


def _dealt(path: Path, sizes: Mapping[str, int], seed: int) -> dict[str, list[Instruction]]:
    """The prompts of one file of a folder of splits, each round's own."""
    once = {row.id: row for row in read_prompts(path)}
    try:
        return split_prompts(list(once.values()), sizes=sizes, seed=seed)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _ranked(path: Path) -> list[Instruction]:
    """The prompts of a file of rankings, or of a snapshot, each once."""
    if manifest_of(path) is None:
        return ranked_prompts(path)
    return list({prompt.id: prompt for prompt, _, _ in read_snapshot(path)}.values())


def _of_round(name: str, round_: int) -> str:
    return name if round_ == 1 else f"{name}.{round_}"
