"""What a teacher behind HTTP has cost, and how far it may go.

Tokens are counted by the endpoint; where it does not count, by an estimate. Prices are the user's.
A request whose answer was lost may still be on the provider's bill: nobody tells us, so it is not
in these figures.
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
    """US dollars at the user's prices, or None where they are not given."""
    if settings.usd_per_1k_in is None or settings.usd_per_1k_out is None:
        return None
    return (tokens_in * settings.usd_per_1k_in + tokens_out * settings.usd_per_1k_out) / 1000


@dataclass
class Account:
    """What happened on the wire, in all starts of a run."""

    answered: int = 0
    """Requests answered."""
    reused: int = 0
    """Requests of this start whose answer an earlier one had paid for."""
    given_up: set[int] = field(default_factory=set)
    """Numbers of the requests that failed every time."""
    identical: int = 0
    """Replies of this start that were the same as an earlier reply to another sampled request."""
    tokens_in: int = 0
    """Prompt tokens."""
    tokens_out: int = 0
    """Tokens written."""
    usd: float | None = None
    """Cost at the user's prices."""
    estimated: bool = False
    """Whether some of the tokens are estimates."""
    faults: Counter[str] = field(default_factory=Counter)
    """Kind of fault to how often it was met."""

    def facts(self) -> dict[str, Any]:
        """As it stands in the report."""
        faults = dict(sorted(self.faults.items()))
        return {**vars(self), "given_up": len(self.given_up), "faults": faults}

    def line(self) -> str:
        """As a person reads it."""
        about = "about " if self.estimated else ""
        parts = [f"{self.answered} answers, {about}{self.tokens_in} + {self.tokens_out} tokens"]
        if self.usd is not None:
            parts.append(f"{about}${self.usd:.4f}")
        if self.reused:
            parts.append(f"{self.reused} kept from an earlier start")
        if self.faults:
            met = ", ".join(f"{count} x {kind}" for kind, count in sorted(self.faults.items()))
            parts.append(f"faults: {met}; {len(self.given_up)} requests given up")
        if self.identical:
            parts.append(f"{self.identical} identical replies")
        return "; ".join(parts)


class Budget:
    """Keeps an account, and lets no request begin that could go beyond what the user allows.

    Args:
        settings: Limits and prices.
        clock: Seconds.
        spent: Tokens in and out that other accounts under the same limits have taken.
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
        self._began = clock()
        self._held = spent
        self._under_way = 0
        self._changed = threading.Condition()

    def replay(self, line: Mapping[str, Any]) -> None:
        """Book a line that an earlier start left in the request cache."""
        if line["kind"] == "fault":
            self.fault(line["request"], line["fault"], given_up=line["given_up"])
        elif line["kind"] == "reply":
            given = (line[name] for name in ("tokens_in", "tokens_out", "estimated"))
            self.spend(line["request"], *given)

    @contextmanager
    def request(self, tokens_in: int, tokens_out: int) -> Iterator[None]:
        """One request under way, that may take so many tokens; waits for others if it must.

        Raises:
            UserError: With all others done it would still go beyond a limit.
        """
        with self._changed:
            while (limit := self._beyond(tokens_in, tokens_out)) is not None:
                if not self._under_way or ".max-minutes" in limit:
                    raise UserError(self._stopped(limit))
                self._changed.wait()
            self._held = (self._held[0] + tokens_in, self._held[1] + tokens_out)
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._held = (self._held[0] - tokens_in, self._held[1] - tokens_out)
                self._under_way -= 1
                self._changed.notify_all()

    def spend(self, number: int, tokens_in: int, tokens_out: int, estimated: bool) -> None:
        """Book what an answered request took."""
        with self._changed:
            now = self.account
            now.answered += 1
            now.estimated |= estimated
            now.given_up.discard(number)
            now.tokens_in += tokens_in
            now.tokens_out += tokens_out
            now.usd = price(self._settings, now.tokens_in, now.tokens_out)

    def fault(self, number: int, kind: str, *, given_up: bool) -> None:
        """Book a request that failed."""
        with self._changed:
            self.account.faults[kind] += 1
            if given_up:
                self.account.given_up.add(number)

    def seconds_left(self) -> float:
        """Until this start must end."""
        minutes = self._settings.max_minutes
        return math.inf if minutes is None else minutes * 60 - (self._clock() - self._began)

    def _beyond(self, more_in: int, more_out: int) -> str | None:
        """The limit, as typed, that a request could go beyond."""
        settings, now = self._settings, self.account
        tokens_in = now.tokens_in + self._held[0] + more_in
        tokens_out = now.tokens_out + self._held[1] + more_out
        most = settings.max_tokens_total
        if most is not None and tokens_in + tokens_out > most:
            return f"{settings.group}.max-tokens-total {most}"
        usd = price(settings, tokens_in, tokens_out)
        if settings.max_usd is not None and usd is not None and usd > settings.max_usd:
            return f"{settings.group}.max-usd {settings.max_usd:g}"
        if self.seconds_left() <= 0:
            return f"{settings.group}.max-minutes {settings.max_minutes:g}"
        return None

    def _stopped(self, limit: str) -> str:
        if "minutes" in limit:
            how = "run the same command to go on for as long again"
        else:
            how = "raise it and run the same command to go on"
        return f"{limit}: reached ({self.account.line()}); every reply is kept; {how}"
