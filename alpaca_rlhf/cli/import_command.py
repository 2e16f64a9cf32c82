"""`alpaca-rlhf import FILE... --out FOLDER`: rows of any known format into canonical JSON lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.quiet import quiet
from alpaca_rlhf.core.shell_words import quoted
from alpaca_rlhf.data import (
    BadRow,
    BrokenRowPolicy,
    DetectedFormat,
    FormatName,
    LeftOut,
    Rows,
    RowTally,
    column_names,
    columns_text,
    detect_format,
    import_rows,
    omitted_text,
    one_kind,
    open_rows,
)

_EXAMPLES = 2
_EXAMPLE_ROWS = 1000
"""Rows among which examples are looked for."""
_COLUMN_CHARS = 300
"""Characters of a column in an example."""
_PROGRESS_EVERY = 500
"""Records between two signs of progress."""


@dataclass(frozen=True)
class Import:
    """Flags of `alpaca-rlhf import`."""

    out: Path
    """Folder to make."""
    format: FormatName | None = None
    """Format of the rows; by default told by their columns."""
    columns: str = ""
    """New names of columns, as `question=instruction,answer=output`; `NAME=-` leaves one out."""
    broken: BrokenRowPolicy = "refuse"
    """Treatment of broken rows: refuse the files, or drop the rows and list them."""
    licence: str | None = None
    """Licence of the data, for the manifest and the card of an export."""
    teacher: str | None = None
    """Model that wrote the answers, if one did, for the same."""

    @property
    def facts(self) -> dict[str, str]:
        """The facts for the manifest that were given."""
        facts = {"licence": self.licence, "teacher": self.teacher}
        return {name: fact for name, fact in facts.items() if fact is not None}


def run(names: Sequence[str], settings: Import, terminal: Terminal) -> int:
    """Read files of rows, tell their format, and write them to a new folder.

    Returns:
        The exit code, 0.

    Raises:
        UserError: A file cannot be read, has broken rows or no known format; it cannot be written.
    """
    out = settings.out
    terminal.say(f"import: {shlex.join(names)} into {out}")
    columns = column_names(settings.columns, "--columns")
    sources = opened(names, settings.format, terminal, columns)
    one_kind(sources)  # before the long reading
    # An import that was made of the same files in the same way is not repeated.
    if _is_done(settings, sources):
        terminal.say(f"{out} holds these rows already; nothing is left to do")
        _say_next(terminal, out, str(_manifest(out)["kind"]))
        return 0
    terminal.start("import", "reading every row")
    imported = import_rows(
        sources,
        out,
        broken=settings.broken,
        facts={"broken": settings.broken, "columns": columns, **settings.facts},
        note=progress("import", terminal),
        account=lambda tallies: show_account(tallies, terminal),
    )
    manifest = imported.manifest
    summary = f"{manifest['records']:,} {imported.kind} of {manifest['rows_kept']:,} rows"
    terminal.finish("import", summary)
    terminal.say(f"{imported.kind}: {imported.path}")
    _say_next(terminal, out, imported.kind)
    return 0


def opened(
    names: Sequence[str],
    format_name: FormatName | None,
    terminal: Terminal,
    columns: Mapping[str, str] | None = None,
) -> list[tuple[Rows, DetectedFormat]]:
    """Open every source, tell its format and show it with two examples.

    Raises:
        UserError: One cannot be read, or has no known format.
    """
    quiet("hub")  # no bars and no warnings of libraries; the network stays as it is
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: is given twice")
    sources: list[tuple[Rows, DetectedFormat]] = []
    for name in names:
        rows = open_rows(name, columns)
        source_look = detect_format(rows, format_name, columns)
        _show_look(rows, source_look, terminal)
        sources.append((rows, source_look))
    return sources


def progress(stage: str, terminal: Terminal) -> Callable[[RowTally], None]:
    """A callback that shows now and then how far a source is read."""

    def on_record(tally: RowTally) -> None:
        if tally.records % _PROGRESS_EVERY == 0:
            share = tally.source.done()
            total = round(tally.rows / share) if share else tally.rows
            terminal.step(stage, tally.rows, max(total, tally.rows), {})

    return on_record


def show_account(tallies: Sequence[RowTally], terminal: Terminal) -> None:
    """Say how many rows are kept and dropped, and why."""
    for tally in tallies:
        lost = tally.rows - tally.kept
        terminal.say(
            f"{tally.source.name}: {tally.rows:,} rows read, {tally.kept:,} good "
            f"({tally.records:,} records), {lost:,} not"
        )
        if tally.repeated:
            several = "" if tally.repeated == 1 else ", the first"
            terminal.say(
                f"  {tally.repeated:,} of them the same as an earlier one{several} at "
                f"{tally.first_repeated}; they are kept, and each counts in training"
            )
        if tally.omitted:
            terminal.say(f"  {omitted_text(tally.omitted)}")
        if tally.unread:
            terminal.say(f"  columns that are not read: {columns_text(tally.unread)}")
        for reason, count in list(tally.dropped.items())[:10]:
            terminal.say(f"  {count:>7,}  {reason}")
        for place, message in tally.broken.first:
            terminal.say(f"  {place}: {message}")
        if tally.broken.total > len(tally.broken.first):
            terminal.say(f"  ... and {tally.broken.total - len(tally.broken.first):,} more")


def _show_look(rows: Rows, source_look: DetectedFormat, terminal: Terminal) -> None:
    """Say a source's format, with a few of its records."""
    row_format = source_look.format
    if row_format is None:
        terminal.say(f"{rows.name}: {rows.container}, and no row of it can be read so far")
        return
    reason = (
        "told by its columns; --format overrides" if source_look.guessed else "as --format says"
    )
    terminal.say(f"{rows.name}: {rows.container}, {row_format.name} ({reason})")
    examples = 0
    for number, row in rows:
        try:
            records = source_look.convert(row, rows.origin).records
        except (BadRow, LeftOut):  # it is told when all are read
            records = []
        for record in records[:1]:
            examples += 1
            terminal.say(f"  example {examples}, {rows.place(number)}, {row_format.kind}:")
            for column, value in record.items():
                if value not in (None, "", []) and column != "source":
                    terminal.say(f"    {column}: {_elided(value)}")
        if examples >= _EXAMPLES or number > _EXAMPLE_ROWS:
            return


