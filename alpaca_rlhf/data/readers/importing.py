"""Rows of any format into canonical JSON lines: a stream, in bounded memory, all or nothing.

A folder of an import holds

    manifest.json        kind, counts, sha256, licence, teacher, and the same of every source
    KIND.jsonl           instructions, prompts, pairs or rankings, a record a line
    dropped.jsonl        a line for every row that gave no record: its source, place and reason

Each row that was read is kept or dropped, and the counts add up.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, json_text, new_folder, writing
from alpaca_rlhf.data.readers.columns import RowKind, renamed, unread_columns
from alpaca_rlhf.data.readers.detection import Columns, DetectedFormat, Kind
from alpaca_rlhf.data.readers.problems import BadRow, MarkedBad, Problems, Unreadable, short
from alpaca_rlhf.data.readers.rows import Rows, no_rows

SCHEMA = 1
"""Version of the layout."""

MANIFEST, DROPPED = "manifest.json", "dropped.jsonl"

BrokenRowPolicy = Literal["refuse", "drop"]
"""What to do about rows that are broken."""

_BUFFER = 2**20


class RowTally:
    """The account of one source: every row is kept, broken, or has nothing in it."""

    def __init__(self, rows: Rows) -> None:
        self.source = rows
        self.rows = self.kept = self.records = 0
        self.broken = Problems()
        self.without: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()
        """Columns that are not read, and in how many rows each stands."""
        self.torn = False
        """Whether it could not be read to its end."""

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows gave nothing, by reason."""
        return dict((self.broken.counts + self.without).most_common())

    def records_of(
        self,
        detect_format: DetectedFormat,
        dropped: Callable[[int, str], None] = lambda number, reason: None,
    ) -> Iterator[Columns]:
        """Canonical rows, one after the other; `dropped` is told the others."""
        for number, row in self.source:
            self.rows += 1
            try:
                made = detect_format.convert(row, self.source.origin)
            except BadRow as problem:
                self.torn = self.torn or isinstance(problem, Unreadable)
                self.broken.note(self.source.place(number), str(problem))
                dropped(number, str(problem))
                continue
            except MarkedBad as problem:
                self._count_unread(row, detect_format)
                self.without[str(problem)] += 1
                dropped(number, str(problem))
                continue
            self._count_unread(row, detect_format)
            if made:
                self.kept += 1
                self.records += len(made)
                yield from made
            else:
                assert detect_format.format is not None
                self.without[detect_format.format.empty_reason] += 1
                dropped(number, detect_format.format.empty_reason)

    def _count_unread(self, row: Any, detect_format: DetectedFormat) -> None:
        if not isinstance(row, dict) or detect_format.format is None:
            return
        kinds: dict[Kind, RowKind] = {"pairs": "rankings", "rankings": "rankings"}
        kind = kinds.get(detect_format.format.kind, "instructions")
        columns = renamed(row, detect_format.columns)
        self.unread.update(short(name) for name in unread_columns(columns, kind))


@dataclass(frozen=True)
class Imported:
    """What an import made."""

    path: Path
    """The file of records."""
    kind: Kind
    """What they are."""
    manifest: dict[str, Any]
    """What the manifest says."""


