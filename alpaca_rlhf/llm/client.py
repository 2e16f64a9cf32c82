"""The client of an OpenAI-compatible endpoint, shared by the teacher, the judge and the sampler.

It sends several requests at a time, retries those that fail, stays within a budget and sends none
twice: each answer is on the disk before it is used. A failure that no retry can fix stops the run,
and everything that was paid for is kept.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

import httpx

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.llm.budget import Account, Budget
from alpaca_rlhf.llm.cache import RequestCache, request_key
from alpaca_rlhf.llm.retry import Retry
from alpaca_rlhf.llm.wire import Answer, Fault, Refusal, Wire, estimate_tokens, prompt_of
from alpaca_rlhf.settings.endpoint import Access

logger = logging.getLogger(__name__)

Outcome = Answer | Fault | Refusal
"""Result of a request: its answer, the last fault before it was given up, or a refusal."""


@dataclass(frozen=True)
class EndpointRequest:
    """One request, complete."""

    body: Mapping[str, Any]
    """JSON body."""
    max_tokens: int
    """Completion tokens at most."""
    number: int
    """Number under which it stands in the account."""
    key: str
    """Key under which its answer is cached."""


class EndpointClient:
    """Client of one endpoint; close it after use.

    Args:
        settings: Address, limits and prices of the endpoint.
        folder: Folder of the cache, `requests.jsonl`.
        transport: Replaces the network.
        environ: Environment that holds the key.
        clock: Time in seconds.
        sleep: Waits for a number of seconds, or less if the run stops.
        spent: (prompt, completion) tokens that other caches under the same limits have used.

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
        self.settings = settings
        self.budget = Budget(settings, clock=clock, spent=spent)
        self.cache = RequestCache(folder / "requests.jsonl", self.budget.replay)
        self.wire = Wire(settings, _key(settings, environ), transport=transport, clock=clock)
        self.where = f"{settings.group}.url {self.wire.url}"
        self._stopping = threading.Event()
        self._stop_reason: BaseException | None = None
        self._retry = Retry(
            self.where,
            patience=max(4, settings.concurrency),
            clock=clock,
            sleep=sleep or self._stopping.wait,
        )
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self.wire.close()

    @property
    def account(self) -> Account:
        """The account of all requests so far."""
        return self.budget.account

    @property
    def gone(self) -> bool:
        """True if the endpoint counts as gone, so that requests were given up for its sake."""
        return self._retry.gone

    def request(
        self,
        fields: Mapping[str, Any],
        max_tokens: int,
        *,
        draw: int = 0,
        number: int | None = None,
    ) -> EndpointRequest:
        """Complete the fields of a request with the model's name and the user's `params`.

        Args:
            fields: Prompt, sampling and limit, as the endpoint names them.
            max_tokens: Completion tokens at most.
            draw: Tells apart requests of the same body, which are cached apart.
            number: Number in the account; by default derived from the cache key.
        """
        body = {"model": self.settings.model, **fields, **self.settings.fields()}
        key = request_key(body, draw)
        # 48 bits of the key tell requests apart in the account.
        return EndpointRequest(
            body, max_tokens, int(key[:12], 16) if number is None else number, key
        )

    def ask(self, request: EndpointRequest) -> Answer | Fault | None:
        """Answer one request, from the cache or else from the endpoint.

        Returns:
            Its answer; its last fault, if it was given up; None if the run stops first.

        Raises:
            Refusal: The endpoint refuses the request.
            UserError: A budget is spent, or the endpoint is gone.
        """
        answer = self.cache.answer(request.key)
        if answer is None:
            return self._send(request)
        with self._lock:
            self.account.reused += 1
        return answer

    def ask_all(
        self, requests: Iterable[EndpointRequest], *, tolerated: Collection[int] = ()
    ) -> list[Outcome]:
        """Answer several requests, `concurrency` at a time.

        Args:
            requests: The requests.
            tolerated: HTTP statuses of a refusal that concerns one request only: it is noted and
                returned, and the others go on.

        Returns:
            The outcome of each request, in order.

        Raises:
            UserError: A budget is spent, or the endpoint refuses or is gone. Whatever stops the
                requests (KeyboardInterrupt too) is raised with an attribute `outcomes`: one for
                each request, None where it was not reached.
        """
        # 1. Hand all requests to the workers. After the first reason to stop, the rest return None.
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            futures = []
            try:
                for request in requests:
                    futures.append(pool.submit(self._outcome, request, tolerated))
                wait(futures)
            except KeyboardInterrupt as interrupt:
                # 2. On Ctrl-C the answers in flight are paid for already, so they are awaited.
                self._stop(interrupt)
                logger.warning(
                    "waiting for the answers in flight, which are paid for; Ctrl-C again drops them"
                )
                try:
                    wait(futures)
                except KeyboardInterrupt:
                    self.wire.close()
        # 3. Either every request has an outcome, or the reason to stop carries those there are.
        outcomes = [future.result() for future in futures]
        if self._stop_reason is not None:
            self._stop_reason.outcomes = outcomes  # type: ignore[attr-defined]
            raise self._stop_reason
        return [outcome for outcome in outcomes if outcome is not None]

    def _outcome(self, request: EndpointRequest, tolerated: Collection[int]) -> Outcome | None:
        """A worker's job; None if the run stops first."""
        try:
            return self.ask(request)
        except BaseException as error:
            if isinstance(error, Refusal) and error.status in tolerated:
                self._note_fault(request.number, str(error.status), str(error), given_up=True)
                return error
            self._stop(error)
            return None

    def _stop(self, reason: BaseException) -> None:
        """Stop all requests; the first reason is kept, but Ctrl-C goes before any other."""
        with self._lock:
            if self._stop_reason is None or isinstance(reason, KeyboardInterrupt):
                self._stop_reason = reason
        self._stopping.set()

    def _send(self, request: EndpointRequest) -> Answer | Fault | None:
        """Send a request until it is answered or given up; None if the run stops first."""
        for attempt in range(self.settings.retries + 1):
            self._retry.hold()
            try:
                # 1. Reserve the most that it may use, send it, and book the real usage.
                tokens_in = estimate_tokens(prompt_of(request.body))
                with self.budget.request(tokens_in, request.max_tokens):
                    if self._stopping.is_set():
                        return None
                    answer = self.wire.post(self.settings.path, request.body)
                    # The disk has the answer before anything else sees it.
                    self.cache.keep(request.key, request.number, answer)
                    self.budget.spend(
                        request.number, answer.tokens_in, answer.tokens_out, answer.estimated
                    )
                self._retry.answered()
                return answer
            except Fault as error:
                fault = error
            if self._stopping.is_set():
                return None  # a second Ctrl-C may have cut the connection
            # 2. Note the failed attempt; an endpoint that was never reached is given up soon.
            hopeless = self._retry.is_hopeless(fault, attempt)
            given_up = attempt == self.settings.retries or hopeless
            self._note_fault(request.number, fault.kind, fault.detail, given_up=given_up)
            if given_up:
                break
            # 3. Wait, longer after each attempt.
            self._retry.wait(fault, attempt, longest=self.budget.seconds_left())
        self._retry.gave_up(fault)
        return fault

    def _note_fault(self, number: int, kind: str, detail: str, *, given_up: bool) -> None:
        self.cache.fault(number, kind, detail, given_up=given_up)
        self.budget.fault(number, kind, given_up=given_up)


class EndpointUser:
    """Owner of a client: base class of the teacher, the judge and the sampler.

    Args:
        settings: Address, limits and prices of the endpoint.
        folder: Folder of the cache, `requests.jsonl`.
        client_options: Further arguments of `EndpointClient`.

    Raises:
        UserError: The key is not in the environment, or the cache is damaged.
    """

    def __init__(self, settings: Access, folder: Path, **client_options: Any) -> None:
        self._client = EndpointClient(settings, folder, **client_options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._client.close()

    @property
    def account(self) -> Account:
        """The account of all requests so far."""
        return self._client.account


def request_seed(*parts: int | str) -> int:
    """A seed of 31 bits for a request's sampling, a function of the parts alone."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


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
        raise UserError(
            f"{flag}: ${name} holds characters that no key contains; set it to the key alone"
        )
    return key
