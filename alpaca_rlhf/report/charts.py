"""Charts as inline SVG and plain HTML: no library, no script, and they follow the page.

Lines are drawn in a square of 100 by 100 that stretches with the page while strokes keep their
width, and labels are HTML text, so that a chart is as legible on a phone as on a wall. Colours are
CSS classes, so that the dark theme and the printer choose their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from alpaca_rlhf.report.markup import Markup, element, interval, join, number

_MOST_POINTS = 240  # a line of more is averaged in buckets: a plot has no more pixels than that


@dataclass(frozen=True)
class Mark:
    """A measured value and its 95% interval, if there is one."""

    value: float
    """Where the dot stands."""
    ci95: tuple[float, float] | None = None
    """Ends of the whisker."""


@dataclass(frozen=True)
class Row:
    """One line of an interval chart."""

    label: str
    """What is measured."""
    tone: str
    """Class that colours it."""
    full: Mark
    """The filled dot."""
    hollow: Mark | None = None
    """The hollow dot, if there is one."""


@dataclass(frozen=True)
class Series:
    """One line of a line chart."""

    label: str
    """Its name in the legend."""
    points: Sequence[tuple[float, float]]
    """(x, y), x ascending."""
    tone: str
    """Class that colours it."""
    dashed: bool = False
    """Whether it is drawn dashed, as second rounds and controls are."""
    dots: bool = False
    """Whether each point is marked, where points are few."""


def interval_chart(
    rows: Sequence[Row],
    *,
    caption: str,
    domain: tuple[float, float] = (0.0, 1.0),
    reference: float | None = None,
    digits: int = 2,
) -> Markup:
    """Rows of dots with whiskers on one scale, their numbers beside them.

    Args:
        rows: From top to bottom.
        caption: What it shows; also its accessible name.
        domain: The scale; it is widened where a value lies outside.
        reference: A value marked by a dashed line through all rows.
        digits: Decimals of the numbers.
    """
    ends = [end for row in rows for mark in (row.full, row.hollow) if mark for end in _ends(mark)]
    grid = ticks(min(domain[0], *ends), max(domain[1], *ends), 4)
    scale = (grid[0], grid[-1])
    lines = []
    for row in rows:
        marks = [_vertical(tick, scale, "grid") for tick in grid]
        if reference is not None:
            marks.append(_vertical(reference, scale, "reference"))
        if row.hollow:
            marks.append(_mark(row.hollow, scale, 72, hollow=True))
        marks.append(_mark(row.full, scale, 40 if row.hollow else 50, hollow=False))
        track = element(
            "svg",
            *marks,
            class_=f"track {row.tone}",
            viewBox="0 0 100 100",
            preserveAspectRatio="none",
            aria_hidden="true",
        )
        value = [element("b", number(row.full.value, digits))]
        if row.full.ci95:
            value.append(element("span", interval(row.full.ci95, digits)))
        if row.hollow:
            value.append(element("i", element("span", "greedy "), number(row.hollow.value, digits)))
        lines.append(
            element(
                "li",
                element("span", row.label, class_="name"),
                track,
                element("span", *value, class_="value"),
            )
        )
    step = grid[1] - grid[0]
    labels = [_at("left", tick, scale, tick_text(tick, step)) for tick in grid]
    axis = element("div", *labels, class_="axis", aria_hidden="true")
    return element(
        "figure",
        element("ul", *lines, aria_label=caption),
        axis,
        element("figcaption", caption),
        class_="intervals",
    )


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str,
    x_label: str = "step",
    reference: float | None = None,
) -> Markup:
    """Lines over steps, or nothing where there is no point to draw.

    Args:
        title: What is drawn.
        series: The lines; those without points are left out.
        note: One sentence on how to read it.
        x_label: Unit of x.
        reference: A value marked by a dashed line.
    """
    drawn = [one for one in series if one.points]
    if not drawn:
        return Markup()
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points] + ([] if reference is None else [reference])
    rows, columns = ticks(min(ys), max(ys), 4), ticks(min(xs), max(xs), 4)
    across, up = (min(xs), max(xs)), (rows[0], rows[-1])
    shapes = [_horizontal(tick, up, "grid") for tick in rows]
    if reference is not None:
        shapes.append(_horizontal(reference, up, "reference"))
    shapes += [_line(one, across, up) for one in drawn]
    picture = element(
        "svg",
        *shapes,
        class_="lines",
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}. " + " ".join(_summary(one) for one in drawn),
    )
    shown = [tick for tick in columns if across[0] <= tick <= across[1]]
    y_axis = [_at("bottom", tick, up, tick_text(tick, rows[1] - rows[0])) for tick in rows]
    x_axis = [_at("left", tick, across, tick_text(tick, columns[1] - columns[0])) for tick in shown]
    legend = [
        element(
            "li",
            element("span", class_=f"key {one.tone}{' dashed' if one.dashed else ''}"),
            f"{one.label} ",
            element("b", _value(one.points[-1][1])),
        )
        for one in drawn
    ]
    return element(
        "figure",
        element("figcaption", element("b", title), element("span", note)),
        element("ul", *legend, class_="legend", aria_label="Lines and their last values"),
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


def share_bar(share: float, tone: str = "tone-base") -> Markup:
    """A bar as long as `share` (0 to 1) of its cell."""
    bar = element("span", class_=tone, style=f"width:{_place(share)}%")
    return element("span", bar, class_="bar", aria_hidden="true")


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round steps of 1, 2, 2.5 or 5 that cover low..high; at least two values."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-3):
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 2.5, 5, 10) if power * one >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(one * step, 12) for one in range(first, max(last, first + 1) + 1)]


def tick_text(value: float, step: float) -> str:
    """`value` with as many decimals as `step` needs."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, digits) - step) > step * 1e-6:  # a step of 2.5 or 0.25
        digits += 1
    return number(value, digits)


def thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most 240 points: means of neighbours, the last point kept as it is."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil((len(points) - 1) / (_MOST_POINTS - 1))
    buckets = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [
        (sum(x for x, _ in one) / len(one), sum(y for _, y in one) / len(one)) for one in buckets
    ]
    return [*means, points[-1]]


def _line(series: Series, across: tuple[float, float], up: tuple[float, float]) -> Markup:
    points = [(_percent(x, across), 100 - _percent(y, up)) for x, y in thin(series.points)]
    path = "M" + "L".join(f"{_place(x / 100)} {_place(y / 100)}" for x, y in points)
    shapes = [element("path", d=path, class_="line dashed" if series.dashed else "line")]
    if series.dots or len(points) == 1:
        shapes += [_dot(x, y, "dot") for x, y in points]
    return element("g", *shapes, class_=series.tone)


def _mark(mark: Mark, scale: tuple[float, float], height: int, *, hollow: bool) -> Markup:
    kind = "whisker faint" if hollow else "whisker"
    x, shapes = _percent(mark.value, scale), []
    if mark.ci95:
        low, high = (_place(_percent(end, scale) / 100) for end in mark.ci95)
        shapes.append(element("path", d=f"M{low} {height}H{high}", class_=kind))
    shapes.append(_dot(x, height, "dot small" if hollow else "dot large"))
    if hollow:
        shapes.append(_dot(x, height, "hole"))
    return join(shapes)


def _dot(x: float, y: float, kind: str) -> Markup:
    # A line of no length with round ends stays a circle however the square is stretched.
    return element("path", d=f"M{_place(x / 100)} {_place(y / 100)}h0", class_=kind)


def _vertical(value: float, scale: tuple[float, float], kind: str) -> Markup:
    return element("path", d=f"M{_place(_percent(value, scale) / 100)} 0V100", class_=kind)


def _horizontal(value: float, scale: tuple[float, float], kind: str) -> Markup:
    return element("path", d=f"M0 {_place(1 - _percent(value, scale) / 100)}H100", class_=kind)


def _at(side: str, value: float, scale: tuple[float, float], text: str) -> Markup:
    return element("span", text, style=f"{side}:{_place(_percent(value, scale) / 100)}%")


def _percent(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return 100 * (value - low) / (high - low) if high > low else 50.0


def _place(share: float) -> str:
    text = f"{100 * share:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _ends(mark: Mark) -> tuple[float, ...]:
    return (mark.value, *(mark.ci95 or ()))


def _value(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}".replace("-", "\u2212")
    return number(value, 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0)


def _summary(series: Series) -> str:
    ys = [y for _, y in series.points]
    return (
        f"{series.label}: {len(ys)} points, from {_value(ys[0])} to {_value(ys[-1])}, "
        f"lowest {_value(min(ys))}, highest {_value(max(ys))}."
    )
