"""Runs that train adapters: one curve however it is computed, resumed to the bit, small checkpoints, two folders."""

import json
import math
import shutil

import pytest
import torch
from conftest import MODEL, read_metrics, run_ranks, run_train
from safetensors.torch import load_file

import train
from align.checkpoint import Run
from align.config import load_config
from align.losses import build_loss
from align.models import adapters, load_model, own_weights
from align.optim import build_optimizer
from align.parallel import distributed, gather, load_sharded, local_rows
from align.sections import LoraSection, ParallelSection

NOT_A_RESULT = ("seconds", "tokens_per_second", "peak_memory_mib", "mfu")
LORA = LoraSection(rank=4, alpha=8.0)


def flags(pairs_file, output, *more):
    base = ["--model", MODEL, "--data", pairs_file, "--output", output, "--reference.cache", output.parent / "cache"]
    base += ["--train.steps", "3", "--train.batch_size", "7", "--optim.lr", "5e-3", "--data.max_length", "128"]
    return [str(flag) for flag in [*base, "--loss", "dpo", "--lora.rank", "4", *more]]


def results(output):
    return [{k: v for k, v in line.items() if k not in NOT_A_RESULT} for line in read_metrics(output)]


def assert_same_curve(a, b):
    for x, y in zip(results(a), results(b), strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-5)


