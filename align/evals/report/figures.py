"""The report's figures as geometry, which figures.jinja draws as SVG.

Drawn by hand rather than by matplotlib: with positions in percent of the plot and text in pixels, text keeps its size on a
phone and takes the page's font and its colours, light or dark. All x and y here are percent of the plot from its top left.
"""

import math
import re
import unicodedata
from dataclasses import dataclass, field
from itertools import pairwise

from align.evals.report.tables import Estimate, Row, Side, Table, number

PLOT = (250, 300)  # px: the trade-off's plot on a 360-pixel phone, the narrowest for which labels are placed
LABEL = 14  # px from one label's line to the next
FRONT = 30  # px that a label moves away rather than cross the Pareto front's line
GROUPS = 24  # panels of bars at most; the tables have all groups
BINS = 30
HEIGHTS = {"tradeoff": PLOT[1], "bar": 16, "margins": 72, "curves": 170}  # px of plots, and of one bar


@dataclass
class Axis:
    """A linear axis from low to high with round ticks."""

    label: str
    low: float
    high: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """Percent of the way, rounded so that floating-point noise does not show."""
        return round(100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 2)

    def marks(self) -> list[tuple[float, str]]:
        """Percent of the way and label of every tick; thousands as k where they would be long."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        long = max(map(abs, self.ticks)) >= 10_000
        labels = [f"{tick / 1000:g}k" if long and tick else f"{tick:.{digits}f}" for tick in self.ticks]
        return [(self.at(tick), label.replace("-", "−")) for tick, label in zip(self.ticks, labels, strict=True)]


def nice_axis(label: str, values: list[float], count: int = 5, limits: tuple = (-math.inf, math.inf)) -> Axis:
    """An axis whose ends are ticks: multiples of 1, 2 or 5 times a power of ten that hold all values."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 1, high + 1
    room = (high - low) / count
    power = 10 ** math.floor(math.log10(room))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= room * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, last + 1)]
    ticks = [tick for tick in ticks if limits[0] <= tick <= limits[1]]
    return Axis(label, max(first * step, limits[0]), min(last * step, limits[1]), ticks)


def pareto_front(points: list[tuple[float, float] | None]) -> list[int]:
    """Indices of the points that no other beats on one side without losing on the other, from left to right."""
    known = [(i, p) for i, p in enumerate(points) if p is not None]
    front = [i for i, (x, y) in known if not any(u >= x and v >= y and (u > x or v > y) for _, (u, v) in known)]
    return sorted(front, key=lambda i: (points[i], i))


def text_width(text: str) -> float:
    """About how many pixels a label takes at 12 px; wide scripts and emoji count double."""
    return sum(13.0 if unicodedata.east_asian_width(c) in "WF" else 7.0 for c in text)


def shorten(text: str, most: int = 16) -> str:
    """A label of at most so many characters; names of one family differ at their ends."""
    return text if len(text) <= most else f"{text[: most // 3]}…{text[-(most - most // 3 - 1) :]}"


@dataclass
class Point:
    model: int
    scores: tuple[float, float]  # capability, safety
    x: float
    y: float
    x_ends: tuple[float, float] | None
    y_ends: tuple[float, float] | None
    front: bool
    label: str = ""
    dx: float = 0.0  # px from the mark to the label
    dy: float = 0.0
    anchor: str = "start"


@dataclass
class Tradeoff:
    x: Axis
    y: Axis
    points: list[Point]
    line: str  # joins the models on the front, as an SVG path; "" for a single one
    merged: str  # joins the models that align.merge wrote, in the order of their weights; "" without any
    absent: list[int] = field(default_factory=list)  # models that lack one side


def tradeoff(capability: Side, safety: Side, names: list[str]) -> Tradeoff | None:
    """Safety over capability with the Pareto front, from tables.side; None where no model has both."""
    both = [(c, s) if c and s else None for c, s in zip(capability[1], safety[1], strict=False)]
    if not any(both):
        return None
    axes = []
    for i, label in enumerate((capability[0], safety[0])):
        values = [value for pair in both if pair for value in pair[i] if value is not None]
        axes.append(nice_axis(label, values, limits=(0, 100)))
    x, y = axes
    front = pareto_front([pair and (pair[0][0], pair[1][0]) for pair in both])

    def ends(axis: Axis, estimate: Estimate) -> tuple[float, float] | None:
        _, low, high = estimate
        return None if low is None or high is None else (axis.at(low), axis.at(high))

    points = [
        Point(
            model=i,
            scores=(pair[0][0], pair[1][0]),
            x=x.at(pair[0][0]),
            y=round(100 - y.at(pair[1][0]), 2),
            x_ends=ends(x, pair[0]),
            y_ends=(e := ends(y, pair[1])) and (round(100 - e[0], 2), round(100 - e[1], 2)),
            front=i in front,
            label=shorten(names[i]),
        )
        for i, pair in enumerate(both)
        if pair
    ]
    corners = [next(p for p in points if p.model == i) for i in front]
    place_labels(points, corners)
    # straight from model to model: between two neighbours nothing is dominated, so the line meets no other mark. Stairs do
    line = "M" + "L".join(f"{p.x} {p.y}" for p in corners) if len(corners) > 1 else ""
    return Tradeoff(x, y, points, line, merged_path(points, names), [i for i, pair in enumerate(both) if pair is None])


