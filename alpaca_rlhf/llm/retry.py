"""Retries with exponential backoff and jitter, `Retry-After`, and an end.

Requests that failed together must not return together, so every pause has jitter. When the endpoint
tells one request to wait, all wait: the others would be turned away too.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.llm.wire import Fault

FIRST_PAUSE = 1.0
"""Seconds before the second attempt, before jitter; the pause doubles with each attempt."""
LONGEST_PAUSE = 60.0
"""Seconds between two attempts at most, unless the endpoint asks for more."""
LONGEST_AFTER = 900.0
"""Longest `Retry-After` that is waited for, in seconds; a longer one stops the run."""


class Retry:
    """Timing of the retries to one endpoint; threads share it.

    Args:
        where: The endpoint as typed, for messages.
        patience: Requests given up in a row after which the endpoint counts as gone.
        clock: Time in seconds.
        sleep: Waits for a number of seconds, or less if the run stops.
        rng: Source of the jitter.
    """

    def __init__(
        self,
        where: str,
        *,
        patience: int,
        clock: Callable[[], float],
        sleep: Callable[[float], Any],
        rng: random.Random | None = None,
    ) -> None:
        self._where = where
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._rng = rng or random.Random()  # jitter must differ between two runs
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._given_up_in_row = 0
        self._ever_answered = False

    def is_hopeless(self, fault: Fault, attempt: int) -> bool:
        """True where no connection was ever made: a second attempt is enough to say so."""
        return fault.kind == "connection" and attempt > 0 and not self._ever_answered

    @property
    def gone(self) -> bool:
        """True once `patience` requests in a row were given up."""
        return self._given_up_in_row >= self._patience

    def hold(self) -> None:
        """Wait until the time that the endpoint has asked for is over."""
        seconds = self._not_before - self._clock()
        if seconds > 0:
            self._sleep(seconds)

    def wait(self, fault: Fault, attempt: int, *, longest: float) -> None:
        """Wait before the next attempt.

        Args:
            fault: Fault of the last attempt.
            attempt: Number of the last attempt, from 0.
            longest: Seconds that remain for this start.

        Raises:
            UserError: The endpoint asks for a longer wait than is allowed or remains.
        """
        after = fault.after or 0.0
        if after > min(LONGEST_AFTER, longest):
            raise UserError(
                f"{self._where}: asks to wait {after:.0f} s ({fault.detail}); every reply is kept; "
                "run the same command later to go on"
            )
        with self._lock:
            # All requests hold until then, not only this one.
            self._not_before = max(self._not_before, self._clock() + after)
            jitter = self._rng.uniform(0.5, 1.0)
        self._sleep(after + min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * jitter)

    def answered(self) -> None:
        """Note that a request was answered."""
        with self._lock:
            self._given_up_in_row = 0
            self._ever_answered = True

    def gave_up(self, fault: Fault) -> None:
        """Note that a request was given up.

        Raises:
            UserError: The endpoint counts as gone, or was never there.
        """
        with self._lock:
            self._given_up_in_row += 1
        if fault.kind == "connection" and not self._ever_answered:
            raise UserError(
                f"{self._where}: cannot be reached ({fault.detail}); start the server, or mend the "
                "address, and run the same command"
            )
        if self.gone:
            raise UserError(
                f"{self._where}: gave up on {self._given_up_in_row} requests in a row, the last "
                f"with {fault.kind} ({fault.detail}); every reply is kept; check the endpoint and "
                "run the same command to go on"
            )
