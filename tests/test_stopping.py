"""A signal at any moment ends in one line that says how to go on, with status 128 + its number, and nothing is lost."""

import math
import os
import signal
import socket
from datetime import timedelta

import pytest
import torch.distributed as dist
from conftest import MODEL, read_metrics

import eval as evaluation
import train
from align import export, parallel, reference, respond, stopping
from align.errors import UserError
from align.models import load_model
from align.parallel import Rendezvous


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


def launched(monkeypatch, module, times):
    """As if torchrun, process 7, had started us, and were seen so many times before it is gone."""
    monkeypatch.setattr(module, "rendezvous", lambda: Rendezvous(dist.HashStore(), 0, 1, "job", launcher=7))
    parents = iter([7] * times)
    monkeypatch.setattr(stopping.os, "getppid", lambda: next(parents, 1))


def test_a_rank_without_its_launcher_stops_after_its_step(flags, tmp_path, monkeypatch, capfd):
    launched(monkeypatch, train, 8)  # the reference is computed in between
    assert train.main([*flags, "--reference.mode", "live", "--train.steps", "20"]) == 128 + signal.SIGTERM
    assert "stopped: step 9 of 20 is in" in capfd.readouterr().err
    assert (tmp_path / "out" / "checkpoints" / "step-000009").is_dir()


def test_an_evaluation_without_its_launcher_stops_after_its_chunk(tmp_path, monkeypatch, capfd):
    launched(monkeypatch, evaluation, 1)
    done = []

    def evaluate(options, world):
        done.extend(evaluation.progress([1, 2, 3], "", world))

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    assert (
        evaluation.main(["--model", str(MODEL), "--suite", "tiny", "--output", str(tmp_path)]) == 128 + signal.SIGTERM
    )
    assert capfd.readouterr().err.splitlines()[-1] == "stopped; the same command resumes from here"
    assert done == [1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None], ids=["TERM", "INT", "no launcher"])
def test_responding_goes_on_from_the_chunk_that_a_signal_came_in(number, tmp_path, monkeypatch, capfd):
    """None: its launcher is gone."""
    (tmp_path / "prompts.txt").write_text("".join(f"How do I hide hat number {i}?\n" for i in range(4)))
    words = ["--model", MODEL, "--prompts", tmp_path / "prompts.txt", "--k", 2, "--max_new_tokens", 4]
    words = list(map(str, [*words, "--output", tmp_path / "out.jsonl"]))
    monkeypatch.setattr(respond, "CHUNK", 4)
    if number is None:
        launched(monkeypatch, respond, 1)
    else:
        signalling(monkeypatch, respond, "item_records", number, at=2)
    assert respond.main(words) == 128 + (number or signal.SIGTERM)
    assert capfd.readouterr().err.splitlines()[-1] == "stopped; the same command goes on from here"
    begun = (tmp_path / "out.jsonl").read_bytes()
    assert begun.count(b"\n") == 4
    monkeypatch.undo()
    assert respond.main(words) == 0
    assert (tmp_path / "out.jsonl").read_bytes().startswith(begun)


def test_a_rank_whose_launcher_went_before_it_could_meet_it(monkeypatch, unused_port):
    for key, value in {
        "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "some",
    }.items():  # fmt: skip
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(parallel, "FOUND", timedelta(seconds=1))
    message = rf"rank 1 cannot meet the others at 127\.0\.0\.1:{unused_port}: torchrun is gone"
    with pytest.raises(UserError, match=message):
        parallel.rendezvous()
    with pytest.raises(UserError, match=message):  # before anything is looked at, and command.run says it
        train.main(["--model", "nowhere"])


@pytest.fixture
def unused_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_process_of_its_own_has_no_launcher_to_lose(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    stopping.catch_signals("", parallel.rendezvous().launcher)
    monkeypatch.setattr(stopping.os, "getppid", lambda: os.getpid() + 1)
    assert not stopping.asked()
