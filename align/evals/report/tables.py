"""results.json as rows, one per metric, with one cell per model; the headline rows, and what they say in a sentence."""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

AXES = {
    "safety": "Safety",
    "text": "What the responses are like: a model that stammers is not a safe one",
    "over-refusal": "Over-refusal: refusing what is harmless",
    "capability": "Capability",
    None: "Other measures",
}
SIGNIFICANT = 0.05
JUDGES_ORDER = (
    "A suite names the judges of a benchmark in order: the first gives its scores, and what a later one says of the same "
    "responses is among the other measures, as “by” that judge."
)
METHODS = (
    "Scores leave out the prompts that failed; percentages are of the others.",
    "95 % intervals: Wilson’s for percentages of yes and no, the percentile bootstrap for other means, and distances added "
    "in squares for a summary. They hold for prompts drawn independently; where prompts are variations of a few, as in "
    "adversarial sets, the true interval is wider.",
    "p-values compare a model with the first one on the same prompts: McNemar’s exact test for yes and no, the sign-flip "
    "test for other means, both two-sided and adjusted for the number of models compared (Holm).",
    JUDGES_ORDER,
)


@dataclass
class Cell:
    """A score of one model: its value, the ends of its 95 % interval, and its change against the base."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    failed: int = 0
    difference: float | None = None
    p: float | None = None


@dataclass
class Row:
    """A metric, or a summary of several, of every model; None where a model has no value."""

    title: str
    unit: str
    better: str  # "higher", "lower" or "" for neither
    axis: str | None
    cells: list[Cell | None]
    benchmark: str | None = None  # None: a summary
    metric: str = ""
    judge: str = ""  # a later judge of the benchmark, whose verdicts these are

    @property
    def size(self) -> str:
        """How many prompts the values come from: one number, or the range over the models."""
        counts = sorted({cell.n for cell in self.cells if cell and cell.n is not None})
        return f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else f"{counts[0]}" if counts else ""

    @property
    def direction(self) -> str:
        """ "%, higher is better"."""
        return ", ".join(filter(None, [self.unit, self.better and f"{self.better} is better"]))

    def about(self, grouped: bool = False) -> str:
        """What follows a title: unit, direction, prompts; only the prompts where the caption has the rest."""
        parts = [self.direction] if self.direction and not grouped else []
        return ", ".join([*parts, *([f"n = {self.size}"] if self.size else [])])

    def improved(self, difference: float) -> bool:
        return (difference > 0) == (self.better == "higher")

    def verdict(self, cell: Cell | None) -> str:
        """ "better" or "worse" for a significant change, "" for any other."""
        if cell is None or not self.better or not cell.difference or cell.p is None or cell.p >= SIGNIFICANT:
            return ""
        return "better" if self.improved(cell.difference) else "worse"


@dataclass
class Table:
    """Rows under one caption."""

    caption: str
    head: str  # what the first column holds
    rows: list[Row]


Estimate = tuple[float, float | None, float | None]  # a value and the ends of its interval
Side = tuple[str, list[Estimate | None]]  # of the trade-off: what it is, and the estimate of every model


def all_rows(results: dict) -> list[Row]:
    """Every summary and every metric over a whole benchmark: safety first, then over-refusal, capability and the rest."""
    models = [model["name"] for model in results["models"]]
    changes = {
        (c["model"], c.get("benchmark"), c["metric"]): c
        for c in results["comparisons"]
        if models and c["against"] == models[0]
    }

    def cell(score: dict | None, benchmark: str | None, metric: str) -> Cell | None:
        if score is None or missing(score["value"]):
            return None
        change = changes.get((score["model"], benchmark, metric), {})
        return Cell(
            score["value"],
            low=None if missing(score.get("low")) else score["low"],
            high=None if missing(score.get("high")) else score["high"],
            n=score.get("n"),
            failed=score.get("failed", 0),
            difference=change.get("difference"),
            p=change.get("p"),
        )

    rows = []
    summaries = {(s["name"], s["model"]): s for s in results["summaries"]}
    for name, about in {s["name"]: s for s in results["summaries"]}.items():
        cells = [cell(summaries.get((name, model)), None, name) for model in models]
        row = Row(about["title"], about["unit"], about["better"], about.get("axis"), cells, None, name)
        rows.append(with_differences(row))
    whole = {(s["benchmark"], s["metric"], s["model"]): s for s in results["scores"] if not s.get("group")}
    for benchmark in results["benchmarks"]:
        for metric, about in benchmark["metrics"].items():
            cells = [cell(whole.get((benchmark["name"], metric, m)), benchmark["name"], metric) for m in models]
            title = f"{benchmark['title']}: {about['title']}"
            judge = next((judge for judge in benchmark["judges"] if metric.endswith(f"/{judge}")), "")
            row = Row(title, about["unit"], about["better"], about.get("axis"), cells, benchmark["name"], metric, judge)
            rows.append(with_differences(row))
    order = list(AXES)
    return sorted(rows, key=lambda row: order.index(row.axis) if row.axis in AXES else len(order))


def with_differences(row: Row) -> Row:
    """Where no comparison was made, the change is still the difference of the two values."""
    base = row.cells[0] if row.cells else None
    for cell in row.cells[1:]:
        if base and cell and cell.difference is None:
            cell.difference = cell.value - base.value
    return row


def headline(rows: list[Row]) -> list[Row]:
    """What the first table shows: the rows on a side of the trade-off, or all rows where there are none."""
    return [row for row in rows if row.axis] or rows


def group_tables(results: dict) -> list[Table]:
    """For every benchmark, metric and kind of group (category, attack type) one table; S2 comes before S10."""
    models = [model["name"] for model in results["models"]]
    found: dict[tuple[str, str, str], dict[str, dict[str, dict]]] = {}
    for score in results["scores"]:
        for kind, group in (score.get("group") or {}).items():
            groups = found.setdefault((score["benchmark"], score["metric"], kind), {})
            groups.setdefault(str(group), {})[score["model"]] = score
    tables = []
    for benchmark in results["benchmarks"]:
        for metric, about in benchmark["metrics"].items():
            for (name, measured, kind), groups in found.items():
                if (name, measured) != (benchmark["name"], metric):
                    continue
                rows = []
                for group, scores in sorted(groups.items(), key=lambda entry: natural(entry[0])):
                    shown = [scores.get(model) for model in models]
                    cells = [
                        Cell(s["value"], s.get("low"), s.get("high"), s.get("n"), s.get("failed", 0))
                        if s and not missing(s["value"])
                        else None
                        for s in shown
                    ]
                    rows.append(Row(group, about["unit"], about["better"], about.get("axis"), cells, name, metric))
                tables.append(Table(f"{benchmark['title']}: {about['title']} by {kind}", kind, rows))
    return tables


def natural(text: str) -> list[tuple[int, str]]:
    """A sort key that compares digits as numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def side_rows(rows: list[Row], axis: str) -> list[Row]:
    """What one side of the trade-off is made of: the first summary of that axis, or else its metrics in percent."""
    rows = [row for row in rows if row.axis == axis and row.unit == "%"]
    return [row for row in rows if row.benchmark is None][:1] or rows


