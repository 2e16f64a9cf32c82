"""Geometry of the report's charts; `templates/charts.html` draws them as SVG and plain HTML.

Lines lie in a square of 100 by 100 that stretches with the page while strokes keep their width, and
labels are HTML text, so that a chart is as legible on a phone as on a wall. Colours are CSS
classes, so that the dark theme and the printer choose their own.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from alpaca_rlhf.report.formatting import number, place

_MAX_POINTS = 240  # a line of more is averaged in buckets: a plot has no more pixels than that
_MAX_VERBS, _MAX_NOUNS = 16, 4  # Self-Instruct's figure 3 has 20 and 4
_INNER, _MIDDLE, _OUTER = 22.0, 58.0, 97.0  # radii of the rings
_MIN_LABELLED = 0.011  # share of the circle below which a label would not fit
_MAX_LABEL_CHARS = 13


@dataclass(frozen=True)
class Axis:
    """A scale from `low` to `high` and the values marked on it."""

    low: float
    high: float
    ticks: Sequence[float]

    @classmethod
    def covering(cls, values: Iterable[float], intervals: int = 4) -> Axis:
        """An axis that begins and ends at a tick."""
        numbers = list(values)
        marked = ticks(min(numbers), max(numbers), intervals)
        return cls(marked[0], marked[-1], marked)

    @classmethod
    def between(cls, low: float, high: float, intervals: int = 4) -> Axis:
        """An axis that begins and ends at the data; only ticks within it are labelled."""
        return cls(low, high, ticks(low, high, intervals))

    def percent(self, value: float) -> float:
        """Position of `value`, 0 at `low` and 100 at `high`."""
        if self.high <= self.low:
            return 50.0
        return 100 * (value - self.low) / (self.high - self.low)

    @property
    def labels(self) -> list[tuple[float, str]]:
        """(percent, text) of every tick on the axis."""
        step = self.ticks[1] - self.ticks[0]
        return [
            (self.percent(tick), tick_text(tick, step))
            for tick in self.ticks
            if self.low <= tick <= self.high
        ]


class RootAxis(Axis):
    """An axis of square roots from 0, for distances that grow with the square of a step."""

    @classmethod
    def covering(cls, values: Iterable[float], intervals: int = 4) -> RootAxis:
        """An axis from 0 to the greatest value, whose ticks are squares."""
        high = max(0.0, *values) or 1.0
        marked = ticks(0.0, math.sqrt(high), intervals)
        return cls(0.0, high, [tick**2 for tick in marked])

    def percent(self, value: float) -> float:
        """Position of `value`, 0 at 0 and 100 at `high`; negative estimates lie at 0."""
        return 100 * math.sqrt(max(0.0, value) / self.high)


@dataclass(frozen=True)
class Mark:
    """A measured value and its 95% interval, if there is one."""

    value: float
    ci95: tuple[float, float] | None = None


@dataclass(frozen=True)
class Row:
    """One line of an interval chart: a label, its CSS colour class, a filled and a hollow dot."""

    label: str
    tone: str
    full: Mark
    hollow: Mark | None = None


@dataclass(frozen=True)
class IntervalChart:
    """Rows of dots with whiskers on one scale, their numbers beside them."""

    rows: Sequence[Row]
    caption: str
    """The text below; also the accessible name."""
    domain: tuple[float, float] = (0.0, 1.0)
    """The scale; it is widened where a value lies outside."""
    reference: float | None = None
    """A value marked by a dashed line through all rows."""

    @property
    def axis(self) -> Axis:
        """The scale of all rows."""
        marks = [mark for row in self.rows for mark in (row.full, row.hollow) if mark]
        values = [end for mark in marks for end in (mark.value, *(mark.ci95 or ()))]
        return Axis.covering([*self.domain, *values])


@dataclass(frozen=True)
class Series:
    """One line of a line chart."""

    label: str
    points: Sequence[tuple[float, float]]
    """(x, y), x ascending."""
    tone: str
    """CSS class that colours it."""
    dashed: bool = False
    """True for second rounds and controls."""
    dots: bool = False
    """True to mark each point, where points are few."""

    @property
    def last(self) -> str:
        """The last value, for the legend."""
        return value_text(self.points[-1][1])

    @property
    def summary(self) -> str:
        """A sentence for people who cannot see the line."""
        ys = [y for _, y in self.points]
        return (
            f"{self.label}: {len(ys)} points, from {value_text(ys[0])} to {self.last}, "
            f"lowest {value_text(min(ys))}, highest {value_text(max(ys))}."
        )


@dataclass(frozen=True)
class LineChart:
    """Lines over steps. One without a single point is false and should not be drawn."""

    title: str
    lines: Sequence[Series]
    note: str
    """One sentence on how to read it."""
    x_label: str = "step"
    reference: float | None = None
    """A value marked by a dashed line."""

    def __bool__(self) -> bool:
        """True where there is a point to draw."""
        return bool(self.series)

    @property
    def series(self) -> list[Series]:
        """The lines that have points."""
        return [line for line in self.lines if line.points]

    @property
    def x(self) -> Axis:
        """The horizontal axis."""
        xs = [x for line in self.series for x, _ in line.points]
        return Axis.between(min(xs), max(xs))

    @property
    def y(self) -> Axis:
        """The vertical axis."""
        ys = [y for line in self.series for _, y in line.points]
        return Axis.covering(ys if self.reference is None else [*ys, self.reference])

    def coordinates(self, line: Series) -> list[tuple[str, str]]:
        """Coordinates of the points of `line` in the square, from its upper left corner."""
        x, y = self.x, self.y
        return [
            (place(x.percent(across)), place(100 - y.percent(up)))
            for across, up in thin(line.points)
        ]


@dataclass(frozen=True)
class TwoScores:
    """Two scores, each on a scale of its own, over one distance."""

    title: str
    note: str
    """One sentence on how to read it."""
    x_label: str
    points: Sequence[tuple[str, str, float, float, float | None]]
    """(label, tone, distance, left score, right score) of everything that was measured."""
    courses: Sequence[tuple[Series, bool]] = ()
    """Lines of (distance, score), and whether the right scale is theirs."""

    @property
    def x(self) -> RootAxis:
        """The distance."""
        lines = [x for line, _ in self.courses for x, _ in line.points]
        return RootAxis.covering([0.0, *(point[2] for point in self.points), *lines])

    @property
    def y(self) -> Axis:
        """The scale of the left score."""
        return Axis.covering([*(point[3] for point in self.points), *self._heights(right=False)])

    @property
    def right(self) -> Axis | None:
        """The scale of the right score, if there is one."""
        heights = [point[4] for point in self.points if point[4] is not None]
        heights += self._heights(right=True)
        return Axis.covering(heights) if heights else None

    def coordinates(self, line: Series, right: bool) -> list[tuple[str, str]]:
        """Coordinates of the points of a course in the square, from its upper left corner."""
        axis = self.right if right else self.y
        assert axis is not None
        return [(place(self.x.percent(x)), place(100 - axis.percent(y))) for x, y in line.points]

    @property
    def summary(self) -> str:
        """A sentence for each point, for people who cannot see it."""
        return " ".join(
            f"{label}: {value_text(x)} nats, {value_text(left)}"
            + ("." if right is None else f", reward {value_text(right)}.")
            for label, _, x, left, right in self.points
        )

    def _heights(self, *, right: bool) -> list[float]:
        return [y for line, on_right in self.courses if on_right == right for _, y in line.points]


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins of equal width."""

    title: str
    note: str
    """One sentence on how to read it."""
    x_label: str
    x: Axis
    y: Axis
    bars: Sequence[tuple[float, float, float, float]]
    """(x, y, width, height) of every bin with a value, from the square's upper left corner."""
    summary: str
    """A sentence for people who cannot see the bars."""


