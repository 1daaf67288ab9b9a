"""A run's folder is one run's: what may go on there, under which settings, and who is refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import MODEL, read_metrics, refuse

import train
from align.config import Config, load_config
from align.output import HOLDER, check_output, claim_output, held_output, hold
from align.parallel import World, distributed

HOLD = """
import sys
from pathlib import Path
from align.output import hold
hold(Path(sys.argv[1]), "theirs")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def flags(pairs_file, tmp_path):
    base = ["--loss", "nca", "--model", MODEL, "--data", pairs_file, "--output", tmp_path / "out"]
    base += ["--train.steps", "3", "--train.batch_size", "4", "--reference.cache", tmp_path / "cache"]
    return list(map(str, [*base, "--train.checkpoint_every", "1"]))


def test_a_lock_dies_with_its_holder(flags, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", HOLD, out], text=True, env=env, **pipes)
    assert other.stdout.readline() == "held\n"
    for more in ([], ["--resume"]):
        assert train.main([*flags, *more]) == 2
        said = capsys.readouterr().err
        assert f"--output {out} is being written by process {other.pid} on " in said and said.count("\n") == 1
    other.kill()
    other.wait()
    assert train.main([*flags, "--resume"]) == 0
    assert json.loads((out / HOLDER).read_text())["pid"] == os.getpid()


def test_of_two_that_found_a_folder_free_one_gets_it(flags, tmp_path):
    config = load_config(flags)
    with distributed() as world, held_output():
        check_output(config)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "config.toml").write_text("")
        assert "another run has begun there since" in refuse(claim_output, config, 0, world)


def restarted(job, **settings):
    config = Config(output=settings.pop("output"), restarted=True, job=job, **settings)
    config.reference.mode = "live"
    return config


def test_a_restart_goes_on_only_with_what_its_job_began(tmp_path):
    output = str(tmp_path / "out")
    fresh = restarted("mine", output=output)
    check_output(fresh)
    assert not fresh.resume, "the attempt before died before it began"
    with held_output():
        (tmp_path / "out").mkdir()
        hold(tmp_path / "out", "mine")
    ours = restarted("mine", output=output)
    check_output(ours)
    assert ours.resume
    assert "is another run's" in refuse(check_output, restarted("theirs", output=output))
    (tmp_path / "out" / HOLDER).write_text("[3]")
    assert "is another run's" in refuse(check_output, restarted("mine", output=output))
    asked_for = restarted("theirs", output=output, resume=True)
    check_output(asked_for)
    assert asked_for.resume


def test_what_differs_on_resuming_has_to_be_named(flags, tmp_path, capsys):
    assert train.main([*flags, "--optim.schedule", "constant"]) == 0
    (tmp_path / "out" / "checkpoints" / "step-000003" / "state.json").unlink()  # so that a step is left to do
    resumed = [*flags, "--optim.schedule", "constant", "--resume", "--optim.lr", "1e-4"]
    capsys.readouterr()
    assert train.main(resumed) == 2
    said = capsys.readouterr().err
    assert "was begun with optim.lr = 5e-07, not 0.0001" in said and "--override optim.lr to go on with" in said
    for more, words in [
        (["--override", "optim.rate"], "--override optim.rate: not a configuration key; did you mean optim.lr?"),
        (["--override", "optim.beta1"], "was begun with optim.lr"),
    ]:
        assert train.main([*resumed, *more]) == 2
        assert words in capsys.readouterr().err
    assert train.main([*flags, "--override", "optim.lr", "--output", str(tmp_path / "other")]) == 2
    assert "add --resume" in capsys.readouterr().err
    assert train.main([*resumed, "--override", "optim.lr"]) == 0
    assert "resumed after step 2 with optim.lr = 0.0001, before 5e-07" in capsys.readouterr().out
    assert [line["lr"] for line in read_metrics(tmp_path / "out")] == [5e-7, 5e-7, 1e-4]
    written = (tmp_path / "out" / "config.toml").read_text()
    assert written.startswith("# from step 3: optim.lr = 0.0001, before 5e-07\n")
    assert load_config(["--config", str(tmp_path / "out" / "config.toml")]).optim.lr == 1e-4
    assert train.main(resumed) == 0, "which is from now on what the run has"
    assert (tmp_path / "out" / "config.toml").read_text() == written


@pytest.mark.parametrize("inside", ["checkpoints", "model"])
def test_a_file_where_a_folder_should_be(inside, flags, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / inside).write_text("mine")
    assert train.main([*flags, "--resume"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{inside} in it is a file" in said


def test_world_is_named_once():
    assert World(0, 1, torch.device("cpu")).gather_texts("ä") == ["ä"]
