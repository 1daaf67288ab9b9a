"""Hugging Face folders: read in every style and form, written back bit for bit, refused in one line."""

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import refuse
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from align.models import (
    FalconConfig,
    build_model,
    init_weights,
    load_model,
    load_weights,
    read_config,
    resolve_model,
    save_model,
)

GOLDEN = Path(__file__).parents[1] / "golden"
VARIANTS = json.loads((GOLDEN / "index.json").read_text())["variants"]
each_variant = pytest.mark.parametrize("variant", VARIANTS)
SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture
def copy(tmp_path):
    """A copy of a golden folder, to damage."""

    def make(variant):
        return Path(shutil.copytree(GOLDEN / variant, tmp_path / variant))

    return make


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def parameters(model):
    return {name: param.detach() for name, param in model.named_parameters()}


def same(a, b):
    a, b = parameters(a), parameters(b)
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@each_variant
def test_stored_bits_are_read(variant):
    model = load_model(GOLDEN / variant, dtype=None)
    stored = {}
    for file in VARIANTS[variant]["weight_files"]:
        stored |= load_file(GOLDEN / variant / file)
    for name, param in model.named_parameters():
        assert param.dtype == stored[name].dtype and torch.equal(param, stored[name])
    wide = load_model(GOLDEN / variant, dtype=torch.float64)
    assert all(torch.equal(param, stored[name].double()) for name, param in wide.named_parameters())