def test_a_run_starts_at_its_reference_and_leaves_a_model_and_an_adapter(pairs_file, tmp_path):
    out = tmp_path / "out"
    assert train.main(flags(pairs_file, out, "--reference.mode", "live")) == 0
    first, *_, last = read_metrics(out)
    # policy and reference are one model, on one batch
    assert first["log_ratios/margin"] == first["kl"] == first["rewards/chosen"] == first["rewards/rejected"] == 0
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-7) and last["log_ratios/margin"] > 1
    base, model, pair = load_model(MODEL), load_model(out / "model"), load_model(out / "adapter")
    for (name, a), b, c in zip(base.named_parameters(), model.parameters(), pair.parameters(), strict=True):
        trained = name.startswith("transformer.h.") and name.endswith("weight") and a.ndim == 2
        assert torch.equal(a, b) != trained and torch.equal(a, c) != trained, name
        torch.testing.assert_close(b, c, rtol=1e-6, atol=1e-7)
    assert json.loads((out / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(MODEL)
    assert load_config(["--config", str(out / "config.toml")]).lora == LoraSection(rank=4)


@pytest.mark.parametrize("loss", ["kto", "tdpo", "ld_dpo", "dpo+sft"])
def test_every_kind_of_loss_trains_adapters(loss, pairs_file, tmp_path):
    """Of the global batch, of whole distributions, of shared lengths, a sum."""
    more = ["--loss.weights", "1,0.5"] if "+" in loss else []
    assert train.main(flags(pairs_file, tmp_path / "out", *more, "--loss", loss)) == 0
    first, *_, last = read_metrics(tmp_path / "out")
    assert last["loss"] < first["loss"]


def test_a_cache_is_the_models_own(pairs_file, tmp_path):
    """A run of all weights and one of adapters share it: what a reference says does not depend on what is trained."""
    assert train.main(flags(pairs_file, tmp_path / "live", "--reference.mode", "live")) == 0
    assert train.main(flags(pairs_file, tmp_path / "cached")) == 0
    assert train.main(flags(pairs_file, tmp_path / "dense", "--lora.rank", "0", "--optim.lr", "1e-5")) == 0
    assert_same_curve(tmp_path / "live", tmp_path / "cached")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert not (tmp_path / "dense" / "adapter").exists()


def test_a_resumed_run_is_the_same_run(pairs_file, tmp_path, capsys):
    more = ["--train.checkpoint_every", "2", "--reference.mode", "live"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train.main(flags(pairs_file, whole, *more)) == 0
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step-000003")
    shutil.rmtree(broken / "model")
    assert train.main([*flags(pairs_file, broken, *more), "--resume"]) == 0
    assert results(broken) == results(whole) and len(results(whole)) == 3
    for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (broken / file).read_bytes() == (whole / file).read_bytes()
    capsys.readouterr()
    assert train.main([*flags(pairs_file, broken, *more, "--lora.rank", "2"), "--resume"]) == 2
    assert "lora.rank = 4, not 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, word",
    [
        (["--lora.rank", "0", "--lora.alpha", "8"], "--lora.rank"),
        (["--lora.rank", "0", "--lora.targets", "attention"], "--lora.rank"),
        (["--lora.rank", "-1"], "lora.rank must be at least 0"),
        (["--lora.alpha", "0"], "lora.alpha must be above 0"),
        (["--lora.targets", "mlp"], "mlp-up"),
        (["--reference.mode", "moving", "--reference.every", "2"], "use live or cached"),
        (["--lora.rank", "100"], "lora.rank 100"),
    ],
)
def test_what_is_refused(more, word, pairs_file, tmp_path, capsys):
    assert train.main(flags(pairs_file, tmp_path / "out", *more)) == 2
    said = capsys.readouterr().err
    assert word in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def sharded(world, checkpointing="none"):
    parallel = ParallelSection(checkpointing=checkpointing)
    return load_sharded(MODEL, world, torch.float32, torch.float32, parallel, LORA, seed=3)


def gradients(model):
    """Of a step away from zero, on every rank the same rows: (log-probs, the gradient of each trained parameter)."""
    torch.manual_seed(0)
    for _, module in adapters(model):
        rows, first = local_rows(module.lora_B)
        rows.copy_(torch.randn(module.lora_B.shape)[first : first + len(rows)] / 20)
    ids = torch.randint(0, 128, (3, 11))
    logps = model(ids, ids.roll(-1, 1), torch.ones(3, 11, dtype=torch.bool)).sum(1)  # (B,)
    (logps @ torch.tensor([1.0, -0.5, 2.0])).backward()
    return logps.detach(), {name: gather(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def check_sharded(world, expected):
    """A sharded model draws, computes and steps as a whole one, and frozen parameters have no gradient."""
    for checkpointing in ("none", "selective", "full"):
        model = sharded(world, checkpointing)
        fresh = {name: gather(p) for name, p in model.named_parameters() if name.endswith("lora_A")}
        logps, grads = gradients(model)
        torch.testing.assert_close(logps, expected["logps"], rtol=1e-6, atol=1e-4)
        assert grads.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
        assert not any(p.grad is not None for p in own_weights(model).values())
        for name, matrix in fresh.items():
            assert torch.equal(matrix, expected["fresh"][name])
        for name, grad in grads.items():
            torch.testing.assert_close(grad / world.size, expected["grads"][name], rtol=1e-4, atol=1e-4)


def whole_numbers():
    with distributed() as world:
        model = sharded(world)
        fresh = {name: gather(p) for name, p in model.named_parameters() if name.endswith("lora_A")}
        logps, grads = gradients(model)
    return {"fresh": fresh, "logps": logps, "grads": grads}


def test_recomputing_blocks_changes_nothing():
    expected = whole_numbers()
    with distributed() as world:
        check_sharded(world, expected)


@pytest.mark.slow
def test_sharded_adapters_are_whole_ones():
    run_ranks(check_sharded, 2, whole_numbers())


def test_a_checkpoint_holds_adapters_alone():
    with distributed() as world:
        model = sharded(world)
        optimizer = build_optimizer(model, load_config([]).optim)
        gradients(model)
        optimizer.step()
        held = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        assert held == sum(m.lora_A.numel() + m.lora_B.numel() for _, m in adapters(model))
        state = Run(model, optimizer, build_loss("dpo"), None, {}).tensors()
        # of two matrices a map: itself, AdamW's two moments, and its count of steps
        assert len(state) == 4 * 2 * len(adapters(model)) and all(".lora_" in name for name in state)


def test_a_frozen_weight_is_exported_as_it_was_read(pairs_file, tmp_path):
    """float32 weights, of which computing in bfloat16 has seen the upper half: none of it is lost in model/."""
    out = tmp_path / "out"
    more = ["--parallel.dtype", "bfloat16", "--lora.targets", "attention", "--reference.mode", "live"]
    assert train.main(flags(pairs_file, out, *more)) == 0
    before, after = load_file(MODEL / "model.safetensors"), load_file(out / "model" / "model.safetensors")
    pairs = load_file(out / "adapter" / "adapter_model.safetensors")
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in before.values())
    for name, weight in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in pairs:
            product = pairs[f"{key}.lora_B.weight"] @ pairs[f"{key}.lora_A.weight"]
            assert product.abs().max() > 0
            weight = weight + 8 * product  # alpha / rank = 32 / 4
        torch.testing.assert_close(after[name], weight, rtol=1e-6, atol=1e-7)


def test_an_adapter_is_a_model_to_start_from(pairs_file, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train.main(flags(pairs_file, first, "--loss", "sft")) == 0
    (first / "adapter" / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    assert train.main(flags(pairs_file, second, "--model", first / "adapter", "--optim.lr", "0")) == 0
    assert f"no {second / 'adapter'}" in capsys.readouterr().out and not (second / "adapter").exists()
    assert read_metrics(second)[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    for a, b in zip(load_model(first / "model").parameters(), load_model(second / "model").parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    assert (second / "model" / "chat_template.jinja").read_text().startswith("{% for m in messages %}[")
    assert not (second / "model" / "adapter_config.json").exists()


@pytest.mark.slow
def test_one_curve_for_every_split(pairs_file, tmp_path):
    runs = {
        "one": (1, []),
        "one-live": (1, ["--reference.mode", "live", "--train.micro_batch_size", "1"]),
        "two": (2, ["--reference.mode", "live", "--parallel.checkpointing", "full"]),
    }
    for name, (ranks, more) in runs.items():
        done = run_train(*flags(pairs_file, tmp_path / name, *more), ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert_same_curve(tmp_path / "one", tmp_path / name)
        a, b = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("one", name))
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5)
