"""The decoders against numbers that transformers computed, and against closed forms."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.errors import UserError
from align.generate.cache import KVCache
from align.models import FalconConfig, LlamaConfig, build_model, init_weights, load_model
from align.models.attention import alibi_slopes, attend_rows
from align.models.config import Rope
from align.models.layers import RMSNorm, rotary, rotate
from align.stream import stream_of_rows
from kernels import IMPLEMENTATIONS

GOLDEN = Path(__file__).parents[1] / "golden"
INDEX = json.loads((GOLDEN / "index.json").read_text())
TOLERANCE = INDEX["tolerance"]
VARIANTS = INDEX["variants"]
each_variant = pytest.mark.parametrize("variant", VARIANTS)

SMALL = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_LLAMA = {**SMALL, "model_type": "llama", "intermediate_size": 40, "num_key_value_heads": 2}


def golden(variant, dtype=torch.float32):
    numbers = load_file(GOLDEN / variant / "golden.safetensors")
    return load_model(GOLDEN / variant, dtype), numbers


def masks(numbers):
    """Targets of real tokens, and of the response's alone, both (B, T - 1) for shifted targets."""
    t = torch.arange(1, numbers["input_ids"].shape[1])
    real = t < numbers["lengths"][:, None]
    return real, real & (t >= numbers["prompt_lengths"][:, None])


def small(raw=SMALL, seed=0, **more):
    kind = LlamaConfig if raw.get("model_type") == "llama" else FalconConfig
    model = build_model(kind.from_dict({**raw, **more}))
    init_weights(model, seed)
    return model


def random_ids(*shape, seed=0):
    return torch.randint(48, shape, generator=torch.Generator().manual_seed(seed))


@each_variant
def test_logits(variant):
    model, numbers = golden(variant)
    real = torch.arange(numbers["input_ids"].shape[1]) < numbers["lengths"][:, None]
    difference = (model.logits(numbers["input_ids"]) - numbers["logits"])[real].abs().max()
    assert difference < TOLERANCE["logits_abs"]


@each_variant
def test_token_and_response_log_probs(variant):
    model, numbers = golden(variant)
    ids, (real, response) = numbers["input_ids"], masks(numbers)
    logp = model(ids[:, :-1], ids[:, 1:], real)
    assert logp.dtype == torch.float32 and (logp[~real] == 0).all()
    assert (logp - numbers["token_logprobs"][:, 1:]).abs().max() < TOLERANCE["logits_abs"]
    sums = model(ids[:, :-1], ids[:, 1:], response).sum(1)
    assert (sums - numbers["response_logprobs"]).abs().max() < TOLERANCE["logprob_sum_abs"]


@each_variant
def test_gradient_norm_of_every_parameter(variant):
    model, numbers = golden(variant)
    length, (_, response) = numbers["lengths"][0], masks(numbers)
    ids = numbers["input_ids"][:1, :length]
    model(ids[:, :-1], ids[:, 1:], response[:1, : length - 1]).sum().backward()
    norms = {name: param.grad.norm().item() for name, param in model.named_parameters()}
    assert norms == pytest.approx(VARIANTS[variant]["grad_norms"], rel=TOLERANCE["grad_norm_rel"])


@each_variant
def test_what_pads_a_row_on_the_right_does_not_matter(variant):
    model, numbers = golden(variant)
    ids = numbers["input_ids"]
    pad = torch.arange(ids.shape[1]) >= numbers["lengths"][:, None]
    other = ids.masked_fill(pad, 3)
    wider = torch.cat((other, torch.full((len(ids), 5), 7)), dim=1)
    expected = model.logits(ids)[~pad]
    assert torch.equal(model.logits(other)[~pad], expected)
    torch.testing.assert_close(model.logits(wider)[:, : ids.shape[1]][~pad], expected, atol=2e-5, rtol=0)


