"""benchmarks.gpu without a GPU: what runs, what a failing or hanging part leaves, what the numbers mean."""

import json
import sys

import pytest
import torch

from benchmarks import records
from benchmarks.gpu import __main__ as gpu

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.gpu import correctness, models, part, steps


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "SCRATCH", tmp_path / "scratch")
    return tmp_path


def test_a_part_that_fails_or_hangs_is_a_row_and_stops_nothing(scratch, monkeypatch, capsys):
    """Three parts of which the first dies, the second never ends and the third has a result."""
    bodies = {
        "card": "raise SystemExit(3)",
        "tests": "import time; time.sleep(600)",
        "head": "from benchmarks.gpu.part import Part; Part('head').row('a', ms=1.0)",
    }
    start = gpu.subprocess.Popen

    def run(command, **kwargs):
        body = bodies.get(command[-1].rpartition(".")[2])
        return start([sys.executable, "-c", body] if body else command, **kwargs)

    monkeypatch.setattr(gpu, "LIMITS", {**gpu.LIMITS, "tests": 6})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Some Card")
    monkeypatch.setattr(gpu.subprocess, "Popen", run)
    assert gpu.main(["--parts", "card", "tests", "head", "--output", str(scratch)]) == 1
    (file,) = scratch.glob("gpu-some-card-*.json")
    rows = records.read(file)["numbers"]
    assert [(row["part"], row.get("failed", "")[:13]) for row in rows] == [
        ("card", "exit status 3"),
        ("tests", "stopped after"),
        ("head", ""),
    ]
    assert "3 rows" in capsys.readouterr().out


def test_no_part_begins_without_time_left(scratch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "Some Card")
    assert gpu.main(["--parts", "card", "--limit", "1", "--output", str(scratch)]) == 1
    (file,) = scratch.glob("gpu-*.json")
    assert records.read(file)["numbers"] == [{"part": "card", "name": "the part", "failed": "no time was left"}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="speaks of a machine without a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys):
    assert gpu.main([]) == 2
    assert "make gpu DRY=1" in capsys.readouterr().err


def test_the_limits_together_are_eight_minutes():
    assert sum(gpu.LIMITS.values()) <= 480


@pytest.mark.slow
def test_a_dry_run_of_the_card_and_of_correctness_leaves_a_record(scratch):
    assert gpu.main(["--dry", "--parts", "card", "correctness"]) == 0
    (file,) = gpu.SCRATCH.glob("gpu-cpu-*.json")
    record = records.read(file)
    assert record["settings"]["dry"] and record["machine"]["torch"] == torch.__version__
    right = [row for row in record["numbers"] if row["part"] == "correctness" and "ok" in row]
    assert len(right) == 10 and all(row["ok"] for row in right)


def test_the_truth_is_the_truth():
    """The closed form against autograd in float64, over more than one slice of tokens."""
    n, d, v = correctness.ROWS + 5, 3, 7
    print("seed 1")
    x = correctness.inputs(n, d, v, torch.float64, torch.device("cpu"))

    def written_out(hidden, weight, targets):
        return torch.log_softmax(hidden @ weight.T, dim=1).gather(1, targets[:, None])[:, 0]

    for a, b in zip(correctness.truth(*x), correctness.run(written_out, *x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_an_error_is_relative_and_a_nan_is_no_small_one():
    a = torch.tensor([[3.0, 4.0]])
    assert correctness.error(a, a) == 0 and correctness.error(1.1 * a, a) == pytest.approx(0.1)
    assert not correctness.error(torch.full_like(a, torch.nan), a) <= 1


def test_operations_are_those_of_the_products(monkeypatch):
    """Against a count by hand for one layer: 6 per weight and token, attention causal, the head on responses alone."""
    monkeypatch.setattr(models, "DRY", True)
    config = models.config("1.3B")
    model = steps.build_model(config, "meta")
    batch = models.pairs(config.vocab_size, prompts=3, length=10)
    # a prompt of 5, then 4 of the 5 tokens of each response, since the last predicts nothing
    tokens, responses = 3 * (5 + 4 + 4), 6 * 5
    hidden, heads, kv, layers = 32, 4, 2, 2
    block = hidden * (heads + 2 * kv) * (hidden // heads) + hidden * hidden + 2 * hidden * 4 * hidden
    seen = 3 * 5 * 5 / 2 + 6 * 4 * (5 + 4 / 2)  # pairs of tokens: on average half of a run's own, and all of its prompt
    attention = layers * 2 * hidden * seen * 6  # two products, forward and twice backward
    expected = 6 * layers * block * tokens + attention + 6 * 512 * hidden * responses
    assert steps.operations(config, model, batch) * 1e12 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("size", "gib", "least", "most"),
    [("1.3B", 79, 24, 24), ("Falcon 11B", 79, 10, 18), ("Falcon 11B", 139, 25, 34), ("Falcon 11B", 1, 1, 1)],
)
def test_as_many_layers_as_fit(size, gib, least, most, monkeypatch):
    """Falcon 11B's block has 176 M parameters, 18 bytes each with gradient, moments and a live reference: 3 GiB."""
    monkeypatch.setattr(models, "DRY", False)
    monkeypatch.setattr(models, "PROMPTS", 4)
    monkeypatch.setattr(models, "LENGTH", 1024)
    assert least <= steps.layers_that_fit(size, gib * 2**30) <= most


def test_the_table_names_every_row():
    rows = [{"part": "head", "name": "a", "ms": 1.23456, "peak_gib": None}, {"part": "t", "name": "bb", "failed": "no"}]
    assert gpu.table(rows).splitlines() == ["head        a   ms 1.235", "t           bb  failed no"]


def test_a_row_is_in_the_file_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "ROWS", tmp_path / "rows.jsonl")
    one = part.Part("p")
    one.row("a", ms=2.0)
    assert one.attempt("b", lambda: 1 / 0) is None and one.attempt("c", lambda x: x + 1, 1) == 2
    rows = [json.loads(line) for line in part.ROWS.read_text().splitlines()]
    assert rows == [
        {"part": "p", "name": "a", "ms": 2.0},
        {"part": "p", "name": "b", "failed": "ZeroDivisionError: division by zero"},
    ]
    assert part.earlier("p", "a", "ms") == 2.0 and part.earlier("p", "z", "ms") is None
