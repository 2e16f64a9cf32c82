"""Options for reading a file of the user's, and the account of its rows."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data.readers.columns import (
    Preference,
    RowKind,
    preference_of,
    renamed,
    unread_columns,
)
from alpaca_rlhf.data.readers.hints import columns_argument
from alpaca_rlhf.data.readers.message_trees import GatheredRow
from alpaca_rlhf.data.readers.problems import Omitted, Reason, short
from alpaca_rlhf.data.readers.read_limit import ReadLimit

_COLUMNS_SHOWN = 8


@dataclass
class FileAccount:
    """The rows of one file: each was used or left out, and the counts add up."""

    name: str = ""
    """The file, as the user gave it."""
    rows: int = 0
    """Rows in it."""
    left_out: Counter[Reason] = field(default_factory=Counter)
    """Rows that are not used, by reason; `leave_out` counts those that were read."""
    omitted: Counter[Omitted] = field(default_factory=Counter)
    """Answers of rows that are used which stand in no ranking, by reason."""
    unread: Counter[str] = field(default_factory=Counter)
    """Columns that are not read, and in how many rows each stands."""
    renamed: set[str] = field(default_factory=set)
    """Columns that were given a new name or left out."""
    preferences: Counter[Preference] = field(default_factory=Counter)
    """Verdicts of the column `preference`, each with what it compares."""
    places: list[str] = field(default_factory=list)
    """Place and problem of the first rows that were left out."""
    _row_of_record: array[int] = field(default_factory=partial(array, "q"), repr=False)
    """Number of the row of each record, in the order in which they were read."""
    _records_left: array[int] = field(default_factory=partial(array, "q"), repr=False)
    """Records of each row that are used."""
    _gathered: array[int] = field(default_factory=partial(array, "q"), repr=False)
    """Rows of the file that each row was gathered from; 1 where it was not."""
    _reasons: dict[int, Reason] = field(default_factory=dict, repr=False)
    """Records that are not used after all, and why."""

    @property
    def used(self) -> int:
        """Rows that are used."""
        return self.rows - self.left_out.total()

    @property
    def partly_left_out(self) -> Counter[Reason]:
        """Records that are not used, of rows that are used for others, by reason."""
        return Counter(
            reason
            for record, reason in self._reasons.items()
            if self._records_left[self._row_of_record[record]]
        )

    def note_records(self, records: int, rows: int = 1) -> None:
        """Note the records of a row that was read, or of several that were gathered into one."""
        if records:
            self._row_of_record.extend([len(self._records_left)] * records)
            self._records_left.append(records)
            self._gathered.append(rows)
        else:
            self.left_out["unusable"] += rows

    def to_json(self) -> dict[str, Any]:
        """The account, for the ledger and the report."""
        return {
            "file": self.name,
            "rows": self.rows,
            "used": self.used,
            "left_out": dict(self.left_out.most_common()),
            "partly_left_out": dict(self.partly_left_out.most_common()),
            "answers_left_out": dict(self.omitted.most_common()),
            "unread_columns": dict(self.unread.most_common()),
        }

    def leave_out(self, reason: Reason, records: Iterable[int]) -> None:
        """Leave out records after all; a row is counted once none of its records is used.

        Args:
            reason: Why they are not used.
            records: Their positions in the order in which they were read. Those that were left out
                before keep their reason.
        """
        for record in records:
            if record in self._reasons:
                continue
            self._reasons[record] = reason
            row = self._row_of_record[record]
            self._records_left[row] -= 1
            if not self._records_left[row]:
                self.left_out[reason] += self._gathered[row]

    def lines(self) -> list[str]:
        """Lines for the terminal; none if every row and every column is used."""
        lines = []
        if self.left_out:
            lines.append(
                f"{self.name}: {self.used:,} of {self.rows:,} rows used; left out: "
                f"{reasons_text(self.left_out)}"
            )
            lines += [f"  {place}" for place in self.places]
        if self.partly_left_out:
            lines.append(
                f"{self.name}: of rows that hold several records, left out: "
                f"{reasons_text(self.partly_left_out)}"
            )
        if self.omitted:
            lines.append(f"{self.name}: {omitted_text(self.omitted)}")
        if self.unread:
            lines.append(f"{self.name}: columns that are not read: {columns_text(self.unread)}")
        return lines


def reasons_text(left_out: Mapping[Reason, int]) -> str:
    """Rows that were left out, each reason with its count."""
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(left_out).most_common())


def omitted_text(omitted: Mapping[Omitted, int]) -> str:
    """Answers that stand in no ranking, each reason with its count."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in Counter(omitted).most_common())
    return f"answers that stand in no ranking: {reasons}"


