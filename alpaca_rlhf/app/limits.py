"""How often somebody may ask: buckets of tokens that fill up again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

_MOST = 10_000


class Limit:
    """So many at once, and so many a second on the average, for each key.

    Args:
        burst: Requests at once.
        per_s: Requests a second.
        clock: Seconds.
    """

    def __init__(
        self, burst: float, per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._per_s = per_s
        self._clock = clock
        self._left: dict[Hashable, tuple[float, float]] = {}
        self._guard = threading.Lock()

    def wait_s(self, key: Hashable) -> float:
        """Seconds until the next one is allowed; 0 if it is now. Takes nothing."""
        with self._guard:
            return max(0.0, (1 - self._now(key)) / self._per_s)

    def take(self, key: Hashable) -> float:
        """Take one if it is allowed; seconds to wait where it is not, else 0."""
        with self._guard:
            left = self._now(key)
            if left < 1:
                return (1 - left) / self._per_s
            if len(self._left) >= _MOST:
                self._forget()
            self._left[key] = (left - 1, self._clock())
            return 0.0

    def give(self, key: Hashable) -> None:
        """Give one back that was taken."""
        with self._guard:
            self._left[key] = (min(self._burst, self._now(key) + 1), self._clock())

    def _now(self, key: Hashable) -> float:
        left, at = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - at) * self._per_s)

    def _forget(self) -> None:
        """Drop those whose buckets are full again, and where that is not enough the oldest."""
        full = [key for key in self._left if self._now(key) >= self._burst]
        for key in full or list(self._left)[: _MOST // 2]:
            del self._left[key]
