"""Generation against transformers' greedy tokens, and sampling against the distribution it claims."""

import json
import math

import pytest
import torch
from conftest import GOLDEN, MODEL
from generation_checks import by_whole_forwards, each_kind, random_prompts, small, watch
from safetensors.torch import load_file

from align.generate import Settings, bench, generate, stream, stream_tokens
from align.generate.cache import KVCache
from align.generate.engine import column_bytes
from align.generate.sampling import choose
from align.models import FalconConfig, build_model, init_weights, load_model

VARIANTS = json.loads((GOLDEN / "index.json").read_text())["variants"]


@pytest.fixture(scope="module")
def model():
    raw = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = build_model(FalconConfig.from_dict({**raw, "initializer_range": 0.3}))
    init_weights(model, seed=0)
    return model


@pytest.fixture
def prompts():
    return random_prompts(13, 12)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch_size", [1, 128])
def test_greedy_tokens_are_transformers(variant, batch_size):
    numbers = load_file(GOLDEN / variant / "golden.safetensors")
    lengths = numbers["gen_prompt_lengths"]
    prompts = [row[:n].tolist() for row, n in zip(numbers["gen_prompt_ids"], lengths, strict=True)]
    new = generate(load_model(GOLDEN / variant), prompts, 16, batch_size=batch_size)
    assert new == numbers["gen_output_ids"].tolist()


def test_greedy_tokens_of_text_prompts():
    folder = GOLDEN / "falcon2_11b_text"
    cases = json.loads((folder / "text_golden.json").read_text())
    new = generate(load_model(folder), [case["prompt_ids"] for case in cases], 16)
    assert new == [case["output_ids"] for case in cases]


def test_greedy_is_the_argmax_of_whole_forwards(model, prompts):
    for prompt, new in zip(prompts, generate(model, prompts, 5), strict=True):
        ids = list(prompt)
        for token in new:
            assert token == model.logits(torch.tensor([ids]))[0, -1].argmax()
            ids.append(token)
        assert len(new) == 5


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_end_token_ends_its_row_alone(model, prompts, temperature):
    free = generate(model, prompts, 20, temperature, seed=3)
    # tokens that some rows reach soon, some late, some never, so that rows are dropped along the way
    eos = (free[0][0], free[1][4], free[2][9])
    ended = generate(model, prompts, 20, temperature, eos_ids=eos, seed=3)
    expected = [row[: next((i for i, token in enumerate(row) if token in eos), 20)] for row in free]
    assert ended == expected
    assert min(map(len, ended)) == 0 and len({len(row) for row in ended}) > 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batches_change_nothing(model, prompts, temperature):
    together = generate(model, prompts, 12, temperature, seed=5)
    assert generate(model, prompts, 12, temperature, seed=5, batch_size=4) == together
    assert generate(model, prompts, 12, temperature, seed=5, batch_size=1) == together
    # nor do the prompts that come after
    assert generate(model, prompts[:3], 12, temperature, seed=5) == together[:3]


def test_seeds_and_low_temperatures(model, prompts):
    assert generate(model, prompts, 12, 1.0, seed=1) == generate(model, prompts, 12, 1.0, seed=1)
    assert generate(model, prompts, 12, 1.0, seed=1) != generate(model, prompts, 12, 1.0, seed=2)
    assert generate(model, prompts, 12, 1e-6, seed=1) == generate(model, prompts, 12)


def test_samples_follow_the_softmax(model):
    n, prompt, temperature = 20_000, [5, 9], 0.8
    p = (model.logits(torch.tensor([prompt]))[0, -1] / temperature).softmax(-1).double()
    tokens = generate(model, [prompt] * n, 1, temperature, seed=7, batch_size=n)
    counts = torch.bincount(torch.tensor(tokens)[:, 0], minlength=64).double()
    # five standard deviations of a binomial count, and one for the cells too rare to be normal
    assert ((counts - n * p).abs() < 5 * (n * p * (1 - p)).sqrt() + 1).all()
    assert p.max() < 0.9 and (counts > 0).sum() > 10


