"""Rows: every format read, every bad row refused by file and line or counted."""

import gzip
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from align.data import read_rows
from align.data.messages import is_dialogue
from align.data.rows import describe
from align.errors import UserError

SHARED = Path(os.environ.get("ALIGN_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
HH = SHARED / "hh-harmless" / "test.jsonl.gz"

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def write(write):
    """The tests' common `write` with the name last, as it seldom matters here, and the file's path returned."""
    return lambda *rows, name="file.jsonl": write(name, *rows) / name


def one(path, **kwargs):
    (row,), dropped = read_rows(path, **kwargs)
    assert not dropped
    return row


def test_pair_of_strings_is_taken_as_it_is(write):
    row = one(write({"prompt": " p\n", "chosen": " a", "rejected": "b ", "category": "x", "n": 3}))
    assert (row.prompt, row.responses) == (" p\n", [" a", "b "])
    assert row.extra == {"category": "x", "n": 3} and row.scores is None and row.label is None
    assert row.where.endswith("file.jsonl:1")


def test_pair_of_messages_responses_only(write):
    row = one(write({"prompt": [user("p")], "chosen": [bot("a")], "rejected": [bot("b")]}))
    assert (row.prompt, row.responses) == ([user("p")], ["a", "b"])


def test_pair_as_in_ultrafeedback_binarized(write):
    row = one(write({"prompt": "p", "chosen": [user("p"), bot("a")], "rejected": [user("p"), bot("b")], "score": 9}))
    assert (row.prompt, row.responses, row.extra) == ([user("p")], ["a", "b"], {"score": 9})


def test_whole_dialogues_of_messages_keep_all_shared_turns(write):
    shared = [{"role": "system", "content": "s"}, user("1"), bot("2"), user("3")]
    row = one(write({"chosen": [*shared, bot("a")], "rejected": [*shared, bot("a, but")]}))
    assert (row.prompt, row.responses) == (shared, ["a", "a, but"])


def test_whole_dialogues_of_text(write):
    head = "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    row = one(write({"chosen": head + " yes", "rejected": head + " yes, but"}))
    assert (row.prompt, row.responses) == (head, [" yes", " yes, but"])
    assert is_dialogue(row.prompt)


def test_a_run_of_assistant_turns_is_one_response(write):
    head = "\n\nHuman: one\n\nAssistant:"
    row = one(write({"chosen": head + " a\n\nAssistant: b", "rejected": head + " a\n\nAssistant: c"}))
    assert (row.prompt, row.responses) == (head, [" a\n\n b", " a\n\n c"])


def test_scored_responses_come_best_first_and_ties_in_file_order(write):
    row = one(write({"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [1, 3, 1, 2.5]}))
    assert row.responses == ["b", "d", "a", "c"]
    assert row.scores == [3.0, 2.5, 1.0, 1.0]


@pytest.mark.parametrize("label", [True, False, None])
def test_unpaired(write, label):
    row = one(write({"prompt": "p", "completion": "c"} | ({} if label is None else {"label": label})))
    assert (row.prompt, row.responses) == ("p", ["c"]) and row.label is label


def test_null_is_absent_as_tables_write_it(write):
    head = "\n\nHuman: q\n\nAssistant:"
    row = one(write({"prompt": None, "chosen": head + " a", "rejected": head + " b", "note": None}))
    assert (row.prompt, row.extra) == (head, {})
    assert one(write({"prompt": "p", "completion": "c", "label": None})).label is None


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz"])
def test_one_object_a_line_in_every_file_type(write, name):
    rows, _ = read_rows(write(PAIR, "", "  ", PAIR | {"prompt": "second\u2028"}, name=name))
    assert [row.prompt for row in rows] == ["p", "second\u2028"]
    assert rows[1].where.endswith(":4"), "blank lines are ignored but counted as lines"


def test_json_list_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + json.dumps([PAIR, PAIR], indent=1), encoding="utf-8")
    rows, _ = read_rows(path)
    assert len(rows) == 2 and rows[1].where == f"{path}, row 2"


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install \.\[parquet\]"):
        read_rows(tmp_path / "a.parquet")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": "p", "chosen": [user("p"), bot("a")], "rejected": [user("p"), bot("b")], "note": None},
        {"prompt": "q", "chosen": [user("q"), bot("c")], "rejected": [user("q"), bot("d")], "note": "n"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read, _ = read_rows(tmp_path / "a.parquet")
    assert [row.responses for row in read] == [["a", "b"], ["c", "d"]]
    assert read[0].prompt == [user("p")] and read[1].extra == {"note": "n"}
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"bad\.parquet: not a readable parquet file"):
        read_rows(tmp_path / "bad.parquet")


DIALOGUE = "\n\nHuman: q\n\nAssistant:"
BAD = {
    "broken JSON": ('{"prompt": "p", "chosen"', "broken JSON"),
    "not an object": ("[1]", "must be a JSON object"),
    "no known fields": ({"question": "q", "text": "t"}, "has the keys question, text, but a row needs prompt + chosen"),
    "half a pair": ({"prompt": "p", "chosen": "a"}, "has the keys prompt, chosen,"),
    "empty chosen": (PAIR | {"chosen": ""}, "chosen is an empty response"),
    "blank rejected": (PAIR | {"rejected": " \n"}, "rejected is an empty response"),
    "empty message": (PAIR | {"chosen": [bot("")], "rejected": [bot("b")]}, "chosen is an empty response"),
    "empty prompt": (PAIR | {"prompt": " "}, "prompt is empty"),
    "no messages": (PAIR | {"prompt": []}, "prompt is empty"),
    "empty Human turn": (PAIR | {"prompt": "\n\nHuman: \n\nAssistant:"}, "last Human turn is empty"),
    "equal": (PAIR | {"rejected": "good"}, "chosen equals rejected"),
    "equal but for spaces": (PAIR | {"rejected": " good\n"}, "chosen equals rejected"),
    "equal dialogues": ({"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " a"}, "chosen equals rejected"),
    "equal messages": ({"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("a")]}, "chosen equals rejected"),
    "chosen a number": (PAIR | {"chosen": 3}, "chosen is a int, rejected a str"),
    "both numbers": (PAIR | {"chosen": 3, "rejected": 4}, "chosen must be text or chat messages, not int"),
    "prompt a number": (PAIR | {"prompt": 3}, "prompt must be text or chat messages, not int"),
    "content a number": (PAIR | {"prompt": [user(3)]}, "content must be text"),
    "message without role": (PAIR | {"prompt": [{"content": "p"}]}, '"role"'),
    "unknown role": (PAIR | {"prompt": [{"role": "human", "content": "p"}]}, "role 'human' must be one of"),
    "prompt ends with a response": (PAIR | {"prompt": [user("p"), bot("a")]}, "must end before an assistant turn"),
    "begun with a call": (
        PAIR | {"prompt": [user("p"), bot("a") | {"prefix": True, "refusal": "b"}]},
        "ends with the beginning of a response that has refusal",
    ),
    "prefix of text": (PAIR | {"prompt": [user("p"), bot("a") | {"prefix": "true"}]}, 'has "prefix": true'),
    "surrogate": ('{"prompt": "p", "chosen": "\\ud800", "rejected": "b"}', "surrogate"),
    "one score short": ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "2 responses and 1 scores"),
    "one response": ({"prompt": "p", "responses": ["a"], "scores": [1]}, "K >= 2"),
    "NaN": ('{"prompt": "p", "responses": ["a", "b"], "scores": [1, NaN]}', "finite number, not nan"),
    "infinite": ('{"prompt": "p", "responses": ["a", "b"], "scores": [-Infinity, 1]}', "finite number, not -inf"),
    "too large": ({"prompt": "p", "responses": ["a", "b"], "scores": [1, 10**400]}, "finite number"),
    "score a string": ({"prompt": "p", "responses": ["a", "b"], "scores": ["1", 2]}, "finite number, not '1'"),
    "responses a string": ({"prompt": "p", "responses": "ab", "scores": [1, 2]}, "must be lists"),
    "all equal": ({"prompt": "p", "responses": ["a", "a"], "scores": [1, 2]}, "all responses are equal"),
    "label a number": ({"prompt": "p", "completion": "c", "label": 1}, "label must be true or false, not 1"),
    "no Assistant turn": ({"chosen": DIALOGUE + " a\n\nHuman: b", "rejected": DIALOGUE + " c"}, "chosen dialogue does"),
    "user last": ({"chosen": [user("q"), bot("a")], "rejected": [user("q")]}, "rejected dialogue does not end"),
    "nothing shared": ({"chosen": DIALOGUE + " a", "rejected": "\n\nHuman: r\n\nAssistant: b"}, "share no beginning"),
    "other questions": ({"chosen": [user("q"), bot("a")], "rejected": [user("r"), bot("b")]}, "share no beginning"),
    "plain strings alone": (
        {"chosen": "a", "rejected": "b"},
        "without a prompt, chosen and rejected must be two whole",
    ),
    "parts early": (
        {"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " a\n\nHuman: r\n\nAssistant: b"},
        "rejected must be one assistant turn",
    ),
    "response goes on": (PAIR | {"prompt": DIALOGUE, "chosen": " a\n\nHuman: b\n\nAssistant: c"}, "another Human turn"),
    "empty last turn": ({"chosen": DIALOGUE + " ", "rejected": DIALOGUE + " b"}, "chosen dialogue ends with an empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_row_names_file_line_and_fix_or_is_counted(write, name):
    bad, message = BAD[name]
    row = bad if isinstance(bad, dict) else {}
    good = PAIR
    if "responses" in row or "responses" in str(bad):
        good = {"prompt": "p", "responses": ["a", "b"], "scores": [2, 1]}
    elif "completion" in row:
        good = {"prompt": "p", "completion": "c", "label": True}
    elif "chosen" in row and "prompt" not in row:
        good = {"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " b"}
    path = write(good, bad, good)
    for policy in ("auto", "error"):
        with pytest.raises(UserError) as error:
            read_rows(path, policy)
        assert str(error.value).startswith(f"{path}:2: "), error.value
        assert message in str(error.value) and "--data.bad_rows drop" in str(error.value)
        assert "\n" not in str(error.value)
    rows, dropped = read_rows(path, "drop")
    assert len(rows) == 2 and dropped.total() == 1


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "p", "completion": "c"},
        {"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " b"},
        {"prompt": "p", "responses": ["a", "b"], "scores": [2, 1]},
    ],
)
def test_a_file_has_one_format(write, other):
    path = write(PAIR, PAIR, other)
    with pytest.raises(UserError, match=r"file\.jsonl:3: this row is .* where the file's first is prompt \+ chosen"):
        read_rows(path)
    assert read_rows(path, "drop")[1] == Counter({"another format": 1})


def test_a_file_has_one_K_and_labels_everywhere_or_nowhere(write):
    scored = {"prompt": "p", "responses": ["a", "b"], "scores": [2, 1]}
    with pytest.raises(UserError, match=r":2: this row is .* K = 3 where the file's first is .* K = 2"):
        read_rows(write(scored, {"prompt": "p", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}))
    unpaired = {"prompt": "p", "completion": "c"}
    with pytest.raises(UserError, match=r":2: this row is prompt \+ completion \+ label"):
        read_rows(write(unpaired, unpaired | {"label": True}))


def test_files_that_cannot_be_read(tmp_path, write):
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path / "missing.jsonl")
    with pytest.raises(UserError, match=r"preference data is \.jsonl"):
        read_rows(write(PAIR, name="rows.txt"))
    with pytest.raises(UserError, match="the file is empty"):
        read_rows(write("", "  "))
    with pytest.raises(UserError, match="no usable row, 2 dropped"):
        read_rows(write("{", "{"), "drop")
    whole = write(*[PAIR | {"prompt": str(i)} for i in range(500)], name="cut.jsonl.gz")
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"cut\.jsonl\.gz: cannot be read to its end"):
        read_rows(whole, "drop")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    with pytest.raises(UserError, match=r"latin\.jsonl: cannot be read"):
        read_rows(tmp_path / "latin.jsonl")
    with pytest.raises(UserError, match=r"list\.json:2: broken JSON"):
        read_rows(write("[{},", "{]", name="list.json"))
    with pytest.raises(UserError, match=r"--data\.bad_rows skip: must be one of auto, error, drop"):
        read_rows(write(PAIR), "skip")


def test_few_empty_last_turns_are_counted_and_many_are_an_error(write):
    good = {"chosen": DIALOGUE + " a", "rejected": DIALOGUE + " b"}
    empty = {"chosen": DIALOGUE + " ", "rejected": DIALOGUE + " b"}
    rows, dropped = read_rows(write(*[good] * 99, empty))
    assert len(rows) == 99 and describe(dropped) == "1 dropped (1 dialogue ends with an empty turn)"
    with pytest.raises(UserError, match=":99: the chosen dialogue ends with an empty turn"):
        read_rows(write(*[good] * 98, empty))
    with pytest.raises(UserError, match=":100: "):
        read_rows(write(*[good] * 99, empty), "error")


@pytest.mark.skipif(not HH.is_file(), reason="HH data not present")
def test_hh_harmless():
    rows, dropped = read_rows(HH)
    lines = list(map(json.loads, gzip.decompress(HH.read_bytes()).splitlines()))
    assert len(lines) == 2312 and len(rows) == 2308
    assert dropped == Counter({"dialogue ends with an empty turn": 4})
    joined = 0
    for row in rows:
        line = lines[int(row.where.rsplit(":", 1)[1]) - 1]
        assert is_dialogue(row.prompt)
        for text, response in zip((line["chosen"], line["rejected"]), row.responses, strict=True):
            assert text.startswith(row.prompt)
            joined += text != row.prompt + response
            assert text.replace("\n\nAssistant:", "\n\n") == (row.prompt + response).replace("\n\nAssistant:", "\n\n")
    # the dialogues in which the Assistant speaks twice in a row at the end
    assert joined == 5


def test_messages_are_one_line_even_for_odd_keys(write):
    with pytest.raises(UserError) as error:
        read_rows(write({"a\nb": 1}))
    assert "\n" not in str(error.value) and "the keys a b" in str(error.value)
