"""`alpaca-rlhf split`: rows into sft, rank, ppo, dev and eval, near-duplicates together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, json_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data import (
    BrokenRowPolicy,
    Drop,
    EvaluationPrompts,
    Reading,
    RowKind,
    column_names,
    deal,
    files_of,
    read_assignments,
    read_prompts,
    refuse_absent_columns,
    write_assignments,
    write_instructions,
)
from alpaca_rlhf.settings.bounds import Bounded, NonNegativeFloat, Seed

_ASSIGNMENTS, _DROPS = "assignments.jsonl", "drops.jsonl"
_COLUMNS = "--columns"
_PROGRESS_EVERY = 200
"""Rows between two signs of progress."""


@dataclass(frozen=True)
class Shares(Bounded, group="--shares"):
    """Shares of the clusters that each split gets; only their proportions matter."""

    sft: NonNegativeFloat = 0.4
    """Rows to fine-tune on."""
    rank: NonNegativeFloat = 0.2
    """Prompts to rank completions of."""
    ppo: NonNegativeFloat = 0.25
    """Prompts of PPO and of best-of-K."""
    dev: NonNegativeFloat = 0.05
    """Prompts to tune on, with --evaluate.split dev."""
    eval: NonNegativeFloat = 0.1
    """Prompts to evaluate on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not sum(asdict(self).values()) > 0:
            flags = ", ".join(f"--shares.{name}" for name in asdict(self))
            raise ValueError(f"{flags} are all 0")


