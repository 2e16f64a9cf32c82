"""`alpaca-rlhf runs`: what runs take on the disk, and removing what nobody needs any more."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.run_sizes import RunSize, cached_gguf_bases, measure_run, runs_in

_MIB = 2**20


_DEFAULT = Path("runs")
"""Folder to look in where none is given."""


@dataclass(frozen=True)
class Listed:
    """Flags of `alpaca-rlhf runs list`: none."""


@dataclass(frozen=True)
class Pruned:
    """Flags of `alpaca-rlhf runs prune`."""

    exports: bool = False
    """Remove exported models too: `export` makes them again. Exported adapters stay."""
    bases: bool = False
    """Remove what was unpacked from GGUF files into the cache: `--base FILE.gguf` does it again."""
    dry_run: bool = False
    """Say what would be removed, and remove nothing."""
    yes: bool = False
    """Do not ask."""


def listed(operands: Sequence[str], flags: Listed, terminal: Terminal) -> int:
    """List the runs of a folder, the largest first.

    Returns:
        The exit code, 0.

    Raises:
        UserError: There is no such folder.
    """
    folder = _folder(operands)
    runs = _measured(folder, exports=False)
    for run in sorted(runs, key=lambda run: -run.size):
        state = "running" if run.running else run.stages[-1] if run.stages else "begun"
        spare = sum(waste.size for waste in run.waste)
        note = f"  {_mib(spare)} can go" if spare else ""
        terminal.say(f"{_mib(run.size):>12}  {run.path}  ({state}){note}")
    total = sum(run.size for run in runs)
    terminal.say(f"{_mib(total):>12}  in {len(runs)} runs of {folder}")
    unpacked = sum(waste.size for waste in cached_gguf_bases())
    if unpacked:
        terminal.say(f"{_mib(unpacked):>12}  unpacked from GGUF files in the cache (--bases)")
    if any(run.waste for run in runs):
        terminal.say()
        command = shlex.join([PROGRAM, "runs", "prune", str(folder), "--dry-run"])
        terminal.say_next([(command, "what can go, and why")])
    return 0


def pruned(operands: Sequence[str], flags: Pruned, terminal: Terminal) -> int:
    """Remove what nobody needs any more, after it was shown and allowed.

    Adapters, verdicts, reports and what people or teachers wrote always stay.

    Returns:
        The exit code: 0, or 2 where nobody allowed it.

    Raises:
        UserError: There is no such folder, or something cannot be removed.
    """
    # 1. Show everything.
    folder = _folder(operands)
    runs = _measured(folder, exports=flags.exports)
    for run in runs:
        if run.running:
            terminal.say(f"{run.path}: is running, and is left alone")
    bases = cached_gguf_bases() if flags.bases else []
    waste = [*(item for run in runs for item in run.waste), *bases]
    for item in waste:
        terminal.say(f"{_mib(item.size):>12}  {item.path}  ({item.reason})")
    total = _mib(sum(item.size for item in waste))
    if not waste:
        terminal.say(f"nothing to remove in {len(runs)} runs of {folder}")
        return 0
    if flags.dry_run:
        terminal.say(f"{total:>12}  would be freed; nothing was removed")
        return 0
    # 2. Ask, then remove.
    if not flags.yes and not _allowed(terminal, len(waste), total):
        raise UserError("runs prune: nothing was removed; answer yes, or give --yes")
    freed = 0
    for run in runs:
        if run.prune():
            freed += sum(item.size for item in run.waste)
        elif run.waste:
            terminal.say(f"{run.path}: was begun again in the meantime, and is left alone")
    for base in bases:
        base.remove()
        freed += base.size
    terminal.say(f"{_mib(freed):>12}  freed")
    return 0


def _allowed(terminal: Terminal, count: int, total: str) -> bool:
    try:
        return terminal.ask(f"remove these {count}, {total}? [yes/no] ").strip().lower() == "yes"
    except EOFError:
        return False


def _folder(operands: Sequence[str]) -> Path:
    return Path(operands[0]) if operands else _DEFAULT


def _measured(folder: Path, *, exports: bool) -> list[RunSize]:
    if not folder.is_dir():
        raise UserError(f"runs: {folder}: no such folder; give the folder that holds your runs")
    return [measure_run(run, exports=exports) for run in runs_in(folder)]


def _mib(size: int) -> str:
    return f"{size / _MIB:,.1f} MiB"
