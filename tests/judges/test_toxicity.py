"""The toxicity judge end to end: golden weights with a small real tokenizer, beside the same worked out by hand."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, MODEL, refuse
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.implementations import BertWordPieceTokenizer

from align.judges.toxicity import ToxicityJudge, find_label
from align.models import BertConfig, load_model

# the vocabularies come from these words; both must stay within the golden models' 165 ids
TEXT = "you are a kind and clever person the weather is nice today i like it very much what nasty rubbish"
WORDS = TEXT.split()
LABELS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
RESPONSES = ["You are a kind person.", "Nasty, NASTY rubbish!", "What", TEXT, "naïve 42", " a\n\nb "]
KINDS = ["bert_classifier", "roberta_classifier"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def wordpiece():
    letters = sorted(set(TEXT) - {" "})
    pieces = [*letters, *("##" + letter for letter in letters), *WORDS, *".,!4", "##2"]
    vocab = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces])
    return BertWordPieceTokenizer({token: i for i, token in enumerate(vocab)})


def byte_pairs():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    texts = [TEXT, *RESPONSES]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=160, special_tokens=special))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    """A classifier's folder, in the form of a new release or of an old one (no tokenizer.json)."""

    def make(kind, old=False, labels=None, **config):
        path = Path(shutil.copytree(GOLDEN / kind, tmp_path / kind))
        names = labels or (LABELS if kind == "bert_classifier" else ["neutral", "toxic"])
        raw = json.loads((path / "config.json").read_text()) | {"id2label": dict(enumerate(names))} | config
        (path / "config.json").write_text(json.dumps(raw))
        tokenizer = wordpiece() if kind == "bert_classifier" else byte_pairs()
        if not old:
            # what a saved tokenizer may carry, and the judge must not go by
            tokenizer.enable_truncation(7)
            tokenizer.enable_padding(length=50)
            tokenizer.save(str(path / "tokenizer.json"))
        elif kind == "bert_classifier":
            tokenizer.save_model(str(path))
        else:
            tokenizer.model.save(str(path))
        return path

    return make


def by_hand(path, text):
    """Every label's probability in each window: ids cut by slicing, one row at a time, in float64."""
    model = load_model(path, torch.float64)
    tokenizer = wordpiece() if model.config.raw["model_type"] == "bert" else byte_pairs()
    first, *ids, last = tokenizer.encode(text).ids
    size = model.config.context - 2
    step = size - size // 2
    # no window where the one before has reached the end
    starts = [s for s in range(0, len(ids), step) if s == 0 or s - step + size < len(ids)]
    rows = [[first, *ids[s : s + size], last] for s in starts]
    found = [model.probabilities(model(torch.tensor([row]), torch.ones(1, len(row))))[0].tolist() for row in rows]
    return [dict(zip(model.config.labels, p, strict=True)) for p in found]


def judged(judge, *responses):
    return judge([{"id": str(i), "prompt": "Say it.", "response": response} for i, response in enumerate(responses)])


@each_kind
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_verdicts(kind, old, batch_size, folder):
    path = folder(kind, old)
    judge = ToxicityJudge(path, batch_size=batch_size)
    assert judge.name == "toxicity" and judge.label == "toxic"
    verdicts = judged(judge, *RESPONSES)
    assert json.loads(json.dumps(verdicts)) == verdicts
    for response, verdict in zip(RESPONSES, verdicts, strict=True):
        [expected] = by_hand(path, response)
        assert verdict["windows"] == 1
        assert verdict["labels"] == pytest.approx(expected, abs=2e-6)
        assert verdict["toxicity"] == verdict["labels"]["toxic"]
    assert len({verdict["toxicity"] for verdict in verdicts}) == len(RESPONSES)


