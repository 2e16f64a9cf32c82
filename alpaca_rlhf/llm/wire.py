"""The wire to an OpenAI-compatible endpoint: send one request, read and classify the response.

A passing failure (429, 5xx, a timeout, a cut body, wrong JSON) is a `Fault`; a lasting one (a
refused key, an unknown model) is a `Refusal`, one line without the key.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from alpaca_rlhf.core.errors import UserError
from alpaca_rlhf.settings.endpoint import Access

MAX_RESPONSE_BYTES = 32 * 2**20
"""Bytes of a response at most; a longer one is taken for broken."""

_MAX_QUOTE = 200  # characters of the endpoint's own text that a message repeats
_PASSING = (408, 409, 425, 429)  # 4xx that a retry may fix
_NO_CREDIT = ("insufficient_quota", "billing_hard_limit_reached")  # 429 that waiting never fixes
_MIN_SECRET = 8  # characters of a real key; shorter ones (EMPTY, none) are ordinary words
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Answer:
    """The answer of an endpoint; its fields are the columns of the request cache."""

    text: str
    """The completion, as it came."""
    whole: bool
    """True if the endpoint reports that the model ended by itself or at a stop text."""
    stopped: bool
    """True if it reports that a stop text ended it (vLLM's `stop_reason`)."""
    tokens_in: int
    """Prompt tokens."""
    tokens_out: int
    """Completion tokens."""
    estimated: bool
    """True if the endpoint did not count the tokens, so that they are estimates."""


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text: one for each four bytes of UTF-8, rounded up.

    English has 4 to 4.5 bytes a token in common vocabularies, Chinese 3 to 5.
    """
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def prompt_of(body: Mapping[str, Any]) -> str:
    """All text that the body of a request sends to the model."""
    messages = body.get("messages") or [{"content": body.get("prompt", "")}]
    return "\n".join(str(message["content"]) for message in messages)


class Fault(Exception):
    """A failure that a retry may fix.

    Args:
        kind: `429` or another 4xx, `5xx`, `timeout`, `connection`, `cut` or `json`.
        detail: Description without the key.
        after: Seconds that the endpoint asks to wait.
    """

    def __init__(self, kind: str, detail: str, after: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.after = after


class Refusal(UserError):
    """A failure that no retry can fix.

    Args:
        status: HTTP status.
        message: One line for the user.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Wire:
    """Connections to one endpoint; threads may share it.

    Args:
        settings: Address of the endpoint, seconds for a response, and names for messages.
        key: The key or None.
        transport: Replaces the network.
        clock: Time in seconds.
    """

    def __init__(
        self,
        settings: Access,
        key: str | None,
        *,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert settings.url is not None
        self.url = settings.url.rstrip("/")
        self._key = key
        self._key_env = settings.key_env
        self._timeout = settings.timeout
        self._group = settings.group
        self._clock = clock
        self._client = httpx.Client(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=settings.timeout,
            # a proxy from the environment has no business between the kit and this machine
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
            transport=transport,
            limits=httpx.Limits(max_connections=None),
        )

    def close(self) -> None:
        """Close all connections; requests in flight fail."""
        self._client.close()

    def models(self) -> list[str]:
        """The models that it lists; empty where it does not list them, as many endpoints do not."""
        try:
            status, _, content = self._send("GET", "models", None)
            models = json.loads(content)["data"] if status == 200 else []
            names = [model["id"] for model in models]
            return [self._one_line(name) for name in names if isinstance(name, str)]
        except (httpx.HTTPError, httpx.InvalidURL, Fault, ValueError, LookupError, TypeError):
            return []

    def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Send a request once.

        Raises:
            Fault: A retry may fix it.
            Refusal: No retry can fix it.
        """
        try:
            status, headers, content = self._send("POST", path, body)
        except httpx.TimeoutException:
            raise Fault("timeout", f"no answer within {self._timeout:g} s") from None
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise Fault("connection", self._one_line(str(error) or "no connection")) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Fault("cut", self._one_line(str(error) or type(error).__name__)) from None
        except httpx.InvalidURL:
            raise Refusal(0, f"{self._group}.url {self.url}: is not a valid URL") from None
        if status != 200:
            raise self._failure(status, headers, content)
        return self._answer(content, body)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[int, httpx.Headers, bytes]:
        # httpx restarts its timeout with every byte; this deadline holds for the whole response.
        deadline = self._clock() + self._timeout
        content = bytearray()
        with self._client.stream(method, f"{self.url}/{path}", json=body) as response:
            for chunk in response.iter_bytes():
                content += chunk
                if self._clock() > deadline:
                    raise Fault("timeout", f"no complete answer within {self._timeout:g} s")
                if len(content) > MAX_RESPONSE_BYTES:
                    raise Fault("json", f"the answer is longer than {MAX_RESPONSE_BYTES} bytes")
            return response.status_code, response.headers, bytes(content)

    def _failure(self, status: int, headers: httpx.Headers, content: bytes) -> Fault | Refusal:
        message, code = self._error_of(content)
        # 1. Failures that pass.
        if status in _PASSING and code not in _NO_CREDIT:
            return Fault(str(status), f"{status} {message}", _retry_after(headers))
        if status >= 500:
            return Fault("5xx", f"{status} {message}", _retry_after(headers))
        # 2. Failures that stay, each with advice.
        where = f"{self._group}.url {self.url}: {status} {message}".strip()
        if status in (401, 403):
            advice = (
                f"it wants a key; put one in the environment and name it with {self._group}.key-env"
                if self._key is None
                else f"it refuses the key in ${self._key_env}"
            )
        elif status == 404:
            advice = f"check the address, which often ends in /v1, and {self._group}.model"
        elif 300 <= status < 400:
            advice = "it redirects elsewhere; give that address"
        elif status == 429:
            advice = "the account there has no credit left"
        else:
            advice = f"it refuses the request; check {self._group}.model, .api and .params"
        return Refusal(status, f"{where}; {advice}")

    def _answer(self, content: bytes, body: Mapping[str, Any]) -> Answer:
        # 1. Decode, and find errors that came with status 200.
        try:
            response = json.loads(content)
        except ValueError:
            raise Fault("json", f"not JSON: {self._one_line(_text(content))}") from None
        if isinstance(response, dict) and response.get("error") and not response.get("choices"):
            raise Fault("5xx", f"an error with status 200: {self._error_of(content)[0]}")
        # 2. Take the text, how it ended and the token counts from the chat or completion form.
        try:
            choice = response["choices"][0]
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            if text is None and choice.get("finish_reason"):
                text = ""  # all its tokens were hidden reasoning; they are paid for all the same
            usage = response.get("usage") or {}
            counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
            complete = choice.get("finish_reason") in ("stop", None)
            stopped = isinstance(choice.get("stop_reason"), str)
        except (KeyError, IndexError, TypeError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise Fault("json", f"no text in it: {self._one_line(_text(content))}")
        # 3. Remove the key, and half surrogate pairs, which JSON can spell but UTF-8 cannot encode.
        text = self._redacted(text).encode("utf-8", "replace").decode()
        return Answer(
            text,
            complete,
            stopped,
            estimate_tokens(prompt_of(body)) if counts[0] is None else counts[0],
            estimate_tokens(text) if counts[1] is None else counts[1],
            None in counts,
        )

    def _error_of(self, content: bytes) -> tuple[str, str]:
        """The endpoint's error message on one line, and its error code."""
        code: Any = ""
        try:
            error: Any = json.loads(content)
        except ValueError:
            error = _text(content)
        # OpenAI nests {"error": {"message": ...}}; other servers give a bare "detail".
        for name in ("error", "detail", "message"):
            if isinstance(error, dict) and name in error:
                code = error.get("code", code)
                error = error[name]
        return self._one_line(error if isinstance(error, str) else json.dumps(error)), str(code)

    def _one_line(self, text: str) -> str:
        text = " ".join(self._redacted(text).split())
        return text if len(text) <= _MAX_QUOTE else text[: _MAX_QUOTE - 3] + "..."

    def _redacted(self, text: str) -> str:
        """Replace the key, which some servers repeat, by asterisks."""
        secret = self._key is not None and len(self._key) >= _MIN_SECRET
        return text.replace(self._key or "", "***") if secret else text


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that `Retry-After` asks for: a number or an HTTP date (RFC 9110 section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d*)?", value, re.ASCII):
        return float(value)
    date = _date(value)
    if date is None:
        return None
    # measured by the endpoint's own clock where it shows it, which may differ from ours
    server_time = _date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (date - server_time).total_seconds())


def _date(value: str) -> datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _text(content: bytes) -> str:
    return content[: 4 * _MAX_QUOTE].decode("utf-8", "replace")