@dataclass(frozen=True)
class Sector:
    """A sector of a ring: `share` of the circle from `start` on, between two radii."""

    label: str
    start: float
    share: float
    radii: tuple[float, float]
    hue: int
    """Degrees on the colour wheel."""

    @property
    def ring(self) -> str:
        """`inner` or `outer`."""
        return "inner" if self.radii[0] == _INNER else "outer"

    @property
    def path(self) -> str:
        """The outline as SVG path data."""
        near, far = self.radii
        share = min(self.share, 0.9999)  # a whole circle has no arc
        is_large = int(share > 0.5)
        end = self.start + share
        # Along the outer arc, inwards, and back along the inner arc.
        corners = ((far, self.start), (far, end), (near, end), (near, self.start))
        a, b, c, d = (_polar(radius, turn) for radius, turn in corners)
        return f"M{a}A{far:g} {far:g} 0 {is_large} 1 {b}L{c}A{near:g} {near:g} 0 {is_large} 0 {d}Z"

    @property
    def text(self) -> dict[str, str] | None:
        """Label and attributes of its `text`, where the sector has room for it."""
        if self.share < _MIN_LABELLED:
            return None
        turn = 360 * (self.start + min(self.share, 0.9999) / 2) - 90
        x, anchor = self.radii[0] + 2.5, "start"
        if 90 < turn % 360 < 270:  # the left half reads from outside in
            turn, x, anchor = turn + 180, -x, "end"
        is_short = len(self.label) <= _MAX_LABEL_CHARS
        label = self.label if is_short else f"{self.label[: _MAX_LABEL_CHARS - 1]}…"
        return {"label": label, "x": f"{x:g}", "turn": f"{turn:.1f}", "anchor": anchor}