def import_rows(
    sources: Sequence[tuple[Rows, DetectedFormat]],
    out: Path,
    *,
    broken: BrokenRowPolicy = "refuse",
    facts: dict[str, Any] | None = None,
    note: Callable[[RowTally], None] = lambda tally: None,
    account: Callable[[Sequence[RowTally]], None] = lambda tallies: None,
) -> Imported:
    """Write the rows of all sources to a new folder.

    Args:
        sources: Rows and their format; all of one kind.
        out: The folder; nothing may be there yet.
        broken: Whether one broken row refuses all, or is left out and listed.
        facts: More for the manifest: licence, teacher.
        note: Called after each record.
        account: Told how it went, before anything is refused.

    Raises:
        UserError: `file:line:` of the first broken row; sources of several kinds; nothing is left;
            it cannot be written.
    """
    kind = one_kind(sources)
    tallies = [RowTally(rows) for rows, _ in sources]
    with new_folder(out) as folder:
        path = folder / f"{kind}.jsonl"
        with LineFile(path) as lines, LineFile(folder / DROPPED) as drops:
            for tally, (_, detect_format) in zip(tallies, sources, strict=True):
                for record in tally.records_of(detect_format, _listing(drops, tally)):
                    lines.write(json.dumps(record, ensure_ascii=False))
                    note(tally)
        account(tallies)
        refuse_broken(tallies, allowed=broken == "drop")
        manifest = {
            "schema": SCHEMA,
            "kind": kind,
            "file": path.name,
            "records": lines.count,
            "sha256": lines.sha256,
            **_counts(tallies),
            **(facts or {}),
            "sources": [
                {
                    "name": rows.name,
                    "format": detect_format.format.name if detect_format.format else None,
                    "container": rows.container,
                    **rows.facts(),
                    **_counts([tally]),
                }
                for tally, (rows, detect_format) in zip(tallies, sources, strict=True)
            ],
        }
        if not drops.count:
            (folder / DROPPED).unlink()
        atomic_write(folder / MANIFEST, json_text(manifest, MANIFEST, indent=1) + "\n")
    return Imported(out / path.name, kind, manifest)


def one_kind(sources: Iterable[tuple[Rows, DetectedFormat]]) -> Kind:
    """The kind that all sources have.

    Raises:
        UserError: They differ.
    """
    kinds: dict[Kind, str] = {}
    for rows, detect_format in sources:
        if detect_format.format is not None:
            kinds.setdefault(detect_format.format.kind, rows.name)
    if len(kinds) > 1:
        told = ", ".join(f"{name} holds {kind}" for kind, name in kinds.items())
        raise UserError(f"{told}; import them into folders of their own")
    return next(iter(kinds), "instructions")


def refuse_broken(tallies: Sequence[RowTally], *, allowed: bool) -> None:
    """Refuse rows that are broken, unless that is allowed, and files of which nothing is left.

    Raises:
        UserError: `file:line:` of the first broken row, with the count of each problem.
    """
    for tally in tallies:
        if tally.torn:
            raise UserError(f"{tally.broken.summary(tally.rows)}; what follows cannot be read")
        if tally.broken.total and not allowed:
            mend = "mend them, or import with --broken drop"
            raise UserError(f"{tally.broken.summary(tally.rows)}; {mend}")
        if not tally.rows:
            raise UserError(no_rows(tally.source.name))
        if not tally.kept:
            reason, count = next(iter(tally.dropped.items()))
            raise UserError(
                f"{tally.source.name}: nothing is left of its {tally.rows} rows: {count} x {reason}"
            )


def _counts(tallies: Sequence[RowTally]) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    for tally in tallies:
        dropped.update(tally.dropped)
        unread.update(tally.unread)
    return {
        "rows": sum(tally.rows for tally in tallies),
        "rows_kept": sum(tally.kept for tally in tallies),
        "rows_dropped": dict(dropped.most_common()),
        "unread_columns": dict(unread.most_common()),
    }


def _listing(drops: LineFile, tally: RowTally) -> Callable[[int, str], None]:
    def note(number: int, reason: str) -> None:
        place = tally.source.place(number)
        drops.write(json_text({"place": place, "reason": reason}, DROPPED))

    return note


class LineFile:
    """A file of lines with its digest, written as they come; for a folder not yet in its place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._stream: BinaryIO
        self.count = 0
        """Lines so far."""

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> LineFile:
        with writing(self._path):
            self._stream = self._path.open("wb", buffering=_BUFFER)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with writing(self._path):
            self._stream.close()

    def write(self, line: str) -> None:
        """Add a line.

        Raises:
            UserError: The disk is full.
        """
        data = line.encode() + b"\n"
        self._digest.update(data)
        self.count += 1
        with writing(self._path):
            self._stream.write(data)
