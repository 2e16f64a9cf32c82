"""`alpaca-rlhf split`: rows into sft, rank, ppo and eval, near-duplicates together."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, json_text
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    Drop,
    EvaluationPrompts,
    deal,
    files_of,
    read_assignments,
    read_prompts,
    write_assignments,
    write_instructions,
)
from alpaca_rlhf.settings.bounds import above

ABOUT = "deal rows to sft, rank, ppo and eval, so that no stage sees a near-duplicate of another's"

_ASSIGNMENTS, _DROPS = "assignments.jsonl", "drops.jsonl"
_EVERY = 200  # rows between two signs of progress


@dataclass(frozen=True)
class Shares:
    """How much of the clusters each split gets; only how they compare matters."""

    sft: float = 0.4
    """Rows to fine-tune on."""
    rank: float = 0.2
    """Prompts to rank completions of."""
    ppo: float = 0.3
    """Prompts of PPO and of best-of-K."""
    eval: float = 0.1
    """Prompts to evaluate on."""

    def __post_init__(self) -> None:
        for name, share in asdict(self).items():
            above(f"--shares.{name}", share, 0, equal_allowed=True)
        if not sum(asdict(self).values()) > 0:
            raise ValueError("--shares.sft, --shares.rank, --shares.ppo, --shares.eval are all 0")


@dataclass(frozen=True)
class Split:
    """Flags of `alpaca-rlhf split`."""

    data: tuple[Path, ...]
    """Files of rows or prompts (as for --inputs.data and --inputs.prompts)."""
    out: Path = Path("splits")
    """Folder for the splits. What it has assigned before stays where it is."""
    against: tuple[Path, ...] = ()
    """Evaluation sets: rows near one of their prompts (ROUGE-L above 0.7), or with 13 tokens in a
    row in common, are left out."""
    shares: Shares = field(default_factory=Shares)
    """Share of each split."""
    seed: int = 0
    """Another seed, another dealing of what is new."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("--data needs a file, or several")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be at least 0 and below 2**32, got {self.seed}")


def run(asked: Split, terminal: Terminal) -> int:
    """Read, leave out what an evaluation holds, deal the rest, write, tell what is next.

    The assignments are written first: a prompt that stands in a file of a split has been assigned.

    Returns:
        The exit code, 0.

    Raises:
        UserError: A file cannot be read or written, or nothing is left to deal.
    """
    out = asked.out
    _refuse_what_would_be_lost(asked)
    earlier = read_assignments(out / _ASSIGNMENTS)
    shares = asdict(asked.shares)
    listed = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    terminal.say(f"split: {_names(asked.data)} into {out} (shares: {listed}; seed {asked.seed})")
    if earlier:
        terminal.say(f"{len(earlier)} prompts were assigned before, and stay where they are")
    rows = [row for path in asked.data for row in read_prompts(path)]
    held = EvaluationPrompts(row for path in asked.against for row in read_prompts(path))
    drops: list[Drop] = []
    if asked.against:
        terminal.start("against", f"look for the {len(held)} prompts of {_names(asked.against)}")
        rows, drops = _clean(rows, held, _told(terminal, "against"))
        terminal.finish("against", f"{len(drops)} rows lie near one of them")
    if not rows:
        raise UserError(f"--against {_names(asked.against)}: no row is left; is it the same file?")
    terminal.start("split", "near-duplicates go to one split together")
    dealt = deal(rows, earlier, shares=shares, seed=asked.seed, progress=_told(terminal, "split"))
    files, useless = files_of(rows, dealt.assigned, shares)
    drops += [*dealt.drops, *useless]
    write_assignments(out / _ASSIGNMENTS, dealt.assigned)
    for name, own in files.items():
        write_instructions(out / f"{name}.jsonl", own)
    atomic_write(out / _DROPS, "".join(json_text(_drop_json(one), _DROPS) + "\n" for one in drops))
    here = {row.id for row in rows}
    absent = sum(one.id not in here for one in earlier)
    total = len(dealt.assigned)
    terminal.finish("split", f"{total - len(earlier)} new prompts of {total}")
    if absent:
        terminal.say(
            f"  {absent} prompts assigned before are not among these rows: their places stay "
            "taken, but the files below do not hold them"
        )
    _tell(terminal, asked, files, drops)
    return 0


def _refuse_what_would_be_lost(asked: Split) -> None:
    """Refuse a folder whose files are not ours, and to read the files that are written anew."""
    out = asked.out
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    written = [out / f"{name}.jsonl" for name in asdict(asked.shares)]
    if not (out / _ASSIGNMENTS).exists():
        for path in [*written, out / _DROPS]:
            if path.exists():
                raise UserError(
                    f"--out {out}: holds {path.name} but no {_ASSIGNMENTS}, so it is not a folder "
                    "of splits; give another"
                )
    for path in asked.data:
        if path.resolve() in [one.resolve() for one in written]:
            raise UserError(
                f"--data {path}: is written anew by this command; give the files it was made from, "
                "or another --out"
            )


def _clean(
    rows: Sequence[Instruction], held: EvaluationPrompts, told: Callable[[int, int], None]
) -> tuple[list[Instruction], list[Drop]]:
    kept, drops = [], []
    for number, row in enumerate(rows, 1):
        drop = held.contamination(row)
        if drop is None:
            kept.append(row)
        else:
            drops.append(drop)
        told(number, len(rows))
    return kept, drops


def _tell(
    terminal: Terminal,
    asked: Split,
    files: dict[str, list[Instruction]],
    drops: Sequence[Drop],
) -> None:
    written = sum(map(len, files.values()))
    for name, own in files.items():
        share = f"{len(own) / written:.1%}" if written else "0%"
        terminal.say(f"  {name:<4}  {len(own):>7} rows  {share:>6}  {asked.out / name}.jsonl")
    if drops:
        counts = Counter(drop.rule for drop in drops).most_common()
        reasons = ", ".join(f"{rule} {count}" for rule, count in counts)
        terminal.say(f"  left out {len(drops)}: {reasons}; see {asked.out / _DROPS}")
    terminal.say()
    folder = shlex.quote(str(asked.out))
    command = f"{PROGRAM} loop --base BASE --inputs.judge human --inputs.splits {folder}"
    for line in next_lines([(command, "train, rank and evaluate with them")]):
        terminal.say(line)


def _told(terminal: Terminal, stage: str) -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        if done % _EVERY == 0 or done == total:
            terminal.step(stage, done, total, {})

    return told


def _names(paths: Iterable[Path]) -> str:
    return " ".join(map(str, paths))


def _drop_json(drop: Drop) -> dict[str, object]:
    row = drop.row.to_json() if drop.row else None
    columns = {"rule": drop.rule, "detail": drop.detail, "near": drop.near, "score": drop.score}
    return {**columns, "row": row}
