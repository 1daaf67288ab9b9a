"""Log-probabilities of texts against log_softmax of whole logits, one row at a time; scores against their definitions."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import MODEL, ROOT

from align.data import load_tokenizer
from align.data.encode import MIN_PROMPT
from align.errors import UserError
from align.evals.likelihood import (
    NON_FINITE,
    choice_records,
    choice_values,
    encode_choice,
    perplexity_items,
    perplexity_records,
    preference_items,
    preference_records,
    reward_values,
)
from align.models import load_model

HH = ROOT.parent / "shared" / "data" / "hh-harmless" / "test.jsonl.gz"
BOS = 5  # any token will do for one


@pytest.fixture(scope="module")
def model():
    return load_model(MODEL)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL)


def by_hand(model, prompt, response):
    """log p(response ids | prompt ids) from the logits of every position, one row alone, in float64."""
    with torch.no_grad():
        logp = torch.log_softmax(model.logits(torch.tensor([prompt + response]))[0].double(), dim=-1)
    return sum(logp[len(prompt) - 1 + t, token].item() for t, token in enumerate(response))


def item(prompt, *texts, gold=0, contexts=None):
    contexts = contexts or [""] * len(texts)
    choices = [{"context": c, "text": t} for c, t in zip(contexts, texts, strict=True)]
    return {"id": "1", "prompt": prompt, "choices": choices, "gold": gold}


ITEMS = [
    item("Question: What is the falcon watching?\nAnswer:", " the mouse", " a small boat on the sea", " 7"),
    item("Q: Why?\nA:", " It is so.", " I have no comment."),
    item("", " was fast.", " was fast.", contexts=["Ann beat Bea since Ann", "Ann beat Bea since Bea"]),
    item("Spaces before the choice:  ", "one", "two", gold=1),
    item("Käse", " schön", " für", gold=1),
    item("A line.\n" * 12 + "And?", " yes", " no", gold=1),
]


def test_choices_match_the_definition(model, tokenizer):
    records = choice_records(model, tokenizer, ITEMS, batch_size=4, max_length=512)
    for asked, record in zip(ITEMS, records, strict=True):
        expected, tokens = [], []
        for choice in asked["choices"]:
            before = (asked["prompt"] + choice["context"]).rstrip(" ")
            alone, whole = (tokenizer.encode(t) for t in (before, asked["prompt"] + choice["context"] + choice["text"]))
            assert whole[: len(alone)] == alone  # these texts have their border between two tokens
            expected.append(by_hand(model, alone, whole[len(alone) :]))
            tokens.append(len(whole) - len(alone))
        assert record["logps"] == pytest.approx(expected, abs=1e-5, rel=1e-5)
        assert record["tokens"] == tokens
        assert record["bytes"] == [len(choice["text"].strip().encode()) for choice in asked["choices"]]
        best = max(range(len(expected)), key=lambda k: expected[k])
        per_byte = max(range(len(expected)), key=lambda k: expected[k] / record["bytes"][k])
        assert record["values"] == {"acc": best == asked["gold"], "acc_norm": per_byte == asked["gold"]}
        assert {key: record[key] for key in asked} == asked and "truncated" not in record
    assert records[4]["bytes"] == [6, 4]
    json.dumps(records, allow_nan=False)


def test_choices_do_not_depend_on_their_neighbours(model, tokenizer):
    alone = [choice_records(model, tokenizer, [asked], 1, 512)[0] for asked in ITEMS]
    for batch_size in (1, 3, 64):
        together = choice_records(model, tokenizer, ITEMS[::-1], batch_size, 512)[::-1]
        for a, b in zip(alone, together, strict=True):
            assert b["logps"] == pytest.approx(a["logps"], abs=1e-5, rel=1e-5)
            assert b["values"] == a["values"]
    again = choice_records(model, tokenizer, ITEMS, 3, 512)
    assert again == choice_records(model, tokenizer, ITEMS, 3, 512)


def test_border_of_a_choice(tokenizer):
    form = tokenizer.formatter("auto")

    def texts(before, text):
        prompt, response = encode_choice(tokenizer, form, before, text)
        return tokenizer.decode(prompt, skip_special=False), tokenizer.decode(response)

    assert texts("The answer is", " the mouse") == ("The answer is", " the mouse")
    assert texts("The answer is ", "the mouse") == ("The answer is", " the mouse")
    # even where the space is a token of its own
    assert len(tokenizer.encode(" 7")) == 2
    assert texts("The answer is ", "7") == texts("The answer is", " 7") == ("The answer is", " 7")
    # where prompt and choice share a token the whole token is the choice's
    assert len(tokenizer.encode(" the")) == 1
    assert texts("What t", "he") == ("What", " the")
    # nothing before it: read after the token that separates texts
    assert encode_choice(tokenizer, form, "", "the") == ([11], tokenizer.encode("the"))
    with_bos = replace(tokenizer, bos_id=BOS)
    assert encode_choice(with_bos, form, "", "the") == ([BOS], tokenizer.encode("the"))
    assert encode_choice(with_bos, form, "A:", " the")[0] == [BOS, *tokenizer.encode("A:")]


def test_choices_through_the_chat_template(model, tokenizer):
    (record,) = choice_records(model, tokenizer, ITEMS[1:2], 4, 512, template="chat")
    before = tokenizer.render([{"role": "user", "content": ITEMS[1]["prompt"]}], add_generation_prompt=True)
    for choice, logp in zip(ITEMS[1]["choices"], record["logps"], strict=True):
        prompt, whole = tokenizer.encode(before), tokenizer.encode(before + choice["text"].lstrip())
        assert logp == pytest.approx(by_hand(model, prompt, whole[len(prompt) :]), abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("bos", [None, BOS])
def test_a_long_prompt_loses_its_beginning(model, tokenizer, bos):
    tokenizer = replace(tokenizer, bos_id=bos)
    prompt = tokenizer.encode(ITEMS[5]["prompt"])
    responses = [tokenizer.encode(choice["text"]) for choice in ITEMS[5]["choices"]]
    room = 20
    (record,) = choice_records(model, tokenizer, [ITEMS[5]], 2, room)
    for response, logp in zip(responses, record["logps"], strict=True):
        keep = room + 1 - len(response)
        cut = prompt[-keep:] if bos is None else [BOS, *prompt[1 - keep :]]
        assert len(cut + response) - 1 == room
        assert logp == pytest.approx(by_hand(model, cut, response), abs=1e-5, rel=1e-5)
    longest = max(map(len, responses))
    assert record["truncated"] == len(prompt) + (bos is not None) - (room + 1 - longest)


def test_what_cannot_be_scored_has_an_error_and_leaves_the_others_alone(model, tokenizer):
    bad = [item("Q:", " yes", " "), item("Q: " * 20, " a", " so " * 40), ITEMS[0]]
    records = choice_records(model, tokenizer, bad, 8, MIN_PROMPT + 8)
    assert records[0]["error"] == "a choice is empty"
    assert "does not fit in a context of 16" in records[1]["error"]
    assert all("values" not in record and "logps" not in record for record in records[:2])
    assert records[2]["values"] and "error" not in records[2]


def test_a_model_that_emits_nan(tokenizer):
    broken = load_model(MODEL)
    with torch.no_grad():
        broken.final_norm.weight.fill_(math.nan)
    (record,) = choice_records(broken, tokenizer, [ITEMS[0]], 2, 512)
    assert record["error"] == NON_FINITE and "logps" not in record and "values" not in record
    windows = perplexity_items("Some words to read here.", tokenizer, 8, 4)
    assert {record["error"] for record in perplexity_records(broken, tokenizer, windows, 2)} == {NON_FINITE}
    pair = {"id": "1", "prompt": "p", "chosen": "yes", "rejected": "no"}
    (record,) = preference_records(broken, tokenizer, [pair], 2, 512)
    assert record["error"] == NON_FINITE and reward_values(record, record) is None


def test_values_of_choices():
    def values(logps, bytes_, **gold):
        return choice_values({"logps": logps, "bytes": bytes_, **gold})

    assert values([-4.0, -5.0], [4, 10], gold=0) == {"acc": True, "acc_norm": False}
    assert values([-4.0, -4.0], [1, 1], gold=0) == {"acc": True, "acc_norm": True}
    assert values([-4.0, -4.0], [1, 1], gold=1) == {"acc": False, "acc_norm": False}
    logps = [math.log(0.2), math.log(0.1), math.log(0.3)]
    assert values(logps, [1, 1, 1], golds=[1, 0, 1])["mc2"] == pytest.approx(0.5 / 0.6)
    far = values([logp - 5000 for logp in logps], [1, 1, 1], golds=[1, 0, 1])
    assert far["mc2"] == pytest.approx(0.5 / 0.6)


TEXT = "The falcon is a bird of prey. Käse ist gut, 北京 is far.\n" * 9


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("window, stride", [(16, 4), (16, 15), (32, 16), (300, 100), (3, 1), (2000, 7)])
def test_every_token_is_scored_once(model, tokenizer, bos, window, stride):
    tokenizer = replace(tokenizer, bos_id=bos)
    items = perplexity_items(TEXT, tokenizer, window, stride)
    ids = tokenizer.encode(TEXT)
    assert [token for one in items for token in one["ids"]] == ids
    assert sum(one["bytes"] for one in items) == len(TEXT.encode())
    scored = 0
    for i, one in enumerate(items):
        assert len(one["context"]) + len(one["ids"]) <= window
        real = one["context"] if i and bos is None else one["context"][1:]
        assert real == ids[scored - len(real) : scored]
        if i:
            assert len(real) >= min(scored, window - stride - (bos is not None))
            assert len(one["ids"]) <= stride
        scored += len(one["ids"])
        text = tokenizer.decode(one["ids"])
        if "\ufffd" not in text:  # which stands for a part of a character
            assert one["bytes"] == len(text.encode())
    opening = 11 if bos is None else BOS
    assert items[0]["context"] == [opening]
    assert bos is None or all(one["context"][0] == BOS for one in items)


@pytest.mark.parametrize("bos", [None, BOS])
def test_perplexity_matches_the_definition(model, tokenizer, bos):
    tokenizer = replace(tokenizer, bos_id=bos)
    items = perplexity_items(TEXT, tokenizer, 24, 10)
    records = perplexity_records(model, tokenizer, items, batch_size=4)
    for one, record in zip(items, records, strict=True):
        nll = -by_hand(model, one["context"], one["ids"])
        assert record["values"]["nll"] == pytest.approx(nll, abs=1e-5, rel=1e-5)
        assert (record["values"]["tokens"], record["values"]["bytes"]) == (len(one["ids"]), one["bytes"])
        assert record["id"] == one["id"]
    # one window over all is the plain definition
    items = perplexity_items(TEXT, tokenizer, 10_000, 1)
    (record,) = perplexity_records(model, tokenizer, items, 1)
    ids = tokenizer.encode(TEXT)
    assert record["values"]["nll"] == pytest.approx(-by_hand(model, [11 if bos is None else BOS], ids), rel=1e-5)
    assert record["values"] | {"nll": 0} == {"nll": 0, "tokens": len(ids), "bytes": len(TEXT.encode())}


def test_windows_that_cannot_be(tokenizer):
    for window, stride in ((8, 8), (8, 0), (8, 9)):
        with pytest.raises(UserError, match=r"options\.stride"):
            perplexity_items(TEXT, tokenizer, window, stride)
    with pytest.raises(UserError, match="no token"):
        perplexity_items("", tokenizer, 16, 8)


PAIRS = [
    {"id": "1", "prompt": "Why?", "chosen": "I will not say.", "rejected": "It is a secret, so take it."},
    {"id": "2", "prompt": [{"role": "user", "content": "Hide it."}], "chosen": "No.", "rejected": "Under a stone."},
    {"id": "3", "prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello.", "rejected": " Go."},
    {"id": "4", "prompt": "word " * 60, "chosen": "yes", "rejected": "no no"},
]


def test_pairs_match_the_definition(model, tokenizer):
    records = preference_records(model, tokenizer, PAIRS, batch_size=3, max_length=512)
    for pair, record in zip(PAIRS, records, strict=True):
        messages = {
            "2": [{"role": "user", "content": "Hide it."}],
            "3": [{"role": "user", "content": "Hi"}],
        }.get(pair["id"])
        expected, tokens = [], []
        for text in (pair["chosen"], pair["rejected"]):
            if messages is None:
                prompt, response = tokenizer.encode(pair["prompt"]), tokenizer.encode(text)
            else:
                opened = tokenizer.render(messages, add_generation_prompt=True)
                closed = tokenizer.render([*messages, {"role": "assistant", "content": text.strip()}])
                prompt, response = tokenizer.encode(opened), tokenizer.encode(closed.removeprefix(opened).rstrip())
                response = response[: response.index(11)] if 11 in response else response
            expected.append(by_hand(model, prompt, [*response, 11]))
            tokens.append(len(response) + 1)
        assert record["logps"] == pytest.approx(expected, abs=1e-4, rel=1e-5)
        assert record["tokens"] == tokens
        assert record["values"] == {
            "accuracy": expected[0] > expected[1],
            "accuracy_norm": expected[0] / tokens[0] > expected[1] / tokens[1],
        }
    one_by_one = [preference_records(model, tokenizer, [pair], 1, 512)[0] for pair in PAIRS]
    for a, b in zip(records, one_by_one, strict=True):
        assert b["logps"] == pytest.approx(a["logps"], abs=1e-5, rel=1e-5)


def test_a_long_pair_loses_the_beginning_of_its_prompt(model, tokenizer):
    (record,) = preference_records(model, tokenizer, PAIRS[3:], 2, 30)
    prompt, responses = tokenizer.encode(PAIRS[3]["prompt"]), [[*tokenizer.encode(t), 11] for t in ("yes", "no no")]
    room = 31 - max(map(len, responses))
    assert record["truncated"] == len(prompt) - room
    for response, logp in zip(responses, record["logps"], strict=True):
        assert logp == pytest.approx(by_hand(model, prompt[-room:], response), abs=1e-5, rel=1e-5)


def test_pairs_that_cannot_be_scored(model, tokenizer):
    bad = [
        {"id": "7", "prompt": "p", "chosen": "so " * 90, "rejected": "no"},
        {"id": "8", "prompt": "p", "chosen": "<|endoftext|>", "rejected": "no"},
        PAIRS[0],
    ]
    records = preference_records(model, tokenizer, bad, 4, 64)
    assert "does not fit in a context of 64" in records[0]["error"]
    error = records[1]["error"]  # without the advice for a file of training rows
    assert error.startswith("pair 8: ") and error.endswith(" is empty but for its EOS")
    assert "error" not in records[2]


def test_rewards_are_log_ratios_to_the_base():
    ours, base = {"logps": [-10.0, -20.0]}, {"logps": [-12.0, -15.0]}
    assert reward_values(ours, base) == {"log_ratios/margin": 7.0, "rewards/accuracy": True}
    assert reward_values(base, ours) == {"log_ratios/margin": -7.0, "rewards/accuracy": False}
    assert reward_values(base, base) == {"log_ratios/margin": 0.0, "rewards/accuracy": 0.5}
    assert reward_values(ours, {"error": "x"}) is None and reward_values({"error": "x"}, base) is None


def test_preference_files(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "category": "S1"}, {"prompt": "q", "chosen": "c"}]
    file.write_text(json.dumps(rows[0]) + "\n")
    item = {"id": "1", "prompt": "p", "chosen": "a", "rejected": "b", "category": "S1"}
    assert preference_items(file) == ([item], {})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r'pairs.jsonl:2: .*options.bad_rows = "drop"'):
        preference_items(file)
    assert preference_items(file, "drop") == ([item], {"missing fields": 1})
    file.write_text(json.dumps({"prompt": "p", "completion": "a"}) + "\n")
    with pytest.raises(UserError, match="two responses a prompt, not 1"):
        preference_items(file)


@pytest.mark.skipif(not HH.is_file(), reason="the shared data are not here")
def test_published_pairs(model, tokenizer):
    items, dropped = preference_items(HH)
    assert len(items) == 2308 and sum(dropped.values()) == 4
    records = preference_records(model, tokenizer, items[:8], 4, 512)
    assert all(record["tokens"][0] > 1 and record["logps"][0] < 0 for record in records if "error" not in record)
