"""The same command gives the same bits; what else may differ is in docs/determinism.md, with the tests that bound it."""

import re

import pytest
import torch
from conftest import MODEL, ROOT, read_metrics

import train
from align.config import load_config
from align.determinism import make_deterministic

NOT_A_RESULT = ("seconds", "tokens_per_second", "mfu", "peak_memory_mib")


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    make_deterministic(False)


def run(output, pairs_file, *more):
    flags = ["--model", MODEL, "--data", pairs_file, "--output", output, "--reference.mode", "live", "--loss", "nca"]
    flags += ["--train.steps", "3", "--train.batch_size", "6", "--optim.lr", "1e-3", "--data.max_length", "128"]
    assert train.main([str(flag) for flag in [*flags, *more]]) == 0
    lines = [{k: v for k, v in line.items() if k not in NOT_A_RESULT} for line in read_metrics(output)]
    return lines, (output / "model" / "model.safetensors").read_bytes()


def test_the_same_bits_again_and_other_threads_to_rounding(pairs_file, tmp_path):
    torch.set_num_threads(1)
    one = run(tmp_path / "a", pairs_file, "--deterministic")
    assert torch.are_deterministic_algorithms_enabled()
    assert run(tmp_path / "b", pairs_file, "--train.deterministic", "true") == one
    torch.set_num_threads(2)
    lines, _ = run(tmp_path / "c", pairs_file)
    assert not torch.are_deterministic_algorithms_enabled()
    for x, y in zip(lines, one[0], strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-5)


def test_the_switch_is_a_key_of_the_run():
    config = load_config(["--model", "m", "--data", "d", "--loss", "nca", "--deterministic"])
    assert config.to_dict()["train"]["deterministic"] is True


def test_every_test_that_the_page_names_is_there():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "determinism.md").read_text())
    assert len(named) > 8
    for file, name in named:
        assert f"\ndef {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
