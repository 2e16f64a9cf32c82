"""The teacher behind HTTP: any OpenAI-compatible endpoint.

`llm.client` sends the requests; here are their prompts and fields, and the reading of the answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.data.generation.continuation import continuation, trimmed
from alpaca_rlhf.data.generation.teachers import Reply, TeacherStop, for_step
from alpaca_rlhf.llm.budget import price
from alpaca_rlhf.llm.cache import PROBE, request_key
from alpaca_rlhf.llm.client import EndpointRequest, EndpointUser, Outcome, request_seed
from alpaca_rlhf.llm.probe import DO_SAMPLE, Capabilities, probe, prompt_fields
from alpaca_rlhf.llm.wire import Answer, Fault
from alpaca_rlhf.settings import Generate

RECENT_REPLIES = 16
"""Sampled replies among which repetitions are counted."""

_MIN_TOKENS = 16  # tokens of a reply that does not repeat another by mere chance


@dataclass(frozen=True)
class _Sampling:
    temperature: float
    top_p: float
    max_tokens: int

    def fields(self) -> dict[str, float]:
        return {"temperature": self.temperature, "top_p": self.top_p}


class EndpointTeacher(EndpointUser):
    """Teacher that continues prompts with the model of an endpoint. Use it in a `with` block.

    Args:
        settings: Sampling settings, and the endpoint's.
        folder: Folder of the request cache.
        client_options: Further arguments of `EndpointClient`.

    Raises:
        UserError: The key is not in the environment, or the cache is damaged.
    """

    def __init__(self, settings: Generate, folder: Path, **client_options: Any) -> None:
        super().__init__(settings.endpoint, folder, **client_options)
        self._settings = settings.endpoint
        self._sampling = _Sampling(settings.temperature, settings.top_p, settings.max_new_tokens)
        self._recent: deque[bool] = deque(maxlen=RECENT_REPLIES)
        self._capabilities: Capabilities | None = None

    @property
    def name(self) -> str:
        """Model and address, for the data card."""
        return f"{self._settings.model} at {self._client.wire.url}"

    @property
    def licence(self) -> str:
        """Licence of the model's output, as stated by the user."""
        return self._settings.licence

    def probe(self) -> Capabilities:
        """The capabilities of the endpoint, probed once a run.

        Raises:
            UserError: It cannot be reached, refuses, or does not sample.
        """
        if self._capabilities is None:
            body = {"model": self._settings.model, **self._sampling.fields()}
            wire, api = self._client.wire, self._settings.api
            key = request_key({**body, "url": wire.url, "api": api}, PROBE)
            capabilities = self._client.cache.probe(key)
            if capabilities is None:
                capabilities = asdict(probe(self._ask_probe, body, api, wire.models()))
                self._client.cache.keep_probe(key, capabilities)
            self._capabilities = Capabilities(**capabilities)
        return self._capabilities

    def at(self, step: str) -> EndpointTeacher:
        """This teacher for a step of a recipe, with the same client, capabilities and counts."""
        self.probe()  # with the settings of the run, before the step's replace them
        teacher = copy(self)
        temperature, max_tokens = for_step(
            step, self._sampling.temperature, self._sampling.max_tokens
        )
        teacher._sampling = _Sampling(temperature, self._sampling.top_p, max_tokens)
        return teacher

    def complete(self, prompts: Sequence[str], *, seed: int, first: int) -> list[Reply]:
        """Continue each prompt once, several at a time.

        Raises:
            TeacherStop: A budget is spent, the endpoint refuses or is gone, or it gives the same
                reply again and again. The answers so far are in the cache.
        """
        self.probe()
        requests = [
            self._request(number, prompt, seed) for number, prompt in enumerate(prompts, first)
        ]
        # 1. Send all requests; whatever stops them carries the outcomes so far.
        stop: BaseException | None = None
        outcomes: Sequence[Outcome | None]
        try:
            outcomes = self._client.ask_all(requests)
        except BaseException as error:
            stop, outcomes = error, getattr(error, "outcomes", ())
        # 2. Read the replies, and refuse an endpoint that repeats itself.
        self._count_repetitions(requests, outcomes)
        replies = self._leading_replies(prompts, outcomes)
        if stop is None:
            self._refuse_repetition(replies)
            return replies
        # What was paid for goes with the stop, so that it is kept.
        if isinstance(stop, UserError):
            raise TeacherStop(str(stop), replies)
        stop.replies = replies  # type: ignore[attr-defined]
        raise stop

    def _request(self, number: int, prompt: str, seed: int) -> EndpointRequest:
        max_tokens = self._sampling.max_tokens
        by_capability = self.probe().fields(
            seed=request_seed(seed, number), tokens=max_tokens, stop=self._settings.stop
        )
        prompt_field = prompt_fields(self._settings.api, prompt)
        fields = {**self._sampling.fields(), **prompt_field, **by_capability}
        return self._client.request(fields, max_tokens, draw=number, number=number)

    def _leading_replies(
        self, prompts: Sequence[str], outcomes: Sequence[Outcome | None]
    ) -> list[Reply]:
        """The replies to the first prompts, up to one that was not reached.

        A request that was given up counts as not reached once the endpoint is gone: that was not
        the request's fault, and it is sent again when the run goes on.
        """
        replies = []
        for prompt, outcome in zip(prompts, outcomes, strict=False):
            if isinstance(outcome, Answer):
                replies.append(self._reply(prompt, outcome))
            elif isinstance(outcome, Fault) and not self._client.gone:
                error = f"{outcome.kind}: {outcome.detail}"
                replies.append(Reply("", "length", error=error))
            else:
                break
        return replies

    def _reply(self, prompt: str, answer: Answer) -> Reply:
        text, finish_reason = trimmed(answer, self._settings.stop)
        if self._settings.api == "chat":
            text = continuation(prompt, text)
        usd = price(self._settings, answer.tokens_in, answer.tokens_out)
        return Reply(text, finish_reason, answer.tokens_out, answer.tokens_in, usd)

    def _ask_probe(self, body: Mapping[str, Any]) -> Answer:
        request = self._client.request(body, self._sampling.max_tokens, draw=PROBE, number=PROBE)
        answer = self._client.ask(request)
        if isinstance(answer, Answer):
            return answer
        assert answer is not None
        raise UserError(
            f"{self._client.where}: does not answer ({answer.kind}: "
            f"{answer.detail}); is it running? Its address often ends in /v1"
        )

    def _count_repetitions(
        self, requests: Sequence[EndpointRequest], outcomes: Sequence[Outcome | None]
    ) -> None:
        """Note which sampled replies repeat an earlier one, word for word."""
        if self._sampling.temperature <= 0:
            return
        for request, answer in zip(requests, outcomes, strict=False):
            if isinstance(answer, Answer) and answer.tokens_out >= _MIN_TOKENS:
                repeated = self._client.cache.twin(request.number, answer) is not None
                self.account.identical += repeated
                self._recent.append(repeated)

    def _refuse_repetition(self, replies: Sequence[Reply]) -> None:
        if len(self._recent) >= RECENT_REPLIES // 2 and 2 * sum(self._recent) >= len(self._recent):
            raise TeacherStop(
                f"{self._client.where}: {sum(self._recent)} of the last {len(self._recent)} "
                "replies were the same as an earlier one, so it does not sample, or something in "
                "between repeats its answers; every reply is kept; fix it "
                f"({DO_SAMPLE}; a cache on the way: off; perhaps a higher --generate.temperature), "
                "and run the same command to go on",
                replies,
            )
