"""What a run shows its reader, and what it sends to a tracker."""

import json
import sys
import types

import pytest
import torch
from conftest import refuse

from align.config import load_config
from align.errors import UserError
from align.evals.report.curves import read_metrics
from align.log import Log, trim_metrics
from align.losses import LossInputs, build_loss
from align.metrics import SUMS, StepSums, step_metrics
from align.tracker import open_tracker

METRICS = {
    "loss": 0.5,
    "rewards/accuracy": 0.75,
    "rewards/margin": 0.2,
    "log_ratios/margin": 2.0,
    "lr": 5e-7,
    "tokens_per_second": 1234.5,
    "mfu": 0.417,
}


def test_a_line_has_rate_share_time_left_and_what_is_held_out(tmp_path, capsys, monkeypatch):
    clock = iter([100.0, 110.0, 120.0])
    monkeypatch.setattr("align.log.time.monotonic", lambda: next(clock))
    log = Log(tmp_path / "metrics.jsonl", done=4, steps=8, active=True)
    log.step({"step": 5, **METRICS})
    log.step({"step": 6, **METRICS, "eval/loss": 0.25, "eval/log_ratios/margin": 1.5, "eval/kl": 0.1})
    log.close()
    shown = "loss 0.5000  rewards/accuracy 0.7500  log_ratios/margin 2.0000  lr 5.00e-07  1,234 tokens/s  MFU 42%"
    assert capsys.readouterr().out.splitlines() == [
        f"step 5/8  62 %  {shown}  00:30 left",  # ten seconds for each of three steps
        f"step 6/8  75 %  {shown}  00:20 left",
        "step 6/8  eval/loss 0.2500  eval/log_ratios/margin 1.5000",
    ]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()] == [5, 6]


def test_a_terminal_has_rate_and_what_is_held_out_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    log = Log(tmp_path / "metrics.jsonl", done=0, steps=2, active=True)
    log.step({"step": 1, **METRICS, "eval/loss": 0.25})
    log.step({"step": 2, **METRICS})
    log.close()
    said = capsys.readouterr()
    assert said.out == "" and "eval/loss 0.2500" in said.err and "lr 5.00e-07" in said.err and "100%" in said.err


def measured(logps, at_reference=False, beta=0.1):
    """The metrics of a batch whose reference log-probs are all -10."""
    logps = torch.tensor(logps)
    loss = build_loss("dpo", beta=beta)
    x = LossInputs(logps=logps, ref_logps=torch.full_like(logps, -10.0), n_tok=torch.ones_like(logps))
    sums = StepSums(torch.device("cpu"), at_reference)
    sums.add_batch(loss, x, loss(x), slice(None))
    return step_metrics(dict(zip(SUMS, sums.values.tolist(), strict=True)))


def test_ties_count_half():
    tie, won, lost = [-9.0, -9.0], [-8.0, -9.0], [-9.0, -8.0]
    assert measured([tie, tie])["rewards/accuracy"] == 0.5
    assert measured([tie, won, won, lost])["rewards/accuracy"] == pytest.approx((0.5 + 2) / 4)
    # before the first update what differs is rounding
    assert measured([won, won, lost], at_reference=True)["rewards/accuracy"] == 0.5


def test_the_margin_in_nats_does_not_depend_on_beta():
    logps = [[-4.0, -12.0], [-9.0, -10.0]]
    for beta in (0.1, 0.5):
        found = measured(logps, beta=beta)
        assert found["log_ratios/margin"] == pytest.approx((8 + 1) / 2)
        assert found["rewards/margin"] == pytest.approx(beta * (8 + 1) / 2)


@pytest.fixture
def stand_in(monkeypatch):
    """A module with wandb's interface, and the calls it got."""
    calls = []
    module = types.ModuleType("trackio")
    for name in ("init", "log", "finish"):
        setattr(module, name, lambda *args, _name=name, **named: calls.append((_name, args, named)))
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "trackio", module)
    return calls


def test_a_tracker_with_the_interface_of_wandb(tmp_path, stand_in):
    flags = ["--model", "m", "--data", "d", "--output", str(tmp_path / "run"), "--train.tracker", "trackio"]
    config = load_config(flags)
    tracker = open_tracker(config.train.tracker, tmp_path / "run", config.to_dict(), done=0)
    log = Log(tmp_path / "metrics.jsonl", done=0, steps=1, active=True, tracker=tracker)
    log.step({"step": 1, **METRICS, "eval/loss": 0.25})
    log.close()
    (init, _, named), logged, (finish, *_) = stand_in
    assert (init, finish) == ("init", "finish")
    assert named["name"] == "run" and named["config"]["loss"]["name"] == config.loss.name
    assert logged == ("log", ({**METRICS, "eval/loss": 0.25},), {"step": 1})


def test_a_resumed_run_goes_on_in_wandb_and_a_new_one_is_new(tmp_path, stand_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", sys.modules["trackio"])
    for done in (0, 3, 0):
        open_tracker("wandb", tmp_path, {}, done)
    first, resumed, again = (named for _, _, named in stand_in)
    assert first["id"] == resumed["id"] != again["id"]
    assert [named["resume"] for named in (first, resumed, again)] == ["never", "allow", "never"]


def test_tensorboard_gets_every_metric(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, *scalar):
            written.append(scalar)

        def close(self):
            written.append("closed")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    tracker = open_tracker("tensorboard", tmp_path, {}, done=3)
    tracker.log({"loss": 0.5, "lr": 1e-6}, 4)
    tracker.close()
    assert written == [(str(tmp_path / "tensorboard"), 4), ("loss", 0.5, 4), ("lr", 1e-6, 4), "closed"]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr("align.tracker.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train\.tracker wandb: the package is not installed; pip install wandb"):
        load_config(["--model", "m", "--data", "d", "--train.tracker", "wandb"])
    assert open_tracker("none", "", {}, 0) is None


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"[1]", b"{}", b'{"step": "1"}', b'{"step": 1, "loss": []}', b"[" * 3000, b"{"]
)
def test_a_line_that_is_no_step_is_named(tmp_path, line):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    for read in (read_metrics, lambda file: trim_metrics(file, 1)):
        assert refuse(read, file).startswith(f"{file}:2 is not a step's line of metrics")
    file.write_bytes(b'{"step": 1}\n{"step": 2}\n{"ste')  # what a kill leaves
    assert len(read_metrics(file)) == 2
    trim_metrics(file, 1)
    assert file.read_bytes() == b'{"step": 1}\n'
