"""A short `make fuzz`, of the same cases and of new ones; and that it sees every fault that it counts."""

import os
import signal
import subprocess
import sys
import time
from random import Random

import pytest
from conftest import ROOT

from align.errors import UserError
from benchmarks.fuzz import __main__ as fuzz
from benchmarks.fuzz import case, mutate
from benchmarks.fuzz.kinds import Kind, Silent


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--cases", "1000", "--seed", "0"], ["--cases", "500"]], ids=["fixed", "new"])
def test_no_input_is_a_fault(flags):
    command = [sys.executable, "-m", "benchmarks.fuzz", *flags]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    print(ended.stdout, ended.stderr)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert f"0 faults in {flags[1]} cases" in ended.stdout


def refuse(text):
    raise UserError(text)


def cry(folder, world):
    raise Silent


FAULTS = {
    "accepted": lambda folder, world: None,
    "refused": lambda folder, world: refuse("a line"),
    "traceback": lambda folder, world: [][0],
    "hang": lambda folder, world: hang(),
    "blow-up": lambda folder, world: bytearray(300 * 2**20),
    "silent": cry,
    "death": lambda folder, world: os.kill(os.getpid(), signal.SIGSEGV),
}


def hang():
    while True:
        pass


def test_every_fault_is_seen(tmp_path, monkeypatch, capsys):
    kinds = {
        name: Kind(lambda folder, world: (folder / "a.txt").write_text("a"), read) for name, read in FAULTS.items()
    }
    monkeypatch.setattr(case, "KINDS", kinds)
    monkeypatch.setattr(fuzz, "KINDS", kinds)
    for name in kinds:
        (tmp_path / name / "healthy").mkdir(parents=True)
        (tmp_path / name / "healthy" / "a.txt").write_text("a")
    began = time.monotonic()
    assert fuzz.fuzz(tmp_path, 0, len(kinds), 1) == 1
    said = capsys.readouterr().out
    for name in set(FAULTS) - {"death"}:
        counts = next(line for line in said.splitlines() if line.startswith(f"{name} ")).split()[1:-1]
        assert counts[case.OUTCOMES.index(name)] == "1" and sum(map(int, counts)) == 1, name
    assert "the process ended: SIGSEGV" in said and "5 faults in 7 cases" in said
    assert time.monotonic() - began < 30


def test_the_same_seed_is_the_same_case(tmp_path):
    for suffix in (".json", ".jsonl", ".toml", ".jinja", ".csv", ".safetensors"):
        made = set()
        for _ in range(2):
            draw, file = Random(5), tmp_path / f"a{suffix}"
            for _ in range(20):
                file.write_bytes(b'{"a": [1, {"b": "c"}]}\n[t]\nk = 1\n')
                mutate.mutate(file, draw)
            made.add(file.read_bytes())
        assert len(made) == 1