def columns_text(unread: Counter[str]) -> str:
    """Columns that are not read, each with its number of rows."""
    shown = unread.most_common(_COLUMNS_SHOWN)
    rest = len(unread) - len(shown)
    text = ", ".join(f"`{short(name)}` ({count:,} rows)" for name, count in shown)
    return text + (f" and {rest} more" if rest else "")


@dataclass
class Reading:
    """Options for reading a file of the user's, and its account, which the reader fills."""

    kind: RowKind
    """The reader of its rows."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """New names of columns, `-` for one that is left out."""
    drop_broken: bool = False
    """Leave broken rows out, counted, instead of refusing the file."""
    drop_flag: str = ""
    """The flag that leaves broken rows out, for the message that refuses them."""
    columns_flag: str = ""
    """The flag that renames columns, for the message where no row has those that are read."""
    refuse: Callable[[Any], None] = lambda record: None
    """Raises `BadRow` for a record that the caller cannot use."""
    way_out: str = ""
    """The next steps after broken rows, in place of the usual ones."""
    limit: ReadLimit | None = None
    """The most that is read; None reads files of any size."""
    account: FileAccount = field(default_factory=FileAccount)
    """The rows of the file."""

    def prepared(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row under its new column names; its unread columns are counted."""
        names = row.names if isinstance(row, GatheredRow) else row
        self.account.renamed.update(name for name in self.columns if name in names)
        if isinstance(row, GatheredRow):
            self.account.unread.update(row.unread)
            return row
        unread = unread_columns(row, self.kind, self.columns)
        self.account.unread.update(short(name) for name in unread)
        columns = renamed(row, self.columns)
        self.account.preferences.update(preference_of(columns))
        return columns


def refuse_zero_and_one(
    name: str, preferences: Mapping[Preference, int], columns: Mapping[str, str]
) -> None:
    """Refuse verdicts that are 0 in some rows, 1 in the others, and 2 in none.

    AlpacaFarm's are 1, 2, and 0 for a tie; these count the answers from 0, or say if the first is
    better.

    Args:
        name: The file.
        preferences: Verdicts of its column `preference`, with the columns that they compare.
        columns: New names of columns that were given.

    Raises:
        UserError: They are such.
    """
    if {verdict for verdict, _ in preferences} != {"0", "1"}:
        return
    (first, second, *others) = next(iter(preferences))[1]
    prompt = dict.fromkeys(others, "prompt")
    counted = {first: "response_0", second: "response_1", "preference": "better_response_id"}
    flagged = {first: "human_ref_A", second: "human_ref_B", "preference": "labels"}
    counted, flagged = counted | prompt, flagged | prompt
    raise UserError(
        f"{name}: `preference` is 0 or 1 in every row, and means 1 for the first answer, 2 for the "
        f"second, 0 for a tie; if 0 is the first and 1 the second: --columns "
        f"{columns_argument(counted, columns)}; if 0 is the second and 1 the first: --columns "
        f"{columns_argument(flagged, columns)} (a run: --inputs.columns); if 0 is a tie, write tie"
    )


def refuse_absent_columns(
    names: Mapping[str, str], flag: str, accounts: Sequence[FileAccount]
) -> None:
    """Refuse a renaming of a column that no file has.

    Args:
        names: New names of columns.
        flag: The flag that gives them, as typed.
        accounts: Accounts of the files that were read.

    Raises:
        UserError: There is such a column.
    """
    in_files = {name for account in accounts for name in account.renamed}
    absent = next((name for name in names if name not in in_files), None)
    if absent is not None and accounts:
        raise UserError(
            f"{flag} {absent}={names[absent]}: none of the files has a column `{absent}`"
        )
