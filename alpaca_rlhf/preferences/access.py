"""An open database with the rules and the clock that go with it: what every call stands on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from alpaca_rlhf.preferences.assignment import Rules
from alpaca_rlhf.preferences.database import TRIES, Database, broken_off

T = TypeVar("T")


class Access:
    """A database, opened; see `Store`."""

    def __init__(
        self,
        where: str | Path,
        *,
        rules: Rules | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.rules = rules or Rules()
        self.database = Database(where)
        self._clock = clock
        self._rng = random.Random(seed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    def _write(self, work: Callable[[Session], T]) -> T:
        for _ in range(TRIES - 1):
            try:
                with self.database.writing() as session:
                    return work(session)
            except OperationalError as error:
                if not broken_off(error):
                    raise
        with self.database.writing() as session:
            return work(session)

    def _now(self) -> int:
        return round(self._clock() * 1000)

    def _until(self) -> int:
        return self._now() + round(self.rules.lease_s * 1000)