@each_variant
def test_float64_agrees(variant):
    model, numbers = golden(variant, torch.float64)
    ids, (real, _) = numbers["input_ids"], masks(numbers)
    logp = model(ids[:, :-1], ids[:, 1:], real)
    assert logp.dtype == torch.float64
    # nearer than float32's tolerance: what is left is the rounding of the numbers themselves
    assert (logp - numbers["token_logprobs"][:, 1:]).abs().max() < 2e-5


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_attention_of_rows_on_a_cpu_is_float32s_rounded_once(masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 8).bfloat16() for heads in (4, 2, 2))
    mask = torch.randn(2, 1, 5, 5).bfloat16() if masked else None
    exact = attend_rows(q.double(), k.double(), v.double(), mask)  # (2, 5, 32)
    rounded = attend_rows(q, k, v, mask)
    assert rounded.dtype == torch.bfloat16
    assert ((rounded - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@each_variant
def test_bfloat16_stays_near_float32(variant):
    model, numbers = golden(variant)
    ids, (real, _) = numbers["input_ids"], masks(numbers)
    exact = model(ids[:, :-1], ids[:, 1:], real)
    model.bfloat16()
    logp = model(ids[:, :-1], ids[:, 1:], real)
    assert logp.dtype == torch.float32 and model.logits(ids).dtype == torch.bfloat16
    # 8 bits of mantissa, tens of roundings, logits of size 10; a wrong formula is off by 1 and more
    assert (logp - exact)[real].abs().mean() < 0.1
    logp.sum().backward()
    assert all(param.grad.dtype == torch.bfloat16 and param.grad.isfinite().all() for param in model.parameters())


@each_variant
def test_the_cache_changes_no_logits(variant):
    model, numbers = golden(variant)
    ids, lengths = numbers["input_ids"][:, :12], torch.tensor([4, 7, 5])
    whole = model.logits(ids)
    rows = torch.arange(3)
    cache = KVCache(lengths, capacity=12)
    first = model.logits(ids[:, :7], cache, at=lengths - 1)
    torch.testing.assert_close(first, whole[rows, lengths - 1], atol=2e-5, rtol=0)
    # then one token, then two at once, each row at its position
    for new in (1, 2):
        at = cache.lengths[:, None] + torch.arange(new)
        got = model.logits(ids[rows[:, None], at], cache)
        torch.testing.assert_close(got, whole[rows[:, None], at], atol=2e-5, rtol=0)


@each_variant
def test_names_and_shapes_are_the_checkpoints(variant):
    model = load_model(GOLDEN / variant)
    stored = {name: tensor["shape"] for name, tensor in VARIANTS[variant]["checkpoint_tensors"].items()}
    if VARIANTS[variant]["tied"]:
        assert model.lm_head.weight is model.embedding.weight
        stored.pop("lm_head.weight", None)
    assert {name: list(param.shape) for name, param in model.named_parameters()} == stored
    assert not list(model.buffers())
    assert model.embedding.weight is model.get_parameter(VARIANTS[variant]["embedding_key"])
    assert len(model.blocks) == VARIANTS[variant]["num_layers"]


@pytest.mark.parametrize("impl", ["auto", *IMPLEMENTATIONS])
def test_forward_is_the_log_softmax_of_logits(impl):
    if impl == "triton" and not torch.cuda.is_available():
        pytest.skip("the Triton kernel needs a GPU or its interpreter")
    model = small().double()
    model.set_kernels(logp=impl)
    ids, targets, mask = random_ids(3, 9), random_ids(3, 9, seed=1), random_ids(3, 9, seed=2) % 2 == 0
    expected = model.logits(ids).log_softmax(-1).gather(2, targets[..., None])[..., 0] * mask
    torch.testing.assert_close(model(ids, targets, mask), expected, atol=1e-12, rtol=0)


def test_what_is_asked_for_comes_by_name_and_changes_no_log_prob():
    model = small().double()
    ids, targets, mask = random_ids(3, 9), random_ids(3, 9, seed=1), random_ids(3, 9, seed=2) % 2 == 0
    plain = model(ids, targets, mask)
    assert type(plain) is torch.Tensor
    states, log_p = model.hidden(ids), model.logits(ids).log_softmax(-1)
    stream = stream_of_rows(ids, targets, mask)
    found = model(stream, states=True)
    assert torch.equal(found.logp, plain[mask])
    torch.testing.assert_close(found.states, states[mask], atol=1e-12, rtol=0)
    assert found.collision is None and found.kl is None
    found = model(stream, collision=True, other=(2 * states[mask], model.lm_head.weight))
    log_q = model.lm_head(2 * states).log_softmax(-1)
    assert torch.equal(found.logp, plain[mask]) and found.states is None
    torch.testing.assert_close(found.collision, log_p.exp().square().sum(-1).log()[mask], atol=1e-12, rtol=0)
    torch.testing.assert_close(found.kl, (log_q.exp() * (log_q - log_p)).sum(-1)[mask], atol=1e-12, rtol=0)


@pytest.mark.parametrize("raw", [SMALL, SMALL_LLAMA, {**SMALL_LLAMA, "tie_word_embeddings": True}])
def test_an_empty_mask_still_reaches_every_parameter(raw):
    model = small(raw)
    out = model(random_ids(2, 5), random_ids(2, 5), torch.zeros(2, 5, dtype=torch.bool))
    assert out.shape == (2, 5) and (out == 0).all()
    out.sum().backward()
    assert all(param.grad is not None and (param.grad == 0).all() for param in model.parameters())


def test_the_future_is_not_seen():
    for raw in (SMALL, {**SMALL, "alibi": True}, SMALL_LLAMA):
        model, ids = small(raw), random_ids(2, 10)
        changed = torch.cat((ids[:, :6], (ids[:, 6:] + 1) % 48), dim=1)
        assert torch.equal(model.logits(ids)[:, :6], model.logits(changed)[:, :6])
        assert not torch.equal(model.logits(ids)[:, 6:], model.logits(changed)[:, 6:])


def test_build_on_meta_allocates_nothing_and_keeps_the_tie():
    published = {"vocab_size": 65024, "hidden_size": 14848, "num_hidden_layers": 80, "num_attention_heads": 232}
    model = build_model(
        FalconConfig.from_dict({**published, "new_decoder_architecture": True, "num_kv_heads": 8}), "meta"
    )
    assert all(param.is_meta for param in model.parameters())
    assert 178e9 < sum(param.numel() for param in model.parameters()) < 181e9  # Falcon-180B
    assert model.lm_head.weight is model.embedding.weight
    with torch.device("meta"):
        assert build_model(LlamaConfig.from_dict(SMALL_LLAMA), "meta").lm_head.weight.is_meta


def test_falcon_11b_has_eleven_billion_parameters():
    raw = {"hidden_size": 4096, "num_hidden_layers": 60, "num_attention_heads": 32, "num_kv_heads": 8}
    raw |= {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False}
    model = build_model(FalconConfig.from_dict(raw), "meta")
    block = 4096 * (32 + 16) * 128 + 4096 * 4096 + 2 * 4096 * 16384 + 2 * 4096
    assert sum(param.numel() for param in model.parameters()) == 60 * block + 2 * 65024 * 4096 + 2 * 4096


def test_init_weights():
    raw = {**SMALL, "hidden_size": 128, "num_hidden_layers": 8, "initializer_range": 0.05, "bias": True}
    one, same, other = small(raw, seed=1), small(raw, seed=1), small(raw, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    block = one.blocks[0]
    assert block.mlp.dense_h_to_4h.weight.std().item() == pytest.approx(0.05, rel=0.03)
    assert block.mlp.dense_4h_to_h.weight.std().item() == pytest.approx(0.05 / math.sqrt(16), rel=0.03)
    assert block.self_attention.dense.weight.std().item() == pytest.approx(0.05 / math.sqrt(16), rel=0.03)
    assert (block.mlp.dense_4h_to_h.bias == 0).all() and (block.input_layernorm.weight == 1).all()
    assert (one.final_norm.bias == 0).all()
    llama = small(SMALL_LLAMA)
    assert (llama.final_norm.weight == 1).all()


def test_rms_norm():
    norm = RMSNorm(2, eps=0.5)
    norm.weight.data = torch.tensor([2.0, 10.0])
    # mean square of (3, 4) is 12.5
    expected = torch.tensor([2 * 3, 10 * 4]) / math.sqrt(13)
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), expected)
    assert norm.bfloat16()(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_rotary_turns_halves_and_sees_only_distance():
    rope, d = Rope(theta=100.0), 4
    x = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 1, 1, d)
    turned = rotate(x, rotary(rope, d, torch.tensor([2])))[0, 0, 0]
    torch.testing.assert_close(turned, torch.tensor([math.cos(2), 0, math.sin(2), 0]))  # i pairs with i + d/2
    second = rotate(x.roll(1, -1), rotary(rope, d, torch.tensor([2])))[0, 0, 0]
    torch.testing.assert_close(second, torch.tensor([0, math.cos(0.2), 0, math.sin(0.2)]))  # 100 ** (-2/4) = 0.1
    q, k = torch.randn(2, 1, 1, 1, d, generator=torch.Generator().manual_seed(0))
    near, far = (
        (rotate(q, rotary(rope, d, torch.tensor([t]))) * rotate(k, rotary(rope, d, torch.tensor([t - 3])))).sum()
        for t in (3, 50)
    )
    torch.testing.assert_close(near, far)


def test_llama3_keeps_fast_waves_and_slows_slow_ones():
    rope = Rope(theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=64.0)
    plain = Rope(theta=10000.0).frequencies(64, "cpu")
    scaled, wavelength = rope.frequencies(64, "cpu"), 2 * math.pi / plain
    fast, slow = wavelength < 64 / 4, wavelength > 64 / 1
    assert fast.any() and slow.any() and (~fast & ~slow).any()
    torch.testing.assert_close(scaled[fast], plain[fast], rtol=1e-6, atol=0)
    torch.testing.assert_close(scaled[slow], plain[slow] / 8, rtol=1e-6, atol=0)
    between = scaled[~fast & ~slow]
    assert (between < plain[~fast & ~slow]).all() and (between > plain[~fast & ~slow] / 8).all()


def test_alibi_slopes():
    # the paper's own: 1/2, 1/4, ... for 8 heads; 12 heads take every second slope of 16 for the last four
    assert alibi_slopes(8, "cpu").tolist() == [2.0**-i for i in range(1, 9)]
    expected = [2.0**-i for i in range(1, 9)] + [2.0 ** -(i / 2) for i in (1, 3, 5, 7)]
    assert alibi_slopes(12, "cpu").tolist() == pytest.approx(expected)


def test_defaults_are_falcon_7bs():
    config = FalconConfig.from_dict({"model_type": "falcon", "num_kv_heads": 71})
    assert (config.hidden_size, config.num_layers, config.num_heads, config.vocab_size) == (4544, 32, 71, 65024)
    assert (config.num_kv_heads, config.norms, config.tied) == (1, 1, True)
    assert (config.head_dim, config.ffn_hidden_size, config.rope) == (64, 4 * 4544, Rope(10000.0))


def test_names_of_the_first_releases():
    old = {"vocab_size": 65024, "hidden_size": 8192, "n_head": 128, "n_layer": 60, "n_head_kv": 8, "multi_query": True}
    old |= {"alibi": False, "bias": False, "parallel_attn": True, "architectures": ["RWForCausalLM"]}
    config = FalconConfig.from_dict({**old, "model_type": "RefinedWeb"})
    assert (config.num_heads, config.num_layers, config.num_kv_heads, config.norms) == (128, 60, 8, 2)
    assert config.raw["model_type"] == "falcon" and config.raw["num_attention_heads"] == 128
    old.pop("n_head_kv")
    seven = FalconConfig.from_dict({**old, "model_type": "RefinedWebModel", "n_head": 128})
    assert (seven.num_kv_heads, seven.norms) == (1, 1)
    rw = {
        **old,
        "model_type": "RefinedWebModel",
        "alibi": True,
        "bias": True,
        "multi_query": False,
        "parallel_attn": False,
    }
    config = FalconConfig.from_dict(rw)
    assert (config.num_kv_heads, config.norms, config.rope, config.bias) == (128, 0, None, True)
    again = FalconConfig.from_dict(config.raw)
    assert again == config
    assert FalconConfig.from_dict({"n_embed": 128, "num_attention_heads": 2}).hidden_size == 128


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({**SMALL, "activation": "relu"}, "activation"),
        ({**SMALL, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type"),
        ({**SMALL_LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "rope_type"),
        ({**SMALL_LLAMA, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        (
            {**SMALL_LLAMA, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ({**SMALL_LLAMA, "hidden_act": "gelu"}, "hidden_act"),
        ({**SMALL_LLAMA, "architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({**SMALL_LLAMA, "architectures": "LlamaForCausalLM"}, "architectures"),
        ({**SMALL_LLAMA, "rope_scaling": "linear"}, "rope_scaling"),
        ({**SMALL_LLAMA, "rope_theta": True}, "rope_theta"),
        ({**SMALL_LLAMA, "quantization_config": {"bits": 4}}, "quantization_config"),
        ({**SMALL_LLAMA, "torch_dtype": "float8_e4m3fn"}, "torch_dtype"),
        ({**SMALL_LLAMA, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({**SMALL_LLAMA, "hidden_size": 30}, "num_attention_heads"),
        ({**SMALL_LLAMA, "head_dim": 7}, "head size"),
        ({key: value for key, value in SMALL_LLAMA.items() if key != "intermediate_size"}, "intermediate_size"),
        ({**SMALL, "hidden_size": "32"}, "hidden_size"),
        ({**SMALL, "hidden_size": 0}, "hidden_size"),
        ({**SMALL, "hidden_size": 32.5}, "hidden_size"),
        ({**SMALL, "num_attention_heads": 5}, "num_attention_heads"),
        ({**SMALL, "num_hidden_layers": True}, "num_hidden_layers"),
        ({**SMALL, "num_hidden_layers": 10**12}, "num_hidden_layers"),
        ({**SMALL, "vocab_size": 10**12}, "vocab_size"),
        ({**SMALL, "num_attention_heads": 10**400}, "num_attention_heads"),
        ({**SMALL, "rope_theta": 10**400}, "rope_theta"),
        ({**SMALL, "max_position_embeddings": "long"}, "max_position_embeddings"),
        ({**SMALL, "alibi": 1}, "alibi"),
        ({**SMALL, "layer_norm_epsilon": math.nan}, "layer_norm_epsilon"),
        ({**SMALL, "num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ({**SMALL, "new_decoder_architecture": True, "parallel_attn": False}, "parallel_attn"),
        ({**SMALL, "apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ],
)
def test_what_a_config_cannot_ask_for(raw, key):
    kind = LlamaConfig if raw.get("model_type") == "llama" else FalconConfig
    with pytest.raises(UserError) as caught:
        kind.from_dict(raw, "somewhere/config.json")
    text = str(caught.value)
    assert text.startswith("somewhere/config.json: ") and key in text and "\n" not in text
