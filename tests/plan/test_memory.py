"""What a run is said to hold, against what autograd keeps and what FSDP, AdamW and the head allocate."""

from dataclasses import replace

import pytest
import torch

from align.models import FalconConfig, LlamaConfig, build_model, init_weights
from align.models.layers import rotary
from align.plan.memory import kept_by_block, largest_tokens, memory
from align.plan.setup import Setup
from align.plan.shape import Lengths, Work
from align.stream import stream_of

SMALL = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
GROUPED = {"new_decoder_architecture": True, "num_kv_heads": 2}
CONFIGS = {
    "7b": FalconConfig.from_dict({**SMALL, "multi_query": True}),
    "40b": FalconConfig.from_dict({**SMALL, **GROUPED}),
    "11b": FalconConfig.from_dict({**SMALL, **GROUPED, "num_ln_in_parallel_attn": 1}),
    "sequential": FalconConfig.from_dict({**SMALL, "multi_query": False, "parallel_attn": False, "bias": True}),
    "llama": LlamaConfig.from_dict({**SMALL, "model_type": "llama", "intermediate_size": 40, "num_key_value_heads": 2}),
}
GROUPS = [([1, 2, 3], [[4, 5], [6, 7, 8, 9]]), ([1, 2, 3, 4, 5], [[4, 5, 3], [6]])]
WORK = Work.of([Lengths(len(prompt), [len(r) for r in responses]) for prompt, responses in GROUPS])
BIG = Setup(
    replace(CONFIGS["11b"], vocab_size=65024, hidden_size=512, ffn_hidden_size=2048, num_layers=8, head_dim=128)
)


def kept_bytes(run, others):
    """Bytes of the tensors that autograd keeps of a run, each memory once, without that of `others`."""
    known = {tensor.untyped_storage().data_ptr() for tensor in others}
    kept, alive = {}, []

    def pack(tensor):
        memory = tensor.untyped_storage()
        kept[memory.data_ptr()] = memory.nbytes()
        alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(run())
    return sum(size for pointer, size in kept.items() if pointer not in known)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("share, dtype", [(True, torch.float32), (False, torch.float32), (True, torch.bfloat16)])
def test_what_a_block_keeps(name, share, dtype):
    config = CONFIGS[name]
    model = build_model(config)
    init_weights(model, 0)
    model.to(dtype)
    stream = stream_of(GROUPS, share)
    cos_sin = rotary(config.rope, config.head_dim, stream.positions)
    attend = model.attend(stream)
    of_stream = [tensor for rows in attend.rows for tensor in rows if tensor is not None]
    x = torch.randn(1, len(stream.ids), config.hidden_size, dtype=dtype, requires_grad=True)
    others = [*model.parameters(), *cos_sin, *of_stream, stream.slots]
    found = kept_bytes(lambda: model.blocks[0](x, cos_sin, attend), others)
    work = Work.of([Lengths(len(prompt), [len(r) for r in responses]) for prompt, responses in GROUPS], share)
    # numbers of a norm for each token, in float32 or in bfloat16
    statistics = {"llama": 2, "11b": 2, "7b": 2}.get(name, 4) * 4 * work.tokens
    rel = 0 if dtype == torch.float32 else 0.01
    assert found == pytest.approx(kept_by_block(Setup(config, dtype=dtype), work, "none") + statistics, rel=rel, abs=0)


@pytest.mark.parametrize("name", ["11b", "llama"])
def test_what_a_block_with_adapters_keeps(name):
    """Every matrix then has one, reads what it read, and keeps what its A returns."""
    dense, adapted = (kept_by_block(Setup(CONFIGS[name], lora_rank=rank), WORK, "none") for rank in (0, 3))
    matrices = {"11b": 4, "llama": 7}[name]
    assert adapted - dense == matrices * 3 * WORK.tokens * 4


def test_a_stream_is_laid_out_as_it_is_counted():
    stream = stream_of(GROUPS)
    assert len(stream.ids) == WORK.tokens and len(stream.target) == WORK.targets
    assert sum(rows.queries.numel() for rows in stream.rows) == WORK.queries
    assert sum(rows.keys.numel() for rows in stream.rows) == WORK.keys
    assert sum(rows.seen.numel() for rows in stream.rows if rows.seen is not None) == WORK.masked


def test_state_is_sharded_and_gathered():
    held = memory(BIG, WORK, accumulates=True)
    n = BIG.base
    assert (held.weights, held.gradients, held.optimizer) == (4 * n, 4 * n, 8 * n) and held.gathered == 0
    eight = memory(replace(BIG, shards=8, ranks=8), WORK, accumulates=True)
    assert (eight.weights, eight.optimizer) == (4 * n // 8, 8 * n // 8) and eight.gathered > 0
    # what is frozen is held in the dtype of compute, and has neither gradient nor moments
    lora = memory(replace(BIG, lora_rank=8, dtype=torch.bfloat16), WORK, accumulates=True)
    trained = replace(BIG, lora_rank=8).trained
    assert lora.weights == 2 * n + 4 * trained and lora.optimizer == 8 * trained and lora.gradients == 4 * trained
    assert 0 < trained < n / 20
    live = replace(BIG, reference="live")
    assert memory(live, WORK, True).reference == 4 * n and memory(replace(live, lora_rank=8), WORK, True).reference == 0


def test_less_is_kept_the_more_is_computed_again():
    work = WORK.filled(4096)
    kept = [memory(replace(BIG, checkpointing=mode), work, True).activations for mode in ("none", "selective", "full")]
    assert kept[0] > kept[1] > kept[2]


def test_the_largest_micro_batch_fits_and_a_larger_does_not():
    room = 4 * 2**30
    tokens = largest_tokens(BIG, WORK, room)
    assert memory(BIG, WORK.filled(tokens), True).total <= room < memory(BIG, WORK.filled(tokens + 512), True).total
    assert largest_tokens(BIG, WORK, 2**30) == 0  # the weights alone take more
