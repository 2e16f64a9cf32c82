"""Import of rows of any format into canonical JSON lines: streamed, all or nothing.

The folder of an import holds

    manifest.json        kind, counts, sha256, licence, teacher, and the same for every source
    KIND.jsonl           instructions, prompts, pairs or rankings, one record a line
    dropped.jsonl        one line for every row that gave no record: its place and the reason

Every row read is either kept or dropped, and the counts add up.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast, get_args

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write, json_text, new_folder, writing
from alpaca_rlhf.data.readers.columns import (
    Preference,
    PreferenceShape,
    RowKind,
    preference_of,
    renamed,
    unread_columns,
)
from alpaca_rlhf.data.readers.detection import Columns, DetectedFormat, Kind
from alpaca_rlhf.data.readers.hints import columns_argument, suggested_columns
from alpaca_rlhf.data.readers.message_trees import GatheredRow, numbers_of
from alpaca_rlhf.data.readers.problems import (
    BadRow,
    LeftOut,
    NoColumn,
    Omitted,
    Problems,
    Unreadable,
    short,
)
from alpaca_rlhf.data.readers.reading import refuse_zero_and_one
from alpaca_rlhf.data.readers.rows import Rows, no_rows

SCHEMA = 1
"""Version of the folder's layout."""

MANIFEST, DROPPED = "manifest.json", "dropped.jsonl"

BrokenRowPolicy = Literal["refuse", "drop"]
"""Policy for broken rows: refuse the import, or drop and list them."""

_READERS: dict[Kind, RowKind] = {"pairs": "rankings", "rankings": "rankings"}
"""The reader of each kind that is not read as instructions."""
_SHAPES = get_args(PreferenceShape)
_BUFFER_BYTES = 2**20
_REMEMBERED = 200_000
"""Records of a source that later ones are compared with, so that memory stays bounded."""


class RowTally:
    """Row counts of one source: every row is kept, broken, or valid without any record."""

    def __init__(self, rows: Rows) -> None:
        self.source = rows
        self.rows = self.kept = self.records = 0
        self.broken = Problems()
        self.empty: Counter[str] = Counter()
        self.omitted: Counter[Omitted] = Counter()
        """Answers of rows that are kept which stand in no record, by reason."""
        self.unread: Counter[str] = Counter()
        """Columns that are not read, and in how many rows each stands."""
        self.preferences: Counter[Preference] = Counter()
        """Verdicts of the column `preference`, each with what it compares."""
        self.columns: Mapping[str, str] = {}
        """New names of its columns."""
        self.unreadable = False
        """True once the source cannot be read to its end."""
        self.repeated = 0
        """Records that are the same as an earlier one."""
        self.first_repeated = ""
        """Place of the first of them."""
        self.naming = ""
        """The flag that names its columns, where none of its rows has those that are read."""
        self._hashes: set[int] = set()

    @property
    def dropped(self) -> dict[str, int]:
        """Number of rows that gave no record, by reason."""
        return dict((self.broken.counts + self.empty).most_common())

    def records_of(
        self,
        detected: DetectedFormat,
        dropped: Callable[[int, str], None] = lambda number, reason: None,
    ) -> Iterator[Columns]:
        """Canonical records in order; calls `dropped` with the number and reason of other rows."""
        self.columns = detected.columns
        for number, row in self.source:
            numbers = numbers_of(number, row)
            if isinstance(row, dict):
                self.preferences.update(preference_of(renamed(row, detected.columns)))
            self.rows += len(numbers)
            try:
                converted = detected.convert(row, self.source.origin)
            except BadRow as problem:
                self.unreadable = self.unreadable or isinstance(problem, Unreadable)
                place = self.source.place(problem.number or number)
                self.broken.note(place, str(problem), len(numbers))
                self._suggest(row, detected, problem)
                reason = str(problem)
            except LeftOut as problem:
                self._count_unread(row, detected)
                reason = str(problem)
                self.empty[reason] += len(numbers)
            else:
                self._count_unread(row, detected)
                records = converted.records
                if records:
                    self.omitted.update(converted.omitted)
                    self.kept += len(numbers)
                    self.records += len(records)
                    self._count_repeated(number, records)
                    yield from records
                    continue
                assert detected.format is not None
                reason = detected.format.empty_reason
                self.empty[reason] += len(numbers)
            for dropped_number in numbers:
                dropped(dropped_number, reason)

    def _count_repeated(self, number: int, records: Sequence[Columns]) -> None:
        """Count records that say the same as an earlier one, wherever they are from."""
        for record in records:
            content = {name: value for name, value in record.items() if name != "source"}
            text = json.dumps(content, ensure_ascii=False, sort_keys=True)
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            key = int.from_bytes(digest, "little")
            if key in self._hashes:
                self.repeated += 1
                self.first_repeated = self.first_repeated or self.source.place(number)
            elif len(self._hashes) < _REMEMBERED:
                self._hashes.add(key)

    def _suggest(self, row: Any, detected: DetectedFormat, problem: BadRow) -> None:
        """Keep the flag that names the columns of the first row that lacks one."""
        if self.naming or not isinstance(problem, NoColumn) or detected.format is None:
            return
        columns = renamed(row, detected.columns)
        suggested = suggested_columns(columns, _READERS.get(detected.format.kind, "instructions"))
        if suggested:
            self.naming = f"--columns {columns_argument(suggested, detected.columns)}"

    def _count_unread(self, row: Any, detected: DetectedFormat) -> None:
        if not isinstance(row, dict) or detected.format is None:
            return
        kind = _READERS.get(detected.format.kind, "instructions")
        if isinstance(row, GatheredRow):
            self.unread.update(row.unread)
            return
        shape = detected.format.name if detected.format.name in _SHAPES else None
        unread = unread_columns(row, kind, detected.columns, cast(PreferenceShape | None, shape))
        self.unread.update(short(name) for name in unread)


