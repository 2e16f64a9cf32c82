"""The numbers of a teacher behind HTTP; `settings.py` holds those of everything else."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from alpaca_rlhf.settings.bounds import above

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_OURS = ("model", "messages", "prompt", "stream", "stop", "seed", "n")


@dataclass(frozen=True)
class Access:
    """How an OpenAI-compatible endpoint is reached, and what it may cost."""

    group: ClassVar[str]
    """What its flags begin with."""

    url: str | None = None
    """Base of its addresses, e.g. http://127.0.0.1:8000/v1."""
    model: str = ""
    """The model's name there."""
    key_env: str | None = None
    """NAME of the environment variable that holds the key. The key itself is written nowhere."""
    concurrency: int = 8
    """Requests under way at once."""
    timeout: float = 120.0
    """Seconds to wait for an answer before it is asked again."""
    retries: int = 6
    """Times that a request is asked again before it is given up and noted as such."""
    params: str = "{}"
    """More fields of each request as JSON, e.g. '{"top_k": 50}'."""
    max_tokens_total: int | None = None
    """Tokens in and out at most, in all starts of the run together; the run stops before it."""
    max_usd: float | None = None
    """Money at most, in all starts of the run together; needs the two prices."""
    max_minutes: float | None = None
    """Minutes at most, of each start; requests under way are still waited for."""
    usd_per_1k_in: float | None = None
    """Your price of 1000 prompt tokens; no price is built in."""
    usd_per_1k_out: float | None = None
    """Your price of 1000 tokens that it writes."""

    @property
    def path(self) -> str:
        """Where requests go, after the base of its addresses."""
        return "chat/completions"

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout"):
            above(f"{self.group}.{name}", getattr(self, name), 0)
        above(f"{self.group}.retries", self.retries, 0, equal_allowed=True)
        for name in ("max_tokens_total", "max_usd", "max_minutes"):
            if getattr(self, name) is not None:
                above(f"{self.group}.{name.replace('_', '-')}", getattr(self, name), 0)
        for name in ("usd_per_1k_in", "usd_per_1k_out"):
            if getattr(self, name) is not None:
                flag = f"{self.group}.{name.replace('_', '-')}"
                above(flag, getattr(self, name), 0, equal_allowed=True)
        # What does not look like a name may be the key itself, so it is not repeated.
        if self.key_env is not None and not _NAME.fullmatch(self.key_env):
            raise ValueError(
                f"{self.group}.key-env takes the NAME of an environment variable in capitals, such "
                "as OPENAI_API_KEY, never the key itself"
            )
        if self.max_usd is not None and None in (self.usd_per_1k_in, self.usd_per_1k_out):
            raise ValueError(
                f"{self.group}.max-usd needs your prices: give {self.group}.usd-per-1k-in and "
                f"{self.group}.usd-per-1k-out"
            )
        self.fields()
        if self.url is not None:
            self._check_url(self.url)

    def fields(self) -> dict[str, Any]:
        """`params` as a mapping."""
        try:
            found = json.loads(self.params)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ValueError(
                f"{self.group}.params must be a JSON object such as '{{\"top_k\": 50}}'"
            )
        ours = [name for name in _OURS if name in found]
        if ours:
            raise ValueError(
                f"{self.group}.params: {ours[0]} is filled in by the kit; leave it out"
            )
        return found

    def _check_url(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise ValueError(f"{self.group}.url is no address; give http://HOST:PORT/v1") from None
        if parts.username is not None or parts.password is not None or parts.query:
            # It may hold a key, so it is not repeated.
            raise ValueError(
                f"{self.group}.url must hold no user, password or query, because it is written to "
                "the run folder; put a key in the environment and name it with "
                f"{self.group}.key-env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{self.group}.url must begin with http:// or https://, got {url}")
        if not self.model:
            raise ValueError(f"{self.group}.model is missing: give the model's name at {url}")


@dataclass(frozen=True)
class Endpoint(Access):
    """An OpenAI-compatible endpoint as the teacher: vLLM, llama.cpp, Ollama, a paid API."""

    group: ClassVar[str] = "--generate.endpoint"
    """What its flags begin with."""

    url: str | None = None
    """Base of its addresses, e.g. http://127.0.0.1:8000/v1; given, it writes instead of --base."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` asks a model that follows instructions to go on with the text; `completions` lets a
    base model go on with it, where the endpoint offers that."""
    licence: str = ""
    """Licence of what the model writes, e.g. Apache-2.0, noted with the rows."""
    stop: tuple[str, ...] = ()
    """Texts at which a reply ends; they are cut off here too, for endpoints that leave them in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if "" in self.stop:
            raise ValueError(f"{self.group}.stop: an empty text would end every reply at once")

    @property
    def path(self) -> str:
        """Where requests go, after the base of its addresses."""
        return "chat/completions" if self.api == "chat" else "completions"


@dataclass(frozen=True)
class Judge(Access):
    """A model behind an OpenAI-compatible endpoint that ranks, with --inputs.judge llm."""

    group: ClassVar[str] = "--judge"
    """What its flags begin with."""

    url: str | None = None
    """Base of its addresses, e.g. http://127.0.0.1:8000/v1; its model ranks in people's place."""
    tokens: int = 512
    """Tokens of a reply at most; a model that thinks first needs them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above(f"{self.group}.tokens", self.tokens, 0)


@dataclass(frozen=True)
class Sampler(Access):
    """A model behind an OpenAI-compatible endpoint that writes answers to rank."""

    group: ClassVar[str] = "--sampler"
    """What its flags begin with."""

    url: str | None = None
    """Base of its addresses, e.g. http://127.0.0.1:8000/v1; its model answers instead of --policy:
    an export of the run, or any other. Its server renders its own chat template."""
