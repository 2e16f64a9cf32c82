"""Figures and charts of a generation's page, counted in one pass over its events."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpaca_rlhf.core.records import Instruction
from alpaca_rlhf.data import (
    Drop,
    NoveltyIndex,
    read_manifest,
    requests,
    seeds_of,
    settings_of,
    tokens,
)
from alpaca_rlhf.report.formatting import count, percent

_MAX_POINTS = 60  # points of the line of acceptance over time
_MIN_ROWS = 40  # rows that make one of its points
_SPACY_MODEL = "en_core_web_sm"
_DETERMINERS = frozenset(
    "a an the this that these those some any all each every both your my our their his her its one "
    "two three four five six seven eight nine ten me us him them you it of".split()
)
_PHRASE_ENDS = frozenset(
    "about after and as at because before between but by during for from given how if in into is "
    "like of on or over so than that to under until using what when where which while who why with "
    "without".split()
)

_POLITE = re.compile(
    r"^(?:(?:please|kindly|now|can you|could you|would you|try to|your task(?: is)?(?: to)?:?"
    r"|i (?:want|need|would like) (?:you )?to)\b[ ,:]*)+",
    re.IGNORECASE,
)

VerbNoun = tuple[str, str]


@dataclass
class Figures:
    """A generation in numbers."""

    manifest: dict[str, Any]
    """Recipe, teachers, seeds, settings and counts of the run."""
    target: int
    """Rows wanted."""
    requests: int = 0
    """Requests answered."""
    failed: int = 0
    """Requests that the teacher gave up."""
    tokens: int = 0
    """Tokens the teacher wrote."""
    usd: float | None = None
    """Cost by the teacher's own account; None where it gave none."""
    kept: int = 0
    """Rows kept."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rule to rows it dropped."""
    acceptance: list[tuple[float, float]] = field(default_factory=list)
    """(requests so far, share of rows kept, among those since the point before)."""
    so_far: list[tuple[float, float]] = field(default_factory=list)
    """The same, among all rows so far."""
    examples: dict[str, str] = field(default_factory=dict)
    """Rule to its reason for dropping the first row it dropped."""
    novelty: list[float] = field(default_factory=list)
    """ROUGE-L of each kept row's instruction with the nearest seed task."""
    lengths: dict[str, list[int]] = field(
        default_factory=lambda: {"instruction": [], "input": [], "output": []}
    )
    """Words of the columns of the kept rows; empty inputs are left out."""
    pairs: Counter[VerbNoun] = field(default_factory=Counter)
    """(verb, noun) of the kept rows' instructions."""
    parser: str = ""
    """The method that found verbs and nouns."""

    @property
    def written(self) -> int:
        """Rows that the teacher wrote, readable or not, until the target was reached."""
        return self.kept + self.dropped.total() - self.dropped["surplus"]

    @property
    def share(self) -> float:
        """Share of the written rows that were kept."""
        return self.kept / self.written if self.written else 0.0

    @property
    def headline(self) -> str:
        """The result in one sentence, without its full stop."""
        return (
            f"{count(self.kept)} of {count(self.target)} tasks made; {percent(self.share)} of the "
            f"{count(self.written)} that the teacher wrote until then were kept"
        )

    def add_row(
        self, row: Instruction, seeds: NoveltyIndex, pair_of: Callable[[str], VerbNoun | None]
    ) -> None:
        """Count a kept row."""
        nearest = seeds.nearest(row.instruction)
        self.novelty.append(nearest.score if nearest is not None else 0.0)
        for column, lengths in self.lengths.items():
            text = getattr(row, column) or ""
            if text or column != "input":
                lengths.append(len(tokens(text)))
        pair = pair_of(row.instruction)
        if pair is not None:
            self.pairs[pair] += 1

    def add_point(self, recent: Counter[str]) -> None:
        """Mark the acceptance of the `kept` and `dropped` rows since the last point; clear them."""
        self.acceptance.append((self.requests, recent["kept"] / recent.total()))
        self.so_far.append((self.requests, self.share))
        recent.clear()


