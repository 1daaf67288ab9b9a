"""docs/results.svg: what safety costs, by method and recipe, from the result lines.

python -m benchmarks.reproduce.figure [--output docs/results.svg]

matplotlib is needed: pip install '.[figures]'.
"""

import argparse
import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from align import command
from align.files import write_text
from align.losses.figures import CHOSEN, PALE, REJECTED, STYLE, VALUE
from align.losses.svg import small
from benchmarks import records
from benchmarks.reproduce import lines
from benchmarks.reproduce.cures import ADAPTED
from benchmarks.reproduce.experiment import PAPER, full
from benchmarks.reproduce.results import Results

PANELS = {"ability": "mean ability, %", "maths": "maths, %"}
LOWEST = 80.0  # % of global safety: what is less safe stands at the edge
LABELS = 29  # that have room beneath each other
Label = tuple[float, float, str, str]  # where its point is, y and x, the text, and its colour


def draw(results: Results) -> str:
    """An SVG of a panel each: every method's and recipe's mean, with its interval both ways."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.8, 4.4), layout="constrained")
        axes = figure.subplots(1, len(PANELS))
        for ax, (key, label) in zip(axes, PANELS.items(), strict=True):
            ax.set(xlabel="global safety, %", ylabel=label, xlim=(LOWEST - 0.5, 100.4))
            panel(ax, results, key)
        handles, labels = axes[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axes[0].legend(unique.values(), unique.keys(), loc="lower left", frameon=False)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return small(out.getvalue())


def panel(ax: Axes, results: Results, key: str) -> None:
    base = results.share("base", key).mean
    ax.axhline(base, color=PALE, linewidth=0.8, zorder=0)
    ax.annotate("the base model", (LOWEST, base), xytext=(0, 2), textcoords="offset points", color=VALUE, fontsize=6.5)
    named: list[Label] = []
    for name in list(results.stages)[1:]:
        if results.stages[name] == "part":
            continue
        color, what = kind(name, results.stages[name])
        x, y = results.share(name, "global"), results.share(name, key)
        at = max(x.mean, LOWEST)
        ax.plot([max(x.low, LOWEST), max(x.high, LOWEST)], [y.mean, y.mean], color=color, linewidth=0.7, alpha=0.5)
        ax.plot([at, at], [y.low, y.high], color=color, linewidth=0.7, alpha=0.5)
        ax.plot(at, y.mean, "o" if results.stages[name] == "method" else "s", color=color, markersize=4, label=what)
        if results.stages[name] != "cure" or name == ADAPTED:
            named.append((y.mean, at, name, color))
    annotate(ax, named)


def annotate(ax: Axes, named: list[Label]) -> None:
    """Names in a column beside the panel, each with a line to its point: many points lie on one another."""
    low, high = ax.get_ylim()
    named = sorted(named, reverse=True)
    heights = spread([y for y, *_ in named], (high - low) / LABELS)
    for (y, at, name, color), height in zip(named, heights, strict=True):
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.3, "shrinkA": 0, "relpos": (0, 0.5)}
        ax.annotate(name, (at, y), xytext=(101.2, height), va="center", color=color, fontsize=6.5, arrowprops=line)


def spread(falling: list[float], least: float) -> list[float]:
    """The numbers with `least` or more between neighbours: halfway between making room downwards and upwards."""
    down, up = list(falling), list(falling)
    for i in range(1, len(down)):
        down[i] = min(down[i], down[i - 1] - least)
        up[-1 - i] = max(up[-1 - i], up[-i] + least)
    return [(a + b) / 2 for a, b in zip(down, up, strict=True)]


def kind(name: str, stage: str) -> tuple[str, str]:
    if stage == "method":
        return (CHOSEN, "the paper's ten") if name in PAPER else (VALUE, "six more")
    return (REJECTED, "recipes that should remove the price")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce.figure", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=records.ROOT / "docs" / "results.svg")
    args = parser.parse_args(argv)
    found = lines.read(records.FOLDER / "reproduce-cpu.jsonl")
    return command.attempt(lambda: write_text(args.output, draw(Results(found, full()))))


if __name__ == "__main__":
    command.run(main)