@each_variant
@pytest.mark.parametrize("max_shard_bytes", [5 * 10**9, 20_000])
def test_round_trip(variant, max_shard_bytes, tmp_path):
    model = load_model(GOLDEN / variant, dtype=None)
    save_model(model, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    again = load_model(tmp_path / "out", dtype=None)
    assert same(model, again) and again.config == model.config
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert {file.name for file in tmp_path.iterdir()} == {"out"}  # no partial folder stays behind
    if max_shard_bytes > 10**9:
        assert files == {"config.json", "model.safetensors"}
    else:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(parameters(model))
        assert index["metadata"]["total_size"] == sum(p.numel() * p.itemsize for p in model.parameters())
        shards = sorted(files - {"config.json", "model.safetensors.index.json"})
        assert shards == [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
        for shard in shards:
            tensors = load_file(tmp_path / "out" / shard)
            assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= max_shard_bytes
    for file in files:
        if file.endswith(".safetensors"):
            with safe_open(tmp_path / "out" / file, framework="pt") as opened:
                assert opened.metadata() == {"format": "pt"}  # transformers refuses a file without it
                assert "lm_head.weight" not in opened.keys() or not model.config.tied  # noqa: SIM118


@each_variant
def test_the_published_config_comes_back(variant, tmp_path):
    source = json.loads((GOLDEN / variant / "config.json").read_text())
    model = load_model(GOLDEN / variant)
    save_model(model, tmp_path / "same")
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == source
    save_model(model, tmp_path / "half", dtype=torch.float16)
    key = "dtype" if VARIANTS[variant]["config_style"] == "v5" else "torch_dtype"
    assert json.loads((tmp_path / "half" / "config.json").read_text()) == source | {key: "float16"}
    assert all(t.dtype == torch.float16 for t in load_file(tmp_path / "half" / "model.safetensors").values())


def test_a_config_from_scratch_says_what_transformers_needs(tmp_path):
    raw = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = build_model(FalconConfig.from_dict(raw | {"auto_map": {"AutoConfig": "configuration_RW.RWConfig"}}))
    init_weights(model, seed=0)
    save_model(model, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    extra = {"model_type": "falcon", "architectures": ["FalconForCausalLM"], "torch_dtype": "float32"}
    assert written == raw | extra  # auto_map would name Python files that are not here
    assert same(load_model(tmp_path), model)


def test_a_differing_head_is_not_tied(copy, tmp_path):
    folder = copy("falcon_40b")  # tied, and carries an equal head
    assert load_model(folder).config.tied
    head = torch.randn(144, 64, generator=torch.Generator().manual_seed(0))
    edit_tensors(folder / "model.safetensors", lambda t: t.update({"lm_head.weight": head}))
    with pytest.warns(UserWarning, match=r"lm_head\.weight differs"):
        model = load_model(folder)
    assert torch.equal(model.lm_head.weight, head) and not torch.equal(model.embedding.weight, head)
    save_model(model, tmp_path / "out")
    again = load_model(tmp_path / "out")  # warns of nothing: the config now says so
    assert same(again, model) and not again.config.tied


def test_harmless_buffers_of_old_checkpoints(copy):
    folder = copy("falcon_7b")
    buffers = {"transformer.h.0.self_attention.rotary_emb.inv_freq": torch.ones(8)}
    buffers |= {"transformer.h.1.self_attention.maybe_rotary.inv_freq": torch.ones(8)}
    edit_tensors(folder / "model.safetensors", lambda t: t.update(buffers))
    assert same(load_model(folder), load_model(GOLDEN / "falcon_7b"))


@pytest.mark.parametrize("variant", ["falcon2_11b_sharded", "falcon_40b", "llama31"])
@pytest.mark.parametrize("ranks", [2, 3, 100])
def test_each_rank_reads_its_own_rows(variant, ranks):
    whole = parameters(load_model(GOLDEN / variant))
    for rank in (0, 1, ranks - 1):
        model = build_model(read_config(GOLDEN / variant), "meta")
        parts = {}

        def local(param, rank=rank, parts=parts):
            # ceil(rows / ranks) to each, so the last ranks may have fewer, or none
            rows = -(-param.shape[0] // ranks)
            start = min(rank * rows, param.shape[0])
            stop = min(start + rows, param.shape[0])
            parts[param] = torch.full((stop - start, *param.shape[1:]), torch.nan)
            return parts[param], start

        load_weights(model, GOLDEN / variant, local=local)
        for name, param in model.named_parameters():
            rows = -(-param.shape[0] // ranks)
            assert torch.equal(parts[param], whole[name][rank * rows :][:rows])


def test_gathering_is_the_same_on_every_rank(tmp_path):
    model = load_model(GOLDEN / "falcon2_11b")
    names = {param: name for name, param in model.named_parameters()}
    calls = {True: [], False: []}
    for write in (True, False):

        def gather(param, write=write):
            calls[write].append(names[param])
            return param.detach() + 1

        save_model(model, tmp_path / str(write), gather=gather, write=write, max_shard_bytes=30_000)
    assert calls[True] == calls[False] == list(names.values())
    assert not (tmp_path / "False").exists()
    saved = parameters(load_model(tmp_path / "True"))
    assert all(torch.equal(saved[name], param + 1) for param, name in names.items())


def test_saving_replaces_a_checkpoint_only_when_complete(tmp_path):
    model, target = load_model(GOLDEN / "falcon2_11b"), tmp_path / "deep" / "model"
    tokenizer = GOLDEN / "falcon2_11b_text" / "tokenizer.json"
    save_model(model, target, extras=[tokenizer])
    assert (target / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    before = {file.name: file.read_bytes() for file in target.iterdir()}

    def broken(param):
        raise RuntimeError("a rank died")

    with pytest.raises(RuntimeError, match="a rank died"):
        save_model(model, target, gather=broken)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    refuse(save_model, model, target, extras=[tmp_path / "no-such-file"])
    assert {file.name: file.read_bytes() for file in target.iterdir()} == before
    save_model(load_model(GOLDEN / "llama31"), target)
    assert same(load_model(target), load_model(GOLDEN / "llama31"))
    assert [file.name for file in target.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "value, dtype, words",
    [
        (1e5, torch.float16, ["100000", "float16 only up to 65504", "--model.save_dtype bfloat16"]),
        (float("nan"), None, ["non-finite"]),
        (-float("inf"), torch.float16, ["non-finite"]),
    ],
)
@pytest.mark.parametrize("max_shard_bytes", [5 * 10**9, 20_000])
def test_weights_that_cannot_be_written(value, dtype, words, max_shard_bytes, tmp_path):
    model, target = load_model(GOLDEN / "falcon_7b"), tmp_path / "model"
    name, last = list(model.named_parameters())[-1]
    last.data.view(-1)[3] = value
    text = refuse(save_model, model, target, dtype=dtype, max_shard_bytes=max_shard_bytes)
    assert str(target) in text and name in text and all(word in text for word in words), text
    # also on the ranks that write nothing, or they would wait for the one that does
    assert name in refuse(save_model, model, target, dtype=dtype, write=False)
    assert not list(tmp_path.iterdir())
    save_model(load_model(GOLDEN / "falcon_7b"), target)
    refuse(save_model, model, target, dtype=dtype)
    assert same(load_model(target), load_model(GOLDEN / "falcon_7b"))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_is_the_tensors_own_where_the_config_names_none(stored, copy, tmp_path):
    folder = copy("llama31")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if k not in ("dtype", "torch_dtype")}))
    norms = {"model.norm.weight"}  # a few tensors in another dtype do not decide

    def change(tensors):
        tensors.update({k: v.to(torch.float32 if k in norms else stored) for k, v in tensors.items()})

    edit_tensors(folder / "model.safetensors", change)
    save_model(load_model(folder), tmp_path / "out")
    assert {v.dtype for v in load_file(tmp_path / "out" / "model.safetensors").values()} == {stored}
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert str(stored).endswith(written.get("torch_dtype", written.get("dtype")))


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_have_the_mode_that_the_umask_says(umask, tmp_path):
    extra = tmp_path / "tokenizer.json"
    extra.write_text("{}")
    extra.chmod(0o400)
    old = os.umask(umask)
    try:
        save_model(load_model(GOLDEN / "falcon_7b"), tmp_path / "out", extras=[extra], texts={"a.jinja": "a"})
    finally:
        os.umask(old)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert modes == dict.fromkeys(["config.json", "model.safetensors", "tokenizer.json", "a.jinja"], 0o666 & ~umask)


def test_saving_spares_what_is_no_checkpoint(tmp_path):
    model = load_model(GOLDEN / "falcon_7b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "not a checkpoint" in refuse(save_model, model, tmp_path / "mine")
    assert "not a checkpoint" in refuse(save_model, model, tmp_path / "mine" / "thesis.txt")
    assert "cannot be written" in refuse(save_model, model, tmp_path / "mine" / "thesis.txt" / "model")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    save_model(model, tmp_path / "empty")
    assert same(load_model(tmp_path / "empty"), model)


def drop(folder, name):
    (folder / name).unlink()


def truncate(folder, name):
    os.truncate(folder / name, os.path.getsize(folder / name) // 2)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: drop(d, "config.json"), ["is not a checkpoint", "config.json"]),
        (lambda d: drop(d, "model.safetensors.index.json"), ["is not a checkpoint", "model.safetensors"]),
        (lambda d: drop(d, SHARD), ["index.json", SHARD]),
        (lambda d: truncate(d, SHARD), [SHARD, "truncated"]),
        (lambda d: (d / SHARD).write_bytes(b""), [SHARD, "truncated"]),
        (lambda d: (d / SHARD).write_text("version https://git-lfs.github.com/spec/v1"), [SHARD, "LFS pointer"]),
        (lambda d: (d / "config.json").write_text("{"), ["config.json", "JSON"]),
        (lambda d: (d / "config.json").write_bytes(b"\xff\xfe"), ["config.json", "JSON"]),
        (lambda d: (d / "config.json").write_text("[]"), ["config.json", "object"]),
        (lambda d: edit_json(d / "config.json", model_type="mamba"), ["config.json", "model_type", "mamba", "falcon"]),
        (lambda d: edit_json(d / "config.json", model_type=None), ["config.json", "model_type"]),
        (lambda d: edit_json(d / "config.json", model_type=["falcon"]), ["config.json", "model_type"]),
        (lambda d: edit_json(d / "config.json", activation="relu"), ["config.json", "activation"]),
        (
            lambda d: edit_json(d / "config.json", ffn_hidden_size=128),
            ["dense_4h_to_h.weight", "[64, 256]", "[64, 128]"],
        ),
        (lambda d: edit_json(d / "config.json", num_hidden_layers=3), ["transformer.h.2", "missing", "more"]),
        (
            lambda d: edit_json(d / "config.json", num_ln_in_parallel_attn=2),
            ["ln_attn", "missing", "it has", "input_layernorm", "does not ask for"],
        ),
        (lambda d: edit_json(d / "config.json", num_hidden_layers=1), ["transformer.h.1", "unexpected"]),
        (lambda d: edit_json(d / "config.json", bias=True), ["query_key_value.bias", "missing"]),
        (lambda d: edit_json(d / "model.safetensors.index.json", weight_map=[]), ["index.json", "weight_map"]),
        (
            lambda d: edit_json(d / "model.safetensors.index.json", weight_map={"lm_head.weight": "../x.safetensors"}),
            ["index.json", "../x.safetensors"],
        ),
        (lambda d: edit_tensors(d / SHARD, lambda t: t.pop(next(iter(t)))), [SHARD, "missing", "lists it"]),
        (
            lambda d: edit_tensors(d / SHARD, lambda t: t.update({k: v.to(torch.int8) for k, v in t.items()})),
            [SHARD, "tensor", "I8"],
        ),
    ],
)
def test_a_damaged_folder(copy, damage, words):
    folder = copy("falcon2_11b_sharded")
    damage(folder)
    text = refuse(load_model, folder)
    assert str(folder) in text and all(word in text for word in words), text


def test_pickled_weights_are_refused(copy):
    folder = copy("falcon_7b")
    drop(folder, "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "convert them to safetensors" in refuse(load_model, folder)


def test_resolve_model(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert resolve_model("runs") == Path("runs")
    for name in ("nowhere", "/no/such/folder", "../a/b", "a/b/c", "https://huggingface.co/a/b"):
        assert "no such folder" in refuse(resolve_model, name)
    asked = []

    def snapshot_download(repo, allow_patterns, revision):
        asked.append((repo, allow_patterns))
        if repo != "tiiuae/falcon-11B":
            raise ConnectionError("no route\nto host")
        return str(GOLDEN / "falcon2_11b")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert same(load_model("tiiuae/falcon-11B"), load_model(GOLDEN / "falcon2_11b"))
    assert not any("bin" in pattern for pattern in asked[0][1])
    text = refuse(resolve_model, "runs/nca")
    assert "runs/nca" in text and "no such folder" in text and "no route to host" in text


def test_a_file_is_not_a_folder():
    assert "is a file" in refuse(load_model, GOLDEN / "index.json")
    assert "no such folder" in refuse(read_config, GOLDEN / "nothing")
