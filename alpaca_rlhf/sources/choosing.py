"""The choice of a run's source of tasks and verdicts, by its settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    SHIPPED,
    FileAccount,
    Firewall,
    Reason,
    answered_prompts,
    deal_rest,
    ranked_prompts,
    read_prompts,
    read_seeds,
    split_prompts,
)
from alpaca_rlhf.preferences import manifest_of, read_snapshot
from alpaca_rlhf.settings import Loop
from alpaca_rlhf.settings.inputs import Inputs
from alpaca_rlhf.settings.steps import suffixed
from alpaca_rlhf.sources.checks import ChecksSource
from alpaca_rlhf.sources.files import Files
from alpaca_rlhf.sources.own_files import read_rows, reading_of, refuse_unknown_columns
from alpaca_rlhf.sources.small_world import SmallWorld
from alpaca_rlhf.sources.source import Source

PROMPTS_PER_ANSWER = 4
"""Prompts of `checks` to ask for each answer that the recipe `answers` is to keep: a small model
never meets the constraints of some. Four reach the target where it meets those of one in four."""


def source_of(settings: Loop) -> Source:
    """The tasks and verdicts that a run's settings ask for.

    Raises:
        UserError: A file cannot be read, or has too few prompts.
    """
    # 1. Tasks that the kit makes.
    sizes = split_sizes(settings)
    if settings.inputs.prompts_from == "checks":
        if settings.more_rounds:
            raise UserError(
                f"--more-rounds {settings.more_rounds}: verifiable prompts are dealt to all rounds "
                "when a run begins; begin another run with --rounds"
            )
        return _checks_source(settings, sizes)
    if settings.inputs.prompts_from == "small world":
        sizes |= _sizes_of_more(settings)
        accounts = [read_rows(settings.inputs)[1]] if settings.inputs.rows is not None else []
        refuse_unknown_columns(settings.inputs, accounts)
        return SmallWorld(
            settings.seed,
            settings.generate.seeds,
            {**sizes, "dev": settings.evaluate.dev_prompts or settings.evaluate.prompts},
            accounts,
        )
    # 2. Rows to train on.
    inputs = settings.inputs
    accounts = []
    rows: list[Instruction] = []
    if inputs.rows is not None:
        rows, account = read_rows(inputs)
        accounts.append(account)
    elif inputs.seeds is not None:
        reading = reading_of(inputs, "instructions", inputs.seeds)
        rows = read_seeds(inputs.seeds, reading)
        if str(inputs.seeds) not in SHIPPED:
            accounts.append(reading.account)
    # 3. Prompts, dealt to the splits; those near a row to train on may be left out.
    wall = Firewall()
    wall.note("sft", answered_prompts(rows) if inputs.leaks == "drop" else [])
    splits: dict[str, list[Instruction]] = {}
    for_dev: list[Instruction] = []
    files: list[_PromptFile] = []
    if inputs.prompts is not None:
        file = _prompts(inputs, inputs.prompts, "prompts", wall)
        files.append(file)
        try:
            splits |= split_prompts(
                file.prompts,
                sizes=sizes,
                seed=settings.seed,
                max_cluster=settings.evaluate.max_cluster,
            )
        except UserError as error:
            left_out = f" ({file.account.lines()[0]})" if file.account.left_out else ""
            flags = ", ".join(_size_flags(settings))
            raise UserError(
                f"--inputs.prompts {inputs.prompts}: {error}: {flags}{left_out}"
            ) from None
        for_dev = file.prompts
    left: dict[str, list[Instruction]] = dict.fromkeys(("rank", "ppo"), for_dev)
    if inputs.splits is not None:
        for split in ("rank", "ppo", "eval"):
            of_file = {name: n for name, n in sizes.items() if name.partition(".")[0] == split}
            if of_file:
                path = inputs.splits / f"{split}.jsonl"
                file = _prompts(inputs, path, split, wall)
                files.append(file)
                splits |= _dealt(path, file.prompts, of_file, settings)
                left[split] = file.prompts
        if inputs.dev_file is not None:
            file = _prompts(inputs, inputs.dev_file, "dev", wall)
            files.append(file)
            for_dev = file.prompts
    accounts += [file.account for file in files]
    # 4. The prompts of rankings; those near any other are left out.
    if inputs.rankings is not None:
        wall = Firewall()
        for name, prompts in {"sft": answered_prompts(rows), **splits}.items():
            wall.note(name, prompts)
        ranked, account = _ranked(inputs, inputs.rankings)
        accounts.append(account)
        once = {row.id: row for row in ranked}
        splits["rank"] = [row for row in once.values() if wall.leak("rank", row) is None]
        kept = {row.id for row in splits["rank"]}
        account.leave_out("leak", (at for at, row in enumerate(ranked) if row.id not in kept))
        if not splits["rank"]:
            raise UserError(
                f"--inputs.rankings {inputs.rankings}: each of its {len(once)} prompts lies near "
                "a row to train on or near one of --inputs.prompts, and no prompt may serve twice"
            )
    # 5. Prompts to tune on, of those that are left.
    if for_dev:
        splits |= _dev(settings, for_dev, rows, splits)
    # 6. Prompts of rounds that were added later, of those that are left then.
    for name, size in _sizes_of_more(settings).items():
        splits[name] = _of_later_round(name, size, left, rows, splits, settings.seed)
    # 7. Prompts that no split took are counted.
    dealt = {row.id for prompts in splits.values() for row in prompts}
    for file in files:
        file.leave_out("not needed", dealt)
    refuse_unknown_columns(inputs, accounts)
    return Files(rows, splits, accounts)


class PolicyPrompts(NamedTuple):
    """Prompts that the chosen policies sample completions of, the most that one of them needs."""

    at_once: int
    """Of one update."""
    in_all: int
    """If no update repeats those of another."""


def policy_prompts(settings: Loop) -> PolicyPrompts | None:
    """Prompts that the chosen policies need; None where none of them samples."""
    ppo = settings.ppo
    needs = {
        "ppo": (ppo.batch_size, ppo.batch_size * ppo.updates),
        "best_of_k": (settings.best_of_k.prompts, settings.best_of_k.prompts),
        "grpo": (settings.grpo.prompts, settings.grpo.prompts * settings.grpo.updates),
        "rloo": (settings.rloo.prompts, settings.rloo.prompts * settings.rloo.updates),
    }
    chosen = [needs[stage] for stage in settings.policy_stages if stage in needs]
    return PolicyPrompts(*map(max, zip(*chosen, strict=True))) if chosen else None


def split_sizes(settings: Loop) -> dict[str, int]:
    """Prompts of each split that the stages of a run need, of each round its own."""
    return {
        **_sizes_of_rounds(settings, range(1, settings.rounds + 1)),
        "eval": settings.evaluate.prompts,
    }


def _sizes_of_more(settings: Loop) -> dict[str, int]:
    """Prompts of each split that the rounds need that were added later."""
    return _sizes_of_rounds(settings, range(settings.rounds + 1, settings.all_rounds + 1))


def _sizes_of_rounds(settings: Loop, rounds: range) -> dict[str, int]:
    policies = policy_prompts(settings)
    sizes: dict[str, int] = {}
    for r in rounds:
        if settings.inputs.rankings is None:
            sizes[suffixed("rank", r)] = settings.rank.prompts
        if policies is not None:
            is_drawn = settings.inputs.prompts_from == "small world"
            sizes[suffixed("ppo", r)] = policies.in_all if is_drawn else policies.at_once
    return sizes


def _size_flags(settings: Loop) -> list[str]:
    """The flags that say how many prompts a run takes, as they are now."""
    sizes = {"--rank.prompts": settings.rank.prompts} if settings.inputs.rankings is None else {}
    of_policies = {
        "ppo": ("--ppo.batch-size", settings.ppo.batch_size),
        "best_of_k": ("--best-of-k.prompts", settings.best_of_k.prompts),
        "grpo": ("--grpo.prompts", settings.grpo.prompts),
        "rloo": ("--rloo.prompts", settings.rloo.prompts),
    }
    sizes |= dict(of_policies[stage] for stage in settings.policy_stages if stage in of_policies)
    sizes["--evaluate.prompts"] = settings.evaluate.prompts
    return [f"{flag} is {size}" for flag, size in sizes.items()]


def deals_alike(settings: Loop, begun: Loop) -> bool:
    """True if both settings deal the same number of prompts to each split."""
    composed = settings.inputs.prompts_from == "checks"  # as many as the updates take in all
    if composed and policy_prompts(settings) != policy_prompts(begun):
        return False
    return split_sizes(settings) == split_sizes(begun)


def _checks_source(settings: Loop, sizes: Mapping[str, int]) -> Source:
    """Verifiable instructions; a policy stage gets a new prompt for each sample while there are."""
    inputs = settings.inputs
    accounts = [read_rows(inputs)[1]] if inputs.rows is not None else []
    refuse_unknown_columns(inputs, accounts)
    per_row = PROMPTS_PER_ANSWER if settings.generate.recipe == "answers" else 1
    needed = {
        **sizes,
        "dev": settings.evaluate.dev_prompts or settings.evaluate.prompts,
        "sft": settings.generate.target * per_row,
    }
    source = ChecksSource(settings.seed, needed, inputs.languages, accounts, per_row)
    policies = policy_prompts(settings)
    samples = 0 if policies is None else policies.in_all
    wanted = {name: samples for name in needed if name.startswith("ppo")}
    more = {name: max(needed[name], min(n, source.capacity(name))) for name, n in wanted.items()}
    return replace(source, sizes=needed | more)


def _of_later_round(
    name: str,
    size: int,
    left: Mapping[str, Sequence[Instruction]],
    rows: Sequence[Instruction],
    splits: Mapping[str, Sequence[Instruction]],
    seed: int,
) -> list[Instruction]:
    """Prompts of a round that was added later: those that no split holds and that lie near none.

    Raises:
        UserError: Too few are left.
    """
    wall = Firewall()
    for other, prompts in {"sft": answered_prompts(rows), **splits}.items():
        wall.note(other, prompts)
    free = [row for row in left[name.partition(".")[0]] if wall.leak(name, row) is None]
    dealt = deal_rest(free, splits, at_most=size, seed=seed)
    if len(dealt) < size:
        raise UserError(
            f"--more-rounds: {name} needs {size} prompts, and the rounds so far leave {len(dealt)} "
            "of yours over; begin a run with more prompts"
        )
    return dealt


def _dev(
    settings: Loop,
    prompts: Sequence[Instruction],
    rows: Sequence[Instruction],
    splits: Mapping[str, Sequence[Instruction]],
) -> dict[str, list[Instruction]]:
    """The dev split: prompts that no other split holds and that lie near none and near no row.

    There is none where fewer than two are left.

    Raises:
        UserError: A number was asked for, and there are fewer.
    """
    wanted = settings.evaluate.dev_prompts
    wall = Firewall()
    for name, others in {"sft": answered_prompts(rows), **splits}.items():
        wall.note(name, others)
    free = [row for row in prompts if wall.leak("dev", row) is None]
    at_most = settings.evaluate.prompts if wanted is None else wanted
    dev = deal_rest(free, splits, at_most=at_most, seed=settings.seed)
    if wanted is not None and len(dev) < wanted:
        raise UserError(
            f"--evaluate.dev-prompts {wanted}: the other splits leave {len(dev)} prompts; give "
            "more prompts, or ask for fewer"
        )
    return {"dev": dev} if len(dev) > 1 else {}


@dataclass
class _PromptFile:
    """The prompts of a file, each once, and the account of its rows."""

    prompts: list[Instruction]
    """Those that may be dealt."""
    account: FileAccount
    """The rows of the file."""
    positions: dict[str, int]
    """Id of each prompt, and the position of its record."""

    def leave_out(self, reason: Reason, kept: Collection[str]) -> None:
        """Count the prompts whose ids are not among those that are kept."""
        self.account.leave_out(
            reason, (at for key, at in self.positions.items() if key not in kept)
        )


def _prompts(inputs: Inputs, path: Path, split: str, wall: Firewall) -> _PromptFile:
    """The prompts of a file, each once, without those that leak where these are left out."""
    reading = reading_of(inputs, "prompts", path)
    rows = read_prompts(path, reading)
    positions: dict[str, int] = {}
    for at, row in enumerate(rows):
        positions.setdefault(row.id, at)
    first = {*positions.values()}
    reading.account.leave_out("repeated", (at for at in range(len(rows)) if at not in first))
    file = _PromptFile([rows[at] for at in positions.values()], reading.account, positions)
    if inputs.leaks == "drop":
        file.prompts = [row for row in file.prompts if wall.leak(split, row) is None]
        wall.note(split, file.prompts)
        file.leave_out("leak", {row.id for row in file.prompts})
    return file


def _dealt(
    path: Path, prompts: Sequence[Instruction], sizes: Mapping[str, int], settings: Loop
) -> dict[str, list[Instruction]]:
    """The prompts of one file of a folder of splits, each round's own."""
    try:
        return split_prompts(prompts, sizes=sizes, seed=settings.seed)
    except UserError as error:
        raise UserError(f"{path}: {error}: {', '.join(_size_flags(settings))}") from None


def _ranked(inputs: Inputs, path: Path) -> tuple[list[Instruction], FileAccount]:
    """The prompt of every ranking of a file, or of a snapshot."""
    if manifest_of(path) is None:
        reading = reading_of(inputs, "rankings", path)
        return ranked_prompts(path, reading), reading.account
    prompts = [prompt for prompt, _, _ in read_snapshot(path)]
    account = FileAccount(str(path), rows=len(prompts))
    for _ in prompts:
        account.note_records(1)
    return prompts, account