def merged_path(points: list[Point], names: list[str]) -> str:
    """From model to model of one folder whose names are weights, as align.merge names them: "0", "0.25", ..."""
    paths: dict[str, list[tuple[float, Point]]] = {}
    for point in points:
        folder, _, weight = names[point.model].rpartition("/")
        if re.fullmatch(r"-?\d+(\.\d+)?", weight):
            paths.setdefault(folder, []).append((float(weight), point))
    ordered = [sorted(path, key=lambda found: found[0]) for path in paths.values() if len(path) > 1]
    return "".join("M" + "L".join(f"{p.x} {p.y}" for _, p in path) for path in ordered)


Box = tuple[float, float, float, float]  # px: left, top, right, bottom


def place_labels(points: list[Point], corners: list[Point]) -> None:
    """Put every label near its mark: it hides no mark, no other label and, if possible, no part of the front's line."""
    width, height = PLOT

    def pixels(point: Point) -> tuple[float, float]:
        return point.x * width / 100, point.y * height / 100

    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in map(pixels, points)]
    dots: list[tuple[float, float]] = []  # along the line
    for (x, y), (u, v) in pairwise(map(pixels, corners)):
        steps = 1 + int(math.hypot(u - x, v - y) / 6)
        dots += [(x + (u - x) * i / steps, y + (v - y) * i / steps) for i in range(steps + 1)]
    line = [(x - 1, y - 1, x + 1, y + 1) for x, y in dots]

    def hidden(box: Box, others: list[Box]) -> int:
        return sum(b[0] < box[2] and box[0] < b[2] and b[1] < box[3] and box[1] < b[3] for b in others)

    for point in points:
        (x, y), w = pixels(point), text_width(point.label)
        found: list[tuple[int, int, int, str, int, int, Box]] = []
        for dy in range(-height // LABEL * LABEL, height, LABEL // 2):
            for anchor, dx in (("start", 14), ("end", -14)):
                left = x + dx - (w if anchor == "end" else 0)
                box = (left, y + dy - 7, left + w, y + dy + 7)
                if box[0] < -40 or box[2] > width + 16 or box[1] < -10 or box[3] > height:
                    continue
                distance = abs(dy) + FRONT * (hidden(box, line) > 0)
                found.append((hidden(box, taken), distance, len(found), anchor, dx, dy, box))
        if found:
            *_, point.anchor, point.dx, point.dy, box = min(found)
            taken.append(box)


@dataclass
class Bar:
    model: int
    width: float
    ends: tuple[float, float] | None
    text: str


@dataclass
class Bars:
    """Small multiples: one panel per group, one bar per model, all on one scale from 0."""

    table: Table
    axis: Axis
    panels: list[tuple[str, list[Bar]]]
    left_out: int


def bars(table: Table) -> Bars | None:
    """A table's groups as bars: all of them, or the GROUPS with the most prompts. None for negative values."""
    rows = table.rows
    if len(rows) > GROUPS:
        largest = sorted(rows, key=lambda row: -max((c.n or 0 for c in row.cells if c), default=0))[:GROUPS]
        rows = [row for row in rows if any(row is kept for kept in largest)]
    cells = [cell for row in rows for cell in row.cells if cell]
    if not cells or min(cell.value for cell in cells) < 0:
        return None
    unit = rows[0].unit
    tops = [end for cell in cells for end in (cell.value, cell.high) if end is not None]
    axis = Axis(unit, 0.0, 100.0, [0.0, 50.0, 100.0]) if unit == "%" else nice_axis(unit, [0.0, max(tops) or 1.0])

    def panel(row: Row) -> list[Bar]:
        return [
            Bar(
                i,
                axis.at(cell.value),
                None if cell.low is None or cell.high is None else (axis.at(cell.low), axis.at(cell.high)),
                number(cell.value, unit),
            )
            for i, cell in enumerate(row.cells)
            if cell
        ]

    return Bars(table, axis, [(row.title, panel(row)) for row in rows], len(table.rows) - len(rows))


@dataclass
class Histogram:
    model: int
    bins: list[tuple[float, float, float]]  # x, width, height
    mean: float
    above: float  # % of margins above 0
    n: int


@dataclass
class Margins:
    """The distribution of the margins of every model, over one axis and with one height for the same share."""

    axis: Axis
    zero: float
    histograms: list[Histogram]


def margins(values: list[list[float]]) -> Margins | None:
    """Histograms of each model's margins, in nats. The outermost 1 % on either side are drawn in the outermost bins."""
    pooled = sorted(v for one in values for v in one)
    if not pooled:
        return None
    cut = len(pooled) // 100
    axis = nice_axis("log-ratio margin, nats", [*pooled[cut : len(pooled) - cut], 0.0], count=4)
    counts = []
    for one in values:
        count = [0] * BINS
        for v in one:
            count[min(int(axis.at(v) / 100 * BINS), BINS - 1)] += 1
        counts.append(count)
    tallest = max(max(count) / len(one) for count, one in zip(counts, values, strict=True) if one)
    histograms = [
        Histogram(
            i,
            [
                (round(100 * b / BINS, 2), round(100 / BINS, 2), round(100 * c / len(one) / tallest, 2))
                for b, c in enumerate(count)
                if c
            ],
            sum(one) / len(one),
            100 * sum(v > 0 for v in one) / len(one),
            len(one),
        )
        for i, (count, one) in enumerate(zip(counts, values, strict=True))
        if one
    ]
    return Margins(axis, axis.at(0.0), histograms)
