"""Every kind of constraint, by name; how constraints are found in a prompt, and which go together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from alpaca_rlhf.checks.kinds import (
    Constraint,
    Demands,
    Kind,
    Phrasing,
    is_possible,
    read_arguments,
)
from alpaca_rlhf.checks.layouts import LAYOUTS
from alpaca_rlhf.checks.lengths import LENGTHS, WORDS_PER_SENTENCE
from alpaca_rlhf.checks.letters import LETTERS
from alpaca_rlhf.checks.scope import continued, is_stated
from alpaca_rlhf.checks.wording import WORDING

KINDS: Mapping[str, Kind] = {kind.name: kind for kind in (*LENGTHS, *LETTERS, *LAYOUTS, *WORDING)}
"""Every kind, by name."""

_CLASHES = frozenset(
    frozenset(pair)
    for pair in (
        ("repeat_request", "lower_case"), ("repeat_request", "upper_case"),
        ("repeat_request", "no_commas"), ("repeat_request", "no_digits"),
        ("repeat_request", "leaves_out"), ("repeat_request", "letter_absent"),
        ("repeat_request", "word_exactly"), ("repeat_request", "longest_sentence"),
        ("repeat_request", "one_exclamation"), ("repeat_request", "no_exclamation"),
        ("repeat_request", "parentheses"), ("repeat_request", "capital_words"),
        ("bullets", "longest_sentence"), ("numbered", "longest_sentence"),
        ("json", "longest_sentence"), ("json", "starred"), ("json", "placeholders"),
        ("json", "title"), ("json", "semicolon"),
        ("two_answers", "title"), ("two_answers", "repeat_request"), ("two_answers", "starred"),
        ("two_answers", "double_quotes"),
        ("sections", "no_digits"), ("sections", "title"), ("numbered", "no_digits"),
        ("has_digits", "no_digits"), ("lines", "title"), ("lines", "postscript"),
        ("paragraphs", "postscript"), ("paragraphs", "longest_sentence"),
        ("no_exclamation", "one_exclamation"), ("sentences_exactly", "postscript"),
        ("sentences_at_most", "postscript"), ("sentences_exactly", "asks_questions"),
        ("letter_at_least", "letter_absent"), ("leaves_out", "letter_at_least"),
    )
)  # fmt: skip
"""Pairs of kinds that do not go together for a reason which their demands do not tell."""


@dataclass(frozen=True)
class Request:
    """A prompt as its checks read it."""

    core: str
    """The text without its constraints."""
    constraints: tuple[Constraint, ...]
    """The constraints, in their order."""


@lru_cache(maxsize=20_000)
def read_request(text: str) -> Request:
    """Find the constraints of a prompt's text in any known phrasing, and what is left without them.

    Where phrasings overlap the longest counts. Words that are negated, bounded otherwise, meant for
    a part of the answer or only mentioned are none; see `scope`.
    """
    # 1. All phrasings that occur, the longest first.
    lowered = text.lower()
    spans: list[tuple[re.Match[str], Kind, Phrasing]] = []
    for kind in KINDS.values():
        for phrasing in kind.phrasings:
            if phrasing.rarest not in lowered:
                continue
            for match in phrasing.pattern.finditer(text):
                spans.append((match, kind, phrasing))
    spans.sort(key=lambda span: (span[0].start() - span[0].end(), span[0].start()))
    # 2. Those that overlap none before them. One that is negated or only mentioned states nothing,
    # and nor do shorter ones within it.
    constraints: list[tuple[int, int, Constraint]] = []
    read_spans: list[tuple[int, int]] = []
    bans: list[re.Match[str]] = []
    for match, kind, phrasing in spans:
        start, end = match.span()
        if any(start < other_end and other_start < end for other_start, other_end in read_spans):
            continue
        read_spans.append((start, end))
        arguments = read_arguments(match)
        if is_possible(arguments) and is_stated(text, match, phrasing):
            constraint = Constraint(kind, arguments, match[0], phrasing.held_out)
            constraints.append((start, end, constraint))
            bans += [match] if kind.things else []
    # 3. Things that a ban goes on to.
    for ban in bans:
        start = ban.end()
        for match, kind in _continuations(text, ban):
            end = match.end()
            if any(
                start < other_end and other_start < end for other_start, other_end in read_spans
            ):
                break
            constraints.append((start, end, Constraint(kind, {}, match[0])))
            start = end
    constraints.sort(key=lambda span: span[0])
    # 4. The rest of the text.
    rest, at = [], 0
    for start, end, _ in constraints:
        rest.append(text[at:start])
        at = end
    rest.append(text[at:])
    core = re.sub(r"(?m)^[ \t]*[-*•][ \t]*$", "", " ".join(rest))
    core = re.sub(r"\s+([.,;:!?。，])", r"\1", " ".join(core.split()))
    return Request(core.strip(), tuple(constraint for _, _, constraint in constraints))


def _continuations(text: str, ban: re.Match[str]) -> Iterator[tuple[re.Match[str], Kind]]:
    """The things that a ban goes on to, one after the other, each with its kind."""
    here: re.Match[str] | None = ban
    while here is not None:
        continuations = [
            (match, kind)
            for kind in KINDS.values()
            if kind.continuation is not None
            and (match := continued(text, here, kind.continuation)) is not None
        ]
        here = continuations[0][0] if continuations else None
        yield from continuations[:1]


def compatible(constraints: Sequence[Constraint]) -> bool:
    """True if one answer can meet all constraints without contortions."""
    demands = [constraint.demands for constraint in constraints]
    names = [constraint.kind.name for constraint in constraints]
    # 1. No kind twice, no pair that is known to clash, no role claimed twice.
    if len({*names}) < len(names):
        return False
    if any(frozenset((a, b)) in _CLASHES for a in names for b in names if a != b):
        return False
    roles = [role for demand in demands for role in demand.roles]
    if len({*roles}) < len(roles):
        return False
    # 2. A length that all of them allow, in sentences of an ordinary length.
    fewest_words = max(demand.words[0] for demand in demands)
    most_words = min(demand.words[1] for demand in demands)
    fewest = max(demand.sentences[0] for demand in demands)
    most = min(demand.sentences[1] for demand in demands)
    if fewest_words > most_words or fewest > most:
        return False
    shortest, longest = WORDS_PER_SENTENCE
    if fewest_words > most * (longest - 5) or most_words < max(fewest, 1) * (shortest + 1):
        return False
    # 3. Nothing is both required and forbidden.
    if any(
        _forbids(demand, text)
        for demand in demands
        for other in demands
        for text in (*other.required, *other.required_words)
    ):
        return False
    # 4. Texts that must stand as written allow no rule on case.
    in_case = [constraint for constraint in constraints if not constraint.demands.caseless]
    return len(in_case) < 2


def _forbids(demand: Demands, text: str) -> bool:
    return any(re.search(pattern, text, re.IGNORECASE) for pattern in demand.forbidden)
