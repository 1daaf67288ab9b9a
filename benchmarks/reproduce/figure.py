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


def draw(results: Results) -> str:
    """An SVG of a panel each: every method's and recipe's mean, with its interval both ways."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4.4), layout="constrained")
        axes = figure.subplots(1, len(PANELS))
        for ax, (key, label) in zip(axes, PANELS.items(), strict=True):
            panel(ax, results, key)
            ax.set(xlabel="global safety, %", ylabel=label, xlim=(LOWEST - 0.5, 100.4))
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
            ax.annotate(name, (at, y.mean), xytext=(4, 2), textcoords="offset points", color=color, fontsize=6.5)


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
