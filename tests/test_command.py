"""`| head` ends a command without a word, and its exit status says why."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

COMMANDS = {
    "train.py --help": ["train.py", "--help"],
    "eval.py --help": ["eval.py", "--help"],
    "align.losses": ["-m", "align.losses"],
    "align.losses of a sum": ["-m", "align.losses", "dpo+sft"],
    "benchmarks.compare": ["-m", "benchmarks.compare", "--help"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_has_gone_is_no_error(name):
    read, write = os.pipe()
    os.close(read)  # so that the first write fails, as it does sooner or later under `| head`
    done = subprocess.run(
        [sys.executable, *COMMANDS[name]], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=120
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (0, -signal.SIGPIPE, 128 + signal.SIGPIPE)


def test_training_ends_too(tmp_path, pairs_file):
    from conftest import MODEL

    argv = ["train.py", "--loss", "dpo", "--model", MODEL, "--data", pairs_file, "--output", tmp_path / "out"]
    argv += ["--reference.cache", tmp_path / "cache", "--train.batch_size", "4"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, *map(str, argv)], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=120
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_sum_of_losses_is_described_part_by_part(capsys):
    from align.losses.__main__ import main

    assert main(["dpo+sft"]) == 0
    said = capsys.readouterr().out
    assert said.index("--loss dpo\n") < said.index("--loss sft\n") and "--loss.weights" in said
