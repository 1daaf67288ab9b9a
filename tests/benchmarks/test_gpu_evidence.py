"""benchmarks.evidence: a record vouches for kernels where everything passed, and for nothing else."""

import json

import pytest

from benchmarks import evidence, records
from kernels import evidence as kernels

TESTS = ("test_triton_logp.py", "test_logp.py", "test_pointwise.py")


def record(dry=False, date="2026-11-26", card="H100"):
    numbers = [{"part": "tests", "name": name, "ok": True} for name in TESTS]
    numbers += [{"part": "correctness", "name": f"Falcon 11B {dtype} triton", "ok": True} for dtype in ("a", "b")]
    settings = {"dry": dry, "kernels": {kind: kernels.source_hash(kind) for kind in kernels.SOURCES}}
    machine = {"card": card, "triton": "3.6.0"}
    values = ("gpu", machine, date, "abc", settings, numbers)
    return dict(zip(records.KEYS, values, strict=True))


def kinds(found):
    return [entry["kind"] for entry in evidence.entries(found, "gpu.json")]


def test_a_record_in_which_everything_passed_vouches_for_both_kinds():
    logp, pointwise = evidence.entries(record(), "gpu.json")
    assert logp == {
        "kind": "logp",
        "card": "H100",
        "triton": "3.6.0",
        "source": kernels.source_hash("logp"),
        "record": "gpu.json",
    }
    assert pointwise["kind"] == "pointwise"
    assert kernels.missing("logp", "H100", "3.6.0", [logp]) == ""


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("ok", [False, None])
def test_one_that_failed_or_is_absent_takes_its_kind_with_it(index, ok):
    found = record()
    found["numbers"][index] |= {"ok": ok}
    assert kinds(found) == (["logp"] if found["numbers"][index]["name"] == "test_pointwise.py" else ["pointwise"])
    del found["numbers"][index]
    # an absent row of a shape is not noticed as such; the kind needs at least one, and every test file
    assert kinds(found) == {0: ["pointwise"], 1: ["pointwise"], 2: ["logp"]}.get(index, ["logp", "pointwise"])


def test_no_row_of_correctness_is_no_evidence():
    found = record()
    found["numbers"] = found["numbers"][:3]
    assert kinds(found) == ["pointwise"]


def test_a_dry_run_vouches_for_nothing():
    assert kinds(record(dry=True)) == []


def test_the_newest_record_of_a_card_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    for name, found in {
        "gpu-b.json": record(date="2026-11-25"),
        "gpu-a.json": record(),
        "gpu-c.json": record(card="H200"),
    }.items():
        records.write(tmp_path / name, found)
    assert {(entry["card"], entry["kind"]): entry["record"] for entry in evidence.collect()} == {
        ("H100", "logp"): "gpu-a.json",
        ("H100", "pointwise"): "gpu-a.json",
        ("H200", "logp"): "gpu-c.json",
        ("H200", "pointwise"): "gpu-c.json",
    }


def test_the_committed_evidence_is_what_the_committed_records_say():
    assert json.loads(kernels.FILE.read_text()) == evidence.collect(), "run python -m benchmarks.evidence"
