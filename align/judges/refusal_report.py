"""The refusal judge compared with XSTest's human labels: accuracy, F1 and errors per model.

python -m align.judges.refusal_report --xstest DIR             the table
python -m align.judges.refusal_report --xstest DIR --errors    and every response that it gets wrong, with the evidence

DIR holds XSTest's xstest_v2_completions_MODEL.csv (Röttger et al. 2023, github.com/paul-rottger/xstest), with columns
prompt, completion and final_label. Partial refusals are scored both ways: as refusals, and left out.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import NamedTuple

from align import command
from align.errors import UserError
from align.judges.refusal import evidence, is_refusal

PREFIX = "xstest_v2_completions_"
COMPLIANCE, REFUSAL, PARTIAL = LABELS = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")


class Agreement(NamedTuple):
    """Counts of responses: the judge's verdict (positive: a refusal) and the human label."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def accuracy(self) -> float:
        return (self.true_positives + self.true_negatives) / sum(self)

    @property
    def precision(self) -> float:
        return self.true_positives / max(1, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        return self.true_positives / max(1, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        return 2 * self.true_positives / max(1, 2 * self.true_positives + self.false_positives + self.false_negatives)


def load_responses(folder: str | Path) -> dict[str, list[dict]]:
    """XSTest's rows by model. Raises UserError for a folder without any, or a file or row that is not of that kind."""
    files = sorted(Path(folder).glob(f"{PREFIX}*.csv"))
    if not files:
        raise UserError(f"{folder}: no {PREFIX}MODEL.csv in it; they are in github.com/paul-rottger/xstest")
    responses = {}
    for file in files:
        try:
            with file.open(newline="", encoding="utf-8") as lines:
                rows = list(csv.DictReader(lines))
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file}: not a CSV file in UTF-8 ({error}); fetch it again") from None
        for number, row in enumerate(rows, start=2):
            missing = [key for key in ("prompt", "completion", "final_label") if row.get(key) is None]
            if missing:
                raise UserError(f"{file}: row {number} has no {missing[0]}; XSTest's column of that name is needed")
            if row["final_label"] not in LABELS:
                raise UserError(
                    f"{file}: row {number}: final_label {row['final_label']!r} is none of {', '.join(LABELS)}"
                )
        if not rows:
            raise UserError(f"{file}: no rows; give a file with responses")
        responses[file.stem.removeprefix(PREFIX)] = rows
    return responses


def agreement(rows: list[dict], keep_partial: bool) -> Agreement:
    """The judge against the labels; partial refusals are refusals, or left out."""
    rows = [row for row in rows if keep_partial or row["final_label"] != PARTIAL]
    pairs = [(is_refusal(row["completion"]), row["final_label"] != COMPLIANCE) for row in rows]
    return Agreement(*map(pairs.count, [(True, True), (True, False), (False, True), (False, False)]))


def table(responses: dict[str, list[dict]]) -> str:
    """One line per model and way of counting partial refusals."""
    width = max(map(len, [*responses, "model"]))
    lines = [f"{'model':{width}}  partial refusals    n  accuracy    F1  precision  recall  false pos.  false neg."]
    for model, rows in responses.items():
        for keep_partial in (True, False):
            a = agreement(rows, keep_partial)
            lines.append(
                f"{model:{width}}  {'refusals' if keep_partial else 'left out':16}  {sum(a):3}  {100 * a.accuracy:8.1f}"
                f"  {100 * a.f1:4.1f}  {100 * a.precision:9.1f}  {100 * a.recall:6.1f}  {a.false_positives:10}"
                f"  {a.false_negatives:10}"
            )
    return "\n".join(lines)


def errors(responses: dict[str, list[dict]]) -> str:
    """Every response on which the judge and the label differ, partial refusals taken as refusals."""
    lines = []
    for model, rows in responses.items():
        for row in rows:
            if is_refusal(row["completion"]) != (row["final_label"] != COMPLIANCE):
                found = ", ".join(f"{name} {points:+.1f}" for name, points in evidence(row["completion"]).items())
                lines += [f"{model}, {row['final_label']}: {row['prompt']}", f"  {' '.join(row['completion'].split())}"]
                lines += [f"  evidence: {found or 'none'}", ""]
    return "\n".join(lines).rstrip()


def main(argv: list[str]) -> int:
    """Exit status: 0, or 2 for a folder or file of another kind."""
    parser = argparse.ArgumentParser(
        prog="python -m align.judges.refusal_report",
        description="The refusal judge compared with XSTest's human labels.",
    )
    parser.add_argument("--xstest", metavar="DIR", required=True, help=f"folder with {PREFIX}MODEL.csv")
    parser.add_argument("--errors", action="store_true", help="also print every response that the judge gets wrong")
    args = parser.parse_args(argv)
    try:
        responses = load_responses(args.xstest)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(responses))
    if args.errors:
        print("\n" + errors(responses))
    return 0


if __name__ == "__main__":
    command.run(main)
