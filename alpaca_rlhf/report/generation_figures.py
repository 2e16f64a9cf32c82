"""What a generation's page shows, counted in one pass over its events."""

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

POINTS, LEAST = 60, 40
"""Points of the line of acceptance over time at most, and rows that make one at least."""

_SPACY_MODEL = "en_core_web_sm"
_LEADS = frozenset(
    "a an the this that these those some any all each every both your my our their his her its one "
    "two three four five six seven eight nine ten me us him them you it of".split()
)
_ENDS = frozenset(
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
    """What the run says of itself."""
    target: int
    """Rows wanted."""
    requests: int = 0
    """Requests answered."""
    failed: int = 0
    """Requests that the teacher gave up."""
    tokens: int = 0
    """Tokens the teacher wrote."""
    usd: float | None = None
    """What the teacher told that it cost; None if it told nothing."""
    kept: int = 0
    """Rows that stayed."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rule to rows it dropped."""
    acceptance: list[tuple[float, float]] = field(default_factory=list)
    """(requests so far, share of the rows that stayed, of those since the point before)."""
    so_far: list[tuple[float, float]] = field(default_factory=list)
    """The same, of all rows so far."""
    examples: dict[str, str] = field(default_factory=dict)
    """Rule to what it said of the first row it dropped."""
    novelty: list[float] = field(default_factory=list)
    """ROUGE-L of each kept row's instruction with the nearest seed task."""
    lengths: dict[str, list[int]] = field(
        default_factory=lambda: {"instruction": [], "input": [], "output": []}
    )
    """Words of the columns of the kept rows; empty inputs are left out."""
    pairs: Counter[VerbNoun] = field(default_factory=Counter)
    """(verb, noun) of the kept rows' instructions."""
    parser: str = ""
    """How verbs and nouns were found."""

    @property
    def written(self) -> int:
        """Rows that the teacher wrote, readable or not, until the target was reached."""
        return self.kept + self.dropped.total() - self.dropped["surplus"]


def figures_of(folder: Path) -> Figures:
    """Count everything. Rows are looked at one at a time.

    Raises:
        UserError: Files of the run are missing or damaged.
    """
    manifest = read_manifest(folder)
    settings, _ = settings_of(folder)
    pair_of, parser = _parser()
    made = Figures(manifest, settings.target, parser=parser)
    index = NoveltyIndex(settings.novelty)
    for seed in seeds_of(folder):
        index.add(seed.instruction)
    counts = manifest.get("counts", {})
    total = counts.get("kept", 0) + sum(counts.get("dropped", {}).values())
    every = max(LEAST, total // POINTS)
    since = Counter[str]()
    for _, one in requests(folder):
        made.requests += 1
        made.tokens += one.reply.tokens
        cost = getattr(one.reply, "usd", None)
        if isinstance(cost, int | float):
            made.usd = (made.usd or 0.0) + cost
        made.failed += bool(getattr(one.reply, "error", None))
        kept = [] if one.ask.drafts else one.kept
        made.kept += len(kept)
        made.dropped.update(drop.rule for drop in one.dropped)
        since.update(kept=len(kept), dropped=sum(d.rule != "surplus" for d in one.dropped))
        for drop in one.dropped:
            if drop.rule not in made.examples:
                made.examples[drop.rule] = _example(drop)
        for row in kept:
            _look_at(made, row, index, pair_of)
        if since.total() >= every:
            _point(made, since)
    if since.total() and not made.acceptance:
        _point(made, since)
    return made


def _example(drop: Drop) -> str:
    row = drop.row
    said = drop.detail
    if row is not None and row.instruction not in said:
        said = f"{row.instruction!r}: {said}"
    return " ".join(said.split())


def _point(made: Figures, since: Counter[str]) -> None:
    made.acceptance.append((made.requests, since["kept"] / since.total()))
    made.so_far.append((made.requests, made.kept / made.written))
    since.clear()


def _look_at(
    made: Figures,
    row: Instruction,
    index: NoveltyIndex,
    pair_of: Callable[[str], VerbNoun | None],
) -> None:
    near = index.nearest(row.instruction)
    made.novelty.append(near.score if near is not None else 0.0)
    for name in ("instruction", "input", "output"):
        text = getattr(row, name) or ""
        if text or name != "input":
            made.lengths[name].append(len(tokens(text)))
    pair = pair_of(row.instruction)
    if pair is not None:
        made.pairs[pair] += 1


def first_words(instruction: str) -> VerbNoun | None:
    """A verb and its noun without a parser: the first word, and the last of the words after it.

    Polite beginnings (`please`, `can you`) are skipped. The words end before a preposition, a
    conjunction or a mark. None where the first word is none, or where no noun follows: so scripts
    without spaces are left out.
    """
    phrase = _POLITE.sub("", instruction.strip().split("\n")[0])
    words = phrase.replace(",", " ,").replace(".", " .").replace(":", " :").split()
    if len(words) < 2 or not words[0].isascii() or not words[0].isalpha():
        return None
    group: list[str] = []
    for word in words[1:]:
        plain = word.lower().strip("\"'()?!")
        if plain in _LEADS and not group:
            continue
        if plain in _ENDS or not plain or not plain[0].isalpha():
            break
        group.append(plain)
        if word[-1] in "?!":
            break
    return (words[0].lower(), group[-1]) if group else None


def _parser() -> tuple[Callable[[str], VerbNoun | None], str]:
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
