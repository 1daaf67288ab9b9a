"""Training runs side by side: their curves as one page, their last values and what their settings differ in as tables."""

from dataclasses import dataclass
from pathlib import Path

from align.errors import UserError
from align.evals.report.curves import CURVES, curves, read_metrics
from align.evals.report.page import HERE, environment, flat
from align.evals.report.tables import missing, number
from align.files import read_toml, write_text, writing


@dataclass
class TrainingRun:
    name: str
    metrics: list[dict]
    settings: dict[str, str]  # of its config.toml, as dotted keys


def read_runs(paths: list[str]) -> list[TrainingRun]:
    """Runs of train.py, by their folders. Raises UserError naming one that has no metrics."""
    runs = []
    names = [Path(path).name or Path(path).resolve().name for path in paths]
    for path, name in zip(paths, names, strict=True):
        folder = Path(path)
        if not (metrics := read_metrics(folder / "metrics.jsonl")):
            raise UserError(f"--curves {path}: no metrics.jsonl with a step in it; give the --output of a train.py run")
        file = folder / "config.toml"
        settings = dict(flat(read_toml(file))) if file.exists() else {}
        runs.append(TrainingRun(name if names.count(name) == 1 else path, metrics, settings))
    return runs


def last_values(runs: list[TrainingRun]) -> list[list[str]]:
    """A row a curve: what it shows, and where each run ends, with the step."""

    def end(run: TrainingRun, key: str, percent: bool) -> str:
        known = [(row[key], row["step"]) for row in run.metrics if not missing(row.get(key))]
        return f"{number(known[-1][0] * (100 if percent else 1), '')} at step {known[-1][1]}" if known else "–"

    rows = [[label, *(end(run, key, "%" in label) for run in runs)] for key, label in CURVES.items()]
    return [row for row in rows if set(row[1:]) != {"–"}]


def differing(runs: list[TrainingRun]) -> list[list[str]]:
    """A row a setting that is not the same in all runs; their outputs never are."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key != "output")
    rows = [[key, *(run.settings.get(key, "–") for run in runs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def write_curves(paths: list[str], folder: Path) -> str:
    """Write folder/curves.html and return its tables as text. Raises UserError."""
    runs = read_runs(paths)
    names = [run.name for run in runs]
    tables = {"Where they end": last_values(runs), "Where their settings differ": differing(runs)}
    page = (
        environment()
        .get_template("curves.html.jinja")
        .render(
            names=names,
            curves=curves([run.metrics for run in runs], names),
            tables={title: rows for title, rows in tables.items() if rows},
            style=(HERE / "page.css").read_text(encoding="utf-8"),
        )
    )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "curves.html", page)
    lines = [["", *names], *(row for rows in tables.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
