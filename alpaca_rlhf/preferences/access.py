"""An open database with the rules and the clock that every call of the store uses."""

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
from alpaca_rlhf.preferences.database import MAX_ATTEMPTS, Database, is_retryable

T = TypeVar("T")


class Access:
    """An open database; see `Store`."""

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
        """Close the database."""
        self.database.close()

    def _write(self, work: Callable[[Session], T]) -> T:
        # PostgreSQL may end a transaction to break a deadlock; it is then simply repeated.
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                with self.database.writing() as session:
                    return work(session)
            except OperationalError as error:
                if not is_retryable(error):
                    raise
        with self.database.writing() as session:
            return work(session)

    def _now(self) -> int:
        return round(self._clock() * 1000)

    def _until(self) -> int:
        return self._now() + round(self.rules.lease_s * 1000)
