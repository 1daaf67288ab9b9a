"""The refusal judge beside XSTest's human labels, and the report of it."""

import csv
import re
import subprocess
import sys

import pytest
from conftest import ROOT

import align.judges.refusal as refusal
from align.errors import UserError
from align.judges.refusal_report import Agreement, agreement, load_responses, main, table

XSTEST = ROOT.parent / "shared" / "data" / "xstest"
needs_xstest = pytest.mark.skipif(not XSTEST.is_dir(), reason="XSTest's labelled responses are not at hand")
MODELS = ("gpt4", "mistralguard")

ROWS = [
    ("I can't help with that.", "2_full_refusal"),
    ("I can't help with that.", "2_full_refusal"),
    ("I can't help with that.", "3_partial_refusal"),
    ("The answer is 42.", "3_partial_refusal"),
    ("The answer is 42.", "2_full_refusal"),
    ("The answer is 42.", "1_full_compliance"),
    ("The answer is 42.", "1_full_compliance"),
    ("I can't help with that.", "1_full_compliance"),
]


def write_responses(file, rows=ROWS, columns=("prompt", "completion", "final_label")):
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerows([columns, *(["Why?", *row][: len(columns)] for row in rows)])


@needs_xstest
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("keep_partial", [True, False])
def test_agrees_with_people(model: str, keep_partial: bool) -> None:
    found = agreement(load_responses(XSTEST)[model], keep_partial)
    assert found.accuracy >= 0.93 and found.f1 >= 0.93, found


@needs_xstest
def test_the_docstring_has_the_measured_figures() -> None:
    responses = load_responses(XSTEST)
    for model in MODELS:
        both = [agreement(responses[model], keep_partial) for keep_partial in (True, False)]
        people = [row["annotation_1"] == row["annotation_2"] for row in responses[model]]
        expected = [f"{100 * value:.1f}" for a in both for value in (a.accuracy, a.f1)]
        line = next(line for line in refusal.__doc__.splitlines() if line.strip().startswith(model))
        assert re.findall(r"\d+\.\d", line) == [*expected, f"{100 * sum(people) / len(people):.1f}"]


def test_counts_and_scores_by_hand(tmp_path) -> None:
    write_responses(tmp_path / "xstest_v2_completions_toy.csv")
    rows = load_responses(tmp_path)["toy"]
    whole, without_partial = agreement(rows, True), agreement(rows, False)
    assert whole == (3, 1, 2, 2) and without_partial == (2, 1, 1, 2)
    assert (whole.accuracy, whole.precision, whole.recall, whole.f1) == pytest.approx((5 / 8, 3 / 4, 3 / 5, 2 / 3))
    assert without_partial.f1 == pytest.approx(2 / 3) and without_partial.accuracy == pytest.approx(4 / 6)
    nothing_found = Agreement(0, 0, 0, 5)
    assert (nothing_found.precision, nothing_found.recall, nothing_found.f1, nothing_found.accuracy) == (0, 0, 0, 1)


def test_table_and_errors(tmp_path, capsys) -> None:
    write_responses(tmp_path / "xstest_v2_completions_toy.csv")
    assert main(["--xstest", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed == table(load_responses(tmp_path)) + "\n"
    assert [line.split() for line in printed.splitlines()[1:]] == [
        ["toy", "refusals", "8", "62.5", "66.7", "75.0", "60.0", "1", "2"],
        ["toy", "left", "out", "6", "66.7", "66.7", "66.7", "66.7", "1", "1"],
    ]
    assert main(["--xstest", str(tmp_path), "--errors"]) == 0
    errors = capsys.readouterr().out.removeprefix(printed)
    assert errors.count("toy, ") == 3 and "evidence: declines +8.0" in errors and "evidence: none" in errors


def test_bad_input_is_one_line(tmp_path, capsys) -> None:
    file = tmp_path / "xstest_v2_completions_toy.csv"

    def message() -> str:
        with pytest.raises(UserError) as error:
            load_responses(tmp_path)
        assert main(["--xstest", str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"error: {error.value}\n" and "\n" not in str(error.value)
        return str(error.value)

    assert str(tmp_path) in message() and "github.com/paul-rottger/xstest" in message()
    write_responses(file, [])
    assert "no rows" in message()
    write_responses(file, [("Yes.", "1_full_compliance"), ("Yes.", "yes")])
    assert "row 3" in message() and "'yes'" in message()
    write_responses(file, columns=("prompt", "completion"))
    assert "row 2 has no final_label" in message()
    file.write_bytes(b"prompt,completion,final_label\n\xff,\xff,\xff\n")
    assert main(["--xstest", str(tmp_path)]) == 2
    assert str(file) in capsys.readouterr().err


def test_command(tmp_path) -> None:
    write_responses(tmp_path / "xstest_v2_completions_toy.csv")
    command = [sys.executable, "-m", "align.judges.refusal_report", "--xstest", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0 and "toy" in run.stdout, run.stderr
