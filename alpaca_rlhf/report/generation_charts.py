"""Histograms and a sunburst as inline SVG: no library and no script."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from alpaca_rlhf.report.charts import tick_text, ticks
from alpaca_rlhf.report.markup import Markup, element

CSS = """
svg rect{fill:var(--tone);stroke:none}
.burst{display:grid;grid-template-columns:minmax(0,34rem) minmax(14rem,1fr);gap:1.5rem;
align-items:start}
.burst svg{width:100%;height:auto}
.burst svg path{stroke:var(--card);stroke-width:1;vector-effect:non-scaling-stroke;fill:var(--hue)}
.burst svg text{font:4.2px var(--sans);fill:#fff;dominant-baseline:middle}
.burst svg .outer{opacity:.72}
.reasons li{display:grid;grid-template-columns:9rem 1fr 8.5rem;gap:.9rem;align-items:center;
padding:.28rem 0}
.reasons{list-style:none;margin:0;padding:0;max-width:none}
.reasons .bar{margin:0;height:.9rem}
.reasons b{font-weight:600}.reasons .value{color:var(--soft);font-size:.85rem;
font-variant-numeric:tabular-nums;text-align:right}
.reasons small{grid-column:2/-1;color:var(--soft);font-size:.8rem;line-height:1.35;
overflow-wrap:anywhere;margin-top:-.6rem}
.reasons small:empty{display:none}
.grid-3 .plot figcaption{font-weight:400;color:var(--soft);font-size:.87rem}
@media(max-width:44rem){.burst{grid-template-columns:1fr}
.reasons li{grid-template-columns:1fr auto}.reasons .bar{grid-column:1/-1;grid-row:2}
.reasons small{grid-column:1/-1}}
"""
"""Rules beside those of the report's style sheet."""

_VERBS, _NOUNS = 16, 4  # drawn at most; Self-Instruct's figure 3 has 20 and 4
_INNER, _MIDDLE, _OUTER = 22.0, 58.0, 97.0  # radii
_LEAST_LABELLED = 0.011  # share of the circle below which a label would not fit


def histogram(
    title: str,
    values: Sequence[float],
    *,
    note: str,
    x_label: str,
    domain: tuple[float, float] | None = None,
    bins: int = 24,
) -> Markup:
    """How often values fall into bins of equal width, or nothing where there is none.

    Args:
        title: What is counted.
        values: The values.
        note: One sentence on how to read it.
        x_label: What x is.
        domain: Ends of the scale; by default 0 and a value that 99% do not exceed. What lies
            beyond counts in the last bin.
        bins: How many, at most.
    """
    if not values:
        return Markup()
    if domain is None:
        high = sorted(values)[min(len(values) - 1, math.ceil(0.99 * len(values)) - 1)]
        bins = min(bins, max(1, int(high) + 1))
        width = math.ceil((high + 1) / bins)
        domain = (0.0, float(width * bins))
    low, high = domain
    counts = Counter(
        min(bins - 1, max(0, int((value - low) / (high - low) * bins))) for value in values
    )
    most = max(counts.values())
    rows = ticks(0, most, 4)
    bars = [
        element(
            "rect",
            x=f"{100 * at / bins + 0.3:.2f}",
            y=f"{100 - 100 * counts[at] / rows[-1]:.2f}",
            width=f"{100 / bins - 0.6:.2f}",
            height=f"{100 * counts[at] / rows[-1]:.2f}",
        )
        for at in sorted(counts)
    ]
    middle = sorted(values)[len(values) // 2]
    picture = element(
        "svg",
        *bars,
        class_="lines tone-sft",
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}: {len(values)} values, median {middle:.3g}.",
    )
    y_axis = [
        element("span", tick_text(tick, rows[1] - rows[0]), style=f"bottom:{place:.1f}%")
        for tick in rows
        if (place := 100 * tick / rows[-1]) <= 100
    ]
    columns = [one for one in ticks(low, high, 5) if low <= one <= high]
    x_axis = [
        element(
            "span",
            tick_text(tick, columns[1] - columns[0]),
            style=f"left:{100 * (tick - low) / (high - low):.1f}%",
        )
        for tick in columns
    ]
    return element(
        "figure",
        element("figcaption", element("b", title), element("span", note)),
        element(
            "div",
            element("div", *y_axis, class_="y-axis", aria_hidden="true"),
            picture,
            element("div", *x_axis, class_="x-axis", aria_hidden="true"),
            element("div", x_label, class_="x-label", aria_hidden="true"),
            class_="area",
        ),
        class_="plot",
    )


def sunburst(pairs: Mapping[tuple[str, str], int]) -> Markup:
    """Verbs in an inner ring, and the nouns of each in an outer one; the commonest first.

    Args:
        pairs: (verb, noun) to how often.
    """
    nouns: dict[str, Counter[str]] = defaultdict(Counter)
    for (verb, noun), count in pairs.items():
        nouns[verb][noun] += count
    shown = sorted(nouns, key=lambda verb: (-nouns[verb].total(), verb))[:_VERBS]
    total = sum(nouns[verb].total() for verb in shown)
    if not total:
        return Markup()
    shapes: list[Markup] = []
    start = 0.0
    for place, verb in enumerate(shown):
        share = nouns[verb].total() / total
        style = f"--hue:hsl({round(360 * place / len(shown))} 45% 42%)"
        shapes.append(_slice(verb, start, share, (_INNER, _MIDDLE), style, "inner"))
        at = start
        for noun, count in nouns[verb].most_common(_NOUNS):
            part = count / total
            shapes.append(_slice(noun, at, part, (_MIDDLE, _OUTER), style, "outer"))
            at += part
        start += share
    label = ", ".join(f"{verb} {nouns[verb].total()}" for verb in shown[:8])
    return element(
        "svg", *shapes, viewBox="-100 -100 200 200", role="img", aria_label=f"Verbs: {label}."
    )


def _slice(
    label: str, start: float, share: float, radii: tuple[float, float], style: str, kind: str
) -> Markup:
    near, far = radii
    share = min(share, 0.9999)  # a whole circle has no arc
    large = int(share > 0.5)
    (ax, ay), (bx, by) = _point(far, start), _point(far, start + share)
    (cx, cy), (dx, dy) = _point(near, start + share), _point(near, start)
    path = (
        f"M{ax:.2f} {ay:.2f}A{far:g} {far:g} 0 {large} 1 {bx:.2f} {by:.2f}"
        f"L{cx:.2f} {cy:.2f}A{near:g} {near:g} 0 {large} 0 {dx:.2f} {dy:.2f}Z"
    )
    shapes = [element("path", element("title", f"{label} {share:.1%}"), d=path, class_=kind)]
    if share >= _LEAST_LABELLED:
        turn = 360 * (start + share / 2) - 90
        x, anchor = near + 2.5, "start"
        if 90 < turn % 360 < 270:  # the left half reads from outside in
            turn, x, anchor = turn + 180, -x, "end"
        text = label if len(label) <= 13 else f"{label[:12]}…"
        turned = f"rotate({turn:.1f})"
        shapes.append(element("text", text, x=f"{x:g}", transform=turned, text_anchor=anchor))
    return element("g", *shapes, style=style)


def _point(radius: float, share: float) -> tuple[float, float]:
    angle = 2 * math.pi * share - math.pi / 2
    return radius * math.cos(angle), radius * math.sin(angle)
