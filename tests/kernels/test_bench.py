"""kernels.tools.bench: nothing is timed that is not right, it reports what happened, its memory meter measures."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from kernels import IMPLEMENTATIONS
from kernels.reference import reference_logp
from kernels.tools import bench, bench_cases
from kernels.tools.bench_cases import BETA, QUICK, DPOStep, make_inputs, run_step

linux = pytest.mark.skipif(sys.platform != "linux", reason="the resident set's peak is read from /proc")


def run(tmp_path, *arguments):
    output = tmp_path / "runs" / "bench.json"
    status = bench.main(["--quick", "--rounds", "2", "--output", str(output), *arguments])
    return status, json.loads(output.read_text())


@linux
def test_every_implementation_is_checked_timed_and_named(tmp_path, capsys):
    status, report = run(tmp_path, "--case", "logp", "--case", "dpo")
    assert status == 0
    assert report["torch"] == torch.__version__ and report["threads"] == torch.get_num_threads() and report["hardware"]
    here = [name for name in IMPLEMENTATIONS if name != "triton" or torch.cuda.is_available()]
    for dtype in ("float32", "bfloat16"):
        rows = [row for row in report["rows"] if (row["case"], row["dtype"]) == ("logp", dtype)]
        assert [row["implementation"] for row in rows][: len(here)] == here
        assert rows[0]["ratio"] == 1
    for row in report["rows"]:
        parts = row["seconds"]
        assert 0 < parts["forward"] < parts["both"] and 0 < parts["backward"] < parts["both"]
        assert max(row["errors"].values()) <= bench.LIMITS[row["dtype"]]
    printed = capsys.readouterr().out
    assert report["hardware"] in printed and printed.count("| chunked |") == 2


@linux
def test_a_wrong_gradient_is_not_timed(tmp_path, capsys, monkeypatch):
    """The value is right; the gradient is 1 % off."""

    def wrong(hidden, weight, targets):
        logp = reference_logp(hidden, weight, targets)
        return 1.01 * logp - 0.01 * logp.detach()

    monkeypatch.setitem(IMPLEMENTATIONS, "wrong", wrong)
    status, report = run(tmp_path, "--case", "logp", "--dtype", "float32")
    assert status == 1
    row = next(row for row in report["rows"] if row["implementation"] == "wrong")
    assert row["errors"]["value"] < 1e-6 and row["errors"]["d_weight"] > 5e-3
    assert not row["parity"] and "seconds" not in row and "peak_mib" not in row
    assert "too far off" in capsys.readouterr().out


@linux
def test_one_that_cannot_run_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    def broken(hidden, weight, targets):
        raise RuntimeError("no such device\nand a long trace")

    monkeypatch.setitem(IMPLEMENTATIONS, "broken", broken)
    status, report = run(tmp_path, "--case", "logp", "--dtype", "float32")
    assert status == 1
    rows = {row["implementation"]: row for row in report["rows"]}
    assert rows["broken"]["failed"] == "RuntimeError: no such device" and "seconds" in rows["chunked"]
    assert "did not run: RuntimeError: no such device" in capsys.readouterr().out


@pytest.mark.parametrize("all_tokens", [False, True])
def test_the_DPOStep_is_dpo(all_tokens):
    """Against the loss written out for one pair after the other; prompts have no say in it, nor a gradient."""
    case = QUICK["dpo"]
    x = make_inputs(case, torch.float64, "cpu")
    loss, d_hidden, _ = run_step(DPOStep(reference_logp, all_tokens), x)

    def ratio(row):
        policy = torch.log_softmax(x.hidden[row] @ x.weight.T, dim=1)
        reference = torch.log_softmax(x.ref_hidden[row] @ x.ref_weight.T, dim=1)
        half = range(case.tokens // 2, case.tokens)
        return sum(policy[t, x.targets[row, t]] - reference[t, x.targets[row, t]] for t in half)

    pairs = case.pairs
    expected = sum(-F.logsigmoid(BETA * (ratio(i) - ratio(i + pairs))) for i in range(pairs)) / pairs
    assert abs(expected.item() - loss.item()) < 1e-12
    assert d_hidden[:, : case.tokens // 2].abs().max() == 0 < d_hidden[:, case.tokens // 2 :].abs().max()


@linux
def test_the_memory_meter_sees_what_was_taken_and_given_back():
    x = make_inputs(QUICK["logp"], torch.float32, "cpu")

    def step(x):
        torch.ones(16 * 2**20).sum()  # 64 MiB, gone before backward
        return reference_logp(x.hidden[0], x.weight, x.targets[0])

    peak = bench.peak_memory(step, x)
    assert 63 < peak["forward"] < 72 and peak["backward"] < 10 and peak["both"] == peak["forward"]


@linux
@pytest.mark.slow
def test_the_dpo_head_stays_within_its_memory():
    """dW of (65,024, 512) float32 is 127 MiB; chunked adds tiles, where the logits of 256 tokens would add 64."""
    peak = bench.peak_in_fresh_process("chunked, responses", "dpo", "float32")
    assert 127 < peak["both"] < 148
    assert bench.peak_in_fresh_process("no such thing", "dpo", "float32") is None


def test_kernels_stand_alone():
    """kernels/ never imports align/."""
    for module in (bench, bench_cases):
        assert "align" not in {name.split(".")[0] for name in vars(module)}
        with open(module.__file__) as source:
            assert not any(line.startswith(("import align", "from align")) for line in source)
