"""Adapters against the dense model that they stand for, in float64; fresh ones, switched-off ones, and what they cost."""

import math

import pytest
import torch
from conftest import GOLDEN, refuse

from align.models import (
    adapters,
    adapters_off,
    add_adapters,
    build_model,
    count_parameters,
    init_adapters,
    load_model,
    own_weights,
    read_config,
    save_model,
)
from align.models.lora import TARGETS, merged
from align.stream import stream_of_rows

FAMILIES = [
    "falcon_7b",
    "falcon2_11b",
    "falcon_40b",
    "falcon_rw",
    "falcon2_11b_tied",
    "llama31",
    "falcon3",
    "llama_tied",
]
each_variant = pytest.mark.parametrize("variant", FAMILIES)


def whole(param):
    return param.data, 0


def adapted(variant, rank=3, alpha=6.0, targets="all", seed=0, trained=True, dtype=torch.float64):
    """A golden model with adapters; trained: with a B that is not zero any more."""
    model = load_model(GOLDEN / variant, dtype)
    add_adapters(model, rank, alpha, targets)
    init_adapters(model, seed, whole)
    if dtype == torch.float64:
        model.double()
    if trained:
        generator = torch.Generator().manual_seed(seed)
        for _, module in adapters(model):
            module.lora_B.data.copy_(torch.randn(module.lora_B.shape, generator=generator) / 20)
    return model


