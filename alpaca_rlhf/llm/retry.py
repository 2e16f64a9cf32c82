"""Asking again what another try may mend: later each time, as the endpoint asks, and not for ever.

Requests that failed together must not come back together, so every pause has jitter. When one is
told to wait, all wait: they would be turned away too.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.llm.wire import Fault

FIRST_PAUSE = 1.0
"""Seconds between the first try and the second, before jitter; they double from try to try."""
LONGEST_PAUSE = 60.0
"""Seconds between two tries at most, unless the endpoint asks for more."""
LONGEST_AFTER = 900.0
"""Seconds that an endpoint may ask to wait; if it asks for more the run stops."""


class Retry:
    """When requests to one endpoint may be tried again. Threads share it.

    Args:
        where: The endpoint as typed, for messages.
        patience: Requests given up in a row after which the endpoint counts as gone.
        clock: Seconds.
        sleep: Waits so many seconds, or less if the run stops.
        rng: Draws the jitter.
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
        self._in_row = 0

    @property
    def gone(self) -> bool:
        """Whether so many requests were given up in a row that the endpoint counts as gone."""
        return self._in_row >= self._patience

    def hold(self) -> None:
        """Wait while the endpoint has asked for that."""
        left = self._not_before - self._clock()
        if left > 0:
            self._sleep(left)

    def wait(self, fault: Fault, attempt: int, *, longest: float) -> None:
        """Wait before the next try.

        Args:
            fault: What was met.
            attempt: Tries before it, from 0.
            longest: Seconds that this start has left.

        Raises:
            UserError: The endpoint asks for more patience than there is.
        """
        after = fault.after or 0.0
        if after > min(LONGEST_AFTER, longest):
            raise UserError(
                f"{self._where}: asks to wait {after:.0f} s ({fault.detail}); every reply is kept; "
                "run the same command later to go on"
            )
        with self._lock:
            self._not_before = max(self._not_before, self._clock() + after)
            jitter = self._rng.uniform(0.5, 1.0)
        self._sleep(after + min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * jitter)

    def answered(self) -> None:
        """A request was answered."""
        with self._lock:
            self._in_row = 0

    def gave_up(self, fault: Fault) -> None:
        """A request was given up.

        Raises:
            UserError: So were those before it, so that the endpoint counts as gone.
        """
        with self._lock:
            self._in_row += 1
        if self.gone:
            raise UserError(
                f"{self._where}: gave up on {self._in_row} requests in a row, the last with "
                f"{fault.kind} ({fault.detail}); every reply is kept; see to the endpoint and run "
                "the same command to go on"
            )
