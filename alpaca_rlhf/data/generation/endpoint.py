"""The teacher behind HTTP: any OpenAI-compatible endpoint.

Requests go out together up to a limit. Each answer is on the disk before it is used, a request that
fails is asked again after a while, and what cannot be mended stops the run with all that was paid
for kept.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import httpx

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data.generation.continuation import continuation, trimmed
from alpaca_rlhf.data.generation.teachers import Reply, TeacherStop, for_step
from alpaca_rlhf.llm.budget import Account, price
from alpaca_rlhf.llm.cache import PROBE, request_key
from alpaca_rlhf.llm.client import Asker, Stopped
from alpaca_rlhf.llm.probe import DO_SAMPLE, Capabilities, probe, prompt_fields
from alpaca_rlhf.llm.wire import Answer, Fault
from alpaca_rlhf.settings import Generate

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
        self._settings = settings.endpoint
        self._how = _How(settings.temperature, settings.top_p, settings.max_new_tokens)
        self._asker = Asker(
            self._settings,
            folder,
            transport=transport,
            environ=environ,
            clock=clock,
            sleep=sleep,
        )
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
        self._asker.close()

    @property
    def name(self) -> str:
        """Model and address, for the data card."""
        return f"{self._settings.model} at {self._asker.wire.url}"

    @property
    def licence(self) -> str:
        """Of what the model writes, as the user says."""
        return self._settings.licence

    @property
    def account(self) -> Account:
        """What happened on the wire so far."""
        return self._asker.account

    def probe(self) -> Capabilities:
        """What the endpoint can do; asked once a run.

        Raises:
            UserError: It cannot be reached, refuses, or does not sample.
        """
        if self._can is None:
            body = self._body(self._how)
            wire, api = self._asker.wire, self._settings.api
            key = request_key({**body, "url": wire.url, "api": api}, PROBE)
            found = self._asker.cache.probe(key)
            if found is None:
                found = asdict(probe(self._ask_probe, body, api, wire.models()))
                self._asker.cache.keep_probe(key, found)
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
        jobs = [
            partial(self._reply, number, prompt, how, can, seed)
            for number, prompt in enumerate(prompts, first)
        ]
        try:
            replies = self._asker.all(jobs)
        except Stopped as stopped:
            self._stop(stopped.why, stopped.found)
        self._refuse_sameness(replies)
        return replies

    def _stop(self, why: BaseException, replies: Sequence[Reply | None]) -> NoReturn:
        """Raise `why` with the replies to the first prompts."""
        if self._asker.gone:
            # these were not the requests' fault: they are asked again when the run goes on
            replies = [None if one and one.error else one for one in replies]
        have = next((i for i, one in enumerate(replies) if one is None), len(replies))
        paid = [one for one in replies[:have] if one is not None]
        if isinstance(why, UserError):
            raise TeacherStop(str(why), paid) from None
        why.replies = paid  # type: ignore[attr-defined]
        raise why

    def _reply(
        self, number: int, prompt: str, how: _How, can: Capabilities, seed: int
    ) -> Reply | None:
        end = self._settings
        own = can.fields(seed=_noise(seed, number), tokens=how.tokens, stop=end.stop)
        body = {**self._body(how), **prompt_fields(end.api, prompt), **own, **end.fields()}
        key = request_key(body, number)
        answer = self._asker.cached(key)
        if answer is None:
            found = self._asker.answer(number, body, how.tokens, key)
            if isinstance(found, Fault):
                return Reply("", "length", error=f"{found.kind}: {found.detail}")
            if found is None:
                return None
            answer = found
        if how.temperature > 0 and answer.tokens_out >= _SHORTEST:
            same = self._asker.cache.twin(number, answer) is not None
            with self._lock:
                self.account.identical += same
                self._recent.append(same)
        text, reason = trimmed(answer, end.stop)
        if end.api == "chat":
            text = continuation(prompt, text)
        usd = price(end, answer.tokens_in, answer.tokens_out)
        return Reply(text, reason, answer.tokens_out, answer.tokens_in, usd)

    def _ask_probe(self, body: Mapping[str, Any]) -> Answer:
        merged = {**body, **self._settings.fields()}
        answer = self._asker.answer(PROBE, merged, self._how.tokens, "")
        if isinstance(answer, Answer):
            return answer
        assert answer is not None
        raise UserError(
            f"{self._asker.where}: does not answer ({answer.kind}: "
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
                f"{self._asker.where}: {sum(self._recent)} of the last "
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
