"""A signal at any moment ends in one line that says how to go on, with status 128 + its number, and nothing is lost."""

import math
import os
import signal

import pytest
from conftest import MODEL, read_metrics

import eval as evaluation
import train
from align import export, reference, stopping
from align.models import load_model


@pytest.fixture
def flags(pairs_file, tmp_path):
    base = ["--loss", "dpo", "--model", MODEL, "--data", pairs_file, "--output", tmp_path / "out"]
    return list(map(str, [*base, "--train.steps", "3", "--train.batch_size", "4", "--reference.cache", tmp_path / "c"]))


def signalling(monkeypatch, owner, name, number=signal.SIGTERM, at=1):
    """Raise a signal at the `at`-th call of a function, which then goes on."""
    function, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(None)
        if len(calls) == at:
            signal.raise_signal(number)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["load_config", "load_sources", "load_sharded", "load_checkpoint"])
def test_while_a_run_loads(number, moment, flags, tmp_path, monkeypatch, capfd):
    if moment == "load_checkpoint":
        assert train.main([*flags, "--train.checkpoint_every", "1"]) == 0
        flags.append("--resume")
    signalling(monkeypatch, train, moment, number)
    capfd.readouterr()
    assert train.main(flags) == 128 + number
    assert capfd.readouterr().err == "stopped; the same command with --resume goes on\n"
    monkeypatch.undo()
    assert train.main([*flags, "--resume"]) == 0
    assert [line["step"] for line in read_metrics(tmp_path / "out")] == [1, 2, 3]


def test_while_the_reference_is_computed(flags, tmp_path, monkeypatch, capfd):
    whole = tmp_path / "whole"
    assert train.main([*flags, "--output", str(whole), "--reference.cache", str(tmp_path / "other")]) == 0
    signalling(monkeypatch, reference.LiveReference, "__call__", at=2)
    capfd.readouterr()
    assert train.main([*flags, "--train.micro_batch_size", "4"]) == 128 + signal.SIGTERM
    said = capfd.readouterr().err.splitlines()
    assert said[-1].startswith("stopped: the reference log-probs of ") and said[-1].endswith("the same command goes on")
    kept = int(said[-1].split()[5])
    assert 0 < kept < 12 and not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert train.main([*flags, "--train.micro_batch_size", "4"]) == 0
    assert f"log-probs of {12 - kept} prompts to compute" in capfd.readouterr().out
    for a, b in zip(read_metrics(tmp_path / "out"), read_metrics(whole), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert read_metrics(whole)[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_while_the_model_is_written(flags, tmp_path, monkeypatch, capfd):
    signalling(monkeypatch, export, "save_model")
    assert train.main(flags) == 128 + signal.SIGTERM
    assert capfd.readouterr().err.splitlines()[-1] == "stopped; the same command with --resume goes on"
    monkeypatch.undo()
    assert train.main([*flags, "--resume"]) == 0
    load_model(tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_evaluating(number, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluation, "evaluate", lambda options, world: signal.raise_signal(number))
    assert evaluation.main(["--model", str(MODEL), "--suite", "tiny"]) == 128 + number
    assert capfd.readouterr().err == "stopped; the same command resumes from here\n"


def test_a_rank_without_its_launcher_stops_after_its_step(flags, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "some")
    parents = iter([7, *[7] * 8])  # the reference is computed in between
    monkeypatch.setattr(stopping.os, "getppid", lambda: next(parents, 1))
    assert train.main([*flags, "--reference.mode", "live", "--train.steps", "20"]) == 128 + signal.SIGTERM
    assert "stopped: step 9 of 20 is in" in capfd.readouterr().err
    assert (tmp_path / "out" / "checkpoints" / "step-000009").is_dir()


def test_a_process_of_its_own_has_no_launcher_to_lose(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    stopping.catch_signals("")
    monkeypatch.setattr(stopping.os, "getppid", lambda: os.getpid() + 1)
    assert not stopping.asked()