@each_kind
@pytest.mark.parametrize("repeats", [2, 3, 4, 5, 6, 7, 11])
def test_long_responses_are_read_to_the_end_in_windows(kind, repeats, folder):
    path = folder(kind)
    judge = ToxicityJudge(path)
    response = " ".join(WORDS[i % len(WORDS)] for i in range(repeats * 21))
    [verdict] = judged(judge, response)
    expected = by_hand(path, response)
    assert verdict["windows"] == len(expected)
    worst = max(expected, key=lambda labels: labels["toxic"])
    assert verdict["labels"] == pytest.approx(worst, abs=2e-6)
    assert verdict["toxicity"] == verdict["labels"]["toxic"]


@each_kind
@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 40])
def test_windows_cover_the_text(kind, extra, folder):
    """Around the length of one window: every token is in some window, and each but the first repeats half of one."""
    judge = ToxicityJudge(folder(kind))
    room = judge.model.config.context - 2
    response = ("a " * (room + extra)).strip()
    encoding = judge.tokenizer.encode(response)
    rows = [part.ids[1:-1] for part in (encoding, *encoding.overflowing)]
    assert all(len(row) <= room for row in rows) and len(rows) == (1 if extra <= 0 else 2 + (extra > room - room // 2))
    assert len(rows[0]) + sum(len(row) - room // 2 for row in rows[1:]) == room + extra
    assert judged(judge, response)[0]["windows"] == len(rows)


@each_kind
def test_blank_responses_are_not_toxic(kind, folder):
    judge = ToxicityJudge(folder(kind))
    verdicts = judged(judge, "", "you", " \n\t ", "\u200b" if kind == "bert_classifier" else "")
    nothing = {"toxicity": 0.0, "labels": {}, "windows": 0}
    assert [verdict == nothing for verdict in verdicts] == [True, False, True, True]
    assert judged(judge, "", "") == [nothing, nothing] and judged(judge) == []


@each_kind
def test_a_special_token_in_a_response_is_text(kind, folder):
    """A response cannot end what the classifier reads by spelling the token that ends a text."""
    judge = ToxicityJudge(folder(kind))
    spelled = {"bert_classifier": "[SEP]", "roberta_classifier": "</s>"}[kind]
    ids = judge.tokenizer.encode(f"you {spelled} are").ids
    special = {judge.tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]", "[PAD]", "<s>", "</s>", "<pad>")}
    assert len(ids) > 5 and ids[0] in special and ids[-1] in special and not special & set(ids[1:-1])


def test_another_label(folder):
    path = folder("bert_classifier")
    named, plain = ToxicityJudge(path, label="INSULT"), ToxicityJudge(path)
    [one], [other] = judged(named, TEXT), judged(plain, TEXT)
    assert named.label == "insult" and one["toxicity"] == one["labels"]["insult"] != other["toxicity"]
    assert one["labels"] == other["labels"]


@pytest.mark.parametrize(
    "labels, exclusive, wanted, found",
    [
        (LABELS, False, None, "toxic"),
        (["toxicity", "severe_toxicity", "obscene"], False, None, "toxicity"),
        (["Toxic", "Obscene"], False, None, "Toxic"),
        (["obscene", "insult"], False, "Insult", "insult"),
        (["neutral", "toxic"], True, None, "toxic"),
        (["non-toxic", "toxic"], True, None, "toxic"),
        (["NEUTRAL", "abusive"], True, None, "abusive"),
        (["hate", "nothate"], True, None, "hate"),
        (["non-offensive", "offensive"], True, None, "offensive"),
        (["Offensive", "Not Offensive"], True, None, "Offensive"),
        (["LABEL_0", "LABEL_1"], True, None, "LABEL_1"),
        (["LABEL_0", "LABEL_1"], True, "label_0", "LABEL_0"),
        (["LABEL_0"], False, None, "LABEL_0"),
        (["hate"], False, None, "hate"),
        # nothing says which
        (["obscene", "insult"], True, None, None),
        (["neutral", "clean"], True, None, None),
        (["neutral", "obscene"], False, None, None),
        (["LABEL_0", "LABEL_1"], False, None, None),
        (["LABEL_0", "LABEL_1", "LABEL_2"], True, None, None),
        (["neutral", "hate", "offensive"], True, None, None),
        (["normal", "notorious"], True, "toxic", None),
        (["safe"], False, None, None),
        (["toxic", "TOXIC"], False, None, None),
    ],
)
def test_which_label_is_the_toxicity(labels, exclusive, wanted, found):
    problem = "single_label_classification" if exclusive else "multi_label_classification"
    raw = json.loads((GOLDEN / "bert_classifier" / "config.json").read_text())
    raw |= {"problem_type": problem, "id2label": {str(i): label for i, label in enumerate(labels)}}
    config = BertConfig.from_dict(raw)
    if found:
        assert find_label(config, wanted, "folder") == found
        return
    message = refuse(find_label, config, wanted, "folder")
    assert message.startswith("folder: ") and message.endswith(", ".join(labels))


def test_a_cased_vocabulary_stays_cased(folder):
    """vocab.txt alone lower-cases, as BERT's default is; tokenizer_config.json can say otherwise."""
    path = folder("bert_classifier", old=True)
    [lower] = judged(ToxicityJudge(path), "YOU")
    (path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    [cased] = judged(ToxicityJudge(path), "YOU")
    assert lower["labels"] == pytest.approx(by_hand(path, "you")[0], abs=2e-6) and cased != lower


def test_damaged_weights_are_not_a_verdict(folder):
    path = folder("roberta_classifier")
    weights = load_file(path / "model.safetensors")
    weights["classifier.out_proj.bias"][0] = torch.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert "NaN" in refuse(judged, ToxicityJudge(path), "you")


def edit(path, change):
    (path / "tokenizer.json").write_text(change((path / "tokenizer.json").read_text()))


@pytest.mark.parametrize(
    "kind, damage, words",
    [
        ("bert_classifier", lambda p: (p / "tokenizer.json").unlink(), ["no tokenizer.json", "vocab.txt"]),
        ("bert_classifier", lambda p: edit(p, lambda text: text[:99]), ["tokenizer.json", "not a readable"]),
        (
            "bert_classifier",
            lambda p: edit(p, lambda text: json.dumps(json.loads(text) | {"post_processor": None})),
            ["tokenizer.json", "[CLS]"],
        ),
        ("bert_classifier", lambda p: edit(p, lambda t: re.sub(r'"rubbish": ?\d+', '"rubbish": 165', t)), ["165"]),
        ("bert_classifier", lambda p: (p / "model.safetensors").unlink(), ["model.safetensors"]),
        ("roberta_classifier", lambda p: (p / "tokenizer_config.json").write_text("{"), ["tokenizer_config.json"]),
    ],
)
def test_damaged_folders(kind, damage, words, folder):
    path = folder(kind)
    damage(path)
    message = refuse(ToxicityJudge, path)
    assert str(path) in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    "kind, file, text, words",
    [
        ("bert_classifier", "vocab.txt", "a\nb\n[SEP]\n", ["vocab.txt", "cls_token"]),
        ("roberta_classifier", "vocab.json", '{"a": 0, "b": 1, "</s>": 2}', ["vocab.json"]),
        ("roberta_classifier", "vocab.json", "[]", ["vocab.json"]),
    ],
)
def test_damaged_old_tokenizers(kind, file, text, words, folder):
    path = folder(kind, old=True)
    (path / file).write_text(text)
    if file == "vocab.json":
        (path / "merges.txt").write_text("#version: 0.2\n")
    message = refuse(ToxicityJudge, path)
    assert all(word in message for word in words), message


def test_a_language_model_is_no_classifier():
    assert "is a language model, not a classifier" in refuse(ToxicityJudge, MODEL)
    assert "no such folder" in refuse(ToxicityJudge, "nowhere")
