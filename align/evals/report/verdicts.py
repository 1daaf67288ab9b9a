"""What a report is about, and what it finds, each in a sentence."""

from dataclasses import dataclass

from align.evals.report.tables import Cell, Row, headline, number, p_value, short_title, signed

LISTED = 3  # losses that a verdict names, the largest first


@dataclass
class Subject:
    """What a report is about."""

    suites: str
    models: str


def subject(results: dict) -> Subject:
    """The suites by their titles, and "nca and dpo against base"; the number of models where naming all takes too long."""
    suites = results.get("suites") or {benchmark["suite"]: benchmark["suite"] for benchmark in results["benchmarks"]}
    base, *others = [model["name"] for model in results["models"]]
    named = " and ".join(filter(None, [", ".join(others[:-1]), *others[-1:]]))
    named = named if len(others) <= LISTED else f"{len(others)} models"
    return Subject(", ".join(suites.values()), f"{named} against {base}" if others else base)


def verdicts(results: dict, rows: list[Row]) -> list[tuple[str, str]]:
    """(model, sentence) of every model but the base; of the base alone where there is no other."""
    models = [model["name"] for model in results["models"]]
    safety = next((row for row in rows if row.axis == "safety"), None)
    if len(models) == 1:
        levels = [
            f"{short_title(row)} {number(row.cells[0].value, row.unit)}" for row in headline(rows) if row.cells[0]
        ]
        return [(models[0], ", ".join(levels) or "nothing was measured")]
    return [
        (model, f"{gained(rows, safety, i)}{stammers(rows, i)}; {price(rows, i)}{less_safe(rows, safety, i)}")
        for i, model in enumerate(models)
        if i
    ]


def gained(rows: list[Row], row: Row | None, model: int) -> str:
    """ "global safety score 51.7 → 100.0 (+48.3, p < 0.001)"."""
    if row is None or row.cells[model] is None:
        return "safety was not measured"
    base, cell = row.cells[0], row.cells[model]
    if base is None:
        return f"{short_title(row)} {number(cell.value, row.unit)}"
    p = p_value(cell.p)
    if not p and row.benchmark is None:
        tested = [r for r in rows if r.axis == "safety" and r.cells[model] and r.cells[model].p is not None]
        safer = sum(r.verdict(r.cells[model]) == "better" for r in tested)
        if tested and safer == len(tested):
            p = f"{p_value(max(r.cells[model].p for r in tested)).replace('=', '≤')} on each safety metric"
        elif tested:
            p = f"significantly safer on {safer} of {len(tested)} safety metrics"
    change = ", ".join(filter(None, [signed(cell.difference, row.unit), p]))
    return f"{short_title(row)} {number(base.value, row.unit)} → {number(cell.value, row.unit)} ({change})"


def stammers(rows: list[Row], model: int) -> str:
    """ "; plain requests degenerate responses 14.8 %": safety is not told without what it may be made of."""
    seen = [row for row in rows if row.axis == "text" and row.unit == "%" and row.cells[model]]
    seen = [row for row in seen if row.cells[model].value > 0]
    return "".join(f"; {short_title(row)} {number(row.cells[model].value)} %" for row in seen)


def price(rows: list[Row], model: int) -> str:
    """ "the price: maths −25.8, helpfulness −100.0": what got significantly worse, or was not tested."""
    paid = [row for row in rows if row.axis in ("capability", "over-refusal") and row.benchmark is not None]
    paid = [row for row in paid if row.cells[model] and row.cells[model].difference is not None]
    if not paid:
        return "the price was not measured"
    lost = [
        row
        for row in paid
        if row.verdict(row.cells[model]) == "worse"
        or (row.cells[model].p is None and row.cells[model].difference and not row.improved(row.cells[model]))
    ]
    # what a model no longer can and that it refuses to, on the same prompts, is one price
    lost.sort(key=lambda row: row.axis != "capability")
    lost = list({row.benchmark: row for row in reversed(lost)}.values())
    lost.sort(key=lambda row: (row.unit != "%", -abs(row.cells[model].difference)))
    if not lost:
        return f"no significant loss in {len(paid)} measure{'s' * (len(paid) > 1)} of capability and over-refusal"
    named = [changed(row, row.cells[model]) for row in lost[:LISTED]]
    more = f", and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    return f"the price: {', '.join(named)}{more}"


def less_safe(rows: list[Row], headline_row: Row | None, model: int) -> str:
    """A safety metric that got worse must not hide behind the one that the sentence opens with."""
    worse = [row for row in rows if row.axis == "safety" and row is not headline_row]
    worse = [row for row in worse if row.verdict(row.cells[model]) == "worse"]
    return f"; less safe: {', '.join(changed(row, row.cells[model]) for row in worse)}" if worse else ""


def changed(row: Row, cell: Cell) -> str:
    return f"{short_title(row)} {signed(cell.difference, row.unit)}{'' if cell.p is not None else ' (not tested)'}"
