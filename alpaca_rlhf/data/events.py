"""An append-only file of events, one JSON object a line, whose writer may be killed anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from alpaca_rlhf.config import UserError
from alpaca_rlhf.files import writing


class EventLog:
    """Opens (or makes) the file, cuts a torn last line, and reads what is there into `events`.

    Raises:
        UserError: The file cannot be written, or a line in it is not an event.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        try:
            self._file.seek(0)
            data = self._file.read()
            whole = data[: data.rfind(b"\n") + 1]
            if len(whole) < len(data):
                self._file.truncate(len(whole))
            self.events.extend(self._read(whole))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, events: Iterable[dict[str, Any]]) -> None:
        """Write events, all in one write, and return when the disk has them.

        Raises:
            UserError: The disk is full.
        """
        new = list(events)
        lines = [json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in new]
        with writing(self.path):
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        self.events.extend(new)

    def _read(self, data: bytes) -> Iterable[dict[str, Any]]:
        for number, line in enumerate(data.split(b"\n")[:-1], 1):
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict):
                raise UserError(
                    f"{self.path}:{number}: not an event; the file was damaged, set it aside"
                )
            yield event
