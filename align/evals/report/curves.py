"""Training curves as geometry, from the runs' metrics.jsonl; figures.jinja draws them."""

import math
from dataclasses import dataclass
from pathlib import Path

from align.evals.report.figures import HEIGHTS, LABEL, Axis, nice_axis, shorten
from align.evals.report.tables import missing
from align.log import step_of

POINTS = 160  # of a training curve
CURVES = {
    "loss": "loss",
    "log_ratios/margin": "log-ratio margin, nats",
    "rewards/accuracy": "reward accuracy, %",
    "eval/loss": "held-out loss",
    "eval/log_ratios/margin": "held-out log-ratio margin, nats",
    "eval/rewards/accuracy": "held-out reward accuracy, %",
}


@dataclass
class Line:
    model: int
    path: str
    end: tuple[float, float]
    last: float
    label: str
    label_y: float = 0.0  # px from the mark


@dataclass
class Curves:
    x: Axis
    y: Axis
    lines: list[Line]


def read_metrics(file: str | Path) -> list[dict]:
    """The lines of a metrics.jsonl that are whole; none where there is no such file. Raises UserError."""
    try:
        lines = Path(file).read_bytes().split(b"\n")[:-1]  # after the last end may be half a line
    except OSError:
        return []
    return [step_of(line, f"{file}:{number}") for number, line in enumerate(lines, 1)]


def without_base(metrics: list[list[dict]]) -> list[list[dict]]:
    """The same without the curve of a base that the others start from: sft's loss, say, which would squash theirs.

    A base that was itself compared with a reference, as the others were, stays.
    """

    def rewarded(rows: list[dict]) -> bool:
        return any(name.startswith("rewards/") for row in rows for name in row)

    base, *others = metrics
    return [[], *others] if base and not rewarded(base) and any(map(rewarded, others)) else metrics


def curves(metrics: list[list[dict]], names: list[str]) -> list[Curves]:
    """Loss, margin and accuracy over steps, of the models that have them; long runs as means of equal stretches."""
    panels = []
    for key, label in CURVES.items():
        series = {}
        for i, rows in enumerate(metrics):
            points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            points = [(x, 100 * y if "%" in label else y) for x, y in points if not missing(y)]
            if len(points) > 1:
                series[i] = stretches(points)
        if not series:
            continue
        x = nice_axis("step", [px for points in series.values() for px, _ in points], count=4)
        values = [py for points in series.values() for _, py in points]
        y = nice_axis(label, [0.0, 100.0] if "%" in label else values, count=4)
        lines = []
        for i, points in series.items():
            drawn = [(x.at(px), round(100 - y.at(py), 2)) for px, py in points]
            path = "M" + "L".join(f"{px} {py}" for px, py in drawn)
            lines.append(Line(i, path, drawn[-1], points[-1][1], shorten(names[i], 12)))
        move_apart(lines, HEIGHTS["curves"])
        panels.append(Curves(x, y, lines))
    return panels


def stretches(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS points, each the mean of a stretch of the curve; first and last stay at their ends."""
    size = -(-len(points) // POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    means = [tuple(sum(values) / len(part) for values in zip(*part, strict=True)) for part in parts]
    return [(points[0][0], means[0][1]), *means[1:-1], (points[-1][0], means[-1][1])] if size > 1 else points


def move_apart(lines: list[Line], height: int) -> None:
    """Move the labels at the curves' ends apart, in their order, and keep them beside the plot."""
    ordered = sorted(lines, key=lambda line: (line.end[1], line.model))
    last = -math.inf
    tops = []
    for line in ordered:
        last = max(line.end[1] * height / 100, last + LABEL)
        tops.append(last)
    limit = float(height)
    for i in range(len(tops) - 1, -1, -1):
        tops[i] = limit = min(tops[i], limit)
        limit -= LABEL
    for line, top in zip(ordered, tops, strict=True):
        line.label_y = round(top - line.end[1] * height / 100, 2)
