"""Generation against transformers' greedy tokens, and sampling against the distribution it claims."""

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import MODEL, run_ranks
from safetensors.torch import load_file

import align.generate
from align import generate_bench
from align.generate import Settings, choose, column_bytes, generate, stream, stream_tokens
from align.models import FalconConfig, KVCache, LlamaConfig, build_model, init_weights, load_model
from align.parallel import gather, load_sharded
from align.sampling import restrict
from align.tokens import load_tokenizer

GOLDEN = Path(__file__).parent / "golden"
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


def random_prompts(count, longest, vocabulary=64):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, longest, (count,), generator=generator)
    return [torch.randint(vocabulary, (int(n),), generator=generator).tolist() for n in sizes]


# every shape of attention: one head for all queries, a head each, groups; rotary positions and alibi, alone and grouped
KINDS = {
    "multi_query": {},
    "alibi": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "grouped_alibi": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": True},
    "llama": {"intermediate_size": 40, "num_key_value_heads": 2},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def small(kind, seed=0, **more):
    """A model with untied random weights."""
    raw = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    raw |= {"initializer_range": 0.3, "tie_word_embeddings": False, **KINDS[kind], **more}
    model = build_model((LlamaConfig if kind == "llama" else FalconConfig).from_dict(raw))
    init_weights(model, seed)
    return model


@torch.no_grad()
def by_whole_forwards(model, prompt, count):
    """Greedy tokens without a cache: up to the first scores that are not finite."""
    ids = list(prompt)
    for _ in range(count):
        scores = model.logits(torch.tensor([ids]))[0, -1]
        if not scores.isfinite().all():
            break
        ids.append(int(scores.argmax()))
    return ids[len(prompt) :]


def watch(monkeypatch, model):
    """The shapes (B, T) that the model reads from now on, and the sizes (rows, capacity) of the caches."""
    read, caches, logits = [], [], model.logits

    class Watched(KVCache):
        def __init__(self, *args):
            super().__init__(*args)
            caches.append((self.rows, self.capacity))

    monkeypatch.setattr(model, "logits", lambda ids, *rest: read.append(tuple(ids.shape)) or logits(ids, *rest))
    monkeypatch.setattr(align.generate, "KVCache", Watched)
    return read, caches


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
    # batches one after the other would take as many steps as the longest answer of each
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


def nan_token(model, prompts, token):
    with torch.no_grad():
        model.embedding.weight[token] = math.nan
    return [by_whole_forwards(model, prompt, 12) for prompt in prompts]


@each_kind
def test_a_row_that_is_not_finite_fails_alone(kind, prompts):
    model = small(kind)
    token = generate(model, prompts, 12)[3][4]  # reading it spoils the rows that write it, and the prompts that have it
    expected = nan_token(model, prompts, token)
    for batch_size in (1, 2, 4, 128):
        done = {one.index: one for one in stream(model, prompts, Settings(12, batch_size=batch_size))}
        assert [done[i].ids for i in range(len(prompts))] == expected
        assert [done[i].finish for i in range(len(prompts))] == ["length" if len(e) == 12 else "nan" for e in expected]
    assert 2 <= sum(len(e) < 12 for e in expected) <= 11
    first = next(i for i, e in enumerate(expected) if len(e) < 12)
    with pytest.raises(ValueError, match=rf"^prompt {first}: the model's scores are not finite numbers$"):
        generate(model, prompts, 12)


def test_padding_spreads_no_nan():
    """Token 0 is what others pad with."""
    model = small("llama")
    prompts = [[5, 6, 7], [8, 9], [10] * 9]
    expected = nan_token(model, prompts, 0)
    done = {one.index: one.ids for one in stream(model, prompts, Settings(12))}
    assert [done[i] for i in range(3)] == expected and min(map(len, expected)) > 3


def test_prompts_that_leave_no_room_fail_alone():
    model = small("llama", max_position_embeddings=20)
    prompts = [[3] * n for n in (20, 12, 19, 25, 1)]
    done = {one.index: (len(one.ids), one.finish) for one in stream(model, prompts, Settings(10))}
    assert done == {0: (0, "context"), 1: (8, "length"), 2: (1, "length"), 3: (0, "context"), 4: (10, "length")}
    done = {one.index: len(one.ids) for one in stream(model, prompts, Settings(10, context=15))}
    assert done == {0: 0, 1: 3, 2: 0, 3: 0, 4: 10}
    with pytest.raises(ValueError, match=r"^prompt 0: the prompt fills the model's context$"):
        generate(model, prompts, 10)


def test_keys_decide_samples(model, prompts):
    together = generate(model, prompts, 12, 1.0, seed=5)
    assert generate(model, prompts[4:9], 12, 1.0, seed=5, keys=range(4, 9), batch_size=2) == together[4:9]
    assert generate(model, prompts[4:9], 12, 1.0, seed=5) != together[4:9]
    named = generate(model, [[7]] * 3, 12, 1.0, keys=["x", "y", "x"])
    assert named[0] == named[2] != named[1]


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (3, 1.0), (0, 0.6), (5, 0.7), (0, 1e-9), (64, 0.999), (100, 1.0)]
)
def test_top_k_and_top_p_keep_the_likeliest(top_k, top_p):
    logits = 2 * torch.randn(50, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kept = restrict(logits, top_k, top_p)
    for row, got in zip(logits.tolist(), kept.tolist(), strict=True):
        order = sorted(range(20), key=lambda v: -row[v])[: top_k or 20]
        total = sum(math.exp(row[v]) for v in order)
        nucleus, held = [], 0.0
        while held < top_p - 1e-12 and len(nucleus) < len(order):
            nucleus.append(order[len(nucleus)])
            held += math.exp(row[nucleus[-1]]) / total
        assert got == [row[v] if v in nucleus else -math.inf for v in range(20)]
    # what is drawn has the shares of the softmax over what is kept
    uniform = torch.arange(10_000, dtype=torch.float64) / 10_000
    drawn = choose(logits[:1].expand(10_000, -1), 0.5, uniform, top_k, top_p)
    expected = restrict(2 * logits[:1], top_k, top_p).softmax(-1)[0]
    assert (torch.bincount(drawn, minlength=20) / 10_000 - expected).abs().max() < 2e-4


def test_equals_at_the_edge():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    assert restrict(logits, 1, 1.0).isfinite().tolist() == [[False, True, True, False]]
    assert restrict(logits, 0, 0.1).isfinite().sum() == 1


def test_top_k_and_top_p_in_generation(model, prompts):
    greedy = generate(model, prompts, 8)
    assert generate(model, prompts, 8, 1.0, top_k=1) == greedy
    assert generate(model, prompts, 8, 1.0, top_p=1e-6) == greedy
    assert generate(model, prompts, 8, 1.0, top_k=3) not in (greedy, generate(model, prompts, 8, 1.0))


# tokens of one to three letters, of several bytes, and every eighth of none, as special tokens are decoded
PIECES = ["" if i % 8 == 0 else ("a", "bc", "\u00e9", "d e", "\U0001f600", "fg", "h")[i % 7] for i in range(64)]


def pieces(ids):
    return "".join(PIECES[i] for i in ids)


def first_stop(ids, stop, decode):
    """The text before the stop text that is complete first, None without one."""
    for n in range(len(ids) + 1):
        text = decode(ids[:n])
        if any(s in text for s in stop):
            return text[: min(text.find(s) for s in stop if s in text)]
    return None


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_stop_texts_are_found_wherever_tokens_end(model, prompts, temperature):
    new = generate(model, prompts, 40, temperature, top_k=20)
    free = [pieces(ids) for ids in new]
    # single letters, parts of tokens, and stretches over many
    stops = [free[0][3], free[1][4:7], free[2][5:15], free[3][2:30], "\u00e9a", "eh", "\U0001f600fg"]
    hits = 0
    for stop in (*([s] for s in stops), stops[2:], ["never"]):
        settings = Settings(40, temperature, top_k=20, stop=stop, decode=pieces, batch_size=5)
        for one in stream(model, prompts, settings):
            cut = first_stop(new[one.index], stop, pieces)
            assert one.finish == ("length" if cut is None else "stop")
            assert one.text == (free[one.index] if cut is None else cut)
            # the ids are those whose text lies before the stop text: another token would reach into it
            assert one.text.startswith(pieces(one.ids)) and len(one.text) - len(pieces(one.ids)) < 3
            hits += cut is not None
    assert hits > 20


def test_a_stop_text_ends_the_work(model, monkeypatch):
    free = pieces(generate(model, [[5, 9]], 60)[0])
    read, _ = watch(monkeypatch, model)
    (one,) = stream(model, [[5, 9]], Settings(60, stop=[free[10:13]], decode=pieces))
    assert one.finish == "stop" and len(read) <= len(one.ids) + 4 < 30


def test_stop_texts_and_end_tokens_with_a_tokenizer():
    model, tokenizer = load_model(MODEL), load_tokenizer(MODEL)
    prompts = tokenizer.encode_batch(["The cat", "Once upon a time", "Safety is", "A"])
    free = generate(model, prompts, 30)
    texts = [tokenizer.decode(ids) for ids in free]
    stop = [text[9:13] for text in texts]
    eos = [free[0][20], free[2][3]]
    for one in stream(model, prompts, Settings(30, eos_ids=eos, stop=stop, decode=tokenizer.decode)):
        ids = free[one.index]
        end = next((i for i, token in enumerate(ids) if token in eos), None)
        cut = first_stop(ids[:end], stop, tokenizer.decode)
        assert one.text == (tokenizer.decode(ids[:end]) if cut is None else cut)
        assert one.finish == ("stop" if cut is not None else "length" if end is None else "eos")


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
        more = {"stop": ["x"]} if name == "decode" else {"decode": pieces} if name == "stop" else {}
        with pytest.raises(ValueError, match=rf"^{name} must be .*, not "):
            Settings(5, **{name: value}, **more)
    with pytest.raises(ValueError, match=r"^temperature must be"):
        Settings(5, temperature=math.nan)
    with pytest.raises(ValueError, match="prompt 1 has an id outside the model's vocabulary of 64"):
        stream(model, [[1], [2, 64]], Settings(5))
    with pytest.raises(ValueError, match="prompt 0 has an id"):
        generate(model, [[-1]], 5)


def on_ranks(world):
    """Replicated and sharded weights, shares of all sizes, none included: one process's answers on every rank."""
    for variant in ("falcon2_11b", "falcon2_11b_tied", "falcon_rw", "llama31"):
        whole = load_model(GOLDEN / variant)
        sharded = load_sharded(GOLDEN / variant, world, torch.float32, torch.float32)
        for count in (0, 1, 2, 7):
            prompts = random_prompts(count, 30, 100)
            free = generate(whole, prompts, 9)
            eos = [free[0][3], free[-1][5]] if count else []
            for temperature in (0.0, 0.8):
                settings = {"temperature": temperature, "eos_ids": eos, "batch_size": 2}
                expected = generate(whole, prompts, 9, **settings)
                assert generate(whole, prompts, 9, **settings, world=world) == expected, (variant, count)
                assert generate(sharded, prompts, 9, **settings, world=world) == expected, (variant, count)
            # without world, the same prompts on every rank
            assert generate(sharded, prompts, 9, batch_size=3) == free
        share = [one.index for one in stream(sharded, random_prompts(7, 30, 100), Settings(4), world=world)]
        assert len(share) == (4, 3)[world.rank]
        # the root's weights are shards again, and training goes on as if nothing had been generated
        assert all(len(p.to_local()) < len(p) for p in sharded.parameters())
        ids = torch.arange(24).view(2, 12)
        for model in (whole, sharded):
            model(ids, ids.roll(-1, 1), torch.ones_like(ids, dtype=torch.bool)).sum().backward()
        for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(
                2 * a.grad, gather(b.grad), rtol=1e-4, atol=1e-4
            )  # gradients of ranks are summed


@pytest.mark.slow
def test_ranks_share_the_prompts():
    run_ranks(on_ranks, 2)


def failing_on_a_rank(world):
    model = load_sharded(GOLDEN / "llama31", world, torch.float32, torch.float32)
    prompts = [[5] * n for n in (3, 4, 600, 6)]  # the context is 512
    with pytest.raises(ValueError, match=r"^prompt 2: the prompt fills the model's context$"):
        generate(model, prompts, 5, world=world)
    assert len(generate(model, prompts[:2], 5, world=world)) == 2


@pytest.mark.slow
def test_a_failure_on_one_rank_is_raised_on_all():
    run_ranks(failing_on_a_rank, 2)


def test_the_bench_prints_its_table(capsys):
    assert (
        generate_bench.main(["--model", str(MODEL), "--count", "9", "--new", "5", "--rounds", "1", "--batch", "4"]) == 0
    )
    said = capsys.readouterr().out
    print(said)
    assert "9 prompts of" in said and "agree in 9 of 9" in said
    assert sum("tokens/s" in line for line in said.splitlines()) >= 4
    assert generate_bench.main(["--model", str(MODEL.parent / "none")]) == 2
