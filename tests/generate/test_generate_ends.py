"""How responses end: before stop texts, at the context, at non-finite scores, each without its neighbours."""

import math

import pytest
import torch
from conftest import MODEL
from generation_checks import by_whole_forwards, each_kind, random_prompts, small, watch

from align.data import load_tokenizer
from align.generate import Settings, generate, stream
from align.models import load_model


@pytest.fixture(scope="module")
def model():
    return small("multi_query", tie_word_embeddings=True)


@pytest.fixture
def prompts():
    return random_prompts(13, 12)


def nan_token(model, prompts, token):
    with torch.no_grad():
        model.embedding.weight[token] = math.nan
    return [by_whole_forwards(model, prompt, 12) for prompt in prompts]


@each_kind
def test_a_row_that_is_not_finite_fails_alone(kind, prompts):
    model = small(kind)
    token = generate(model, prompts, 12)[3][4]  # whatever reads it becomes non-finite
    expected = nan_token(model, prompts, token)
    for batch_size in (1, 2, 4, 128):
        done = {one.index: one for one in stream(model, prompts, Settings(12, batch_size=batch_size))}
        assert [done[i].ids for i in range(len(prompts))] == expected
        assert [done[i].finish for i in range(len(prompts))] == ["length" if len(e) == 12 else "nan" for e in expected]
    assert 2 <= sum(len(e) < 12 for e in expected) <= 11
    first = next(i for i, e in enumerate(expected) if len(e) < 12)
    with pytest.raises(ValueError, match=rf"^prompt {first}: the model's scores are non-finite$"):
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
