"""The part of a base that turns text into token ids, which needs no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class TextBase(Protocol):
    """A tokenizer with the limits of its base; a loaded `Base` is one."""

    @property
    def name(self) -> str:
        """The base as typed by the user."""

    @property
    def tokenizer(self) -> Any:
        """The base's fast tokenizer."""

    @property
    def eos_id(self) -> int:
        """Token that ends a completion in the plain templates."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""

    @property
    def context(self) -> int:
        """Longest sequence in tokens."""


@dataclass(frozen=True)
class Texts:
    """A `TextBase` that was read without the weights."""

    name: str
    tokenizer: Any
    eos_id: int
    stop_ids: frozenset[int]
    context: int
