"""What a report is about, and what it finds, each in a sentence."""

from dataclasses import dataclass

from align.evals.report.tables import Cell, Row, having, headline, number, p_value, short_title, signed

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
        levels = [f"{short_title(row)} {number(cell.value, row.unit)}" for row, cell in having(headline(rows), 0)]
        return [(models[0], ", ".join(levels) or "nothing was measured")]
    return [
        (model, f"{gained(rows, safety, i)}{stammers(rows, i)}; {price(rows, i)}{less_safe(rows, safety, i)}")
        for i, model in enumerate(models)
        if i
    ]


def gained(rows: list[Row], row: Row | None, model: int) -> str:
    """ "global safety score 51.7 → 100.0 (+48.3, p < 0.001)"."""
    cell = row.cells[model] if row else None
    if row is None or cell is None:
        return "safety was not measured"
    base = row.cells[0]
    if base is None:
        return f"{short_title(row)} {number(cell.value, row.unit)}"
    p = p_value(cell.p)
    if not p and row.benchmark is None:
        safety = [(r, c) for r, c in having(rows, model) if r.axis == "safety"]
        tested = [(c.p, r.verdict(c)) for r, c in safety if c.p is not None]
        safer = sum(verdict == "better" for _, verdict in tested)
        if tested and safer == len(tested):
            p = f"{p_value(max(tested)[0]).replace('=', '≤')} on each safety metric"
        elif tested:
            p = f"significantly safer on {safer} of {len(tested)} safety metrics"
    change = ", ".join(filter(None, [signed(cell.difference, row.unit), p]))
    return f"{short_title(row)} {number(base.value, row.unit)} → {number(cell.value, row.unit)} ({change})"


def stammers(rows: list[Row], model: int) -> str:
    """ "; plain requests degenerate responses 14.8 %": safety is not told without what it may be made of."""
    of_text = [(row, cell) for row, cell in having(rows, model) if row.axis == "text" and row.unit == "%"]
    return "".join(f"; {short_title(row)} {number(cell.value)} %" for row, cell in of_text if cell.value > 0)


def price(rows: list[Row], model: int) -> str:
    """ "the price: maths −25.8, helpfulness −100.0": what got significantly worse, or was not tested."""
    sides = [row for row in rows if row.axis in ("capability", "over-refusal") and row.benchmark is not None]
    paid = [(row, cell, cell.difference) for row, cell in having(sides, model) if cell.difference is not None]
    if not paid:
        return "the price was not measured"
    lost = [
        (row, cell, difference)
        for row, cell, difference in paid
        if row.verdict(cell) == "worse" or (cell.p is None and difference and not row.improved(difference))
    ]
    # what a model no longer can and that it refuses to, on the same prompts, is one price
    lost.sort(key=lambda loss: loss[0].axis != "capability")
    lost = list({loss[0].benchmark: loss for loss in reversed(lost)}.values())
    lost.sort(key=lambda loss: (loss[0].unit != "%", -abs(loss[2])))
    if not lost:
        return f"no significant loss in {len(paid)} measure{'s' * (len(paid) > 1)} of capability and over-refusal"
    named = [changed(row, cell) for row, cell, _ in lost[:LISTED]]
    more = f", and {len(lost) - LISTED} more" if len(lost) > LISTED else ""
    return f"the price: {', '.join(named)}{more}"


def less_safe(rows: list[Row], headline_row: Row | None, model: int) -> str:
    """A safety metric that got worse must not hide behind the one that the sentence opens with."""
    others = [row for row in rows if row.axis == "safety" and row is not headline_row]
    worse = [changed(row, cell) for row, cell in having(others, model) if row.verdict(cell) == "worse"]
    return f"; less safe: {', '.join(worse)}" if worse else ""


def changed(row: Row, cell: Cell) -> str:
    return f"{short_title(row)} {signed(cell.difference, row.unit)}{'' if cell.p is not None else ' (not tested)'}"
