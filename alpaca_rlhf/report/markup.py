"""HTML that cannot be broken by what it shows, and the words and numbers of the report.

`element` escapes every child that is not markup already, so forgetting to escape shows as a stray
`&lt;` on the page and never as an injected tag. What models write is only ever text here.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)
_MINUS = "\u2212"
_POLICIES = {
    "base": ("Base", "base"),
    "base_few_shot": ("Base, few-shot", "few"),
    "sft": ("SFT", "sft"),
    "best_of_k": ("Best-of-K", "bok"),
    "ppo": ("PPO", "ppo"),
}
POLICY_NAME = re.compile(rf"(?:{'|'.join(_POLICIES)})|(?:best_of_k|ppo)\.(?:[2-9]|[1-9]\d+)")
"""What a policy may be called: round 1 has no suffix, later rounds end in `.2`, `.3` ..."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """`text` as HTML text, safe in content and in quoted attributes.

    Control characters, lone surrogates and other code points that HTML forbids become U+FFFD: a
    byte-level model may write any of them.
    """
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(_UNPRINTABLE.sub("\ufffd", str(text)), quote=True))


def element(name: str, *children: object, **attributes: object) -> Markup:
    """`<name ...>children</name>`, everything escaped that is not `Markup`.

    `class_` and `for_` lose their underscore and others become hyphens (`aria_label`); an attribute
    that is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Markup:
    """`children` one after the other."""
    return Markup("".join(escape(child) for child in children))


def table(
    head: Iterable[object],
    rows: Iterable[Iterable[object]],
    *,
    caption: str,
    foot: Iterable[object] | None = None,
    words: bool = False,
) -> Markup:
    """A table in a frame that scrolls sideways; the first cell of a row is its header.

    Cells hold numbers, which stand to the right and do not wrap; with `words` the last cell of a
    row holds words, which do neither.
    """

    def line(cells: Iterable[object]) -> Markup:
        first, *rest = cells
        start = element("th", first, scope="row")
        return element("tr", start, *(element("td", cell) for cell in rest))

    parts = [
        element("caption", element("span", caption)),
        element("thead", element("tr", *(element("th", cell, scope="col") for cell in head))),
        element("tbody", *(line(row) for row in rows)),
    ]
    if foot is not None:
        parts.append(element("tfoot", line(foot)))
    return element(
        "div",
        element("table", *parts, class_="words" if words else None),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def number(value: float, digits: int = 2) -> str:
    """`value` with `digits` decimals and a true minus sign; never minus zero."""
    text = f"{value:,.{digits}f}"
    if text.startswith("-"):
        return text[1:] if not any(digit in "123456789" for digit in text) else _MINUS + text[1:]
    return text


def signed(value: float, digits: int = 2) -> str:
    """`number` with a plus sign where it is above zero."""
    text = number(value, digits)
    return "+" + text if any(digit in "123456789" for digit in text) and value > 0 else text


def interval(ci95: Iterable[float], digits: int = 2, *, plus: bool = False) -> str:
    """`low to high`."""
    low, high = ((signed if plus else number)(end, digits) for end in ci95)
    return f"{low} to {high}"


def duration(seconds: float) -> str:
    """Seconds for people: `8.2 s`, `4 min 12 s`, `2 h 05 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def money(usd: float) -> str:
    """US dollars: cents, and four decimals below one cent."""
    if usd == 0:
        return "$0"
    if usd < 0.0001:
        return "under $0.0001"
    return f"${usd:,.2f}" if usd >= 0.01 else f"${usd:.4f}"


def large(value: float) -> str:
    """A count in three digits: `4.9 million`."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.1f} {word}"
    return f"{value:,.0f}"


def policy_label(name: str) -> str:
    """How people call a policy: `ppo.2` is `PPO, round 2`."""
    stem, _, turn = name.partition(".")
    label = _POLICIES.get(stem, (stem, ""))[0]
    return f"{label}, round {turn}" if turn else label


def policy_tone(name: str) -> str:
    """The class that colours a policy, the same in every picture."""
    return "tone-" + _POLICIES.get(name.partition(".")[0], ("", "base"))[1]


def policy_order(policies: Mapping[str, object]) -> list[str]:
    """Names in the order of the loop: base, SFT, then round after round."""
    stems = list(_POLICIES)

    def place(name: str) -> tuple[int, int]:
        stem, _, turn = name.partition(".")
        return int(turn or 1), stems.index(stem)

    return sorted(policies, key=place)


def finite(value: object) -> bool:
    """Whether `value` is a finite number (a truth value is not a number)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
