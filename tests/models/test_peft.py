"""PEFT's adapter folders: what they add to the weights by the definition, and by PEFT itself where it is installed."""

import json
import math
import os
import shutil

import huggingface_hub
import pytest
import torch
from conftest import GOLDEN, MODEL, refuse
from safetensors.torch import load_file, save_file

import train
from align.data import load_tokenizer
from align.models import (
    LlamaConfig,
    build_model,
    check_weights,
    init_weights,
    load_model,
    load_weights,
    read_config,
    resolve_model,
    save_model,
)

SMALL_LLAMA = {"model_type": "llama", "vocab_size": 480, "hidden_size": 32, "intermediate_size": 40} | {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": 1,
}
BASES = ["falcon2_11b_text", "falcon_7b", "falcon_rw", "llama31"]
FALCON, LLAMA = ("query_key_value", "dense_4h_to_h"), ("q_proj", "down_proj")


@pytest.fixture
def adapter(tmp_path):
    """Make an adapter's folder of random matrices, for some of a golden model's maps: (folder, its tensors)."""

    def make(base="falcon2_11b_text", ranks=(2, 3), **about):
        torch.manual_seed(0)
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        model = load_model(GOLDEN / base)
        tensors = {}
        for leaf, rank in zip(LLAMA if "llama" in base else FALCON, ranks, strict=True):
            for name, module in model.named_modules():
                if name.endswith(f".{leaf}"):
                    rows, columns = module.weight.shape
                    tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, columns)
                    tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(rows, rank) / 10
        save_file(tensors, folder / "adapter_model.safetensors")
        settings = {"peft_type": "LORA", "base_model_name_or_path": str(GOLDEN / base), "r": 2, "lora_alpha": 8}
        (folder / "adapter_config.json").write_text(json.dumps(settings | about))
        return folder, tensors

    return make


def added(folder, base, tensors, scales):
    """Assert what was added to each weight; scales: of each leaf's maps."""
    before, after = load_model(base), load_model(folder)
    for (name, a), (_, b) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        key = f"base_model.model.{name.removesuffix('.weight')}"
        wanted = a
        if f"{key}.lora_A.weight" in tensors:
            product = tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
            wanted = a + scales[key.rpartition(".")[2]] * product
            assert not torch.equal(wanted, a)
        torch.testing.assert_close(b, wanted, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("base", BASES)
def test_an_adapter_is_added_to_its_base(base, adapter):
    folder, tensors = adapter(base)
    first, second = LLAMA if "llama" in base else FALCON
    added(folder, GOLDEN / base, tensors, {first: 8 / 2, second: 8 / 3})


@pytest.mark.parametrize(
    "about, scales",
    [
        ({"use_rslora": True}, (8 / math.sqrt(2), 8 / math.sqrt(3))),
        ({"alpha_pattern": {"dense_4h_to_h": 30}, "rank_pattern": {"dense_4h_to_h": 3}}, (4, 10)),
        ({"alpha_pattern": {"h_to_h": 30, "mlp.dense_4h_to_h": 6, "dense_4h_to_h": 9}}, (4, 2)),
        ({"lora_dropout": 0.1, "init_lora_weights": "gaussian", "loftq_config": {}, "use_dora": False}, (4, 8 / 3)),
    ],
)
def test_scales(about, scales, adapter):
    folder, tensors = adapter(**about)
    added(folder, MODEL, tensors, dict(zip(FALCON, scales, strict=True)))


def test_the_name_of_one_module_in_a_pattern(adapter):
    name = "transformer.h.1.self_attention.query_key_value"
    folder, tensors = adapter(alpha_pattern={f"^{name}": 40})
    model, base = load_model(folder), load_model(MODEL)
    for layer, scale in ((0, 4), (1, 20)):
        key = name.replace("1", str(layer))
        product = tensors[f"base_model.model.{key}.lora_B.weight"] @ tensors[f"base_model.model.{key}.lora_A.weight"]
        wanted = base.get_parameter(f"{key}.weight") + scale * product
        torch.testing.assert_close(model.get_parameter(f"{key}.weight"), wanted)


@pytest.mark.parametrize(
    "key, value",
    [
        *(("peft_type", "LOHA"), ("bias", "all"), ("use_dora", True), ("modules_to_save", ["lm_head"])),
        *(
            ("init_lora_weights", "pissa"),
            ("init_lora_weights", "loftq"),
            ("fan_in_fan_out", True),
            ("lora_bias", True),
        ),
        *(("trainable_token_indices", [3]), ("layer_replication", [[0, 2]]), ("alora_invocation_tokens", [1, 2])),
        *(("target_parameters", ["w"]), ("some_later_idea", "on"), ("alpha_pattern", {"(a+)+b": 3})),
        *(("lora_alpha", None), ("lora_alpha", "8"), ("peft_type", None), ("base_model_name_or_path", None)),
        *(("lora_alpha", float("nan")), ("alpha_pattern", ["dense"])),
    ],
)
def test_what_is_more_than_plain_lora_is_refused_by_its_key(key, value, adapter):
    folder, _ = adapter(**{key: value})
    said = refuse(load_model, folder)
    assert key in said and str(folder / "adapter_config.json") in said


def edit(folder, change):
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


NAME = "base_model.model.transformer.h.0.mlp.dense_4h_to_h.lora_B.weight"


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda t: t.pop(NAME), "alone"),
        (lambda t: t.update({NAME: torch.zeros(64, 5)}), "dense_4h_to_h"),
        (lambda t: t.update({NAME: torch.zeros(65, 3)}), "trained on"),
        (lambda t: t.update({NAME.replace("lora_B", "lora_magnitude_vector"): torch.zeros(64)}), "magnitude"),
        (lambda t: t.update({NAME.replace("h.0", "h.7"): t.pop(NAME)}), "h.7"),
        (lambda t: t.update({"base_model.model.transformer.word_embeddings.weight": torch.zeros(4, 4)}), "embeddings"),
        (lambda t: t.update({"base_model.model.transformer.ln_f.lora_A.weight": torch.zeros(4, 64)}), "ln_f"),
        (dict.clear, "no tensor"),
    ],
)
def test_tensors_that_do_not_fit_the_base(change, word, adapter):
    folder, _ = adapter()
    edit(folder, change)
    said = refuse(load_model, folder)
    assert word in said and str(folder / "adapter_model.safetensors") in said


