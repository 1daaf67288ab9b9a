"""Averaged weights: the recurrence from the weights of every step, what is measured and exported, and resumption.

On two ranks: tests/test_sources.py.
"""

import shutil

import pytest
import torch
from conftest import MODEL, read_metrics
from safetensors.torch import load_file

import train
from align.models import load_model


@pytest.fixture
def flags(run_flags):
    more = ["--train.steps", "4", "--train.batch_size", "7", "--optim.lr", "1e-3", "--train.checkpoint_every", "1"]
    return [*run_flags, *more, "--train.keep_checkpoints", "9", "--optim.ema", "0.75"]


def checkpoint(output, step):
    return load_file(output / "checkpoints" / f"step-{step:06d}" / "rank-000.safetensors")


def test_the_average_is_the_recurrence_and_what_is_exported(flags, pairs_file, tmp_path):
    more = ["--data.eval_path", str(pairs_file)]
    assert train.main([*flags, *more]) == 0
    out, mean = (
        tmp_path / "out",
        {f"model.{name}": p.detach().clone() for name, p in load_model(MODEL).named_parameters()},
    )
    for step in range(1, 5):
        saved = checkpoint(out, step)
        for name, value in mean.items():
            mean[name] = 0.75 * value + 0.25 * saved[name]
            torch.testing.assert_close(
                saved[f"average.{name.removeprefix('model.')}"], mean[name], rtol=1e-5, atol=1e-7
            )
    last, exported = checkpoint(out, 4), dict(load_model(out / "model").named_parameters())
    assert all(torch.equal(p, last[f"average.{name}"]) for name, p in exported.items())
    assert not torch.equal(exported["lm_head.weight"], last["model.lm_head.weight"])
    # training is as without it; what is measured on held-out rows is the average
    assert train.main([*flags, *more, "--optim.ema", "0", "--output", str(tmp_path / "plain")]) == 0
    ours, plain = read_metrics(out), read_metrics(tmp_path / "plain")
    assert [line["loss"] for line in ours] == [line["loss"] for line in plain]
    assert ours[-1]["eval/loss"] > plain[-1]["eval/loss"]
    assert "average." not in "".join(checkpoint(tmp_path / "plain", 4))


def test_a_resumed_average_is_the_same_to_the_bit(flags, tmp_path):
    assert train.main(flags) == 0
    shutil.copytree(tmp_path / "out", tmp_path / "broken")
    for folder in ("model", "checkpoints/step-000003", "checkpoints/step-000004"):
        shutil.rmtree(tmp_path / "broken" / folder)
    assert train.main([*flags, "--output", str(tmp_path / "broken"), "--resume"]) == 0
    for file in ("checkpoints/step-000004/rank-000.safetensors", "model/model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "broken" / file).read_bytes()