@dataclass(frozen=True)
class Imported:
    """The result of an import."""

    path: Path
    """File of the records."""
    kind: Kind
    """Kind of the records."""
    manifest: dict[str, Any]
    """Content of the manifest."""


def import_rows(
    sources: Sequence[tuple[Rows, DetectedFormat]],
    out: Path,
    *,
    broken: BrokenRowPolicy = "refuse",
    facts: dict[str, Any] | None = None,
    note: Callable[[RowTally], None] = lambda tally: None,
    account: Callable[[Sequence[RowTally]], None] = lambda tallies: None,
) -> Imported:
    """Write the records of all sources to a new folder.

    Args:
        sources: Rows and their format; all of one kind.
        out: The folder; it must not exist yet.
        broken: Policy for broken rows.
        facts: Further entries of the manifest: licence, teacher.
        note: Called after each record.
        account: Called with the tallies, before anything is refused.

    Raises:
        UserError: `file:line:` of the first broken row; the sources differ in kind, no record is
            left, or the folder cannot be written.
    """
    kind = one_kind(sources)
    tallies = [RowTally(rows) for rows, _ in sources]
    with new_folder(out) as folder:
        # 1. Write the records of every source, and list the rows that give none.
        path = folder / f"{kind}.jsonl"
        with LineFile(path) as lines, LineFile(folder / DROPPED) as drops:
            for tally, (_, detected) in zip(tallies, sources, strict=True):
                for record in tally.records_of(detected, _drop_writer(drops, tally)):
                    lines.write(json.dumps(record, ensure_ascii=False))
                    note(tally)
        # 2. Report, then refuse: a refusal leaves no folder behind.
        account(tallies)
        refuse_broken(tallies, allowed=broken == "drop")
        # 3. Write the manifest last: a folder that has one is complete.
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
                    "format": detected.format.name if detected.format else None,
                    "container": rows.container,
                    **rows.facts(),
                    **_counts([tally]),
                }
                for tally, (rows, detected) in zip(tallies, sources, strict=True)
            ],
        }
        if not drops.count:
            (folder / DROPPED).unlink()
        atomic_write(folder / MANIFEST, json_text(manifest, MANIFEST, indent=1) + "\n")
    return Imported(out / path.name, kind, manifest)


def one_kind(sources: Iterable[tuple[Rows, DetectedFormat]]) -> Kind:
    """The common kind of all sources.

    Raises:
        UserError: The sources differ in kind.
    """
    kinds: dict[Kind, str] = {}
    for rows, detected in sources:
        if detected.format is not None:
            kinds.setdefault(detected.format.kind, rows.name)
    if len(kinds) > 1:
        contents = ", ".join(f"{name} holds {kind}" for kind, name in kinds.items())
        raise UserError(f"{contents}; import each kind into a folder of its own")
    return next(iter(kinds), "instructions")


def refuse_broken(tallies: Sequence[RowTally], *, allowed: bool) -> None:
    """Refuse broken rows, unless they are allowed, and sources that give no record.

    Raises:
        UserError: `file:line:` of the first broken row, with the count of each problem.
    """
    for tally in tallies:
        # After an unreadable row nothing can be dropped row by row: the rest would be lost.
        if tally.unreadable:
            raise UserError(f"{tally.broken.summary(tally.rows)}; what follows cannot be read")
        if tally.broken.total and not allowed:
            remedy = "correct them, or import with --broken drop"
            if not tally.kept:  # with --broken drop nothing would be left
                remedy = "correct them"
            if tally.naming and not tally.kept:
                remedy = f"name its columns: {tally.naming} (a run: --inputs.columns)"
            raise UserError(f"{tally.broken.summary(tally.rows)}; {remedy}")
        if not tally.rows:
            raise UserError(no_rows(tally.source.name))
        refuse_zero_and_one(tally.source.name, tally.preferences, tally.columns)
        if not tally.kept:
            reason, count = next(iter(tally.dropped.items()))
            raise UserError(
                f"{tally.source.name}: nothing is left of its {tally.rows} rows: {count} x {reason}"
            )


def _counts(tallies: Sequence[RowTally]) -> dict[str, Any]:
    dropped: Counter[str] = Counter()
    omitted: Counter[Omitted] = Counter()
    unread: Counter[str] = Counter()
    for tally in tallies:
        dropped.update(tally.dropped)
        omitted.update(tally.omitted)
        unread.update(tally.unread)
    return {
        "rows": sum(tally.rows for tally in tallies),
        "rows_kept": sum(tally.kept for tally in tallies),
        "rows_dropped": dict(dropped.most_common()),
        "answers_dropped": dict(omitted.most_common()),
        "repeated_records": sum(tally.repeated for tally in tallies),
        "unread_columns": dict(unread.most_common()),
    }


def _drop_writer(drops: LineFile, tally: RowTally) -> Callable[[int, str], None]:
    def write_drop(number: int, reason: str) -> None:
        place = tally.source.place(number)
        drops.write(json_text({"place": place, "reason": reason}, DROPPED))

    return write_drop


class LineFile:
    """A file of lines and its sha256, written as a stream into a folder that is not yet final."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._stream: BinaryIO
        self.count = 0
        """Lines written so far."""

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes written so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> LineFile:
        with writing(self._path):
            self._stream = self._path.open("wb", buffering=_BUFFER_BYTES)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with writing(self._path):
            self._stream.close()

    def write(self, line: str) -> None:
        """Append a line.

        Raises:
            UserError: It cannot be written, for example because the disk is full.
        """
        data = line.encode() + b"\n"
        self._digest.update(data)
        self.count += 1
        with writing(self._path):
            self._stream.write(data)
