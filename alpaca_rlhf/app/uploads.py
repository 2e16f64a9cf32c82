"""Files that admins upload: kept by their content, read by the readers of every other file."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.core.files import atomic_write
from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import FileAccount, ReadLimit, read_instructions, read_prompts
from alpaca_rlhf.settings.inputs import Inputs
from alpaca_rlhf.sources import reading_of

MAX_UPLOAD_BYTES = 64 * 2**20
MAX_PROMPTS = 5000
"""Prompts to rank in one upload: more than people rank in a round."""
LIMIT = ReadLimit(rows=500_000, unpacked_bytes=256 * 2**20)
"""The most that is unpacked of an upload; the rows of any public set of instructions of its size
are fewer."""
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.gz")
"""Endings of the files that the readers know."""
UploadKind = Literal["rows", "prompts"]
_DIGEST_CHARS = 16
_SUFFIX = "|".join(re.escape(suffix) for suffix in SUFFIXES)
_NAME = re.compile(rf"(rows|prompts)-[0-9a-f]{{{_DIGEST_CHARS}}}({_SUFFIX})")


class Uploads:
    """A folder of uploaded files.

    Args:
        folder: The folder; made by the first upload.
        columns: New names for columns of the files, as `--inputs.columns` takes them.
    """

    def __init__(self, folder: Path, columns: str = "") -> None:
        self._folder = folder.absolute()
        self._columns = columns

    def keep(self, content: bytes, kind: UploadKind, suffix: str) -> tuple[str, FileAccount]:
        """Keep a file under a name that its content gives, and read it.

        Broken rows are left out and counted; whether a run takes such a file is for its form.

        Returns:
            The name, and the account of its rows.

        Raises:
            UserError: It holds nothing that can be read or too much, and is not kept; or the disk
                is full.
        """
        _refuse_other_suffix(suffix)
        name = f"{kind}-{sha256(content).hexdigest()[:_DIGEST_CHARS]}{suffix}"
        path = self._folder / name
        was_there = path.exists()
        atomic_write(path, content)
        try:
            return name, _read(path, kind, self._columns, limit=LIMIT)[1]
        except UserError as error:
            if not was_there:
                path.unlink(missing_ok=True)
            raise UserError(self.without_places(str(error))) from None

    def path(self, name: object, kind: UploadKind) -> Path | None:
        """The file of a name; None for anything that is not the name of an upload of this kind."""
        match = _NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or match[1] != kind:
            return None
        assert isinstance(name, str)
        path = self._folder / name
        return path if path.is_file() else None

    def without_places(self, message: str) -> str:
        """A message without the folder of the uploads: people need no path of the server."""
        return message.replace(f"{self._folder}{os.sep}", "")


def read_once(content: bytes, suffix: str) -> tuple[list[Instruction], FileAccount]:
    """The prompts of an upload that is not kept, and the account of its rows.

    Broken rows are left out and counted.

    Raises:
        UserError: It holds nothing that can be read or too much, or the disk is full.
    """
    _refuse_other_suffix(suffix)
    with tempfile.TemporaryDirectory() as folder:
        path, place = Path(folder) / f"upload{suffix}", f"{folder}{os.sep}"
        atomic_write(path, content)
        try:
            rows, account = _read(path, "prompts", limit=replace(LIMIT, rows=MAX_PROMPTS))
        except UserError as error:
            raise UserError(str(error).replace(place, "")) from None
        account.name = path.name
        account.places = [line.replace(place, "") for line in account.places]
        return rows, account


def _refuse_other_suffix(suffix: str) -> None:
    if suffix not in SUFFIXES:
        raise UserError(f"the file must end in one of {', '.join(SUFFIXES)}")


def _read(
    path: Path, kind: UploadKind, columns: str = "", *, limit: ReadLimit
) -> tuple[list[Instruction], FileAccount]:
    """The rows of a file, as a run reads them, and their account."""
    inputs = Inputs(data=path, judge="human", broken="drop", columns=columns)
    if kind == "rows":
        reading = replace(reading_of(inputs, "instructions", path), limit=limit)
        rows = read_instructions(path, reading)
    else:
        reading = replace(reading_of(inputs, "prompts", path), limit=limit)
        rows = read_prompts(path, reading)
    if not rows:
        raise UserError("no row of the file can be used")
    return rows, reading.account
