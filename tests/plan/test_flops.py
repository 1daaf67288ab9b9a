"""The count of a step's operations, against PyTorch's own counter, a count by hand and one of every visible pair."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from align.blocks import checkpoint_blocks
from align.models import (
    FalconConfig,
    add_adapters,
    build_model,
    count_parameters,
    init_adapters,
    init_weights,
    load_model,
    read_config,
)
from align.plan.flops import attended_layers, attention_product, blocks_again, forward_flops, model_flops, step_flops
from align.plan.setup import Setup
from align.plan.shape import Lengths, Work

DECODERS = ("falcon_7b", "falcon_40b", "falcon2_11b", "falcon_rw", "falcon3", "llama_tied")
GROUP = Lengths(5, (7,))  # one response: prompt and response are one row, 11 tokens read and 7 predicted


def counted(run):
    """FLOPs of matrix products. A CPU's fused attention is not among what the counter knows."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def step(model, group=GROUP, vocab=64):
    p, (r,) = group.prompt_length, group.response_lengths
    ids = torch.randint(vocab, (1, p + r), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(1, p + r)[None] >= p
    return model(ids[:, :-1], ids[:, 1:], mask).sum()


def without_attention(work):
    return replace(work, pairs=0)


def unfused(setup, work, forward, backward=0):
    """ALiBi's attention is not fused on a CPU: its products are of every pair, seen or not, and its weights are kept."""
    if setup.model.rope is not None:
        return 0
    one = attention_product(setup, work.tokens**2)
    return (setup.model.num_layers * forward + attended_layers(setup) * backward) * one


@pytest.mark.parametrize("variant", DECODERS)
@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_every_matrix_product_of_a_step_is_counted(variant, checkpointing):
    model = load_model(GOLDEN / variant)
    model.set_kernels("chunked")
    if checkpointing != "none":
        checkpoint_blocks(model, keep_attention=checkpointing == "selective")
    setup = Setup(model.config, checkpointing=checkpointing)
    work = without_attention(Work.of([GROUP]))
    forward = 2 if checkpointing == "none" else 4
    assert counted(lambda: step(model).backward()) == step_flops(setup, [work]) + unfused(setup, work, forward, 4)
    with torch.no_grad():
        assert counted(lambda: step(model)) == forward_flops(setup, work) + unfused(setup, work, 2)


@pytest.mark.parametrize("variant", ["falcon_40b", "falcon_rw", "falcon3"])
@pytest.mark.parametrize("targets", ["all", "attention", "mlp-up"])
def test_what_is_frozen_has_no_gradient_to_count(variant, targets):
    model = load_model(GOLDEN / variant)
    model.set_kernels("chunked")
    add_adapters(model, 3, 6.0, targets)
    init_adapters(model, 0, lambda param: (param, 0))
    setup = Setup(model.config, lora_rank=3, lora_targets=targets)
    assert count_parameters(model) == (setup.trained, setup.frozen)
    work = without_attention(Work.of([GROUP]))
    assert counted(lambda: step(model).backward()) == step_flops(setup, [work]) + unfused(
        setup, work, forward=2, backward=4
    )


@pytest.mark.parametrize("logp", ["reference", "chunked"])
@pytest.mark.parametrize("responses", [40, 300])
def test_the_head_recomputes_what_it_did_not_keep(logp, responses):
    """Of more tokens than the hidden size not all exponentials find room in the memory of the head's gradient."""
    raw = {"vocab_size": 9000, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = build_model(FalconConfig.from_dict({**raw, "tie_word_embeddings": False}))
    init_weights(model, 0)
    model.set_kernels(logp)
    group = Lengths(3, (responses,))
    setup, work = Setup(model.config, logp=logp), without_attention(Work.of([group]))
    found = counted(lambda: step(model, group).backward())
    assert found == step_flops(setup, [work])
    assert (found > model_flops(setup, work)) == (logp == "chunked" and responses > 64)


def test_attention_is_counted_by_the_pairs_that_see_one_another():
    setup = Setup(read_config(GOLDEN / "falcon_40b"))
    model, t = setup.model, 9
    q = torch.randn(1, model.num_heads, t, model.head_dim, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        forward = counted(lambda: F.scaled_dot_product_attention(q, q, q))
        both = counted(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    assert forward == 2 * attention_product(setup, t * t) and both == 6 * attention_product(setup, t * t)
    # a stream of two groups, its visibility written out
    groups = [Lengths(4, (3, 5)), Lengths(2, (1, 6, 2))]
    pairs = tokens = 0
    for p, responses in groups:
        runs = [0] * p + [run + 1 for run, n in enumerate(responses) for _ in range(n - 1)]
        pairs += sum(
            runs[key] in (0, runs[query]) and key <= query for query in range(len(runs)) for key in range(len(runs))
        )
        tokens += len(runs)
    assert (Work.of(groups).pairs, Work.of(groups).tokens, Work.of(groups).targets) == (pairs, tokens, 17)


def test_falcon_11b_by_hand():
    """Two responses of 512 tokens to a prompt of 512, counted from the published sizes."""
    raw = {"vocab_size": 65024, "hidden_size": 4096, "num_hidden_layers": 60, "num_attention_heads": 32}
    raw |= {"num_kv_heads": 8, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}
    config = FalconConfig.from_dict({**raw, "ffn_hidden_size": 16384, "tie_word_embeddings": False})
    s, m = 512 + 2 * 511, 1024
    matrices = 60 * (4096 * 6144 + 4096 * 4096 + 2 * 4096 * 16384)
    pairs = 512 * 513 // 2 + 2 * (511 * 512 + 511 * 512 // 2)
    forward = 2 * s * matrices + 60 * 4 * 4096 * pairs + 2 * m * 65024 * 4096
    setup, work = Setup(config), Work.of([Lengths(512, (512, 512))])
    assert model_flops(setup, work) == 3 * forward
    assert forward_flops(setup, work) == forward
    # a live reference runs forward, a coupled loss runs it and the policy forward again; MFU does not count that
    live = replace(setup, reference="live")
    assert model_flops(live, work) == model_flops(replace(live, coupled=True), work) == 4 * forward
    once = step_flops(live, [work])
    assert step_flops(replace(live, coupled=True), [work]) == once + 2 * forward
    # neither does it count what checkpointing computes again: the blocks, less each one's last product
    full = replace(setup, checkpointing="full")
    assert model_flops(full, work) == 3 * forward
    again = 2 * s * (matrices - 60 * 4096 * 4096) + 60 * 4 * 4096 * pairs
    assert blocks_again(full, work) == again + 60 * 2 * 4096 * pairs
    # within a few percent of what is usually said, 6 N for each token
    assert model_flops(setup, work) == pytest.approx(6 * s * (setup.base - setup.head), rel=0.06)


@pytest.mark.parametrize("variant", DECODERS)
def test_parameters(variant):
    model = build_model(read_config(GOLDEN / variant), "meta")
    setup = Setup(model.config)
    assert setup.base == setup.trained == sum(p.numel() for p in model.parameters()) and setup.frozen == 0
    assert setup.block == sum(p.numel() for p in model.blocks[0].parameters())
