"""A folder's tokenizer: encodings as recorded, its special tokens wherever they are named, wrong files named."""

import json
import shutil
from functools import partial

import pytest
from conftest import GOLDEN, refuse
from tokenizer_folder import BOS, EOS, EOT, LLAMA, PAD, user, write_tokenizer

from align.data import encode_prompts, load_tokenizer
from align.data.tokenizer import check_fits
from align.errors import UserError


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GOLDEN / "tokenizer")


@pytest.fixture
def folder(tmp_path):
    return partial(write_tokenizer, tmp_path)


def test_golden_encodings(tokenizer):
    golden = json.loads((GOLDEN / "tokenizer" / "tokenizer_golden.json").read_text())
    for case in golden["encode"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["decoded_without_special"]
        assert tokenizer.decode(case["ids"], skip_special=False) == case["text"]
    for case in golden["chat"]:
        text = tokenizer.render(case["messages"], case["add_generation_prompt"])
        assert (text, tokenizer.encode(text)) == (case["text"], case["ids"])
    assert (tokenizer.eos_id, tokenizer.pad_id) == (golden["eos_id"], golden["pad_id"]) == (EOS, PAD)
    assert tokenizer.vocab_size == golden["vocab_size"]
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.model_max_length) == (None, {EOS}, 512)


def test_settings_of_a_folder(folder):
    path = folder(
        {"model_max_length": 1e30, "chat_template": LLAMA, "eos_token": None},
        special_tokens_map={"eos_token": {"content": "<|eot|>"}, "pad_token": None},
        generation_config={"eos_token_id": [EOS, EOT, 9999]},
        config={"eos_token_id": EOS},
    )
    tokenizer = load_tokenizer(path)
    assert (tokenizer.eos_id, tokenizer.eos_ids, tokenizer.pad_id) == (EOT, {EOS, EOT}, EOT)
    assert tokenizer.bos_id == BOS, "unnamed, but the tokenizer puts it before an empty text"
    assert tokenizer.render([user("a")]) == "<s><user>a<|eot|>"
    assert tokenizer.model_max_length is None and tokenizer.vocab_size == 482
    assert len(tokenizer.encode("a longer text than five tokens, " * 5)) > 20, "a saved truncation is not applied"
    assert [len(ids) for ids in tokenizer.encode_batch(["a", "XZQ"])] == [1, 3], "nor a saved padding"


def test_eos_from_the_models_config(folder):
    tokenizer = load_tokenizer(folder({"bos_token": "<s>"}, config={"eos_token_id": EOT}))
    assert (tokenizer.eos_id, tokenizer.render([user("a")])) == (EOT, "<s>User: \na\n"), "Falcon2's, with this BOS"
    with pytest.raises(UserError, match="names no eos_token"):
        load_tokenizer(folder({}, config={}))


@pytest.mark.parametrize(
    "add, post_processor, expected", [(None, True, BOS), (None, False, None), (True, False, BOS), (False, True, None)]
)
def test_bos_only_where_the_tokenizer_adds_one(folder, add, post_processor, expected):
    config = {"bos_token": "<s>", "eos_token": "<|endoftext|>"} | ({} if add is None else {"add_bos_token": add})
    tokenizer = load_tokenizer(folder(config, bos=post_processor))
    assert tokenizer.bos_id == expected
    (ids,) = encode_prompts(["a b"], tokenizer)
    assert ids == ([BOS] if expected else []) + tokenizer.encode("a b")


def test_files_at_fault_are_named(tmp_path, folder):
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a readable tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="eos_token <end> is not in"):
        load_tokenizer(folder({"eos_token": "<end>"}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: the chat template does not parse"):
        load_tokenizer(folder({"eos_token": "<|eot|>", "chat_template": "{% if"}))
    (folder() / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not readable as JSON"):
        load_tokenizer(tmp_path)


def test_check_fits(tokenizer):
    check_fits(tokenizer, 480, "models/x")
    with pytest.raises(UserError, match=r"tokenizer: .* up to 479, .* models/x has vocab_size 479"):
        check_fits(tokenizer, 479, "models/x")


@pytest.mark.parametrize("ids", [[[1]], {"a": 1}, "11", True, 1.5, [None]])
def test_an_eos_that_is_no_id(tmp_path, ids):
    shutil.copytree(GOLDEN / "tokenizer", tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert "eos_token_id must be an id, or a list of ids" in refuse(load_tokenizer, tmp_path)


@pytest.mark.parametrize(
    "part",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # panics when it is read
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}},  # when it meets a text
    ],
)
def test_a_panic_is_one_line(tmp_path, part, capfd):
    shutil.copytree(GOLDEN / "tokenizer", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | part))
    assert refuse(load_tokenizer, tmp_path).startswith(f"{file}: not a readable tokenizer (")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("eos_token", [1], "eos_token of tokenizer_config.json or special_tokens_map.json must be text"),
        ("bos_token", {"content": 1}, "bos_token of tokenizer_config.json or special_tokens_map.json must be text"),
        ("chat_template", [{"name": [1], "template": "x"}], "chat_template must be text"),
        ("chat_template", 7, "chat_template must be text"),
        ("align_template", ["chat"], "align_template must be one of"),
    ],
)
def test_settings_of_another_type(tmp_path, key, value, said):
    shutil.copytree(GOLDEN / "tokenizer", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    line = refuse(load_tokenizer, tmp_path)
    assert line.startswith(str(tmp_path)) and f": {said}" in line
