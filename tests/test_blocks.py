"""Blocks recomputed or compiled: the same gradients, for less memory, and one compilation for all lengths."""

import functools

import pytest
import torch
from conftest import GOLDEN
from torch._dynamo.testing import CompileCounter
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from align.blocks import attention_operators, checkpoint_blocks, compile_blocks
from align.models import load_model

VARIANTS = ["falcon2_11b", "falcon_7b", "falcon_rw", "llama31"]
MODES = ["none", "selective", "full"]


def model_with(variant, checkpointing):
    model = load_model(GOLDEN / variant)
    if checkpointing != "none":
        checkpoint_blocks(model, checkpointing == "selective")
    return model


def logps(model, columns=17, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 128, (3, columns), generator=g)
    mask = torch.rand(3, columns, generator=g) > 0.4
    return model(ids, ids.roll(-1, 1), mask).sum(1)  # (B,)


class Operations(TorchDispatchMode):
    """Every operation's name, and the memory that what they returned still holds."""

    def __init__(self):
        super().__init__()
        self.names, self.made = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.names.append(function)
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[StorageWeakRef(storage)] = storage.nbytes()
        return out

    def held(self):
        return sum(size for storage, size in self.made.items() if not storage.expired())

    def count(self, *functions):
        return sum(name in functions for name in self.names)


@pytest.mark.parametrize("variant", VARIANTS)
def test_recomputed_gradients_are_the_same_to_the_bit(variant):
    found = {}
    for mode in MODES:
        model = model_with(variant, mode)
        logps(model).sum().backward()
        found[mode] = [p.grad for p in model.parameters()]
    for mode in MODES[1:]:
        assert all(map(torch.equal, found["none"], found[mode])), mode


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_mode_holds_less_and_selective_does_not_attend_twice(variant):
    held, attended = {}, {}
    for mode in MODES:
        model = model_with(variant, mode)
        with Operations() as operations:
            loss = logps(model).sum()
            held[mode] = operations.held()
            loss.backward()
        attended[mode] = operations.count(*attention_operators()) / len(model.blocks)
    if variant == "falcon_rw":  # a CPU has no single operation for a bias on each head, which ALiBi needs
        assert held["none"] > held["selective"] == held["full"] and set(attended.values()) == {0}
    else:
        assert held["none"] > held["selective"] > held["full"]
        assert 2 * attended["none"] == 2 * attended["selective"] == attended["full"]


@pytest.mark.parametrize("mode", MODES)
def test_what_is_frozen_costs_no_backward(mode):
    """Gradients go no deeper than what trains, here the last block's MLP, and no frozen weight's is computed."""
    model, whole = model_with("falcon2_11b", mode), load_model(GOLDEN / "falcon2_11b")
    logps(whole).sum().backward()
    model.requires_grad_(False)
    trained = dict(model.blocks[-1].mlp.named_parameters())
    for parameter in trained.values():
        parameter.requires_grad_()
    loss = logps(model).sum()
    with Operations() as operations:
        loss.backward()
    aten = torch.ops.aten
    assert operations.count(aten.embedding_dense_backward.default) == 0
    assert operations.count(aten._scaled_dot_product_flash_attention_for_cpu_backward.default) == 0
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, whole.blocks[-1].mlp.get_parameter(name).grad)


def test_a_frozen_embedding_under_a_recomputed_block():
    """The block's input then needs no gradient, its weights do."""
    model, whole = model_with("llama31", "full"), load_model(GOLDEN / "llama31")
    model.embedding.requires_grad_(False)
    for each in (model, whole):
        logps(each).sum().backward()
    assert model.embedding.weight.grad is None
    for (name, a), b in zip(whole.named_parameters(), model.parameters(), strict=True):
        assert b is model.embedding.weight or torch.equal(a.grad, b.grad), name


@pytest.mark.filterwarnings("error:Dynamo")
def test_ten_lengths_share_what_was_compiled(monkeypatch):
    """One graph with gradients and one without serve every block and every length."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    model, whole = model_with("llama31", "full"), load_model(GOLDEN / "llama31")
    compile_blocks(model)
    for columns in (5, 9, 24, 16, 7, 2, 12, 20, 11, 33):
        for each in (model, whole):
            each.zero_grad()
            logps(each, columns).sum().backward()
        with torch.no_grad():
            assert torch.equal(logps(model, columns), logps(whole, columns))
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(whole.parameters(), model.parameters(), strict=True))
    assert counter.frame_count == 2
