"""Requests to one endpoint: several at a time, tried again, within a budget, never asked twice.

Each answer is on the disk before it is used, and what cannot be mended stops the run with all that
was paid for kept.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import httpx

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.llm.budget import Account, Budget
from alpaca_rlhf.llm.cache import PROBE, RequestCache
from alpaca_rlhf.llm.retry import Retry
from alpaca_rlhf.llm.wire import Answer, Fault, Refusal, Wire, estimate_tokens, prompt_of
from alpaca_rlhf.settings.endpoint import Access

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Stopped(Exception, Generic[T]):
    """What stopped the requests, with what was answered before.

    Args:
        why: The first reason.
        found: A result of each job, None where it was not reached.
    """

    def __init__(self, why: BaseException, found: list[T | None]) -> None:
        super().__init__(str(why))
        self.why = why
        self.found = found


class Asker:
    """Asks one endpoint. Close it, or use it in a `with` block.

    Args:
        settings: The endpoint's numbers.
        folder: Where `requests.jsonl` lies, the cache.
        transport: Replaces the network.
        environ: Where the key is.
        clock: Seconds.
        sleep: Waits so many seconds, or less if the run stops.
        spent: Tokens in and out that other caches under the same limits have taken.

    Raises:
        UserError: The key is not in the environment, or the cache is damaged.
    """

    def __init__(
        self,
        settings: Access,
        folder: Path,
        *,
        transport: httpx.BaseTransport | None = None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] | None = None,
        spent: tuple[int, int] = (0, 0),
    ) -> None:
        assert settings.url is not None
        self.settings = settings
        self.budget = Budget(settings, clock=clock, spent=spent)
        self.cache = RequestCache(folder / "requests.jsonl", self.budget.replay)
        self.wire = Wire(
            settings.url,
            _key(settings, environ),
            key_env=settings.key_env,
            timeout=settings.timeout,
            group=settings.group,
            transport=transport,
            clock=clock,
        )
        self.where = f"{settings.group}.url {self.wire.url}"
        self._halted = threading.Event()
        self._retry = Retry(
            self.where,
            patience=max(4, settings.concurrency),
            clock=clock,
            sleep=sleep or self._halted.wait,
        )
        self._why: BaseException | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Asker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.wire.close()

    @property
    def account(self) -> Account:
        """What happened on the wire so far."""
        return self.budget.account

    @property
    def gone(self) -> bool:
        """Whether the endpoint counts as gone: what was given up is not the requests' fault."""
        return self._retry.gone

    def all(self, jobs: Iterable[Callable[[], T | None]]) -> list[T]:
        """Do several jobs at a time; each asks by `answer`.

        Raises:
            Stopped: One of them met what stops all: a budget is spent, the endpoint refuses or is
                gone, or Ctrl-C.
        """
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures: list[Future[T | None]] = []
            try:
                for job in jobs:
                    futures.append(pool.submit(self._guarded, job))
                wait(futures)
            except KeyboardInterrupt as stop:
                self._halted.set()
                self._why = stop
                told = "waiting for the answers under way, which cost; Ctrl-C again drops them"
                logger.warning(told)
                try:
                    wait(futures)
                except KeyboardInterrupt:
                    self.wire.close()
        found = [future.result() for future in futures]
        if self._why is not None:
            raise Stopped(self._why, found)
        return [one for one in found if one is not None]

    def refused(self, number: int, refusal: Refusal) -> None:
        """Note a request that the endpoint refuses for what is in it, so that others go on."""
        kind = str(refusal.status)
        self.cache.fault(number, kind, str(refusal), given_up=True)
        self.budget.fault(number, kind, given_up=True)

    def _guarded(self, job: Callable[[], T | None]) -> T | None:
        """What a job gives, or None when all stop first; the first reason to stop is kept."""
        try:
            return job()
        except BaseException as error:
            with self._lock:
                self._why = self._why or error
            self._halted.set()
            return None

    def cached(self, key: str) -> Answer | None:
        """The answer to a request that was paid for already."""
        answer = self.cache.answer(key)
        if answer is not None:
            with self._lock:
                self.account.reused += 1
        return answer

    def answer(
        self, number: int, body: Mapping[str, Any], tokens: int, key: str
    ) -> Answer | Fault | None:
        """Ask the endpoint.

        Args:
            number: Of the request.
            body: What is asked.
            tokens: Tokens of the answer at most.
            key: Under which the answer is kept.

        Returns:
            Its answer, its last fault, or None when the run stops first.

        Raises:
            UserError: A budget is spent, or no other try mends it.
        """
        for attempt in range(self.settings.retries + 1):
            self._retry.hold()
            try:
                with self.budget.request(estimate_tokens(prompt_of(body)), tokens):
                    if self._halted.is_set():
                        return None
                    answer = self.wire.post(self.settings.path, body)
                    self.cache.keep(key, number, answer)
                    self.budget.spend(number, answer.tokens_in, answer.tokens_out, answer.estimated)
                self._retry.answered()
                return answer
            except Fault as met:
                fault = met
            if self._halted.is_set():
                return None  # perhaps it was cut by us
            absent = number == PROBE and fault.kind == "connection"
            last = attempt == self.settings.retries or absent
            self.cache.fault(number, fault.kind, fault.detail, given_up=last)
            self.budget.fault(number, fault.kind, given_up=last)
            if last:
                break
            self._retry.wait(fault, attempt, longest=self.budget.seconds_left())
        self._retry.gave_up(fault)
        return fault


def _key(settings: Access, environ: Mapping[str, str]) -> str | None:
    name, flag = settings.key_env, f"{settings.group}.key-env"
    if name is None:
        return None
    key = environ.get(name, "").strip()
    if not key:
        raise UserError(
            f"{flag} {name}: there is no such variable in the environment; "
            f"set it with `export {name}=...`"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{flag}: ${name} holds characters that no key has; set it anew")
    return key
