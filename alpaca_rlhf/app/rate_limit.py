"""Rate limits: a token bucket for each key, which fills up again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

_MAX_KEYS = 10_000


class RateLimit:
    """A burst of requests at once, and so many a second on average, for each key.

    Args:
        burst: Requests at once.
        per_s: Requests a second.
        clock: Returns seconds.
    """

    def __init__(
        self, burst: float, per_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst = burst
        self._per_s = per_s
        self._clock = clock
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # tokens, and when that was
        self._lock = threading.Lock()

    def wait_s(self, key: Hashable) -> float:
        """Seconds until the next request is allowed, 0 if it is now; takes no token."""
        with self._lock:
            return max(0.0, (1 - self._tokens(key)) / self._per_s)

    def take(self, key: Hashable) -> float:
        """Take a token if there is one; returns the seconds to wait if there is none, else 0."""
        with self._lock:
            tokens = self._tokens(key)
            if tokens < 1:
                return (1 - tokens) / self._per_s
            if len(self._buckets) >= _MAX_KEYS:
                self._evict()
            self._buckets[key] = (tokens - 1, self._clock())
            return 0.0

    def give_back(self, key: Hashable) -> None:
        """Return a token that was taken."""
        with self._lock:
            self._buckets[key] = (min(self._burst, self._tokens(key) + 1), self._clock())

    def _tokens(self, key: Hashable) -> float:
        tokens, updated_s = self._buckets.get(key, (self._burst, 0.0))
        return min(self._burst, tokens + (self._clock() - updated_s) * self._per_s)

    def _evict(self) -> None:
        """Drop the buckets that are full again, or else the oldest half."""
        full = [key for key in self._buckets if self._tokens(key) >= self._burst]
        for key in full or list(self._buckets)[: _MAX_KEYS // 2]:
            del self._buckets[key]
