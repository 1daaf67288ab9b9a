"""How safe, at what cost, on one page: report.html, its markdown twin report.md, and a table for the terminal.

All of it is made from results.json and the metrics.jsonl files that it names; the same files give the same bytes.
"""

import re
from pathlib import Path

from align.evals.report import tables
from align.evals.report.page import render
from align.evals.report.tables import Cell, Row, Table
from align.evals.report.verdicts import subject, verdicts
from align.files import write_text

NAME = 22  # characters of a model's name in the terminal


def write_report(results: dict, folder: Path) -> None:
    """Write report.md and report.html into an existing folder."""
    rows, groups = tables.all_rows(results), tables.group_tables(results)
    pages = {"report.md": markdown(results, rows, groups), "report.html": render(results, rows, groups)}
    for name, text in pages.items():
        # half a surrogate pair, which JSON can hold, has no UTF-8
        write_text(folder / name, text, errors="replace")


def summary_table(results: dict) -> str:
    """The headline as plain text: a row per metric, a column per model; after a value its change against the first model.

    A * marks a change with p < 0.05.
    """
    names = [model["name"] for model in results["models"]]
    rows = tables.headline(tables.all_rows(results))
    lines = [["", *(name if len(name) <= NAME else f"…{name[1 - NAME :]}" for name in names)]]
    lines += [
        [f"{row.title}{f', {row.unit}' if row.unit else ''}", *(plain(row, cell) for cell in row.cells)] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["   ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    failed = [f"{count} failed: {benchmark}, {model}" for model, benchmark, count in tables.failures(results, rows)]
    compared = [f"change against {names[0]}; * p < 0.05"] if len(names) > 1 else []
    return "\n".join([*text, *compared, *failed])


def plain(row: Row, cell: Cell | None) -> str:
    """ "100.0  +48.3*"."""
    if cell is None:
        return "-"
    value = tables.number(cell.value, row.unit)
    if cell.difference is not None:
        value += f"  {tables.signed(cell.difference, row.unit):>6}{'*' if row.verdict(cell) else ' '}"
    return value.replace("−", "-")


def markdown(results: dict, rows: list[Row], groups: list[Table]) -> str:
    """report.md: the verdicts and the tables of report.html."""
    names = [model["name"] for model in results["models"]]
    compared = f", and change against {escape(names[0])} with its p-value" if len(names) > 1 else ""
    named = subject(results)
    blocks = [f"# {escape(named.suites)}: {escape(named.models)}", "How safe, at what cost."]
    blocks += [f"- **{escape(name)}**: {escape(sentence)}." for name, sentence in verdicts(results, rows)]
    for model, benchmark, count in tables.failures(results, rows):
        blocks.append(f"- {escape(model)}, {escape(benchmark)}: {count} failed and left out of the scores.")
    blocks += ["## Scores", f"Value, 95 % interval{compared}; “better” and “worse” where p < {tables.SIGNIFICANT}."]
    blocks.append(score_table("metric", tables.headline(rows), names))
    if len(tables.headline(rows)) < len(rows):
        order = [tables.JUDGES_ORDER] if any(row.judge for row in rows) else []
        blocks += ["## Every other score", *order, score_table("metric", [row for row in rows if not row.axis], names)]
    for table in groups:
        blocks += [f"## {escape(table.caption)}", f"{table.rows[0].direction}."]
        blocks.append(score_table(table.head, table.rows, names, grouped=True))
    if results["agreements"]:
        head = ["benchmark", "judges", "verdict", "model", "agree, %", "κ", "n"]
        blocks += ["## Do the judges agree?", grid(head, agreement_entries(results))]
    head = ["benchmark", "suite", "kind", "n", "judges"]
    about = [
        [b["title"], b["suite"], b["kind"], b["n"], ", ".join(b["judges"]) or "none"] for b in results["benchmarks"]
    ]
    blocks += ["## How the numbers were made", *tables.METHODS, grid(head, about)]
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(blocks)) + "\n"


def score_table(head: str, rows: list[Row], names: list[str], grouped: bool = False) -> str:
    def entry(row: Row, cell: Cell | None) -> str:
        if cell is None:
            return "–"
        ends = tables.interval(cell, row.unit)
        change = tables.change(row, cell)
        return tables.number(cell.value, row.unit) + (f" ({ends})" if ends else "") + (f"; {change}" if change else "")

    def title(row: Row) -> str:
        return f"{row.title} ({row.about(grouped)})" if row.about(grouped) else row.title

    return grid([head, *names], [[title(row), *(entry(row, cell) for cell in row.cells)] for row in rows])


def agreement_entries(results: dict) -> list[list]:
    titles = {benchmark["name"]: benchmark["title"] for benchmark in results["benchmarks"]}
    entries = []
    for a in results["agreements"]:
        kappa = "–" if a["kappa"] is None else tables.number(a["kappa"], "")
        about = [titles[a["benchmark"]], ", ".join(a["judges"]), a["verdict"], a["model"] or "all"]
        entries.append([*about, tables.number(100 * a["agree"]), kappa, a["n"]])
    return entries


def grid(head: list[str], entries: list[list]) -> str:
    first, *rest = [f"| {' | '.join(map(escape, line))} |" for line in (head, *entries)]
    return "\n".join([first, "| --- " * len(head) + "|", *rest])


def escape(text: object) -> str:
    """Text that markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]|~]|<(?=\S)|&(?=[#\w]))", r"\\\1", " ".join(str(text).split()))