def test_choose_at_the_edges():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, 5)
    uniform = torch.tensor([0.0, 0.4999, 0.5, 1 - 1e-12], dtype=torch.float64)
    assert choose(logits, 1.0, uniform).tolist() == [1, 1, 3, 3]
    assert choose(torch.tensor([[1.0, 3.0, 2.0]]), 0.0, uniform[:1]).tolist() == [1]


def test_nothing_to_do(model):
    assert generate(model, [], 5) == []
    assert generate(model, [[1], [2]], 0) == [[], []]
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(model, [[1], []], 5)
    with pytest.raises(ValueError, match="temperature"):
        generate(model, [[1]], 5, temperature=-1.0)


def test_the_model_can_train_afterwards(model):
    generate(model, [[1, 2, 3]], 3)
    ids = torch.tensor([[1, 2, 3]])
    model(ids, ids, torch.ones_like(ids, dtype=torch.bool)).sum().backward()
    assert model.embedding.weight.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)


@each_kind
@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_every_kind_of_attention_is_that_of_whole_forwards(kind, batch_size, prompts):
    model = small(kind)
    expected = [by_whole_forwards(model, prompt, 9) for prompt in prompts]
    assert generate(model, prompts, 9, batch_size=batch_size) == expected
    assert generate(model.double(), prompts, 9, batch_size=batch_size) == expected


@each_kind
def test_bfloat16_takes_tokens_that_are_likeliest_but_for_rounding(kind, prompts):
    model = small(kind).bfloat16()
    for prompt, new in zip(prompts, generate(model, prompts, 9, batch_size=4), strict=True):
        scores = model.logits(torch.tensor([prompt + new]))[0, len(prompt) - 1 : -1].float()  # (9, V)
        assert (scores.amax(-1) - scores.gather(1, torch.tensor(new)[:, None])[:, 0]).max() < 0.1
        assert scores.std() > 0.5


@each_kind
def test_rows_leave_and_others_enter(kind):
    """The cache alone: a row is dropped from the front, two enter behind, one more is dropped, all go on."""
    model, g = small(kind), torch.Generator().manual_seed(1)
    a, b, c, d, e = torch.randint(64, (5, 12), generator=g)
    whole = {id(x): model.logits(x[None])[0] for x in (a, b, c, d, e)}
    cache = KVCache(torch.tensor([4, 6, 5]), capacity=12, rows=4)
    model.logits(torch.stack((a, b, c))[:, :6], cache, torch.tensor([3, 5, 4]))
    cache.drop(0)  # c takes its place
    cache.enter(torch.tensor([2, 7]))
    read = model.logits(torch.stack((d, e))[:, :7], cache, torch.tensor([1, 6]))
    torch.testing.assert_close(read, torch.stack((whole[id(d)][1], whole[id(e)][6])), atol=2e-5, rtol=0)
    cache.drop(1)  # e takes the place of b
    cache.drop(2)  # the last, d
    assert cache.lengths.tolist() == [5, 7]
    for n in range(3):
        at = torch.tensor([5 + n, 7 + n])
        got = model.logits(torch.stack((c[5 + n], e[7 + n]))[:, None], cache)[:, 0]
        expected = torch.stack([whole[id(x)][i] for x, i in zip((c, e), at, strict=True)])
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_a_free_row_takes_the_next_prompt(model, prompts, monkeypatch):
    free = generate(model, prompts, 20)
    eos = (free[0][0], free[1][4], free[2][9])
    lengths = [len(row) for row in generate(model, prompts, 20, eos_ids=eos)]
    read, caches = watch(monkeypatch, model)
    generate(model, prompts, 20, eos_ids=eos, batch_size=4)
    steps = [rows for rows, columns in read if columns == 1 and rows > 0]
    assert caches == [(4, max(map(len, prompts)) + 19)]
    assert max(rows for rows, _ in read) == 4
    # batches one after the other would take as many steps as the longest response of each
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = sum(max(lengths[i] for i in order[start : start + 4]) for start in range(0, len(order), 4))
    print(len(steps), batches)
    assert len(steps) < 0.8 * batches