def some_logps(model, seed=0):
    """Log-probs of random ids, and weights that differ from token to token: (B, T) each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 100, (2, 9), generator=generator)
    weights = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    return model(ids, ids.roll(-1, 1), torch.ones(2, 9, dtype=torch.bool)), weights


@each_variant
def test_gradients_are_those_of_the_dense_model(variant):
    """With G the gradient of W + s B A as one matrix: s Bᵀ G for A, s G Aᵀ for B; nothing for what is frozen."""
    model, dense = adapted(variant), load_model(GOLDEN / variant, torch.float64)
    with torch.no_grad():
        for name, param in dense.named_parameters():
            param.copy_(merged(model, name, lambda p: p.detach()))
    ours, weights = some_logps(model)
    theirs, _ = some_logps(dense)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    assert adapters(model)
    for name, module in adapters(model):
        dense_gradient = dense.get_parameter(f"{name}.weight").grad  # (out, in)
        assert dense_gradient.norm() > 0
        expected = (2.0 * module.lora_B.T @ dense_gradient, 2.0 * dense_gradient @ module.lora_A.T)  # s = 6 / 3
        for found, wanted in zip((module.lora_A.grad, module.lora_B.grad), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    assert all(param.grad is None and not param.requires_grad for param in own_weights(model).values())


@each_variant
def test_a_fresh_adapter_and_one_switched_off_change_not_a_bit(variant):
    base, _ = some_logps(load_model(GOLDEN / variant))
    fresh, _ = some_logps(adapted(variant, trained=False, dtype=torch.float32))
    assert torch.equal(fresh, base)
    model = adapted(variant, dtype=torch.float32)
    moved, _ = some_logps(model)
    assert (moved - base).abs().max() > 1e-3
    with adapters_off(model):
        assert torch.equal(some_logps(model)[0], base)
    assert torch.equal(some_logps(model)[0], moved)


def test_adapters_are_on_again_after_an_error():
    model = adapted("llama31")
    with pytest.raises(KeyError), adapters_off(model):
        raise KeyError
    assert all(module.enabled for _, module in adapters(model))


def test_what_each_target_names():
    def leaves(variant, targets):
        model = build_model(read_config(GOLDEN / variant), "meta")
        add_adapters(model, 1, 1.0, targets)
        found = [name.rpartition(".")[2] for name, _ in adapters(model)]
        assert all(found.count(leaf) == len(model.blocks) for leaf in found)
        return set(found)

    falcon, llama = {"query_key_value", "dense"}, {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert leaves("falcon_7b", "attention") == falcon and leaves("llama31", "attention") == llama
    assert leaves("falcon_rw", "mlp-up") == {"dense_h_to_4h"} and leaves("falcon3", "mlp-up") == {"up_proj"}
    assert leaves("falcon_40b", "all") == falcon | {"dense_h_to_4h", "dense_4h_to_h"}
    assert leaves("llama31", "all") == llama | {"gate_proj", "up_proj", "down_proj"}
    assert {"all", *build_model(read_config(GOLDEN / "llama31"), "meta").targets} == set(TARGETS)


def test_a_fresh_matrix_is_a_function_of_the_seed_and_its_name():
    whole_set = {name: m.lora_A for name, m in adapters(adapted("llama31", seed=5, trained=False))}
    fewer = {name: m.lora_A for name, m in adapters(adapted("llama31", seed=5, targets="mlp-up", trained=False))}
    assert fewer and all(torch.equal(whole_set[name], matrix) for name, matrix in fewer.items())
    other = {name: m.lora_A for name, m in adapters(adapted("llama31", seed=6, trained=False))}
    assert not any(torch.equal(whole_set[name], other[name]) for name in other)
    q, k = (whole_set[f"model.layers.0.self_attn.{part}_proj"] for part in "qk")
    assert not torch.equal(q, k)


def test_a_fresh_matrix_has_kaimings_bound():
    model = adapted("falcon2_11b", rank=32, trained=False)
    for name, module in adapters(model):
        assert torch.equal(module.lora_B, torch.zeros_like(module.lora_B))
        bound = 1 / math.sqrt(
            module.lora_A.shape[1]
        )  # of a matrix of that fan-in, with a gain of 1/√3 (arXiv 1502.01852)
        assert 0.95 * bound < module.lora_A.abs().max() <= bound, name
        assert module.lora_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_rows_that_are_drawn_apart_are_those_drawn_together():
    """As ranks draw them: each fills its rows alone."""
    model = adapted("llama31", trained=False)
    parts = [adapted("llama31", trained=False, seed=9) for _ in range(2)]
    for first, part in enumerate(parts):
        held = {p: (p.data[first : first + 2], first) for p in part.parameters()}
        init_adapters(part, 0, held.__getitem__)
    for (_, a), (_, b), (_, c) in zip(adapters(model), adapters(parts[0]), adapters(parts[1]), strict=True):
        assert torch.equal(b.lora_A[:2], a.lora_A[:2]) and torch.equal(c.lora_A[1:3], a.lora_A[1:3])


def test_adapters_of_a_bfloat16_model_stay_float32():
    model = adapted("falcon2_11b", dtype=torch.bfloat16)
    logps, weights = some_logps(model)
    (logps * weights).sum().backward()
    assert {p.dtype for p in own_weights(model).values()} == {torch.bfloat16}
    for _, module in adapters(model):
        assert module.lora_A.dtype == module.lora_A.grad.dtype == torch.float32
        assert module.lora_B.grad.abs().max() > 0


@pytest.mark.parametrize("variant", ["falcon2_11b_tied", "llama31"])
def test_a_saved_model_is_merged(variant, tmp_path):
    model = adapted(variant)
    save_model(model, tmp_path / "m", dtype=torch.float64)
    again = load_model(tmp_path / "m", torch.float64)
    assert again.state_dict().keys() == load_model(GOLDEN / variant).state_dict().keys()
    torch.testing.assert_close(some_logps(again)[0], some_logps(model)[0], rtol=1e-10, atol=1e-10)


def test_a_sum_in_float32_is_rounded_once():
    """W of bfloat16 and a product below its spacing: summed in float32, which a bfloat16 sum would lose."""
    model = adapted("falcon2_11b", dtype=torch.bfloat16)
    name, module = adapters(model)[0]
    module.weight.data.fill_(1.0)
    module.lora_A.data.fill_(1e-3)
    module.lora_B.data.fill_(1e-1)
    found = merged(model, f"{name}.weight", lambda p: p.detach())
    torch.testing.assert_close(found, torch.full_like(found, 1.0006))


def test_the_count_is_by_hand():
    """Falcon2-11B: D = 4096, 32 query and 8 key/value heads of 128, MLP 4 D, 60 blocks, V = 65,024."""
    raw = {"vocab_size": 65024, "hidden_size": 4096, "num_hidden_layers": 60, "num_attention_heads": 32}
    raw |= {
        "num_kv_heads": 8,
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 1,
        "tie_word_embeddings": False,
    }
    config = type(read_config(GOLDEN / "falcon2_11b")).from_dict(raw)
    model = build_model(config, "meta")
    add_adapters(model, 16, 32.0, "attention")
    trained, frozen = count_parameters(model)
    d, fused = 4096, (32 + 2 * 8) * 128
    assert trained == 60 * 16 * ((d + fused) + (d + d))
    assert frozen == 60 * (d * fused + d * d + 8 * d * d + 2 * d) + 2 * 65024 * d + 2 * d


@pytest.mark.parametrize("rank", [65, 10**6])
def test_an_adapter_that_is_no_thinner_than_its_map(rank):
    said = refuse(add_adapters, build_model(read_config(GOLDEN / "falcon2_11b"), "meta"), rank, 1.0, "all")
    assert said.startswith(f"lora.rank {rank}:") and "lower it" in said


def test_whole_distributions_are_compared_through_one_head():
    """KL(base ‖ moved) with the policy's own head for both: that of two models."""
    model, base = adapted("llama31"), load_model(GOLDEN / "llama31", torch.float64)
    ids = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    stream = stream_of_rows(ids, ids.roll(-1, 1), torch.ones(2, 9, dtype=torch.bool))
    with adapters_off(model):
        states = model(stream, states=True).states
    found = model(stream, other=(states, None)).kl
    wanted = model(stream, other=(base(stream, states=True).states, base.lm_head.weight)).kl
    assert torch.equal(found, wanted) and found.min() > 0
