"""One request to an OpenAI-compatible endpoint: sent, read, and judged by what came back.

What may pass (429, 5xx, a timeout, a cut body, wrong JSON) is a `Fault`; what will not (a refused
key, an unknown model) is a `Refusal`, one line without the key.
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
from alpaca_rlhf.settings.endpoint import Endpoint

LARGEST = 32 * 2**20
"""Bytes of an answer at most; a longer one is not an answer."""

_SHOWN = 200  # characters of the endpoint's own words that a message repeats
_PASSING = (408, 409, 425, 429)  # 4xx that another try may mend
_SPENT = ("insufficient_quota", "billing_hard_limit_reached")  # 429 that no waiting mends
_SECRET = 8  # characters of a key that is one; shorter ones (EMPTY, none) are words like others
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Answer:
    """What an endpoint wrote."""

    text: str
    """Its words, as they came."""
    whole: bool
    """Whether the endpoint says that the model ended by itself or at a stop text."""
    stopped: bool
    """Whether it says that a stop text ended it (vLLM's `stop_reason`)."""
    tokens_in: int
    """Prompt tokens."""
    tokens_out: int
    """Tokens it wrote."""
    estimated: bool
    """Whether the endpoint did not count them, so that they are estimates."""


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has: one for each four bytes of UTF-8, rounded up.

    English has 4 to 4.5 bytes a token in common vocabularies, Chinese 3 to 5.
    """
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def prompt_of(body: Mapping[str, Any]) -> str:
    """All text that a request's body sends to the model."""
    messages = body.get("messages") or [{"content": body.get("prompt", "")}]
    return "\n".join(str(one["content"]) for one in messages)


class Fault(Exception):
    """Something that another try may mend.

    Args:
        kind: `429` or another 4xx, `5xx`, `timeout`, `connection`, `cut` or `json`.
        detail: What was seen, without the key.
        after: Seconds that the endpoint asks to wait.
    """

    def __init__(self, kind: str, detail: str, after: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.after = after


class Refusal(UserError):
    """Something that no other try mends.

    Args:
        status: HTTP status.
        message: One line for the user.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Wire:
    """Sends requests to one endpoint. Threads may share it.

    Args:
        url: Base of its addresses.
        key: The key or None.
        key_env: Name of the variable that holds the key, for messages.
        timeout: Seconds for a whole answer.
        group: What its flags begin with, for messages.
        transport: Replaces the network.
        clock: Seconds.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        *,
        key_env: str | None = None,
        timeout: float = 120.0,
        group: str = Endpoint.group,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._key_env = key_env
        self._timeout = timeout
        self._group = group
        self._clock = clock
        self._client = httpx.Client(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=timeout,
            # a proxy that the environment names has no business between us and this machine
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
            transport=transport,
            limits=httpx.Limits(max_connections=None),
        )

    def close(self) -> None:
        """Close all connections; what is under way fails."""
        self._client.close()

    def models(self) -> list[str]:
        """The models that it offers; none where it does not tell, as many do not."""
        try:
            status, _, content = self._send("GET", "models", None)
            found = json.loads(content)["data"] if status == 200 else []
            return [self._plain(one["id"]) for one in found if isinstance(one["id"], str)]
        except (httpx.HTTPError, httpx.InvalidURL, Fault, ValueError, LookupError, TypeError):
            return []

    def post(self, path: str, body: Mapping[str, Any]) -> Answer:
        """Ask once.

        Raises:
            Fault: Another try may mend it.
            Refusal: No other try mends it.
        """
        try:
            status, headers, content = self._send("POST", path, body)
        except httpx.TimeoutException:
            raise Fault("timeout", f"no answer within {self._timeout:g} s") from None
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise Fault("connection", self._plain(str(error) or "no connection")) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Fault("cut", self._plain(str(error) or type(error).__name__)) from None
        except httpx.InvalidURL:
            raise Refusal(0, f"{self._group}.url {self.url}: is no address") from None
        if status != 200:
            raise self._judge(status, headers, content)
        return self._read(content, body)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[int, httpx.Headers, bytes]:
        # The client's own timeout starts anew with every byte; this one does not.
        until = self._clock() + self._timeout
        content = bytearray()
        with self._client.stream(method, f"{self.url}/{path}", json=body) as response:
            for piece in response.iter_bytes():
                content += piece
                if self._clock() > until:
                    raise Fault("timeout", f"no whole answer within {self._timeout:g} s")
                if len(content) > LARGEST:
                    raise Fault("json", f"the answer is longer than {LARGEST} bytes")
            return response.status_code, response.headers, bytes(content)

    def _judge(self, status: int, headers: httpx.Headers, content: bytes) -> Fault | Refusal:
        words, code = self._error_of(content)
        if status in _PASSING and code not in _SPENT:
            return Fault(str(status), f"{status} {words}", _after(headers))
        if status >= 500:
            return Fault("5xx", f"{status} {words}", _after(headers))
        where = f"{self._group}.url {self.url}: {status} {words}".strip()
        if status in (401, 403):
            mend = (
                f"it wants a key; put one in the environment and name it with {self._group}.key-env"
                if self._key is None
                else f"it refuses the key in ${self._key_env}"
            )
        elif status == 404:
            mend = f"check the address, which often ends in /v1, and {self._group}.model"
        elif 300 <= status < 400:
            mend = "it points elsewhere; give that address"
        elif status == 429:
            mend = "the account there is spent"
        else:
            mend = f"it refuses the request; check {self._group}.model, .api and .params"
        return Refusal(status, f"{where}; {mend}")

    def _read(self, content: bytes, body: Mapping[str, Any]) -> Answer:
        try:
            found = json.loads(content)
        except ValueError:
            raise Fault("json", f"not JSON: {self._plain(_text(content))}") from None
        if isinstance(found, dict) and found.get("error") and not found.get("choices"):
            raise Fault("5xx", f"an error with status 200: {self._error_of(content)[0]}")
        try:
            first = found["choices"][0]
            text = first["message"]["content"] if "message" in first else first["text"]
            if text is None and first.get("finish_reason"):
                text = ""  # all its tokens went into thoughts; it is paid for all the same
            usage = found.get("usage") or {}
            counts = [_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")]
            whole = first.get("finish_reason") in ("stop", None)
            stopped = isinstance(first.get("stop_reason"), str)
        except (KeyError, IndexError, TypeError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise Fault("json", f"no text in it: {self._plain(_text(content))}")
        # Half a surrogate pair, which JSON can spell, has no UTF-8.
        text = self._hidden(text).encode("utf-8", "replace").decode()
        return Answer(
            text,
            whole,
            stopped,
            estimate_tokens(prompt_of(body)) if counts[0] is None else counts[0],
            estimate_tokens(text) if counts[1] is None else counts[1],
            None in counts,
        )

    def _error_of(self, content: bytes) -> tuple[str, str]:
        """The endpoint's own words on one line, and its code."""
        code: Any = ""
        try:
            said: Any = json.loads(content)
        except ValueError:
            said = _text(content)
        for name in ("error", "detail", "message"):
            if isinstance(said, dict) and name in said:
                code = said.get("code", code)
                said = said[name]
        return self._plain(said if isinstance(said, str) else json.dumps(said)), str(code)

    def _plain(self, words: str) -> str:
        words = " ".join(self._hidden(words).split())
        return words if len(words) <= _SHOWN else words[: _SHOWN - 3] + "..."

    def _hidden(self, words: str) -> str:
        """Words without the key, which some servers repeat."""
        secret = self._key is not None and len(self._key) >= _SECRET
        return words.replace(self._key or "", "***") if secret else words


def _after(headers: httpx.Headers) -> float | None:
    """Seconds that `Retry-After` asks for: a number or an HTTP date (RFC 9110 section 10.2.3)."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d*)?", value, re.ASCII):
        return float(value)
    date = _date(value)
    if date is None:
        return None
    # by the endpoint's own clock where it shows it, which may be off from ours
    now = _date(headers.get("date", "")) or datetime.now(UTC)
    return max(0.0, (date - now).total_seconds())


def _date(value: str) -> datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _text(content: bytes) -> str:
    return content[: 4 * _SHOWN].decode("utf-8", "replace")
