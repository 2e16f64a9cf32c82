"""Spending at an endpoint: the account of what was used, and the limits that requests must respect.

The endpoint counts the tokens; where it does not, they are estimated. Prices are the user's.
A request whose answer was lost may still be on the provider's bill: the kit has no way to know, so
these figures leave it out.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings.endpoint import Access


def price(settings: Access, tokens_in: float, tokens_out: float) -> float | None:
    """Cost in US dollars at the user's prices; None where no prices are set."""
    if settings.usd_per_1k_in is None or settings.usd_per_1k_out is None:
        return None
    return (tokens_in * settings.usd_per_1k_in + tokens_out * settings.usd_per_1k_out) / 1000


@dataclass
class Account:
    """Everything that was exchanged with the endpoint, over all starts of a run."""

    answered: int = 0
    """Requests answered."""
    reused: int = 0
    """Requests of this start that were answered from the cache."""
    given_up: set[int] = field(default_factory=set)
    """Numbers of the requests that failed on every attempt."""
    identical: int = 0
    """Replies of this start that repeat an earlier reply to a different sampled request."""
    tokens_in: int = 0
    """Prompt tokens."""
    tokens_out: int = 0
    """Completion tokens."""
    usd: float | None = None
    """Cost at the user's prices."""
    estimated: bool = False
    """True if some of the token counts are estimates."""
    faults: Counter[str] = field(default_factory=Counter)
    """Number of faults of each kind."""

    def facts(self) -> dict[str, Any]:
        """The account as JSON-ready facts for the report."""
        faults = dict(sorted(self.faults.items()))
        return {**vars(self), "given_up": len(self.given_up), "faults": faults}

    def line(self) -> str:
        """The account as one line for a person."""
        about = "about " if self.estimated else ""
        parts = [f"{self.answered} answers, {about}{self.tokens_in} + {self.tokens_out} tokens"]
        if self.usd is not None:
            parts.append(f"{about}${self.usd:.4f}")
        if self.reused:
            parts.append(f"{self.reused} kept from an earlier start")
        if self.faults:
            counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.faults.items()))
            parts.append(f"faults: {counts}; {len(self.given_up)} requests given up")
        if self.identical:
            parts.append(f"{self.identical} identical replies")
        return "; ".join(parts)


class Budget:
    """Keep the account, and start no request that could exceed the user's limits.

    Args:
        settings: Limits and prices.
        clock: Time in seconds.
        spent: (prompt, completion) tokens that other accounts under the same limits have used.
    """

    def __init__(
        self,
        settings: Access,
        *,
        clock: Callable[[], float] = time.monotonic,
        spent: tuple[int, int] = (0, 0),
    ) -> None:
        self.account = Account()
        self._settings = settings
        self._clock = clock
        self._started = clock()
        self._reserved = spent
        self._in_flight = 0
        self._changed = threading.Condition()

    def replay(self, line: Mapping[str, Any]) -> None:
        """Book a line of the request cache that an earlier start wrote."""
        if line["kind"] == "fault":
            self.fault(line["request"], line["fault"], given_up=line["given_up"])
        elif line["kind"] == "reply":
            usage = (line[name] for name in ("tokens_in", "tokens_out", "estimated"))
            self.spend(line["request"], *usage)

    @contextmanager
    def request(self, tokens_in: int, tokens_out: int) -> Iterator[None]:
        """Reserve tokens for one request in flight, waiting for others to finish if necessary.

        Args:
            tokens_in: Estimated prompt tokens.
            tokens_out: Most completion tokens.

        Raises:
            UserError: The request would exceed a limit even with all others finished.
        """
        # 1. Reserve the most that the request may use. A request in flight may turn out cheaper
        #    than its reservation, so wait for it before giving up; no waiting brings back time.
        with self._changed:
            while (limit := self._exceeded_limit(tokens_in, tokens_out)) is not None:
                if not self._in_flight or ".max-minutes" in limit:
                    raise UserError(self._stop_message(limit))
                self._changed.wait()
            self._reserved = (self._reserved[0] + tokens_in, self._reserved[1] + tokens_out)
            self._in_flight += 1
        # 2. The caller sends the request, and books its real usage with `spend`.
        try:
            yield
        finally:
            # 3. Release the reservation, and wake those who wait for it.
            with self._changed:
                self._reserved = (self._reserved[0] - tokens_in, self._reserved[1] - tokens_out)
                self._in_flight -= 1
                self._changed.notify_all()

    def spend(self, number: int, tokens_in: int, tokens_out: int, estimated: bool) -> None:
        """Book the tokens of an answered request."""
        with self._changed:
            account = self.account
            account.answered += 1
            account.estimated |= estimated
            account.given_up.discard(number)
            account.tokens_in += tokens_in
            account.tokens_out += tokens_out
            account.usd = price(self._settings, account.tokens_in, account.tokens_out)

    def fault(self, number: int, kind: str, *, given_up: bool) -> None:
        """Book a failed attempt at a request."""
        with self._changed:
            self.account.faults[kind] += 1
            if given_up:
                self.account.given_up.add(number)

    def seconds_left(self) -> float:
        """Seconds until `max_minutes` of this start are over; infinity without that limit."""
        minutes = self._settings.max_minutes
        return math.inf if minutes is None else minutes * 60 - (self._clock() - self._started)

    def _exceeded_limit(self, request_in: int, request_out: int) -> str | None:
        """The limit, as typed, that a request could exceed; None if it fits."""
        settings = self._settings
        tokens_in = self.account.tokens_in + self._reserved[0] + request_in
        tokens_out = self.account.tokens_out + self._reserved[1] + request_out
        max_tokens = settings.max_tokens_total
        if max_tokens is not None and tokens_in + tokens_out > max_tokens:
            return f"{settings.group}.max-tokens-total {max_tokens}"
        usd = price(settings, tokens_in, tokens_out)
        if settings.max_usd is not None and usd is not None and usd > settings.max_usd:
            return f"{settings.group}.max-usd {settings.max_usd:g}"
        if self.seconds_left() <= 0:
            return f"{settings.group}.max-minutes {settings.max_minutes:g}"
        return None

    def _stop_message(self, limit: str) -> str:
        if "minutes" in limit:
            advice = "run the same command to go on for as long again"
        else:
            advice = "raise it and run the same command to go on"
        return f"{limit}: reached ({self.account.line()}); every reply is kept; {advice}"
