"""The classifiers against numbers that transformers computed, and what their folders may and may not hold."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, refuse
from safetensors.torch import load_file, save_file

from align.models import BertConfig, RobertaConfig, load_model, read_any_config, read_config

KINDS = ["bert_classifier", "roberta_classifier"]
each_kind = pytest.mark.parametrize("kind", KINDS)
TOLERANCE = 1e-4


def golden(kind, dtype=torch.float32):
    """The model, its golden numbers, and the mask of their ids."""
    numbers = load_file(GOLDEN / kind / "golden.safetensors")
    mask = torch.arange(numbers["input_ids"].shape[1]) < numbers["lengths"][:, None]
    return load_model(GOLDEN / kind, dtype), numbers, mask


def raw(kind, **changes):
    return json.loads((GOLDEN / kind / "config.json").read_text()) | changes


def parse(kind, **changes):
    config = BertConfig if kind == "bert_classifier" else RobertaConfig
    return config.from_dict(raw(kind, **changes))


@pytest.fixture
def copy(tmp_path):
    """A copy of a golden folder, with keys of its config changed and tensors added or (None) taken away."""

    def make(kind, tensors=(), **config):
        folder = Path(shutil.copytree(GOLDEN / kind, tmp_path / kind))
        (folder / "config.json").write_text(json.dumps(raw(kind, **config)))
        held = load_file(folder / "model.safetensors") | dict(tensors)
        held = {name: tensor for name, tensor in held.items() if tensor is not None}
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


@each_kind
def test_logits_and_probabilities(kind):
    model, numbers, mask = golden(kind)
    logits = model(numbers["input_ids"], mask)
    assert logits.dtype == torch.float32 and logits.shape == numbers["logits"].shape
    assert (logits - numbers["logits"]).abs().max() < TOLERANCE
    assert (model.probabilities(logits) - numbers["probabilities"]).abs().max() < TOLERANCE


@each_kind
def test_padding_does_not_matter(kind):
    """Other ids in the padding, more of it, none of it, and a mask of integers: the same logits."""
    model, numbers, mask = golden(kind)
    ids, lengths = numbers["input_ids"], numbers["lengths"]
    expected = model(ids, mask)
    assert torch.equal(model(ids.masked_fill(~mask, 7), mask), expected)
    assert torch.equal(model(ids, mask.long()), expected)
    more = model.config.context - ids.shape[1]
    wider = torch.nn.functional.pad(ids, (0, more), value=5), torch.nn.functional.pad(mask, (0, more))
    torch.testing.assert_close(model(*wider), expected, atol=2e-6, rtol=0)
    alone = [model(row[None, :n], torch.ones(1, n)) for row, n in zip(ids, lengths, strict=True)]
    torch.testing.assert_close(torch.cat(alone), expected, atol=2e-6, rtol=0)


@each_kind
def test_the_mask_and_not_the_ids_say_what_is_real(kind):
    """The pad id in the middle of a text is a token like any other: what follows keeps its position."""
    model, numbers, mask = golden(kind)
    ids = numbers["input_ids"].clone()
    ids[:, 4] = model.config.raw["pad_token_id"]
    changed = model(ids, mask)
    assert (changed - model(numbers["input_ids"], mask)).abs().min(1).values.max() > 0.01
    alone = torch.cat([model(row[None, :n], torch.ones(1, n)) for row, n in zip(ids, numbers["lengths"], strict=True)])
    torch.testing.assert_close(changed, alone, atol=2e-6, rtol=0)


@each_kind
def test_other_dtypes(kind):
    exact, numbers, mask = golden(kind, torch.float64)
    logits = exact(numbers["input_ids"], mask)
    assert logits.dtype == torch.float64
    assert (logits - numbers["logits"]).abs().max() < 2e-6  # the rounding of the numbers themselves
    half, _, _ = golden(kind, torch.bfloat16)
    rough = half(numbers["input_ids"], mask)
    assert rough.dtype == torch.float32 and all(p.dtype == torch.bfloat16 for p in half.parameters())
    # 8 bits of mantissa, logits of size 2; it must be rounded, and only rounded
    assert 1e-4 < (rough - logits).abs().max() < 0.1
    stored, _, _ = golden(kind, None)
    assert all(param.dtype == torch.float32 for param in stored.parameters())


@each_kind
def test_every_position_is_used_and_no_more(kind):
    model, _, _ = golden(kind)
    context = model.config.context
    assert context == {"bert_classifier": 66, "roberta_classifier": 66 - 2}[kind]
    ids, ones = torch.full((1, context + 1), 9), torch.ones(1, context + 1)
    embeddings = (model.bert if kind == "bert_classifier" else model.roberta).embeddings

    def read(tokens):
        return model(ids[:, :tokens], ones[:, :tokens]).detach()

    full, shorter = read(context), read(context - 1)
    with torch.no_grad():
        embeddings["position_embeddings"].weight[-1] += torch.linspace(-1, 1, model.config.hidden_size)
    assert (read(context) - full).abs().max() > 1e-4 and torch.equal(read(context - 1), shorter)
    with pytest.raises(ValueError, match=f"{context + 1} tokens: this model reads at most {context}"):
        read(context + 1)


@each_kind
def test_positions_count_from_the_pad_id(kind):
    """RoBERTa with pad id 3 reads from row 4: with its rows moved there, the same logits. BERT has no such offset."""
    _, numbers, mask = golden(kind)
    config = parse(kind, pad_token_id=3)
    assert config.first_position == {"bert_classifier": 0, "roberta_classifier": 4}[kind]
    assert parse(kind, pad_token_id=None).first_position == {"bert_classifier": 0, "roberta_classifier": 2}[kind]
    assert parse(kind, pad_token_id=0).first_position == {"bert_classifier": 0, "roberta_classifier": 1}[kind]
    model = load_model(GOLDEN / kind)
    encoder = model.bert if kind == "bert_classifier" else model.roberta
    encoder.config = config
    with torch.no_grad():
        shift = config.first_position - model.config.first_position
        table = encoder.embeddings["position_embeddings"].weight
        table.copy_(table.roll(shift, 0))
    torch.testing.assert_close(model(numbers["input_ids"], mask), numbers["logits"], atol=TOLERANCE, rtol=0)


def test_probabilities_by_problem_type():
    """Independent labels get a sigmoid each, exclusive ones a softmax, a single label a sigmoid."""
    logits = torch.tensor([[0.0, 1.0, -2.0], [3.0, 3.0, 3.0]])
    each, one = 1 / (1 + (-logits).exp()), logits.exp() / logits.exp().sum(1, keepdim=True)
    model, _, _ = golden("bert_classifier")
    for problem, labels, expected in [
        ("multi_label_classification", 3, each),
        ("single_label_classification", 3, one),
        (None, 3, one),
        (None, 1, each[:, :1]),
    ]:
        model.config = parse("bert_classifier", problem_type=problem, id2label=None, num_labels=labels)
        torch.testing.assert_close(model.probabilities(logits[:, :labels]), expected)


def test_labels():
    named = {"1": "toxic", "0": "neutral"}
    assert parse("bert_classifier", id2label=named).labels == ("neutral", "toxic")
    assert parse("bert_classifier", id2label=None).labels == ("LABEL_0", "LABEL_1")
    assert parse("bert_classifier", id2label=None, num_labels=3).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert parse("bert_classifier").labels == tuple(f"LABEL_{i}" for i in range(6))
    assert parse("roberta_classifier").labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("hidden_act", "gelu_new", ["'gelu_new'", "gelu"]),
        ("hidden_act", "relu", ["'relu'", "gelu"]),
        ("position_embedding_type", "relative_key", ["'relative_key'", "absolute"]),
        ("is_decoder", True, ["True"]),
        ("add_cross_attention", True, ["True"]),
        ("pruned_heads", {"0": [1]}, ["pruned_heads"]),
        ("problem_type", "regression", ["'regression'", "multi_label_classification"]),
        ("architectures", ["BertForMaskedLM"], ["'BertForMaskedLM'", "ForSequenceClassification"]),
        ("quantization_config", {"bits": 4}, ["unquantised"]),
        ("dtype", "float8", ["'float8'"]),
        ("num_attention_heads", 5, ["does not divide hidden_size 48"]),
        ("hidden_size", None, ["missing"]),
        ("vocab_size", "165", ["positive integer"]),
        ("layer_norm_eps", -1.0, ["positive number"]),
        ("type_vocab_size", 0, ["positive integer"]),
        ("id2label", {"0": "a", "2": "b"}, ["0 to 1"]),
        ("id2label", {"0": "a", "1": "a"}, ["all different"]),
        ("id2label", {"0": "a", "1": 7}, ["a name each"]),
        ("id2label", ["a", "b"], ["dict"]),
    ],
)
@each_kind
def test_what_a_config_may_not_say(kind, key, value, words):
    message = refuse(parse, kind, **{key: value})
    assert all(word in message for word in ["config.json", key, *words]), message


@pytest.mark.parametrize("pad", ["1", -1, 1.0, True])
def test_a_pad_id_must_be_one(pad):
    assert "pad_token_id" in refuse(parse, "roberta_classifier", pad_token_id=pad)


def test_no_room_for_a_token():
    assert "max_position_embeddings 2" in refuse(parse, "roberta_classifier", max_position_embeddings=2)


def test_gelu_python_is_gelu():
    assert parse("bert_classifier", hidden_act="gelu_python") is not None


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, None])
def test_leftovers_of_old_checkpoints_are_ignored(kind, dtype, copy):
    _, numbers, mask = golden(kind)
    family = kind.split("_")[0]
    old = {f"{family}.embeddings.position_ids": torch.arange(66)[None]}
    if family == "roberta":
        old |= {"roberta.embeddings.token_type_ids": torch.zeros(1, 66, dtype=torch.long)}
        old |= {"roberta.pooler.dense.weight": torch.ones(48, 48), "roberta.pooler.dense.bias": torch.ones(48)}
    model = load_model(copy(kind, old), dtype)
    assert (model(numbers["input_ids"], mask) - numbers["logits"]).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "kind, tensors, config, words",
    [
        ("bert_classifier", {"bert.pooler.dense.weight": None}, {}, ["bert.pooler.dense.weight", "missing"]),
        ("bert_classifier", {"cls.predictions.bias": torch.zeros(165)}, {}, ["cls.predictions.bias", "unexpected"]),
        ("roberta_classifier", {"lm_head.bias": torch.zeros(165)}, {}, ["lm_head.bias", "unexpected"]),
        ("bert_classifier", {}, {"id2label": {"0": "a", "1": "b"}}, ["classifier.bias", "[6]", "[2]"]),
        ("roberta_classifier", {}, {"max_position_embeddings": 64}, ["position_embeddings", "[66, 48]", "[64, 48]"]),
        ("roberta_classifier", {}, {"model_type": "bert"}, ["RobertaForSequenceClassification"]),
        ("bert_classifier", {}, {"model_type": "distilbert"}, ["'distilbert'", "bert, roberta"]),
    ],
)
def test_damaged_folders(kind, tensors, config, words, copy):
    message = refuse(load_model, copy(kind, tensors, **config))
    assert all(word in message for word in words), message


def test_pickled_weights_are_refused(copy):
    folder = copy("bert_classifier")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "convert them to safetensors" in refuse(load_model, folder)


@each_kind
def test_a_classifier_is_no_language_model(kind):
    """What train.py reads a model's config with says so; read_any_config takes both."""
    assert "is a classifier, not a language model" in refuse(read_config, GOLDEN / kind)
    assert read_any_config(GOLDEN / kind).context == load_model(GOLDEN / kind).config.context
    assert read_any_config(GOLDEN / "llama31") == read_config(GOLDEN / "llama31")