@each_kind
def test_a_common_prefix_is_read_once(kind, monkeypatch):
    model = small(kind)
    begin = random_prompts(1, 2)[0] * 30 + [7, 8]
    prompts = [begin + rest for rest in random_prompts(20, 6)] + [[*begin, 1]] * 2
    expected = [by_whole_forwards(model, prompt, 6) for prompt in prompts]
    read, _ = watch(monkeypatch, model)
    assert generate(model, prompts, 6, batch_size=5) == expected
    assert (1, len(begin)) in read and sum(rows * columns for rows, columns in read) < 300 < 22 * len(begin)
    assert generate(model, [begin] * 22, 6) == [by_whole_forwards(model, begin, 6)] * 22


def test_the_cache_keeps_within_its_size(model, monkeypatch):
    prompts = [[1 + i % 60] * n for i, n in enumerate((3, 3, 4, 5, 6, 20, 20, 21, 90, 300))]
    expected = generate(model, prompts, 10)
    read, caches = watch(monkeypatch, model)
    column = column_bytes(model)
    assert column == 2 * 2 * 1 * 8 * 4  # keys and values, layers, heads, head size, bytes
    assert generate(model, prompts, 10, batch_size=8, cache_gib=128 * column / 2**30) == expected
    # 8 rows of 16 columns at most, then 4 of 32, then 1 of up to 128, then the one that is longer still
    assert caches == [(5, 15), (3, 30), (1, 309)]
    assert max(rows for rows, _ in read) == 5


def test_keys_decide_samples(model, prompts):
    together = generate(model, prompts, 12, 1.0, seed=5)
    assert generate(model, prompts[4:9], 12, 1.0, seed=5, keys=range(4, 9), batch_size=2) == together[4:9]
    assert generate(model, prompts[4:9], 12, 1.0, seed=5) != together[4:9]
    named = generate(model, [[7]] * 3, 12, 1.0, keys=["x", "y", "x"])
    assert named[0] == named[2] != named[1]


def test_top_k_and_top_p_in_generation(model, prompts):
    greedy = generate(model, prompts, 8)
    assert generate(model, prompts, 8, 1.0, top_k=1) == greedy
    assert generate(model, prompts, 8, 1.0, top_p=1e-6) == greedy
    assert generate(model, prompts, 8, 1.0, top_k=3) not in (greedy, generate(model, prompts, 8, 1.0))


def test_tokens_one_by_one(model):
    for temperature in (0.0, 1.0):
        settings = Settings(15, temperature, eos_ids=(generate(model, [[5, 9]], 15, temperature)[0][11],))
        expected = generate(model, [[5, 9]], 15, temperature, settings.eos_ids)[0]
        assert list(stream_tokens(model, [5, 9], settings)) == expected and len(expected) <= 11
    with pytest.raises(ValueError, match="context"):
        list(stream_tokens(model, [5] * 9, Settings(15, context=9)))


def test_what_cannot_be_asked_for(model):
    asked = {"top_p": 0.0, "top_k": -1, "batch_size": 0, "stop": "abc", "decode": None, "cache_gib": 0.0, "context": -1}
    for name, value in asked.items():
        more = {"stop": ["x"]} if name == "decode" else {"decode": str} if name == "stop" else {}
        with pytest.raises(ValueError, match=rf"^{name} must be .*, not "):
            Settings(5, **{name: value}, **more)
    with pytest.raises(ValueError, match=r"^temperature must be"):
        Settings(5, temperature=math.nan)
    with pytest.raises(ValueError, match="prompt 1 has an id outside the model's vocabulary of 64"):
        stream(model, [[1], [2, 64]], Settings(5))
    with pytest.raises(ValueError, match="prompt 0 has an id"):
        generate(model, [[-1]], 5)


def test_the_bench_prints_its_table(capsys):
    assert bench.main(["--model", str(MODEL), "--count", "9", "--new", "5", "--rounds", "1", "--batch", "4"]) == 0
    said = capsys.readouterr().out
    print(said)
    assert "9 prompts of" in said and "agree in 9 of 9" in said
    assert sum("tokens/s" in line for line in said.splitlines()) >= 4
    assert bench.main(["--model", str(MODEL.parent / "none")]) == 2