def _elided(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join(text[: 2 * _COLUMN_CHARS].split())
    if len(text) <= _COLUMN_CHARS:
        return line
    return f"{line[:_COLUMN_CHARS]} [... {len(text):,} characters]"


def _is_done(settings: Import, sources: Sequence[tuple[Rows, DetectedFormat]]) -> bool:
    """True if an earlier import made the folder of the same files in the same way."""
    try:
        manifest = _manifest(settings.out)
        made_of = [
            (source["name"], source["format"], source.get("sha256"))
            for source in manifest["sources"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    facts = {"licence": None, "teacher": None, "broken": settings.broken, **settings.facts}
    if manifest.get("columns", {}) != column_names(settings.columns, "--columns"):
        return False
    if any(manifest.get(name) != fact for name, fact in facts.items()):
        return False
    return made_of == [
        (
            rows.name,
            detected.format.name if detected.format else None,
            rows.facts().get("sha256"),
        )
        for rows, detected in sources
    ]


def _manifest(out: Path) -> Mapping[str, Any]:
    manifest: Mapping[str, Any] = json.loads((out / "manifest.json").read_text())
    return manifest


def _say_next(terminal: Terminal, out: Path, kind: str) -> None:
    path = quoted(out / f"{kind}.jsonl")
    flag = {"instructions": "data", "prompts": "prompts"}.get(kind, "rankings")
    placeholders = {"data": "data ROWS.jsonl", "prompts": "prompts PROMPTS.jsonl"}
    others = " ".join(f"--inputs.{text}" for name, text in placeholders.items() if name != flag)
    loop = f"{PROGRAM} loop --base BASE --inputs.judge human --inputs.{flag} {path} {others}"
    export = f"{PROGRAM} data export {quoted(out)} --to parquet --out FOLDER"
    terminal.say()
    commands = [(loop, "train with them"), (export, "hand them on, with a card")]
    if kind in ("instructions", "prompts"):
        split = f"{PROGRAM} split --data {path} --out FOLDER"
        commands.insert(0, (split, "deal them to the stages, near-duplicates together"))
    for line in next_lines(commands):
        terminal.say(line)