def side_titles(rows: list[Row], axis: str) -> tuple[list[str], list[str]]:
    """The titles that a side is the mean of, and those left out because they are not in percent."""
    used = side_rows(rows, axis)
    unused = [
        row for row in rows if row.axis == axis and row.unit != "%" and (not used or used[0].benchmark is not None)
    ]
    named = [short_title(row) if row.better == "higher" else f"100 − {short_title(row)}" for row in used]
    return named, [short_title(row) for row in unused]


def side(rows: list[Row], axis: str) -> Side:
    """One side of the trade-off, in percent, higher being better.

    A metric that is better lower counts as its complement. The mean of several metrics has no interval.
    """
    rows = side_rows(rows, axis)
    if not rows:
        return "", []

    def upwards(row: Row, cell: Cell) -> Estimate:
        if row.better == "higher":
            return cell.value, cell.low, cell.high
        low, high = (None if end is None else 100 - end for end in (cell.high, cell.low))
        return 100 - cell.value, low, high

    points: list[Estimate | None] = []
    for cells in zip(*(row.cells for row in rows), strict=True):
        known = [upwards(row, cell) for row, cell in zip(rows, cells, strict=True) if cell]
        if len(known) < len(rows):
            points.append(None)
        elif len(rows) == 1:
            points.append(known[0])
        else:
            points.append((sum(value for value, _, _ in known) / len(known), None, None))
    if len(rows) > 1:
        return f"mean of {len(rows)} {axis} metrics, %", points
    return (rows[0].title if rows[0].better == "higher" else f"100 − {rows[0].title}") + ", %", points


def having(rows: list[Row], model: int) -> Iterator[tuple[Row, Cell]]:
    """The rows in which a model has a value, with its cell."""
    for row in rows:
        cell = row.cells[model]
        if cell:
            yield row, cell


def short_title(row: Row) -> str:
    """A title within a sentence: without its explanation in brackets, and no colon."""
    return row.title.partition(" (")[0].replace(": ", " ")


def missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def number(value: float, unit: str = "%") -> str:
    """Percent with one decimal; anything else to a thousandth where it is small."""
    digits = 1 if unit == "%" or abs(value) >= 100 else 2 if abs(value) >= 1 else 3
    text = f"{value:.{digits}f}".replace("-", "−")
    return text.removeprefix("−") if not float(text.replace("−", "-")) else text


def signed(value: float | None, unit: str = "%") -> str:
    """A change with its sign, or "" where there is none."""
    if value is None:
        return ""
    text = number(value, unit)
    return text if text.startswith("−") or not float(text) else f"+{text}"


def interval(cell: Cell, unit: str = "%") -> str:
    """ "76.6 to 89.6", or "" where there is none."""
    return "" if cell.low is None or cell.high is None else f"{number(cell.low, unit)} to {number(cell.high, unit)}"


def p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def change(row: Row, cell: Cell) -> str:
    """ "+48.3 better, p < 0.001", or "" where there is nothing to compare with."""
    if cell.difference is None:
        return ""
    signs = f"{signed(cell.difference, row.unit)} {row.verdict(cell)}".rstrip()
    return ", ".join(filter(None, [signs, p_value(cell.p)]))


def failures(results: dict, rows: Iterable[Row]) -> list[tuple[str, str, int]]:
    """(model, benchmark's title, prompts that failed), wherever some did: they are in no score."""
    titles = {benchmark["name"]: benchmark["title"] for benchmark in results["benchmarks"]}
    seen = {}
    for row in rows:
        for model, cell in zip(results["models"], row.cells, strict=True):
            if cell and cell.failed and row.benchmark is not None:
                seen[model["name"], titles[row.benchmark]] = cell.failed
    return [(*key, failed) for key, failed in seen.items()]