def histogram(
    title: str,
    values: Sequence[float],
    note: str,
    x_label: str,
    domain: tuple[float, float] | None = None,
    bins: int = 24,
) -> Histogram:
    """Count `values`, of which there is at least one, in at most `bins` bins.

    The scale is `domain`, by default from 0 to a value that 99% do not exceed; values beyond it
    count in the last bin.
    """
    # 1. Choose the scale.
    ordered = sorted(values)
    if domain is None:  # bins of whole numbers, which counts of words fall into
        top = ordered[math.ceil(0.99 * len(ordered)) - 1]
        bins = min(bins, max(1, int(top) + 1))
        domain = (0.0, float(bins * math.ceil((top + 1) / bins)))
    low, high = domain
    # 2. Count; a value beyond the scale falls into the first or the last bin.
    counts = Counter(
        min(bins - 1, max(0, int((value - low) / (high - low) * bins))) for value in values
    )
    y = Axis.covering([0, *counts.values()])
    # 3. Lay the bars out in percent of the square, with a gap between them.
    bars = [
        (100 * position / bins + 0.3, 100 - y.percent(size), 100 / bins - 0.6, y.percent(size))
        for position, size in sorted(counts.items())
    ]
    summary = f"{title}: {len(values)} values, median {ordered[len(values) // 2]:.3g}."
    return Histogram(title, note, x_label, Axis.between(low, high, 5), y, bars, summary)


def verbs(pairs: Mapping[tuple[str, str], int]) -> dict[str, Counter[str]]:
    """Each verb's nouns, the commonest verbs first; `pairs` counts (verb, noun)."""
    nouns: dict[str, Counter[str]] = defaultdict(Counter)
    for (verb, noun), count in pairs.items():
        nouns[verb][noun] += count
    return dict(sorted(nouns.items(), key=lambda entry: (-entry[1].total(), entry[0])))


def sunburst(nouns_of: Mapping[str, Counter[str]]) -> list[Sector]:
    """Sectors of the commonest verbs in an inner ring and of the nouns of each in an outer one."""
    largest = list(nouns_of.items())[:_MAX_VERBS]
    total = sum(nouns.total() for _, nouns in largest)
    sectors: list[Sector] = []
    start = 0.0
    for position, (verb, nouns) in enumerate(largest):
        hue = round(360 * position / len(largest))
        share = nouns.total() / total
        sectors.append(Sector(verb, start, share, (_INNER, _MIDDLE), hue))
        # The commonest nouns share the verb's sector; rarer ones leave a gap at its end.
        noun_start = start
        for noun, count in nouns.most_common(_MAX_NOUNS):
            sectors.append(Sector(noun, noun_start, count / total, (_MIDDLE, _OUTER), hue))
            noun_start += count / total
        start += share
    return sectors


def ticks(low: float, high: float, intervals: int) -> list[float]:
    """About `intervals` round steps of 1, 2, 2.5 or 5 that cover low..high; at least two values."""
    # 1. Give a scale without width one, so that a flat line lies in the middle.
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-3):
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    # 2. Round the step up; 1e-9 forgives what division does to the last digits.
    rough = (high - low) / intervals
    power = 10.0 ** math.floor(math.log10(rough))
    steps = (power * factor for factor in (1, 2, 2.5, 5, 10))
    step = next(step for step in steps if step >= rough * (1 - 1e-9))
    # 3. Cover both ends with multiples of the step.
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def tick_text(value: float, step: float) -> str:
    """`value` with as many decimals as `step` needs."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if abs(round(step, digits) - step) > step * 1e-6:  # a step of 2.5 or 0.25
        digits += 1
    return number(value, digits)


def value_text(value: float) -> str:
    """`value` in about three digits."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}".replace("-", "\u2212")
    return number(value, 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0)


def thin(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most 240 points: means of neighbours, the last point kept as it is."""
    if len(points) <= _MAX_POINTS:
        return points
    # The last point stands apart, since it is the number in the legend.
    size = math.ceil((len(points) - 1) / (_MAX_POINTS - 1))
    buckets = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [
        (sum(x for x, _ in bucket) / len(bucket), sum(y for _, y in bucket) / len(bucket))
        for bucket in buckets
    ]
    return [*means, points[-1]]


def _polar(radius: float, turn: float) -> str:
    angle = 2 * math.pi * turn - math.pi / 2
    # SVG's y grows downwards, so that angles grow clockwise, from twelve o'clock on.
    return f"{radius * math.cos(angle):.2f} {radius * math.sin(angle):.2f}"
