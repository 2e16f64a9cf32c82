"""Settings of the models behind HTTP: the teacher, the judge and the sampler."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from alpaca_rlhf.settings.bounds import (
    Bounded,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

_ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_FIELDS_OF_THE_KIT = ("model", "messages", "prompt", "stream", "stop", "seed", "n")


@dataclass(frozen=True)
class Access(Bounded):
    """Access to an OpenAI-compatible endpoint, and limits on its cost."""

    url: str | None = None
    """Base of its addresses, e.g. http://127.0.0.1:8000/v1."""
    model: str = ""
    """The model's name there."""
    key_env: str | None = None
    """NAME of the environment variable that holds the key. The key itself is written nowhere."""
    concurrency: PositiveInt = 8
    """Requests in flight at the same time."""
    timeout: PositiveFloat = 120.0
    """Seconds to wait for a response before the request is sent again."""
    retries: NonNegativeInt = 6
    """Times that a request is sent again before it is given up and noted as failed."""
    params: str = "{}"
    """More fields of each request as JSON, e.g. '{"top_k": 50}'."""
    max_tokens_total: PositiveInt | None = None
    """Tokens in and out at most, in all starts of the run together; the run stops before it."""
    max_usd: PositiveFloat | None = None
    """Money at most, in all starts of the run together; needs the two prices."""
    max_minutes: PositiveFloat | None = None
    """Minutes at most, of each start; requests in flight are still waited for."""
    usd_per_1k_in: NonNegativeFloat | None = None
    """Your price of 1000 prompt tokens; no price is built in."""
    usd_per_1k_out: NonNegativeFloat | None = None
    """Your price of 1000 tokens that it writes."""

    @property
    def path(self) -> str:
        """The path that requests go to, below the base of its addresses."""
        return "chat/completions"

    def __post_init__(self) -> None:
        super().__post_init__()
        # What does not look like a name may be the key itself, so it is not repeated.
        if self.key_env is not None and not _ENVIRONMENT_NAME.fullmatch(self.key_env):
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
        """Parse `params` into the additional fields of each request.

        Raises:
            ValueError: It is not a JSON object, or sets a field that the kit fills in.
        """
        try:
            fields = json.loads(self.params)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise ValueError(
                f"{self.group}.params must be a JSON object such as '{{\"top_k\": 50}}'"
            )
        reserved = [name for name in _FIELDS_OF_THE_KIT if name in fields]
        if reserved:
            raise ValueError(
                f"{self.group}.params: {reserved[0]} is filled in by the kit; leave it out"
            )
        return fields

    def _check_url(self, url: str) -> None:
        try:
            address = urlsplit(url)
            _ = address.port
        except ValueError:
            raise ValueError(
                f"{self.group}.url is not a valid URL; give http://HOST:PORT/v1"
            ) from None
        if address.username is not None or address.password is not None or address.query:
            # It may hold a key, so it is not repeated.
            raise ValueError(
                f"{self.group}.url must hold no user, password or query, because it is written to "
                "the run folder; put a key in the environment and name it with "
                f"{self.group}.key-env"
            )
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"{self.group}.url must begin with http:// or https://, got {url}")
        if not self.model:
            raise ValueError(f"{self.group}.model is missing: give the model's name at {url}")


@dataclass(frozen=True)
class Endpoint(Access, group="--generate.endpoint"):
    """An OpenAI-compatible endpoint as the teacher: vLLM, llama.cpp, Ollama, a paid API."""

    url: str | None = None
    """Base of its addresses, e.g. http://127.0.0.1:8000/v1; given, it writes instead of --base."""
    api: Literal["chat", "completions"] = "chat"
    """`chat` asks a model that follows instructions to continue the text; `completions` lets a
    base model continue it, where the endpoint offers that."""
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
        """The path that requests go to, below the base of its addresses."""
        return "chat/completions" if self.api == "chat" else "completions"


@dataclass(frozen=True)
class Judge(Access, group="--judge"):
    """A model behind an OpenAI-compatible endpoint that ranks, with --inputs.judge llm."""

    url: str | None = None
    """Base of its addresses, e.g. http://127.0.0.1:8000/v1; its model ranks in people's place."""
    tokens: PositiveInt = 512
    """Tokens of a reply at most; a model that thinks first needs them."""


@dataclass(frozen=True)
class Sampler(Access, group="--sampler"):
    """A model behind an OpenAI-compatible endpoint that writes answers to rank."""

    url: str | None = None
    """Base of its addresses, e.g. http://127.0.0.1:8000/v1; its model answers instead of --policy:
    an export of the run, or any other. Its server renders its own chat template."""
