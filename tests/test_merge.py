"""align.merge: between two folders, exactly; and what cannot be merged is named."""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN, MODEL, refuse
from safetensors.torch import load_file, save_file

from align import merge
from align.data import load_tokenizer
from align.models import load_model


@pytest.fixture
def two(tmp_path):
    """MODEL, and a copy whose weights are others and which has a template of its own."""
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        shutil.copytree(MODEL, folder)
    torch.manual_seed(0)
    tensors = load_file(a / "model.safetensors")
    moved = {name: tensor + torch.randn_like(tensor) / 7 for name, tensor in tensors.items()}
    save_file(moved, b / "model.safetensors", metadata={"format": "pt"})
    (b / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return a, b


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def test_the_weights_are_the_sum_in_float64(two, tmp_path):
    folders = merge.merge(*two, [0.25, 0.9], tmp_path / "path")
    a, b = map(weights_of, two)
    for weight, folder in zip((0.25, 0.9), folders, strict=True):
        found = weights_of(folder)
        assert found.keys() == a.keys()
        for name, tensor in found.items():
            exact = (1 - weight) * a[name].double() + weight * b[name].double()
            torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)
    assert [folder.name for folder in folders] == ["0.25", "0.9"]


def test_the_ends_are_the_two_models_to_the_bit(two, tmp_path):
    start, end = merge.merge(*two, [0.0, 1.0], tmp_path / "path")
    for folder, source in ((start, two[0]), (end, two[1])):
        found, known = weights_of(folder), weights_of(source)
        assert all(torch.equal(found[name], known[name]) for name in known)
    assert load_tokenizer(start).chat_template.source == load_tokenizer(two[1]).chat_template.source
    load_model(end)


def test_bfloat16_is_combined_in_float32_and_rounded_once(two, tmp_path):
    for folder in two:
        rounded = {name: tensor.bfloat16() for name, tensor in weights_of(folder).items()}
        save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    (folder,) = merge.merge(*two, [0.3], tmp_path / "path")
    a, b = map(weights_of, two)
    for name, tensor in weights_of(folder).items():
        assert tensor.dtype is torch.bfloat16
        assert torch.equal(tensor, a[name].float().lerp(b[name].float(), 0.3).bfloat16())


def test_models_that_differ_are_named(two, tmp_path):
    a, b = two
    falcon3 = GOLDEN / "falcon3"
    assert "is a falcon and" in refuse(merge.merge, a, falcon3, [0.5], tmp_path / "path")
    config = json.loads((b / "config.json").read_text())
    (b / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    line = refuse(merge.merge, a, b, [0.5], tmp_path / "path")
    assert f"{a} has rope" in line and "only models of one architecture can be merged" in line
    (b / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((b / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:-1]
    (b / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "have different tokenizers" in refuse(merge.merge, a, b, [0.5], tmp_path / "path")
    assert not (tmp_path / "path").exists()


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("0.5", [0.5]),
        ("0,0.1,...,1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("0, 0.5, ..., 1, 1.25", [0, 0.5, 1, 1.25]),
        ("1,0.75,...,0", [1, 0.75, 0.5, 0.25, 0]),
        ("-0.5,0", [-0.5, 0]),
    ],
)
def test_weights_are_read(text, weights):
    assert merge.read_weights(text) == weights


@pytest.mark.parametrize(
    "text", ["", "a", "0,,1", "0,...,1", "0,0.3,...,1", "0,0.1,...", "0,0,...,1", "nan", "0.5,0.50"]
)
def test_weights_that_are_none_are_named(text):
    assert refuse(merge.read_weights, text).startswith(f"--weights {text}: ")


def test_the_command_names_the_folders_and_runs_on_runs(two, tmp_path, capsys):
    shutil.move(two[1], tmp_path / "run" / "model")
    words = [str(two[0]), str(tmp_path / "run"), "--weights", "0,0.5,...,1", "--output", str(tmp_path / "path")]
    assert merge.main(words) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "path" / weight) for weight in ("0", "0.5", "1")]
    assert merge.main([str(two[0]), str(tmp_path / "none"), "--output", str(tmp_path / "path")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'none'}: no such folder\n"