def test_a_head_that_is_the_embedding_takes_no_adapter(adapter):
    folder, _ = adapter(base_model_name_or_path=str(GOLDEN / "falcon2_11b_tied"))
    pair = {"A": torch.zeros(2, 64), "B": torch.zeros(160, 2)}
    edit(folder, lambda t: t.update({f"base_model.model.lm_head.lora_{k}.weight": v for k, v in pair.items()}))
    assert "lm_head" in refuse(load_model, folder)


def test_folders_that_are_no_adapter(adapter, tmp_path):
    folder, _ = adapter()
    shutil.copytree(MODEL, tmp_path / "both")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / name, tmp_path / "both")
    assert "a model and an adapter" in refuse(resolve_model, tmp_path / "both")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "safetensors" in refuse(resolve_model, folder)
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
    assert "adapter_config.json" in refuse(resolve_model, folder)


def test_a_folder_around_an_adapter(adapter):
    folder, _ = adapter()
    assert f"give {folder}" in refuse(load_model, folder.parent)


def test_a_base_that_is_not_there_or_is_an_adapter(adapter, tmp_path):
    folder, _ = adapter(base_model_name_or_path="/no/such/base")
    said = refuse(resolve_model, folder)
    assert "base_model_name_or_path /no/such/base" in said and "adapter_config.json" in said
    upper = shutil.copytree(adapter()[0], tmp_path / "upper")
    (upper / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(folder)})
    )
    assert "an adapter itself" in refuse(resolve_model, upper)


@pytest.mark.parametrize("where", ["here", "beside"])
def test_a_relative_base(where, adapter, tmp_path, monkeypatch):
    """From the working folder, as PEFT takes it, else from the adapter's."""
    shutil.copytree(MODEL, tmp_path / "base")
    folder, tensors = adapter(base_model_name_or_path="base" if where == "here" else "../base")
    monkeypatch.chdir(tmp_path if where == "here" else GOLDEN)
    added(folder, MODEL, tensors, {"query_key_value": 4, "dense_4h_to_h": 8 / 3})


def test_base_and_adapter_on_the_hub(adapter, monkeypatch):
    """The adapter's revision is that of its base; without weights, neither's are fetched."""
    folder, tensors = adapter(base_model_name_or_path="org/base", revision="v2")
    asked = []

    def snapshot_download(repo, allow_patterns, revision):
        asked.append((repo, revision, "*.safetensors" in allow_patterns))
        return str(folder if repo == "org/adapter" else MODEL)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    added(resolve_model("org/adapter"), MODEL, tensors, {"query_key_value": 4, "dense_4h_to_h": 8 / 3})
    assert asked == [("org/adapter", None, True), ("org/base", "v2", True)]
    (folder / "adapter_model.safetensors").unlink()
    assert read_config(resolve_model("org/adapter", weights=False), weights=False).num_layers == 2
    assert asked[2:] == [("org/adapter", None, False), ("org/base", "v2", False)]


