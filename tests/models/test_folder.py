"""What --model may point at: read where it is clear what is meant, refused in one line that says what it is."""

import json
import os
import shutil

import huggingface_hub
import pytest
import torch
from conftest import GOLDEN, refuse
from safetensors.torch import load_file, save_file

from align.models import load_model, read_config, resolve_model

SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(GOLDEN / "falcon2_11b_sharded", tmp_path / "m", copy_function=shutil.copyfile)


def same(a, b):
    b = dict(b.named_parameters())
    return all(torch.equal(p, b[name]) for name, p in a.named_parameters()) and len(b) > 0


@pytest.mark.parametrize("name", [SHARD, "config.json", "model.safetensors.index.json", "chat_template.jinja"])
@pytest.mark.parametrize("content", ["link", "pointer"])
def test_a_file_that_is_only_a_name(folder, name, content):
    (folder / name).unlink(missing_ok=True)
    if content == "link":
        os.symlink("../../blobs/0123abcd", folder / name)
    else:
        (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    words = {"link": "a link that leads nowhere", "pointer": "git lfs pull"}[content]
    said = refuse(resolve_model, folder)
    assert words in said and str(folder / name) in said


def test_a_link_to_no_folder(tmp_path):
    os.symlink(tmp_path / "gone", tmp_path / "link")
    assert "leads nowhere" in refuse(resolve_model, tmp_path / "link")


def test_files_that_no_model_needs_may_be_anything(folder):
    os.symlink("nowhere", folder / "README.md")
    assert resolve_model(folder) == folder


@pytest.mark.parametrize(
    "rename", ["_orig_mod.{}", "module.{}", "module._orig_mod.{}", "_fsdp_wrapped_module.{}", "inner"]
)
def test_names_of_wrapped_modules_are_read(folder, rename):
    def renamed(name):
        if rename == "inner":
            return name.replace("transformer.h.1.", "transformer.h.1._checkpoint_wrapped_module.")
        return rename.format(name)

    wanted = load_model(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {renamed(name): shard for name, shard in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for shard in set(index["weight_map"].values()):
        save_file({renamed(k): v for k, v in load_file(folder / shard).items()}, folder / shard)
    assert same(load_model(folder), wanted)


def test_two_names_of_one_tensor_are_refused(tmp_path):
    shutil.copytree(GOLDEN / "llama31", tmp_path / "m", copy_function=shutil.copyfile)
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"module.model.norm.weight": tensors["model.norm.weight"].clone()}, file)
    assert "keep one" in refuse(load_model, tmp_path / "m")


def test_a_run_means_its_model(tmp_path):
    run = tmp_path / "run"
    step = run / "checkpoints" / "step-000002"
    step.mkdir(parents=True)
    (run / "config.toml").write_text("")
    for name in ("state.json", "rank-000.safetensors"):
        (step / name).write_text("{}")
    assert "no model/ yet; finish it with train.py --resume" in refuse(resolve_model, run)
    for inside in (step, step.parent):
        said = refuse(resolve_model, inside)
        assert "checkpoint" in said and f"finish the run {run} with --resume" in said
    shutil.copytree(GOLDEN / "llama31", run / "model")
    assert resolve_model(run) == resolve_model(run / "model") == run / "model"
    assert same(load_model(run), load_model(GOLDEN / "llama31"))
    assert f"give {run}" in refuse(resolve_model, step)


def test_folders_around_a_model(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abcd"
    shutil.copytree(GOLDEN / "llama31", snapshot)
    assert resolve_model(tmp_path / "models--org--name") == snapshot
    assert f"give {snapshot}" in refuse(read_config, snapshot.parent)


@pytest.mark.parametrize(
    "file, word", [("pytorch_model.bin", "pickled"), ("consolidated.00.pth", "pickled"), ("m.gguf", "GGUF")]
)
def test_weights_of_other_kinds(tmp_path, file, word):
    shutil.copy(GOLDEN / "llama31" / "config.json", tmp_path)
    (tmp_path / file).write_bytes(b"")
    assert word in refuse(load_model, tmp_path)


@pytest.mark.parametrize("path", ["hf://org/name", "https://huggingface.co/org/name/tree/main"])
def test_an_address_on_the_hub(path):
    assert refuse(resolve_model, path) == f"{path}: no such folder; give the Hub's model as org/name"


def test_a_hub_id_without_its_weights(tmp_path, monkeypatch):
    """As the Hub does it: only what the patterns allow arrives."""
    source, cache = GOLDEN / "llama_tied", tmp_path / "snapshot"

    def snapshot_download(repo, allow_patterns, revision):
        cache.mkdir(exist_ok=True)
        for file in source.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copyfile(file, cache / file.name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    folder = resolve_model("org/name", weights=False)
    assert not list(folder.glob("*.safetensors")) and read_config(folder, weights=False).tied
    assert list(resolve_model("org/name").glob("*.safetensors"))