def figures_of(folder: Path) -> Figures:
    """Count everything, a row at a time.

    Raises:
        UserError: Files of the run are missing or damaged.
    """
    manifest = read_manifest(folder)
    settings, _ = settings_of(folder)
    pair_of, parser = _parser()
    figures = Figures(manifest, settings.target, parser=parser)
    # 1. Index the seed tasks, to which new ones are compared.
    seeds = NoveltyIndex(settings.novelty)
    for seed in seeds_of(folder):
        seeds.add(seed.instruction)
    # 2. Space the points of the line of acceptance.
    counts = manifest.get("counts", {})
    total = counts.get("kept", 0) + sum(counts.get("dropped", {}).values())
    rows_per_point = max(_MIN_ROWS, total // _MAX_POINTS)
    recent = Counter[str]()
    # 3. Count request by request. Drafts of tasks are no rows yet.
    for _, request in requests(folder):
        figures.requests += 1
        figures.tokens += request.reply.tokens
        usd = getattr(request.reply, "usd", None)
        if isinstance(usd, int | float):
            figures.usd = (figures.usd or 0.0) + usd
        figures.failed += bool(getattr(request.reply, "error", None))
        accepted = [] if request.ask.drafts else request.kept
        figures.kept += len(accepted)
        figures.dropped.update(drop.rule for drop in request.dropped)
        recent.update(
            kept=len(accepted), dropped=sum(drop.rule != "surplus" for drop in request.dropped)
        )
        for drop in request.dropped:
            if drop.rule not in figures.examples:
                figures.examples[drop.rule] = _example(drop)
        for row in accepted:
            figures.add_row(row, seeds, pair_of)
        if recent.total() >= rows_per_point:
            figures.add_point(recent)
    if recent.total() and not figures.acceptance:
        figures.add_point(recent)
    return figures


def _example(drop: Drop) -> str:
    """The reason for a drop, with the instruction it is about, on one line."""
    reason = drop.detail
    if drop.row is not None and drop.row.instruction not in reason:
        reason = f"{drop.row.instruction!r}: {reason}"
    return " ".join(reason.split())


def first_words(instruction: str) -> VerbNoun | None:
    """A verb and its noun without a parser: the first word and the last of its noun phrase.

    None where the first word is not one of ASCII letters or no noun follows, so that scripts
    without spaces are left out.
    """
    # 1. Skip a polite beginning (`please`, `can you`); take the first word as the verb.
    phrase = _POLITE.sub("", instruction.strip().split("\n")[0])
    verb, *rest = phrase.replace(",", " ,").replace(".", " .").replace(":", " :").split() or [""]
    if not rest or not verb.isascii() or not verb.isalpha():
        return None
    # 2. Read the noun phrase up to a preposition, a conjunction or a punctuation mark.
    noun_phrase: list[str] = []
    for word in rest:
        plain = word.lower().strip("\"'()?!")
        if plain in _DETERMINERS and not noun_phrase:
            continue
        if plain in _PHRASE_ENDS or not plain or not plain[0].isalpha():
            break
        noun_phrase.append(plain)
        if word[-1] in "?!":
            break
    return (verb.lower(), noun_phrase[-1]) if noun_phrase else None


def _parser() -> tuple[Callable[[str], VerbNoun | None], str]:
    """The best finder of verbs and nouns that is installed, and its description for the page."""
    try:
        spacy = importlib.import_module("spacy")
        parse: Callable[[str], Sequence[Any]] = spacy.load(_SPACY_MODEL)
    except (ImportError, OSError):
        return first_words, "first word and the noun after it, a guess: spaCy is not installed"

    def root_and_object(instruction: str) -> VerbNoun | None:
        for token in parse(instruction):
            if token.dep_ == "ROOT" and token.pos_ == "VERB":
                for child in token.children:
                    if child.dep_ == "dobj":
                        return token.lemma_.lower(), child.lemma_.lower()
        return None

    return root_and_object, f"root verb and its object, by spaCy {_SPACY_MODEL}"