def test_the_files_beside_the_weights(adapter, tmp_path):
    """The base's, but for the tokenizer and template that the adapter was trained with."""
    folder, _ = adapter()
    resolved = resolve_model(folder)
    assert resolve_model(resolved) == resolved
    assert load_tokenizer(resolved).chat_template.source == load_tokenizer(MODEL).chat_template.source
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "config.json").write_text("{}")
    (folder / "trainer_state.json").write_text("{}")
    resolved = resolve_model(folder)
    assert load_tokenizer(resolved).chat_template.source == "{{ messages }}"
    assert (resolved / "config.json").read_bytes() == (MODEL / "config.json").read_bytes()
    assert not (resolved / "trainer_state.json").exists()
    assert sorted(os.listdir(folder)) == sorted(
        ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "config.json", "trainer_state.json"]
    )


def test_a_rank_reads_its_rows(adapter):
    folder, _ = adapter()
    resolved = resolve_model(folder)
    wanted = load_model(folder)
    part = build_model(read_config(resolved))
    check_weights(part, resolved)
    for param in part.parameters():
        param.data.zero_()
    load_weights(part, resolved, local=lambda p: (p.data[1:3], 1))
    for a, b in zip(wanted.parameters(), part.parameters(), strict=True):
        torch.testing.assert_close(b[1:3], a[1:3])
        assert not b[3:].any() and not b[:1].any()


@pytest.fixture(scope="module")
def peers():
    pytest.importorskip("transformers")
    return pytest.importorskip("peft")


def peer_logits(peers, base, adapter=None):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    ids = torch.randint(0, 100, (2, 12))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = peers.PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return ids, model(ids).logits


def same_logits(a, b):
    assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("base", ["falcon2_11b_text", "llama"])
@pytest.mark.parametrize("targets", ["all", "attention", "mlp-up"])
def test_three_readers_of_a_run_agree(peers, base, targets, pairs_file, tmp_path):
    """transformers on model/, PEFT on the base with adapter/, and ours on either."""
    source = MODEL
    if base == "llama":
        source = tmp_path / "llama"
        model = build_model(LlamaConfig.from_dict(SMALL_LLAMA))
        init_weights(model, 0)
        save_model(model, source)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(MODEL / file, source / file)
    out = tmp_path / "out"
    flags = ["--model", source, "--data", pairs_file, "--output", out, "--loss", "dpo", "--reference.mode", "live"]
    flags += ["--train.steps", "3", "--train.batch_size", "4", "--optim.lr", "1e-2", "--optim.warmup", "0"]
    flags += ["--lora.rank", "2", "--lora.alpha", "5", "--lora.targets", targets]
    assert train.main(list(map(str, flags))) == 0
    ids, merged = peer_logits(peers, out / "model")
    _, beside = peer_logits(peers, source, out / "adapter")
    _, untrained = peer_logits(peers, source)
    assert (merged - untrained).abs().max() > 1e-2
    same_logits(beside, merged)
    for folder in (out / "model", out / "adapter"):
        with torch.no_grad():
            same_logits(load_model(folder).logits(ids), merged)


@pytest.mark.parametrize("base", ["falcon_7b", "falcon_rw", "falcon_40b", "llama31"])
@pytest.mark.parametrize("about", [{}, {"use_rslora": True}, {"alpha_pattern": {"A": 3.0}, "rank_pattern": {"A": 5}}])
def test_an_adapter_that_peft_made(peers, base, about, tmp_path):
    from transformers import AutoModelForCausalLM

    leaves = LLAMA if "llama" in base else FALCON
    about = {key: {leaves[0]: value["A"]} if isinstance(value, dict) else value for key, value in about.items()}
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / base, dtype=torch.float32)
    settings = peers.LoraConfig(r=3, lora_alpha=7, target_modules=list(leaves), task_type="CAUSAL_LM", **about)
    model = peers.get_peft_model(model, settings)
    torch.manual_seed(1)
    for name, param in model.named_parameters():
        if "lora_B" in name:
            param.data.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "adapter")
    ids, wanted = peer_logits(peers, GOLDEN / base, tmp_path / "adapter")
    with torch.no_grad():
        same_logits(load_model(tmp_path / "adapter").logits(ids), wanted)