@dataclass(frozen=True)
class Split(Bounded):
    """Flags of `alpaca-rlhf split`."""

    data: tuple[Path, ...]
    """Files of rows or prompts (as for --inputs.data and --inputs.prompts)."""
    out: Path = Path("splits")
    """Folder for the splits. Prompts that it has assigned before keep their split."""
    against: tuple[Path, ...] = ()
    """Evaluation sets: rows near one of their prompts (ROUGE-L above 0.7), or with 13 tokens in a
    row in common, are left out."""
    shares: Shares = field(default_factory=Shares)
    """Share of each split."""
    seed: Seed = 0
    """Another seed deals new prompts otherwise."""
    columns: str = ""
    """New names for columns of these files, as `question=instruction,answer=output`; `NAME=-`
    leaves a column out."""
    broken: BrokenRowPolicy = "refuse"
    """Treatment of broken rows of these files: refuse the file, or leave the rows out, counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise ValueError("--data needs a file, or several")


def run(settings: Split, terminal: Terminal) -> int:
    """Deal the rows of files to the splits, and leave out what an evaluation set holds.

    Returns:
        The exit code, 0.

    Raises:
        UserError: A file cannot be read or written, or nothing is left to deal.
    """
    out = settings.out
    _refuse_to_overwrite(settings)
    # 1. Earlier assignments stay; the rows are those of all files.
    earlier = read_assignments(out / _ASSIGNMENTS)
    shares = asdict(settings.shares)
    listed = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    terminal.say(
        f"split: {_names(settings.data)} into {out} (shares: {listed}; seed {settings.seed})"
    )
    if earlier:
        terminal.say(f"{len(earlier)} prompts were assigned before, and stay where they are")
    # Answers are dealt with their prompts, hence the kind.
    readings = {path: _reading_of(settings, "instructions") for path in settings.data}
    rows: list[Instruction] = []
    for path, reading in readings.items():
        rows += read_prompts(path, reading, learnt_from=True)
    # 2. Rows near a prompt of an evaluation set are left out.
    against = {path: _reading_of(settings, "prompts") for path in settings.against}
    evaluation = [row for path, reading in against.items() for row in read_prompts(path, reading)]
    accounts = [reading.account for reading in (*readings.values(), *against.values())]
    for line in (line for account in accounts for line in account.lines()):
        terminal.say(line)
    refuse_absent_columns(column_names(settings.columns, _COLUMNS), _COLUMNS, accounts)
    rows, drops = _without_evaluation(rows, evaluation, settings.against, terminal)
    # 3. The clusters of the others are dealt.
    terminal.start("split", "near-duplicates go to one split together")
    progress = _progress(terminal, "split")
    dealt = deal(rows, earlier, shares=shares, seed=settings.seed, progress=progress)
    files, unusable = files_of(rows, dealt.assigned, shares)
    drops += [*dealt.drops, *unusable]
    # 4. Assignments are written first: a prompt in a file of a split has been assigned.
    write_assignments(out / _ASSIGNMENTS, dealt.assigned)
    for name, split_rows in files.items():
        write_instructions(out / f"{name}.jsonl", split_rows)
    lines = [json_text(_drop_json(drop), _DROPS) + "\n" for drop in drops]
    atomic_write(out / _DROPS, "".join(lines))
    total = len(dealt.assigned)
    terminal.finish("split", f"{total - len(earlier)} new prompts of {total}")
    present = {row.id for row in rows}
    absent = sum(assignment.id not in present for assignment in earlier)
    if absent:
        terminal.say(
            f"  {absent} prompts assigned before are not among these rows: their places stay "
            "taken, but the files below do not hold them"
        )
    _show(terminal, out, files, drops)
    return 0


def _refuse_to_overwrite(settings: Split) -> None:
    """Refuse a folder whose files are not ours, and input files that would be overwritten."""
    out = settings.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    written = [out / f"{name}.jsonl" for name in asdict(settings.shares)]
    if not (out / _ASSIGNMENTS).exists():
        for path in [*written, out / _DROPS]:
            if path.exists():
                raise UserError(
                    f"--out {out}: holds {path.name} but no {_ASSIGNMENTS}, so it is not a folder "
                    "of splits; give another"
                )
    resolved = {path.resolve() for path in written}
    for path in settings.data:
        if path.resolve() in resolved:
            raise UserError(
                f"--data {path}: is written anew by this command; give the files it was made from, "
                "or another --out"
            )


def _reading_of(settings: Split, kind: RowKind) -> Reading:
    """Options for reading one of the files, with an empty account.

    Raises:
        UserError: --columns is not `OLD=NEW,OLD=NEW`.
    """
    return Reading(
        kind,
        columns=column_names(settings.columns, _COLUMNS),
        drop_broken=settings.broken == "drop",
        drop_flag="--broken drop",
        columns_flag=_COLUMNS,
    )


def _without_evaluation(
    rows: list[Instruction],
    prompts: Sequence[Instruction],
    against: Sequence[Path],
    terminal: Terminal,
) -> tuple[list[Instruction], list[Drop]]:
    """The rows that lie near no prompt of the evaluation sets, and the others.

    Args:
        rows: The rows to deal.
        prompts: The prompts of the evaluation sets.
        against: Their files.
        terminal: Terminal to write to.
    """
    if not against:
        return rows, []
    evaluation = EvaluationPrompts(prompts)
    terminal.start("against", f"look for the {len(evaluation)} prompts of {_names(against)}")
    show_progress = _progress(terminal, "against")
    clean, drops = [], []
    for number, row in enumerate(rows, 1):
        drop = evaluation.contamination(row)
        if drop is None:
            clean.append(row)
        else:
            drops.append(drop)
        show_progress(number, len(rows))
    terminal.finish("against", f"{len(drops)} rows lie near one of them")
    if not clean:
        raise UserError(f"--against {_names(against)}: no row is left; is it the same file?")
    return clean, drops


def _show(
    terminal: Terminal,
    out: Path,
    files: Mapping[str, Sequence[Instruction]],
    drops: Sequence[Drop],
) -> None:
    """Say how large each split is, what was left out, and the next command."""
    written = sum(map(len, files.values()))
    for name, rows in files.items():
        share = f"{len(rows) / written:.1%}" if written else "0%"
        terminal.say(f"  {name:<4}  {len(rows):>7} rows  {share:>6}  {out / name}.jsonl")
    if drops:
        counts = Counter(drop.rule for drop in drops).most_common()
        reasons = ", ".join(f"{rule} {count}" for rule, count in counts)
        terminal.say(f"  left out {len(drops)}: {reasons}; see {out / _DROPS}")
    terminal.say()
    folder = quoted(out)
    command = f"{PROGRAM} loop --base BASE --inputs.judge human --inputs.splits {folder}"
    for line in next_lines([(command, "train, rank and evaluate with them")]):
        terminal.say(line)


def _progress(terminal: Terminal, stage: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        if done % _PROGRESS_EVERY == 0 or done == total:
            terminal.step(stage, done, total, {})

    return show


def _names(paths: Iterable[Path]) -> str:
    return " ".join(map(str, paths))


def _drop_json(drop: Drop) -> dict[str, object]:
    row = drop.row.to_json() if drop.row else None
    columns = {"rule": drop.rule, "detail": drop.detail, "near": drop.near, "score": drop.score}
    return {**columns, "row": row}
