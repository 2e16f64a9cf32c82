"""The teacher behind HTTP: any OpenAI-compatible endpoint.

Requests go out together up to a limit. Each answer is on the disk before it is used, a request that
fails is asked again after a while, and what cannot be mended stops the run with all that was paid
for kept.
"""

from __future__ import annotations

import logging
import os
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
from alpaca_rlhf.data.probe import DO_SAMPLE, Capabilities, probe, prompt_fields
from alpaca_rlhf.data.request_cache import PROBE, RequestCache, request_key
from alpaca_rlhf.data.retry import Retry
from alpaca_rlhf.data.teachers import Reply, TeacherStop, for_step
from alpaca_rlhf.data.wire import Answer, Fault, Wire, estimate_tokens, prompt_of
from alpaca_rlhf.settings import Generate

logger = logging.getLogger(__name__)

RECENT = 16
"""Sampled replies among which those that were had before are counted."""

_SHORTEST = 16  # tokens of a reply that does not repeat another by mere chance


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
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        end = settings.endpoint
        assert end.url is not None
        self._settings = end
        self._how = _How(settings.temperature, settings.top_p, settings.max_new_tokens)
        self._budget = Budget(end, clock=clock)
        self._cache = RequestCache(folder / "requests.jsonl", self._budget.replay)
        self._wire = Wire(
            end.url,
            _key(end.key_env, environ),
            key_env=end.key_env,
            timeout=end.timeout,
            transport=transport,
            clock=clock,
        )
        self._halted = threading.Event()
        self._retry = Retry(
            f"--generate.endpoint.url {self._wire.url}",
            patience=max(4, end.concurrency),
            clock=clock,
            sleep=sleep or self._halted.wait,
        )
        self._why: BaseException | None = None
        self._lock = threading.Lock()
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
    def licence(self) -> str:
        """Of what the model writes, as the user says."""
        return self._settings.licence

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
            key = request_key({**body, "url": self._wire.url, "api": self._settings.api}, PROBE)
            found = self._cache.probe(key)
            if found is None:
                listed = self._wire.models()
                found = asdict(probe(self._ask_probe, body, self._settings.api, listed))
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
        if self._retry.gone:
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
        own = can.fields(seed=_noise(seed, number), tokens=how.tokens, stop=end.stop)
        body = {**self._body(how), **prompt_fields(end.api, prompt), **own, **end.fields()}
        key = request_key(body, number)
        answer = self._cache.answer(key)
        if answer is None:
            found = self._answer(number, body, how.tokens, key)
            if isinstance(found, Fault):
                return Reply("", "length", error=f"{found.kind}: {found.detail}")
            if found is None:
                return None
            answer = found
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
        self, number: int, body: Mapping[str, Any], tokens: int, key: str
    ) -> Answer | Fault | None:
        """The answer of the endpoint, its last fault, or None when the run stops first."""
        path = "chat/completions" if self._settings.api == "chat" else "completions"
        for attempt in range(self._settings.retries + 1):
            self._retry.hold()
            try:
                with self._budget.request(estimate_tokens(prompt_of(body)), tokens):
                    if self._halted.is_set():
                        return None
                    answer = self._wire.post(path, body)
                    self._cache.keep(key, number, answer)
                    self._budget.spend(
                        number, answer.tokens_in, answer.tokens_out, answer.estimated
                    )
                self._retry.answered()
                return answer
            except Fault as met:
                fault = met
            if self._halted.is_set():
                return None  # perhaps it was cut by us
            absent = number == PROBE and fault.kind == "connection"
            last = attempt == self._settings.retries or absent
            self._cache.fault(number, fault.kind, fault.detail, given_up=last)
            self._budget.fault(number, fault.kind, given_up=last)
            if last:
                break
            self._retry.wait(fault, attempt, longest=self._budget.seconds_left())
        self._retry.gave_up(fault)
        return fault

    def _ask_probe(self, body: Mapping[str, Any]) -> Answer:
        merged = {**body, **self._settings.fields()}
        answer = self._answer(PROBE, merged, self._how.tokens, "")
        if isinstance(answer, Answer):
            return answer
        assert answer is not None
        raise UserError(
            f"--generate.endpoint.url {self._wire.url}: does not answer ({answer.kind}: "
            f"{answer.detail}); is it running? Its address often ends in /v1"
        )

    def _body(self, how: _How) -> dict[str, Any]:
        return {
            "model": self._settings.model,
            "temperature": how.temperature,
            "top_p": how.top_p,
        }

    def _refuse_sameness(self, replies: Sequence[Reply]) -> None:
        if len(self._recent) >= RECENT // 2 and 2 * sum(self._recent) >= len(self._recent):
            raise TeacherStop(
                f"--generate.endpoint.url {self._wire.url}: {sum(self._recent)} of the last "
                f"{len(self._recent)} replies were the same as an earlier one, so it does not "
                "sample, or something between repeats its answers; every reply is kept; see to it "
                f"({DO_SAMPLE}; a cache on the way: off; perhaps a higher --generate.temperature), "
                "and run the same command to go on",
                replies,
            )


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
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(
            f"--generate.endpoint.key-env: ${name} holds characters that no key has; set it anew"
        )
    return key
