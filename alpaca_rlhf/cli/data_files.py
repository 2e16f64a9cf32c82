"""`alpaca-rlhf data check FILE...` and `data export FOLDER`: bodies for `data_commands`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca_rlhf.cli.import_command import files_and_flags, looked_at, progress, show_account
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data import (
    FormatName,
    RowTally,
    Target,
    export,
    exportable,
    one_kind,
    refuse_broken,
)
from alpaca_rlhf.settings.parsing import parse


@dataclass(frozen=True)
class Check:
    """Flags of `data check FILE...`."""

    format: FormatName | None = None
    """How the rows look; by default told by their columns."""


@dataclass(frozen=True)
class Export:
    """Flags of `data export FOLDER`."""

    to: Target
    """What to make: a folder of the datasets library, JSON lines, or Parquet."""
    out: Path
    """Folder to make."""


def check(words: Sequence[str], terminal: Terminal) -> int:
    """Read every row of files as `import` does, and write nothing.

    Raises:
        UserError: `file:line:` of the first broken row, with the count of each problem.
    """
    names, flags = files_and_flags(words, "data check")
    about = "Read every row of FILE... as import does, and write nothing."
    prog = f"{PROGRAM} data check FILE..."
    asked = parse(Check, flags, prog=prog, description=about, default=Check())
    terminal.say(f"check: {shlex.join(names)}; nothing is written")
    sources = looked_at(names, asked.format, terminal)
    terminal.start("check", "reading every row")
    note = progress("check", terminal)
    tallies = [RowTally(rows) for rows, _ in sources]
    for tally, (_, seen) in zip(tallies, sources, strict=True):
        for _ in tally.records_of(seen):
            note(tally)
    terminal.finish("check", f"{sum(tally.rows for tally in tallies):,} rows")
    show_account(tallies, terminal)
    refuse_broken(tallies, allowed=False)
    one_kind(sources)
    command = f"{PROGRAM} import {shlex.join(names)} --out FOLDER"
    terminal.say()
    for line in next_lines([(command, "write them in the kit's own form")]):
        terminal.say(line)
    return 0


def exported(words: Sequence[str], terminal: Terminal) -> int:
    """Write a folder of data for others, with a card.

    Raises:
        UserError: The folder holds nothing to export; the other one cannot be written.
    """
    names, flags = files_and_flags(words, "data export")
    about = "Write the rows of FOLDER (an import, a generation, splits) for others, with a card."
    asked = parse(Export, flags, prog=f"{PROGRAM} data export FOLDER", description=about)
    if len(names) != 1:
        raise UserError(f"data export: got {len(names)} folders; give one")
    folder = Path(names[0])
    terminal.say(f"export: {folder} to {asked.out} as {asked.to}")
    found = exportable(folder)
    terminal.start("export", f"reading every record of {', '.join(found.splits)}")
    note = progress("export", terminal)
    counts = export(found, asked.out, asked.to, note=lambda split, tally: note(tally))
    terminal.finish("export", f"{sum(counts.values()):,} {found.kind}")
    for name, count in counts.items():
        terminal.say(f"  {name}: {count:,}")
    terminal.say(f"card: {asked.out / 'README.md'}")
    if not found.manifest.get("licence"):
        terminal.say("its licence is unknown: say it in the card before you hand the data on")
    here = asked.out
    if asked.to != "datasets":
        here = asked.out / "data" / f"{next(iter(counts))}.{asked.to}"
    again = f"{PROGRAM} data check {shlex.quote(str(here))}"
    terminal.say()
    for line in next_lines([(again, "see that it reads back")]):
        terminal.say(line)
    return 0
