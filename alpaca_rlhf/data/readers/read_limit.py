"""The most that is read of a file that somebody else has packed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ReadLimit:
    """The most that is read of a file before it is refused: a packed one could fill the memory."""

    rows: int
    """Rows, broken ones included."""
    unpacked_bytes: int
    """Bytes of the unpacked file; of Parquet, of the unpacked columns and of the rows."""

    def bytes_message(self, path: Path) -> str:
        """The refusal of a file that unpacks to more."""
        return (
            f"{path}: holds more than {self.unpacked_bytes // 2**20} MiB when unpacked; give a "
            "part of it"
        )

    def rows_message(self, path: Path) -> str:
        """The refusal of a file with more rows."""
        return f"{path}: has more than {self.rows:,} rows; give a part of it"
