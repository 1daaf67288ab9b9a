"""A rule that ends a run: what it can be, what it is refused for, and what a run makes of it."""

import shutil
from types import SimpleNamespace

import pytest
from conftest import MODEL, read_metrics, refuse

import train
from align.config import load_config
from align.losses import LOSSES, build_loss
from align.metrics import metric_names
from align.sections import DataSection, TrainSection
from align.stop_rule import StopRule, read_rule

BASE = ["--model", str(MODEL), "--data", "pairs.jsonl", "--data.eval_path", "held-out.jsonl", "--train.eval_every", "2"]


def rule(text):
    return read_rule(TrainSection(stop_when=text, eval_every=1), DataSection(eval_path="f"))


def test_a_rule_is_read_and_met():
    assert rule("") is None
    assert rule("eval/loss<0.5") == rule(" eval/loss  <  .5 ") == StopRule("loss", "<", 0.5)
    assert rule("eval/rewards/accuracy >= 9.8e-1") == StopRule("rewards/accuracy", ">=", 0.98)
    for compare, met in {"<": (1, 0, 0), "<=": (1, 1, 0), ">": (0, 0, 1), ">=": (0, 1, 1)}.items():
        for value, expected in zip((-2.0, -1.0, 0.0), met, strict=True):
            assert rule(f"eval/kl {compare} -1").met({"eval/kl": value, "kl": 5.0}) == bool(expected)
    assert not rule("eval/kl > -1").met({"kl": 5.0}) and not rule("eval/kl > -1").met({"eval/kl": float("nan")})


@pytest.mark.parametrize(
    "text",
    ["loss < 1", "eval/loss", "eval/loss = 1", "eval/loss == 1", "eval/loss < low", "eval/ < 1", "eval/loss < nan"],
)
def test_what_is_no_rule_is_told_how_to_write_one(text):
    said = refuse(load_config, [*BASE, "--train.stop_when", text])
    assert said == f'train.stop_when {text!r}: write it as "eval/METRIC < NUMBER", with <, <=, > or >='


def test_a_rule_that_nothing_would_look_at_is_refused():
    assert "--data.eval_path FILE" in refuse(load_config, [*BASE[:4], "--train.stop_when", "eval/loss < 1"])
    assert "--train.eval_every STEPS" in refuse(load_config, [*BASE[:6], "--train.stop_when", "eval/loss < 1"])


@pytest.mark.parametrize("name", [*LOSSES, "nca+sft", "mpo+tdpo"])
def test_what_is_measured_is_known_of_every_loss_before_it_runs(name):
    loss = build_loss(name)
    labelled = loss.responses == "unpaired"
    k = 1 if loss.responses == "one" else 2
    group = SimpleNamespace(response_lengths=[3] * k, label=True if labelled else None)
    names = metric_names(loss, SimpleNamespace(groups=[group]))
    assert {"loss", "logps/chosen"} <= set(names)
    assert ("rewards/margin" in names) == (loss.needs_reference and name != "anchor")
    assert ("rewards/accuracy" in names) == (loss.needs_reference and k == 2 and not labelled)


@pytest.fixture
def flags(run_flags, pairs_file):
    more = ["--data.eval_path", str(pairs_file), "--train.eval_every", "2", "--train.steps", "8"]
    return [*run_flags, *more, "--train.batch_size", "7", "--optim.lr", "1e-3", "--loss", "dpo"]


@pytest.mark.parametrize(
    "loss, metric, known",
    [("dpo", "los", "did you mean loss?"), ("sft", "rewards/accuracy", "There are: loss, logps/chosen")],
)
def test_what_is_not_measured_is_refused_before_anything_runs(loss, metric, known, flags, tmp_path, capsys):
    assert train.main([*flags, "--loss", loss, "--train.stop_when", f"eval/{metric} > 0.5"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: train.stop_when: eval/{metric} is not measured here") and known in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_run_ends_where_the_rule_holds_and_stays_ended(flags, tmp_path, capsys):
    assert train.main([*flags, "--output", str(tmp_path / "whole")]) == 0
    measured = [(line["step"], line["eval/loss"]) for line in read_metrics(tmp_path / "whole") if "eval/loss" in line]
    (_, before), (step, bound) = measured[:2]
    assert step == 4 and bound < before
    flags += ["--train.stop_when", f"eval/loss <= {bound!r}"]
    capsys.readouterr()
    assert train.main(flags) == 0
    out, said = tmp_path / "out", f"finished after step 4 of 8: eval/loss <= {bound!r} (train.stop_when)"
    assert said in capsys.readouterr().out
    lines = read_metrics(out)
    whole = read_metrics(tmp_path / "whole")[:4]
    assert [line["loss"] for line in lines] == [line["loss"] for line in whole]
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000004"] and (out / "model").exists()
    weights = (out / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(out / "model")
    assert train.main([*flags, "--resume"]) == 0
    assert said in capsys.readouterr().out and read_metrics(out) == lines
    assert (out / "model" / "model.safetensors").read_bytes() == weights
    # with another rule it goes on
    assert train.main([*flags[:-1], "eval/loss < 0", "--resume", "--override", "train.stop_when"]) == 0
    assert [line["step"] for line in read_metrics(out)] == [1, 2, 3, 4, 5, 6, 7, 8]
