"""The instructions that constraints are put to: a subject in a shape, with the words it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from alpaca_rlhf.checks.kinds import Language
from alpaca_rlhf.checks.subjects import TOPICS
from alpaca_rlhf.checks.subjects_zh import CHINESE_TOPICS


@dataclass(frozen=True)
class Core:
    """An instruction without constraints."""

    text: str
    """The request."""
    language: Language
    """Its language."""
    genre: str
    """Its genre: advice, describe, explain, howto, message, opinion, poem or story."""
    subject: str
    """The thing or deed that it is about."""
    related: tuple[str, ...]
    """Words that an answer about the subject may hold."""


@lru_cache(maxsize=1)
def cores() -> tuple[Core, ...]:
    """Every instruction, in the order of the tables."""
    rows = []
    for language, topics in _TABLES.items():
        for subjects, shapes in topics.values():
            for shape in _lines(shapes):
                genre, _, template = shape.partition(": ")
                for line in _lines(subjects):
                    subject, _, related = line.partition(" | ")
                    text = template.format(subject)
                    rows.append(Core(text, language, genre, subject, tuple(related.split())))
    return tuple(rows)


@lru_cache(maxsize=1)
def cores_by_text() -> Mapping[str, Core]:
    """Every instruction by its bare text (`bare_request`)."""
    return {bare_request(core.text): core for core in cores()}


def bare_request(text: str) -> str:
    """A request in lower case with one blank between words, without its closing mark."""
    return " ".join(text.lower().split()).rstrip(" .?!。？！")


_TABLES: Mapping[Language, Mapping[str, tuple[str, str]]] = {"en": TOPICS, "zh": CHINESE_TOPICS}


def _lines(table: str) -> list[str]:
    return [line.strip() for line in table.strip().splitlines()]
