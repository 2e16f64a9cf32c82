"""`alpaca-rlhf import FILE... --out FOLDER`: rows of any known format into canonical JSON lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alpaca_rlhf.cli.terminal import PROGRAM, Terminal, next_lines
from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.quiet import quiet
from alpaca_rlhf.data import (
    BadRow,
    BrokenRowPolicy,
    DetectedFormat,
    FormatName,
    Rows,
    RowTally,
    detect_format,
    import_rows,
    one_kind,
    open_rows,
)
from alpaca_rlhf.settings.parsing import parse

ABOUT = "read data of any known format, check it, and write it in the kit's own"

_ABOUT = """Read files of rows, tell their format, and write them to a new folder.

FILE is JSON, JSON lines (both also gzipped), CSV, Parquet, a folder with a saved dataset, or
hub:OWNER/NAME[:SPLIT]. A broken row refuses all, unless --broken drop."""

_EXAMPLES = 2
_SHOWN = 300  # characters of a column in an example
_EVERY = 500  # records between two signs of progress


@dataclass(frozen=True)
class Import:
    """Flags of `alpaca-rlhf import`."""

    out: Path
    """Folder to make."""
    format: FormatName | None = None
    """How the rows look; by default told by their columns."""
    broken: BrokenRowPolicy = "refuse"
    """What to do about broken rows: refuse the files, or drop the rows and list them."""
    licence: str | None = None
    """Licence of the data, for the manifest and the card of an export."""
    teacher: str | None = None
    """Model that wrote the answers, if one did, for the same."""


def run(words: Sequence[str], terminal: Terminal) -> int:
    """Look, read, write, tell what is next.

    Returns:
        The exit code, 0.

    Raises:
        UserError: A file cannot be read, has broken rows or no known format; it cannot be written.
    """
    names, flags = files_and_flags(words, "import")
    asked = parse(Import, flags, prog=f"{PROGRAM} import FILE...", description=_ABOUT)
    terminal.say(f"import: {shlex.join(names)} into {asked.out}")
    sources = looked_at(names, asked.format, terminal)
    one_kind(sources)  # before the long reading
    given = {"licence": asked.licence, "teacher": asked.teacher}
    facts = {name: value for name, value in given.items() if value is not None}
    if _is_done(asked.out, sources, asked.broken, facts):
        terminal.say(f"{asked.out} holds these rows already; nothing is left to do")
        _tell_next(terminal, asked.out, _kind_of(asked.out))
        return 0
    terminal.start("import", "reading every row")
    made = import_rows(
        sources,
        asked.out,
        broken=asked.broken,
        facts={"broken": asked.broken, **facts},
        note=progress("import", terminal),
        account=lambda tallies: show_account(tallies, terminal),
    )
    counts = made.manifest
    terminal.finish("import", f"{counts['records']:,} {made.kind} of {counts['rows_kept']:,} rows")
    terminal.say(f"{made.kind}: {made.path}")
    _tell_next(terminal, asked.out, made.kind)
    return 0


def files_and_flags(words: Sequence[str], command: str) -> tuple[list[str], list[str]]:
    """The names before the flags, and the flags.

    Raises:
        UserError: There is no name.
    """
    if "-h" in words or "--help" in words:
        return [], ["--help"]
    at = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    if not at:
        what = "FOLDER" if command == "data export" else "FILE..."
        raise UserError(f"{command}: expected {PROGRAM} {command} {what}, flags after it")
    return list(words[:at]), list(words[at:])


def looked_at(
    names: Sequence[str], asked: FormatName | None, terminal: Terminal
) -> list[tuple[Rows, DetectedFormat]]:
    """Open every source, tell its format and show it with two examples.

    Raises:
        UserError: One cannot be read, or has no known format.
    """
    quiet("hub")  # no bars and no warnings of libraries; the network stays as it is
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{twice}: is given twice")
    found: list[tuple[Rows, DetectedFormat]] = []
    for name in names:
        rows = open_rows(name)
        seen = detect_format(rows, asked)
        _show_look(rows, seen, terminal)
        found.append((rows, seen))
    return found


def progress(stage: str, terminal: Terminal) -> Callable[[RowTally], None]:
    """Tells now and then how far a source is read."""

    def note(tally: RowTally) -> None:
        if tally.records % _EVERY == 0:
            share = tally.source.done()
            total = round(tally.rows / share) if share else tally.rows
            terminal.step(stage, tally.rows, max(total, tally.rows), {})

    return note


def show_account(tallies: Sequence[RowTally], terminal: Terminal) -> None:
    """How many rows are kept and dropped, and why."""
    for tally in tallies:
        lost = tally.rows - tally.kept
        terminal.say(
            f"{tally.source.name}: {tally.rows:,} rows read, {tally.kept:,} good "
            f"({tally.records:,} records), {lost:,} not"
        )
        for reason, count in list(tally.dropped.items())[:10]:
            terminal.say(f"  {count:>7,}  {reason}")
        for place, message in tally.broken.first:
            terminal.say(f"  {place}: {message}")
        if tally.broken.total > len(tally.broken.first):
            terminal.say(f"  ... and {tally.broken.total - len(tally.broken.first):,} more")


def _show_look(rows: Rows, seen: DetectedFormat, terminal: Terminal) -> None:
    if seen.format is None:
        terminal.say(f"{rows.name}: {rows.container}, and no row of it can be read so far")
        return
    told = "told by its columns; --format overrides" if seen.guessed else "as --format says"
    terminal.say(f"{rows.name}: {rows.container}, {seen.format.name} ({told})")
    shown = 0
    for number, row in rows:
        try:
            made = seen.convert(row, rows.origin)
        except BadRow:  # it is told when all are read
            made = []
        for one in made[:1]:
            shown += 1
            terminal.say(f"  example {shown}, {rows.place(number)}, {seen.format.kind}:")
            for column, value in one.items():
                if value not in (None, "", []) and column != "source":
                    terminal.say(f"    {column}: {_elided(value)}")
        if shown >= _EXAMPLES or number > 1000:
            return


def _elided(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    line = " ".join(text[: 2 * _SHOWN].split())
    return line if len(text) <= _SHOWN else f"{line[:_SHOWN]} [... {len(text):,} characters]"


def _is_done(
    out: Path,
    sources: Sequence[tuple[Rows, DetectedFormat]],
    broken: BrokenRowPolicy,
    facts: dict[str, Any],
) -> bool:
    """Whether an earlier import made the folder of the same files in the same way."""
    try:
        manifest = json.loads((out / "manifest.json").read_text())
        made = [(one["name"], one["format"], one.get("sha256")) for one in manifest["sources"]]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if manifest.get("broken") != broken:
        return False
    if any(manifest.get(name) != facts.get(name) for name in ("licence", "teacher")):
        return False
    wanted = [
        (rows.name, seen.format.name if seen.format else None, rows.facts().get("sha256"))
        for rows, seen in sources
    ]
    return made == wanted


def _kind_of(out: Path) -> str:
    return str(json.loads((out / "manifest.json").read_text())["kind"])


def _tell_next(terminal: Terminal, out: Path, kind: str) -> None:
    path = shlex.quote(str(out / f"{kind}.jsonl"))
    flag = {"instructions": "data", "prompts": "prompts"}.get(kind, "rankings")
    others = {"data": "data ROWS.jsonl", "prompts": "prompts PROMPTS.jsonl"}
    more = " ".join(f"--inputs.{one}" for name, one in others.items() if name != flag)
    loop = f"{PROGRAM} loop --base BASE --inputs.judge human --inputs.{flag} {path} {more}"
    export = f"{PROGRAM} data export {shlex.quote(str(out))} --to parquet --out FOLDER"
    terminal.say()
    commands = [(loop, "train with them"), (export, "hand them on, with a card")]
    if kind in ("instructions", "prompts"):
        split = f"{PROGRAM} split --data {path} --out FOLDER"
        commands.insert(0, (split, "deal them to the stages, near-duplicates together"))
    for line in next_lines(commands):
        terminal.say(line)
