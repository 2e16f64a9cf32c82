"""`alpaca-rlhf data check FILE...` and `data export FOLDER`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alpaca_rlhf.cli.import_command import opened, progress, show_account
from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data import (
    FormatName,
    RowTally,
    Target,
    column_names,
    export,
    exportable,
    refuse_broken,
)


@dataclass(frozen=True)
class Check:
    """Flags of `data check FILE...`."""

    format: FormatName | None = None
    """Format of the rows; by default told by their columns."""
    columns: str = ""
    """New names of columns, as `question=instruction,answer=output`; `NAME=-` leaves one out."""


@dataclass(frozen=True)
class Export:
    """Flags of `data export FOLDER`."""

    to: Target
    """Form of the data: a folder of the datasets library, JSON lines, or Parquet."""
    out: Path
    """Folder to make."""


def check(names: Sequence[str], settings: Check, terminal: Terminal) -> int:
    """Read every row of files as `import` does, and write nothing.

    Raises:
        UserError: `file:line:` of the first broken row, with the count of each problem.
    """
    terminal.say(f"check: {shlex.join(names)}; nothing is written")
    sources = opened(names, settings.format, terminal, column_names(settings.columns, "--columns"))
    terminal.start("check", "reading every row")
    on_record = progress("check", terminal)
    tallies = [RowTally(rows) for rows, _ in sources]
    for tally, (_, detect_format) in zip(tallies, sources, strict=True):
        for _ in tally.records_of(detect_format):
            on_record(tally)
    terminal.finish("check", f"{sum(tally.rows for tally in tallies):,} rows")
    show_account(tallies, terminal)
    refuse_broken(tallies, allowed=False)
    # Files of different kinds are imported into folders of their own.
    names_by_kind: dict[str, list[str]] = {}
    for name, (_, detected) in zip(names, sources, strict=True):
        if detected.format is not None:
            names_by_kind.setdefault(detected.format.kind, []).append(name)
    flags = ["--format", settings.format] if settings.format else []
    flags += ["--columns", settings.columns] if settings.columns else []
    commands = [
        (
            f"{PROGRAM} import {shlex.join([*same, *flags])} --out FOLDER",
            f"write the {kind} in the kit's own form",
        )
        for kind, same in names_by_kind.items()
    ]
    terminal.say()
    for line in next_lines(commands):
        terminal.say(line)
    return 0


def exported(names: Sequence[str], settings: Export, terminal: Terminal) -> int:
    """Write a folder of data (an import, a generation, splits) for others, with a card.

    Raises:
        UserError: The folder holds nothing to export; the other one cannot be written.
    """
    folder, out = Path(names[0]), settings.out
    terminal.say(f"export: {folder} to {out} as {settings.to}")
    source = exportable(folder)
    terminal.start("export", f"reading every record of {', '.join(source.splits)}")
    on_record = progress("export", terminal)
    counts = export(source, out, settings.to, note=lambda split, tally: on_record(tally))
    terminal.finish("export", f"{sum(counts.values()):,} {source.kind}")
    for split, count in counts.items():
        terminal.say(f"  {split}: {count:,}")
    terminal.say(f"card: {out / 'README.md'}")
    if not source.manifest.get("licence"):
        terminal.say("its licence is unknown: say it in the card before you hand the data on")
    readable = out
    if settings.to != "datasets":
        readable = out / "data" / f"{next(iter(counts))}.{settings.to}"
    command = f"{PROGRAM} data check {quoted(readable)}"
    terminal.say()
    for line in next_lines([(command, "see that it reads back")]):
        terminal.say(line)
    return 0
