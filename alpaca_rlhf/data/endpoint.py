"""The teacher behind HTTP: any OpenAI-compatible endpoint.

Requests go out together up to a limit. Each answer is on the disk before it is used, a request that
fails is asked again after a while, and what cannot be mended stops the run with all that was paid
for kept.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from alpaca_rlhf.config import UserError
from alpaca_rlhf.data.budget import Account, Budget, price
from alpaca_rlhf.data.continuation import continuation, trimmed
from alpaca_rlhf.data.probe import Capabilities, probe, probe_body
from alpaca_rlhf.data.request_cache import RequestCache, request_key
from alpaca_rlhf.data.teachers import Reply, TeacherStop, for_step
from alpaca_rlhf.data.wire import Answer, Fault, Wire, estimate_tokens, prompt_of
from alpaca_rlhf.settings import Generate

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0
"""Seconds between two tries at most, unless the endpoint asks for more."""
LONGEST_AFTER = 900.0
"""Seconds that an endpoint may ask to wait; if it asks for more the run stops."""
RECENT = 16
"""Sampled replies among which those that were had before are counted."""

_SHORTEST = 16  # tokens of a reply that does not repeat another by mere chance
_PROBE = -1  # number of a probe's requests


@dataclass(frozen=True)
class _How:
    temperature: float
    top_p: float
    tokens: int


class EndpointTeacher:
    """Continues prompts with the model of an endpoint. Close it, or use it in a `with` block.

    Args:
        settings: Sampling numbers, and the endpoint's.
        folder: Where `requests.jsonl` lies, the cache.
        transport: Replaces the network.
        environ: Where the key is.
        pause: Seconds before the second try; they double from try to try.
        clock: Seconds.
        sleep: Waits so many seconds, or less if the run stops.

    Raises:
        UserError: The key is not in the environment, or the cache is damaged.
    """

    def __init__(
        self,
        settings: Generate,
        folder: Path,
        *,
        transport: httpx.BaseTransport | None = None,
        environ: Mapping[str, str] = os.environ,
        pause: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        end = settings.endpoint
        assert end.url is not None
        self._settings = end
        self._how = _How(settings.temperature, settings.top_p, settings.max_new_tokens)
        self._cache = RequestCache(folder / "requests.jsonl")
        self._budget = Budget(end, self._cache.lines, clock)
        self._wire = Wire(
            end.url,
            _key(end.key_env, environ),
            key_env=end.key_env,
            timeout=end.timeout,
            transport=transport,
            clock=clock,
        )
        self._pause = pause
        self._clock = clock
        self._halted = threading.Event()
        self._sleep = sleep or self._halted.wait
        self._why: BaseException | None = None
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._in_row = 0
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._can: Capabilities | None = None

    def __enter__(self) -> EndpointTeacher:
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
        self._wire.close()

    @property
    def name(self) -> str:
        """Model and address, for the data card."""
        return f"{self._settings.model} at {self._wire.url}"

    @property
    def account(self) -> Account:
        """What happened on the wire so far."""
        return self._budget.account

    def probe(self) -> Capabilities:
        """What the endpoint can do; asked once a run.

        Raises:
            UserError: It cannot be reached, refuses, or does not sample.
        """
        if self._can is None:
            body = self._body(self._how)
            key = request_key({**body, "url": self._wire.url, "api": self._settings.api}, _PROBE)
            found = self._cache.probe(key)
            if found is None:
                found = asdict(probe(self._ask_probe, body, self._settings.api))
                self._cache.keep_probe(key, found)
            self._can = Capabilities(**found)
        return self._can

    def at(self, step: str) -> EndpointStep:
        """This teacher for a step of a recipe."""
        temperature, tokens = for_step(step, self._how.temperature, self._how.tokens)
        return EndpointStep(self, _How(temperature, self._how.top_p, tokens))

    def complete(self, prompts: Sequence[str], *, seed: int, first: int) -> list[Reply]:
        """Continue each prompt once, several at a time.

        Raises:
            TeacherStop: A budget is spent, the endpoint refuses or is gone, or it gives the same
                reply again and again. What was answered is in the cache.
        """
        return self._complete(prompts, self._how, seed, first)

    def _complete(self, prompts: Sequence[str], how: _How, seed: int, first: int) -> list[Reply]:
        can = self.probe()
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            futures: list[Future[Reply | None]] = []
            try:
                for number, prompt in enumerate(prompts, first):
                    futures.append(pool.submit(self._guarded, number, prompt, how, can, seed))
                wait(futures)
            except KeyboardInterrupt as stop:
                self._halted.set()
                self._why = stop
                told = "waiting for the answers under way, which cost; Ctrl-C again drops them"
                logger.warning(told)
                try:
                    wait(futures)
                except KeyboardInterrupt:
                    self._wire.close()
        replies = [future.result() for future in futures]
        if self._why is not None:
            self._stop(self._why, replies)
        whole = [reply for reply in replies if reply is not None]
        self._refuse_sameness(whole)
        return whole

    def _stop(self, why: BaseException, replies: Sequence[Reply | None]) -> None:
        """Raise `why` with the replies to the first prompts."""
        if self._in_row >= self._patience:
            # these were not the requests' fault: they are asked again when the run goes on
            replies = [None if one and one.error else one for one in replies]
        have = next((i for i, one in enumerate(replies) if one is None), len(replies))
        paid = [one for one in replies[:have] if one is not None]
        if isinstance(why, UserError):
            raise TeacherStop(str(why), paid) from None
        why.replies = paid  # type: ignore[attr-defined]
        raise why

    def _guarded(
        self, number: int, prompt: str, how: _How, can: Capabilities, seed: int
    ) -> Reply | None:
        """The reply, or None when the run stops first; the first reason to stop is kept."""
        try:
            return self._reply(number, prompt, how, can, seed)
        except BaseException as error:
            with self._lock:
                self._why = self._why or error
            self._halted.set()
            return None

    def _reply(
        self, number: int, prompt: str, how: _How, can: Capabilities, seed: int
    ) -> Reply | None:
        end = self._settings
        own = can.fields(seed=_noise(seed, number), tokens=how.tokens)
        body = {**self._body(how), **probe_body(end.api, prompt), **own, **end.fields()}
        key = request_key(body, number)
        answer = self._cache.answer(key)
        if answer is None:
            answer = self._answer(number, body, how.tokens, key)
            if isinstance(answer, Fault):
                return Reply("", "length", error=f"{answer.kind}: {answer.detail}")
            if answer is None:
                return None
        else:
            with self._lock:
                self.account.reused += 1
        if how.temperature > 0 and answer.tokens_out >= _SHORTEST:
            same = self._cache.twin(number, answer) is not None
            with self._lock:
                self.account.identical += same
                self._recent.append(same)
        text, reason = trimmed(answer, end.stop)
        if end.api == "chat":
            text = continuation(prompt, text)
        usd = price(end, answer.tokens_in, answer.tokens_out)
        return Reply(text, reason, answer.tokens_out, answer.tokens_in, usd)

    def _answer(
        self, number: int, body: Mapping[str, Any], tokens: int, key: str | None
    ) -> Answer | Fault | None:
        """The answer of the endpoint, its last fault, or None when the run stops first."""
        path = "chat/completions" if self._settings.api == "chat" else "completions"
        for attempt in range(self._settings.retries + 1):
            self._hold()
            try:
                with self._budget.request(estimate_tokens(prompt_of(body)), tokens):
                    if self._halted.is_set():
                        return None
                    answer = self._wire.post(path, body)
                    if key is None:
                        self._cache.spent(answer)
                    else:
                        self._cache.keep(key, number, answer)
                    self._budget.spend(
                        answer.tokens_in, answer.tokens_out, estimated=answer.estimated
                    )
                with self._lock:
                    self._in_row = 0
                return answer
            except Fault as met:
                fault = met
            if self._halted.is_set():
                return None  # perhaps it was cut by us
            absent = number == _PROBE and fault.kind == "connection"
            last = attempt == self._settings.retries or absent
            self._cache.fault(number, fault.kind, fault.detail, given_up=last)
            self._budget.fault(fault.kind, given_up=last)
            if not last:
                self._wait(fault, attempt)
        self._count_given_up(fault)
        return fault

    def _wait(self, fault: Fault, attempt: int) -> None:
        """Before the next try: twice as long each time with jitter, or as the endpoint asks."""
        after = fault.after
        longest = min(LONGEST_AFTER, self._budget.seconds_left())
        if after is not None and after > longest:
            raise UserError(
                f"--generate.endpoint.url {self._wire.url}: asks to wait {after:.0f} s "
                f"({fault.detail}); every reply is kept; run the same command later to go on"
            )
        # Jitter keeps requests that failed together from coming back together.
        pause = min(LONGEST_PAUSE, self._pause * 2**attempt) * random.uniform(0.5, 1.0)
        if after is not None:
            pause += after
            with self._lock:  # the others would be turned away too
                self._not_before = max(self._not_before, self._clock() + after)
        self._sleep(pause)

    def _hold(self) -> None:
        left = self._not_before - self._clock()
        if left > 0:
            self._sleep(left)

    def _count_given_up(self, fault: Fault) -> None:
        with self._lock:
            self._in_row += 1
        if self._in_row >= self._patience:
            raise UserError(
                f"--generate.endpoint.url {self._wire.url}: gave up on {self._in_row} requests in "
                f"a row, the last with {fault.kind} ({fault.detail}); every reply is kept; see to "
                "the endpoint and run the same command to go on"
            )

    def _ask_probe(self, body: Mapping[str, Any]) -> Answer:
        merged = {**body, **self._settings.fields()}
        answer = self._answer(_PROBE, merged, self._how.tokens, None)
        if isinstance(answer, Answer):
            return answer
        assert answer is not None
        raise UserError(
            f"--generate.endpoint.url {self._wire.url}: does not answer ({answer.kind}: "
            f"{answer.detail}); is it running? Its address often ends in /v1"
        )

    def _body(self, how: _How) -> dict[str, Any]:
        end = self._settings
        body = {"model": end.model, "temperature": how.temperature, "top_p": how.top_p}
        return {**body, **({"stop": list(end.stop)} if end.stop else {})}

    def _refuse_sameness(self, replies: Sequence[Reply]) -> None:
        if len(self._recent) >= RECENT // 2 and 2 * sum(self._recent) >= len(self._recent):
            raise TeacherStop(
                f"--generate.endpoint.url {self._wire.url}: {sum(self._recent)} of the last "
                f"{len(self._recent)} replies were the same as an earlier one, so it does not "
                "sample, or something between repeats its answers; every reply is kept; see to it "
                "or raise --generate.temperature, and run the same command to go on",
                replies,
            )

    @property
    def _patience(self) -> int:
        """Requests given up in a row after which the endpoint counts as gone."""
        return max(4, self._settings.concurrency)


@dataclass(frozen=True)
class EndpointStep:
    """An endpoint's teacher for one step of a recipe."""

    teacher: EndpointTeacher
    """Whose requests these are."""
    how: Any
    """Temperature and length of the step."""

    def complete(self, prompts: Sequence[str], *, seed: int, first: int) -> list[Reply]:
        """Continue each prompt once, as `EndpointTeacher.complete`."""
        return self.teacher._complete(prompts, self.how, seed, first)


def _noise(seed: int, number: int) -> int:
    """A seed of 31 bits for a request, a function of the run's seed and the request's number."""
    digest = blake2b(f"{seed}/{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def _key(name: str | None, environ: Mapping[str, str]) -> str | None:
    if name is None:
        return None
    key = environ.get(name, "").strip()
    if not key:
        raise UserError(
            f"--generate.endpoint.key-env {name}: there is no such variable in the environment; "
            f"set it with `export {name}=...`"
        )
    return key
