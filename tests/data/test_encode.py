"""Ids: one BOS, one EOS, prompt and response apart, truncation once per group, and a report of all that was left out."""

import gzip
import json
import os
import random
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from conftest import GOLDEN
from tokenizer_folder import BOS, EOS, EOT, LLAMA, user, write_tokenizer
from tqdm import tqdm

from align.data import collate, encode, encode_prompts, encode_rows, load_tokenizer, read_rows
from align.data.encode import MIN_PROMPT, Group, Groups, fingerprint
from align.data.rows import Row
from align.errors import UserError

SHARED = Path(os.environ.get("ALIGN_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
FALCON = SHARED / "falcon_tokenizer"
HH = SHARED / "hh-harmless" / "test.jsonl.gz"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GOLDEN / "tokenizer")


@pytest.fixture
def folder(tmp_path):
    return partial(write_tokenizer, tmp_path)


def drawn_groups(n, K=2, seed=0):
    draw = random.Random(seed)
    for i in range(n):
        prompt, *responses = ([draw.randrange(65_024) for _ in range(draw.randint(20, 180))] for _ in range(1 + K))
        yield Group(prompt, responses, i, where=f"pairs.jsonl:{i + 1}")


def test_a_data_set_takes_little_more_than_four_bytes_a_token():
    groups = Groups()
    tracemalloc.start()
    groups.extend(drawn_groups(2000))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 4.4 * groups.lengths.sum()


@pytest.mark.parametrize("K", [1, 2, 4])
def test_groups_read_as_what_they_were_made_of(K):
    plain = list(drawn_groups(30, K))
    scored = [replace(group, scores=[0.1 * group.index - k for k in range(K)]) for group in plain]
    labelled = [replace(group, label=group.index % 3 == 0) for group in plain]
    places = ["", "7", "pair 007", "a.jsonl:10", "b, row 100000000000000000000", "a.jsonl:0", "a.jsonl:11"]
    elsewhere = [replace(group, where=where) for group, where in zip(plain, places, strict=False)]
    for made in (plain, scored, labelled, elsewhere):
        groups = Groups(made)
        assert list(groups) == made and groups[-1] == made[-1] and groups[3:20:4] == made[3:20:4]
        assert fingerprint(groups) == fingerprint(made)
        assert groups.lengths.tolist() == [[g.prompt_length, *g.response_lengths] for g in made]
    with pytest.raises(IndexError):
        Groups(plain)[30]
    for odd in (scored[1], labelled[1], replace(plain[1], response_ids=[[1]] * (K + 1))):
        with pytest.raises(ValueError, match=r"pairs\.jsonl:2"):
            Groups([plain[0], odd])


def test_a_group_reads_as_lists():
    ids = list(range(1000, 11_000))
    group = Group(list(ids), [list(ids), ids[:5000]], index=0)
    assert group.prompt_ids == ids and group.response_ids == [ids, ids[:5000]]
    assert (group.length, group.n_tokens) == (20_000, 35_000)
    other = replace(group, response_ids=[ids[:1]])
    assert other.response_ids == [ids[:1]] and other.prompt_ids == ids and other != group == replace(group)
    with pytest.raises(TypeError, match="prompt_ids"):
        Group()


def test_encoding_shows_how_far_it_is(tokenizer, capsys, monkeypatch):
    rows = [Row(f"Say {i}", [f"{i}.", "No."], where=str(i)) for i in range(3000)]
    # as for data that take longer than the bar waits
    monkeypatch.setattr(encode, "tqdm", lambda **named: tqdm(**named | {"delay": 0, "mininterval": 0}))
    for progress in (False, True):
        encode_rows(rows, tokenizer, progress=progress)
        assert ("encoding" in capsys.readouterr().err) == progress


def test_golden_text_prompts():
    tokenizer = load_tokenizer(GOLDEN / "falcon2_11b_text")
    cases = json.loads((GOLDEN / "falcon2_11b_text" / "text_golden.json").read_text())
    assert encode_prompts([case["prompt"] for case in cases], tokenizer) == [case["prompt_ids"] for case in cases]
    for case in cases:
        assert tokenizer.decode(case["output_ids"]) == case["output_text"]
        assert tokenizer.decode(case["output_ids"], skip_special=False) == case["output_text_with_special"]


@pytest.mark.skipif(not FALCON.is_dir(), reason="Falcon's tokenizer not present")
def test_falcon_tokenizer():
    tokenizer = load_tokenizer(FALCON)
    for case in json.loads((FALCON / "reference_encodings.json").read_text()):
        assert tokenizer.encode(case["text"]) == case["ids"]
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (65024, 11, 11, None)
    # no template of its own, so Falcon2's; nothing closes the turn there, so one EOS does
    (group,), _ = encode_rows([Row([user("Hi")], ["Hello.", "No "])], tokenizer)
    assert tokenizer.decode(group.prompt_ids) == "User: \nHi\nFalcon:\n"
    assert [tokenizer.decode(ids, False) for ids in group.response_ids] == ["Hello.<|endoftext|>", "No<|endoftext|>"]


def test_bos_is_not_doubled_where_the_template_writes_it(folder):
    tokenizer = load_tokenizer(folder({"bos_token": "<s>", "eos_token": "<|eot|>", "chat_template": LLAMA}))
    rows = [Row([user("Hi")], ["yes", "no"]), Row("plain", ["yes", "no"])]
    groups, _ = encode_rows(rows, tokenizer)
    for group in groups:
        assert group.prompt_ids[0] == BOS and group.prompt_ids.count(BOS) == 1
        for ids in group.response_ids:
            assert ids[-1] == EOT and ids.count(EOT) == 1 and BOS not in ids


def test_prompt_and_responses_are_encoded_apart(tokenizer):
    (group,), _ = encode_rows([Row("The fal", ["con is", "con was"])], tokenizer)
    assert group.prompt_ids == tokenizer.encode("The fal")
    assert group.response_ids == [[*tokenizer.encode(text), EOS] for text in ("con is", "con was")]
    assert tokenizer.encode("The falcon is") != group.prompt_ids + group.response_ids[0][:-1], "joined text would merge"


def test_the_templates_eos_ends_the_response(tokenizer):
    (group,), _ = encode_rows([Row([user("Hi")], ["Hello.", " No. "])], tokenizer)
    assert tokenizer.decode(group.prompt_ids, False) == "User: Hi\nFalcon:"
    # the template goes on with a line break, which is no part of the response
    assert [tokenizer.decode(ids, False) for ids in group.response_ids] == [" Hello.<|endoftext|>", " No.<|endoftext|>"]
    assert encode_prompts([[user("Hi")]], tokenizer) == [group.prompt_ids]


@pytest.mark.parametrize("template", ["auto", "chat", "none"])
def test_exactly_one_eos(tokenizer, template):
    rows = [Row("p", ["a<|endoftext|>", "b"]), Row("\n\nHuman: q\n\nAssistant:", [" c ", " d\n"])]
    groups, _ = encode_rows(rows, tokenizer, template)
    for ids in (ids for group in groups for ids in group.response_ids):
        assert ids.count(EOS) == 1 and ids[-1] == EOS and len(ids) > 1


def test_rows_that_only_ids_show_to_be_bad(tokenizer):
    rows = [Row("p", ["a", "b"], where="f:1"), Row("p", ["a<|endoftext|>b", "b"], where="f:2")]
    with pytest.raises(UserError, match=r"f:2: a response goes on after <\|endoftext\|>.*--data\.bad_rows drop"):
        encode_rows(rows, tokenizer)
    groups, report = encode_rows(rows, tokenizer, bad_rows="drop", dropped=Counter({"broken JSON": 2}))
    assert len(groups) == 1 and (report.n_read, report.n_kept) == (4, 1)
    assert report.dropped == {"broken JSON": 2, "EOS inside a response": 1}
    with pytest.raises(UserError, match=r"no row is left to train on: 1 read, 1 dropped \(1 EOS inside a response\)"):
        encode_rows(rows[1:], tokenizer, bad_rows="drop")


@pytest.mark.skipif(not FALCON.is_dir(), reason="Falcon's tokenizer not present")
def test_text_the_vocabulary_cannot_hold():
    tokenizer = load_tokenizer(FALCON)
    assert tokenizer.encode("\x03") == []
    for row in (Row("p", ["\x03", "b"]), Row("\x03", ["a", "b"])):
        with pytest.raises(UserError, match="no token"):
            encode_rows([row], tokenizer)
    with pytest.raises(UserError, match="equal as tokens"):
        encode_rows([Row("p", ["a", "a\x03"])], tokenizer)


def ids_of(n, tokenizer, start=0):
    """A text of exactly n tokens: capitals are single bytes here, and do not merge."""
    text = "".join("XZQJ"[(start + i) % 4] for i in range(n))
    assert len(tokenizer.encode(text)) == n
    return text


def test_prompt_is_cut_once_for_its_group_from_the_left(tokenizer):
    prompt = ids_of(30, tokenizer)
    row = Row(prompt, [ids_of(4, tokenizer), ids_of(9, tokenizer, 1)])
    (group,), report = encode_rows([row], tokenizer, max_length=25)
    # 25 tokens less the longest response's 9 and its EOS
    assert group.prompt_ids == tokenizer.encode(prompt)[-15:]
    assert [len(ids) for ids in group.response_ids] == [5, 10] and all(ids[-1] == EOS for ids in group.response_ids)
    assert group.length == 25 and (report.prompts_truncated, report.responses_truncated) == (1, 0)
    whole, report = encode_rows([row], tokenizer, max_length=40)
    assert whole[0].prompt_ids == tokenizer.encode(prompt) and report.prompts_truncated == 0


def test_bos_survives_the_cut(folder):
    tokenizer = load_tokenizer(folder())
    prompt = ids_of(30, tokenizer)
    (group,), _ = encode_rows([Row(prompt, [ids_of(4, tokenizer), "Z"])], tokenizer, max_length=20)
    assert group.prompt_ids == [BOS, *tokenizer.encode(prompt)[-14:]] and group.length == 20


def test_a_response_that_leaves_its_prompt_no_room(tokenizer):
    def row(n_prompt, n_response):
        return Row(ids_of(n_prompt, tokenizer), [ids_of(n_response, tokenizer), "Z"], where="f:7")

    # 20 tokens: 8 of prompt leave room for 11 and an EOS, 3 of prompt for 16 and an EOS
    for fits in (row(30, 11), row(8, 11), row(3, 16)):
        ((group,), report) = encode_rows([fits], tokenizer, max_length=20, overlong="error")
        assert group.length == 20 and report.responses_truncated == 0
    for too_long in (row(30, 12), row(8, 12), row(3, 17)):
        with pytest.raises(UserError, match=r"f:7: a response of \d+ tokens .* --data\.max_length 20; raise it"):
            encode_rows([too_long], tokenizer, max_length=20, overlong="error")
        groups, report = encode_rows([too_long, row(3, 3)], tokenizer, max_length=20)
        assert [g.index for g in groups] == [0] and report.dropped == {"response too long for max_length": 1}
        (group,), report = encode_rows([too_long], tokenizer, max_length=20, overlong="truncate")
        n_prompt = min(len(too_long.prompt), MIN_PROMPT)
        assert group.prompt_ids == tokenizer.encode(too_long.prompt)[-n_prompt:]
        assert group.response_ids[0] == tokenizer.encode(too_long.responses[0])[: 20 - n_prompt], "and no EOS"
        assert group.response_ids[1] == [*tokenizer.encode("Z"), EOS], "a short one keeps its own"
        assert report.responses_truncated == 1 and group.length == 20


def test_responses_that_a_cut_makes_equal_are_dropped(tokenizer):
    same = ids_of(30, tokenizer)
    rows = [Row("p", [same + "Z", same + "X"]), Row("p", ["a", "b"])]
    groups, report = encode_rows(rows, tokenizer, max_length=20, overlong="truncate")
    assert len(groups) == 1 and report.dropped == {"equal responses once truncated": 1}


def test_no_length_ever_masks_a_whole_row(tokenizer):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    rows = [Row(ids_of(draw.randint(1, 40), tokenizer), [ids_of(draw.randint(1, 40), tokenizer, k) for k in (0, 1)])
            for _ in range(200)]  # fmt: skip
    for overlong in ("drop", "truncate"):
        for max_length in (MIN_PROMPT + 1, 20, 60, 100):
            try:
                groups, report = encode_rows(rows, tokenizer, max_length=max_length, overlong=overlong)
            except UserError as error:
                assert "no row is left" in str(error) and (overlong, max_length) == ("drop", MIN_PROMPT + 1)
                continue
            assert max(group.length for group in groups) <= max_length
            assert report.n_kept + report.dropped.total() == 200
            batch = collate(groups)
            assert (batch.n_tok >= 1).all() and batch.n_tok.sum() == len(batch.stream.target)


def test_flags_are_checked(tokenizer):
    rows = [Row("p", ["a", "b"])]
    with pytest.raises(UserError, match=r"--data\.overlong cut: must be one of drop, error, truncate"):
        encode_rows(rows, tokenizer, overlong="cut")
    with pytest.raises(UserError, match=r"--data\.max_length 8: must be more than 8"):
        encode_rows(rows, tokenizer, max_length=8)


def test_fingerprint_tells_apart_what_differs():
    groups = [Group([1, 2], [[3], [4, 5]], 0), Group([6], [[7], [8]], 1)]
    same = [replace(g, where="elsewhere", scores=[1.0, 0.0]) for g in groups]
    assert fingerprint(groups) == fingerprint(same)
    others = [
        groups[::-1],
        groups[:1],
        [Group([1], [[2, 3], [4, 5]], 0), groups[1]],
        [Group([1, 2], [[3, 4], [5]], 0), groups[1]],
        [Group([1, 2], [[4, 5], [3]], 0), groups[1]],
        [replace(groups[0], index=1), replace(groups[1], index=0)],
        [Group([1, 2], [[3], [4, 9]], 0), groups[1]],
    ]
    assert len({fingerprint(other) for other in [groups, *others]}) == len(others) + 1


def test_report_reads_as_text(tokenizer):
    rows = [Row("p" * n, ["a" * n, "b"], where=f"f:{n}") for n in range(1, 11)]
    rows.append(Row("say <|pad|>", ["x", "y"]))
    _, report = encode_rows(rows, tokenizer, dropped=Counter({"equal responses": 2}))
    text = str(report)
    assert "rows: 13 read, 11 kept, 2 dropped (2 equal responses)" in text
    assert "special tokens spelled in the text of 1 rows" in text
    assert "truncated: 0 prompts, 0 responses" in text
    lengths = sorted(report.lengths["prompt"])
    assert f"prompt tokens: p50 {lengths[5]}, p95 {lengths[10]}, max {lengths[10]}" in text


@pytest.mark.skipif(not (HH.is_file() and FALCON.is_dir()), reason="HH data or Falcon's tokenizer not present")
@pytest.mark.parametrize("template", ["auto", "none"])
def test_hh_harmless_with_falcons_tokenizer(template):
    tokenizer = load_tokenizer(FALCON)
    rows, dropped = read_rows(HH)
    start = time.process_time()
    groups, report = encode_rows(rows, tokenizer, template, max_length=512, dropped=dropped)
    assert time.process_time() - start < 60
    assert report.n_read == 2312 and report.n_kept == len(groups) > 2290
    assert [g.index for g in groups] == list(range(len(groups)))
    lines = list(map(json.loads, gzip.decompress(HH.read_bytes()).splitlines()))
    by_where = {row.where: row for row in rows}
    for group in groups:
        row, line = by_where[group.where], lines[int(group.where.rsplit(":", 1)[1]) - 1]
        assert group.length <= 512
        end = "\nFalcon:\n" if template == "auto" else "\n\nAssistant:"
        assert tokenizer.decode(group.prompt_ids).endswith(end)
        for ids, response, text in zip(
            group.response_ids, row.responses, (line["chosen"], line["rejected"]), strict=True
        ):
            assert ids[-1] == tokenizer.eos_id and ids.count(tokenizer.eos_id) == 1
            decoded = tokenizer.decode(ids)
            assert decoded == (response.strip() if template == "auto" else response)
            assert decoded.split("\n\n")[-1].strip() in text
