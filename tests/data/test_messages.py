"""Messages: all that a turn says is kept, every kind of file means the same, what cannot be said is named."""

import csv
import json

import pytest

from align.data import read_rows
from align.data.messages import BadRow, check_messages, without_nulls
from align.errors import UserError
from align.files import local_file

CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def user(content, **more):
    return {"role": "user", "content": content, **more}


def bot(content, **more):
    return {"role": "assistant", "content": content, **more}


@pytest.fixture
def write(write):
    return lambda *rows, name="file.jsonl": write(name, *rows) / name


def one(path):
    (row,), _ = read_rows(path)
    return row


def refused(path, message):
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert message in str(error.value) and str(error.value).startswith(f"{path}:1: "), error.value
    assert "\n" not in str(error.value)


def test_nulls_are_absent_at_every_depth():
    assert without_nulls({"a": None, "b": [{"c": None, "d": 0}], "e": {"f": {"g": None}}, "h": [None, ""]}) == {
        "b": [{"d": 0}],
        "e": {"f": {}},
        "h": [None, ""],
    }


def test_a_response_that_says_more_than_a_text_stays_a_message(write):
    for more in ({"tool_calls": [CALL]}, {"reasoning_content": "so"}):
        row = one(write({"prompt": [user("p")], "chosen": [bot("a", **more)], "rejected": [bot("b", tool_calls=None)]}))
        assert row.responses == [bot("a", **more), "b"]
    row = one(write({"prompt": [user("p")], "chosen": [bot(None, tool_calls=[CALL])], "rejected": [bot("b")]}))
    assert row.responses[0] == bot("", tool_calls=[CALL]), "a call needs no content"
    other = {"function": {"name": "stocks", "arguments": "{}"}}
    row = one(
        write({"prompt": "p", "chosen": [bot("a", tool_calls=[CALL])], "rejected": [bot("a", tool_calls=[other])]})
    )
    assert row.responses[1]["tool_calls"][0]["function"] == {"name": "stocks", "arguments": {}}, "JSON text is read"


def test_content_of_parts_is_joined_and_only_text_is_read(write):
    parts = [{"type": "text", "text": "Hel", "image": None}, {"type": "text", "text": "lo"}]
    row = one(write({"prompt": [user(parts)], "chosen": [bot(parts)], "rejected": [bot("b")]}))
    assert (row.prompt, row.responses) == ([user("Hello")], ["Hello", "b"])
    image = [{"type": "image_url", "image_url": {"url": "x"}}]
    refused(
        write({"prompt": [user(image)], "chosen": [bot("a")], "rejected": [bot("b")]}), "a part of type 'image_url'"
    )


@pytest.mark.parametrize(
    "message, problem",
    [
        ({"role": "user"}, "the user message has no content"),
        (bot(None), "the assistant message has no content"),
        (bot("a", tool_calls=[{"function": {"arguments": {}}}]), "a tool call must be"),
        (bot("a", tool_calls=[{"function": {"name": "f", "arguments": "{x"}}]), "the arguments of f are not JSON"),
        (bot("a", tool_calls="f()"), "tool_calls must be a list"),
        (user("a", tool_calls=[CALL]), "in an assistant message"),
        (bot("a", reasoning_content=3), "reasoning_content must be text"),
    ],
)
def test_messages_that_are_none(message, problem):
    with pytest.raises(BadRow, match=problem):
        check_messages([without_nulls(message)], "chosen")


def test_strings_beside_messages_are_one_chat(write):
    pair = {"chosen": [bot("a")], "rejected": [bot("b")]}
    assert one(write({"prompt": "Hi"} | pair)).prompt == [user("Hi")]
    assert one(write({"prompt": [user("Hi")], "chosen": "a", "rejected": "b"})).responses == ["a", "b"]
    scored = {"prompt": "Hi", "responses": [[bot("a")], [bot("b")]], "scores": [1, 2]}
    assert (one(write(scored)).prompt, one(write(scored)).responses) == ([user("Hi")], ["b", "a"])
    assert one(write({"prompt": "Hi", "completion": [bot("a")], "label": True})).prompt == [user("Hi")]


def test_a_dialogue_may_be_opened_by_the_assistant(write):
    head = [bot("Hello!"), user("Hi")]
    row = one(write({"chosen": [*head, bot("a")], "rejected": [*head, bot("b")]}))
    assert (row.prompt, row.responses) == (head, ["a", "b"])
    row = one(write({"prompt": head, "chosen": [*head, bot("a")], "rejected": [*head, bot("b")]}))
    assert (row.prompt, row.responses) == (head, ["a", "b"])
    two = {"prompt": [user("p")], "chosen": [bot("a"), user("q"), bot("c")], "rejected": [bot("b")]}
    refused(write(two), "must be one assistant turn")


def test_a_prompt_that_the_dialogues_lack_is_refused(write):
    whole = {"chosen": [user("Hi"), bot("a")], "rejected": [user("Hi"), bot("b")]}
    assert one(write({"prompt": " Hi\n"} | whole)).prompt == [user("Hi")]
    refused(write({"prompt": "Bonjour"} | whole), "do not begin with the prompt: they lack 'Bonjour'")
    system = [{"role": "system", "content": "Be brief."}, user("Hi")]
    refused(write({"prompt": system} | whole), "they lack 'Be brief.'")
    refused(write({"prompt": "Bonjour", "messages": [user("Hi"), bot("a")]}), "they lack 'Bonjour'")


def test_a_system_column_is_the_first_message(write):
    system, pair = {"role": "system", "content": "S"}, {"chosen": "a", "rejected": "b"}
    row = one(write({"prompt": [user("p")], "system": "S"} | pair))
    assert (row.prompt, row.system, row.extra) == ([system, user("p")], "", {})
    assert one(write({"prompt": [system, user("p")], "system": " S"} | pair)).prompt == [system, user("p")]
    refused(write({"prompt": [system, user("p")], "system": "T"} | pair), "differs from the system message")
    row = one(write({"prompt": "p", "system": "S"} | pair))
    assert (row.prompt, row.system) == ("p", "S"), "only a template can write it: see the formatter"
    assert one(write({"prompt": "p", "system": " "} | pair)).system == ""


def test_a_tools_column(write):
    pair = {"prompt": [user("p")], "chosen": "a", "rejected": "b"}
    for tools in ([TOOL], json.dumps([TOOL])):
        row = one(write(pair | {"tools": tools}))
        assert row.tools == [TOOL] and row.extra == {}
    assert one(write(pair | {"tools": []})).tools is None and one(write(pair | {"tools": "[]"})).tools is None
    refused(write(pair | {"tools": "get_weather"}), "tools is not JSON")
    refused(write(pair | {"tools": {"a": 1}}), "a list of function schemas")
    refused(write(pair | {"images": ["x.png"]}), "the column images changes the prompt")


def test_demonstrations_as_messages_or_text(write):
    row = one(write({"messages": [user("1"), bot("2"), user("3"), bot("4")], "source": "x"}))
    assert (row.prompt, row.responses, row.extra) == ([user("1"), bot("2"), user("3")], ["4"], {"source": "x"})
    row = one(write({"text": "\n\nHuman: q\n\nAssistant: a"}))
    assert (row.prompt, row.responses) == ("\n\nHuman: q\n\nAssistant:", [" a"])
    row = one(write({"text": "Once upon a time.", "url": "u"}))
    assert (row.prompt, row.responses) == ("", ["Once upon a time."])
    refused(write({"messages": [user("1")]}), "messages does not end with an assistant turn")
    refused(write({"messages": [bot("1")]}), "the prompt is empty")
    refused(write({"text": "t", "instruction": "i"}), "text stands alone")


@pytest.mark.parametrize(
    "chosen, rejected, prompt, responses",
    [
        ("The sky is blue.", "The sky is green.", "The sky is", [" blue.", " green."]),
        ("The sky is blue.", "The sky is black.", "The sky is", [" blue.", " black."]),
        ("Q: sky?\nA: yes", "Q: sky?\nA: yes, but", "Q: sky?\nA:", [" yes", " yes, but"]),
        ("[INST] Hi [/INST]Yes", "[INST] Hi [/INST]No", "[INST] Hi [/INST]", ["Yes", "No"]),
        ("<user>\nHi\n<bot>\nYes", "<user>\nHi\n<bot>\nNo", "<user>\nHi\n<bot>\n", ["Yes", "No"]),
    ],
)
def test_texts_that_share_their_beginning(write, chosen, rejected, prompt, responses):
    row = one(write({"chosen": chosen, "rejected": rejected}))
    assert (row.prompt, row.responses) == (prompt, responses)


def test_a_table_of_texts(tmp_path):
    rows = [
        {"prompt": "p, q", "chosen": "a\nb", "rejected": '"c"', "note": ""},
        {"prompt": json.dumps([user("p")]), "chosen": json.dumps([bot("a")]), "rejected": "b", "note": "n"},
    ]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with open(tmp_path / name, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows[:1])
        row = one(tmp_path / name)
        assert (row.prompt, row.responses, row.extra) == ("p, q", ["a\nb", '"c"'], {})
    (tmp_path / "b.csv").write_text(
        'prompt,completion,label\np,a,True\nq,b,0\n"[{""role"": ""user"", ""content"": ""r""}]",c,1\n'
    )
    read, _ = read_rows(tmp_path / "b.csv")
    assert [row.label for row in read] == [True, False, True] and read[2].prompt == [user("r")]
    (tmp_path / "c.csv").write_text('prompt,responses,scores\np,"[""a"", ""b""]","[1, 2]"\n')
    assert one(tmp_path / "c.csv").responses == ["b", "a"]
    (tmp_path / "d.csv").write_text("prompt,completion\n\"[{'role': 'user', 'content': 'r'}]\",c\n")
    with pytest.raises(UserError, match=r"d\.csv:2: prompt is chat messages as text that is not JSON"):
        read_rows(tmp_path / "d.csv")
    (tmp_path / "e.csv").write_text("prompt,prompt\np,q\n")
    with pytest.raises(UserError, match=r"e\.csv:1: a column's name stands twice in prompt, prompt"):
        read_rows(tmp_path / "e.csv")


def test_jsonl_and_parquet_mean_the_same(tmp_path, write):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    rows = [
        {"prompt": [user("Hi")], "chosen": [bot("a")], "rejected": [bot("b")], "tools": None},
        {"prompt": [user("Sun?")], "chosen": [bot("", tool_calls=[CALL])], "rejected": [bot("b")], "tools": [TOOL]},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (from_lines, _), (from_table, _) = read_rows(write(*rows)), read_rows(tmp_path / "a.parquet")
    for a, b in zip(from_lines, from_table, strict=True):
        assert (a.prompt, a.responses, a.tools) == (b.prompt, b.responses, b.tools)


def test_messages_in_a_column_of_text(write):
    chosen = json.dumps([user("p"), bot("a", name=None)])
    row = one(write({"chosen": chosen, "rejected": [user("p"), bot("b")]}))
    assert (row.prompt, row.responses) == ([user("p")], ["a", "b"])
    listed = '[{"name": "x"}]'
    assert one(write({"prompt": "p", "chosen": listed, "rejected": "b"})).responses == [listed, "b"], "JSON, no chat"
    refused(write({"prompt": str([user("p")]), "chosen": "a", "rejected": "b"}), "prompt is chat messages as text that")


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_json_over_many_lines_is_recognised(write, name):
    for value, count in (([PAIR, PAIR], 2), (PAIR, 1), ({"train": [PAIR] * 3}, 3)):
        for indent in (1, None):
            assert len(read_rows(write(json.dumps(value, indent=indent), name=name))[0]) == count
    chat = {"prompt": [user("p")], "chosen": [bot("a")], "rejected": [bot("b")]}
    assert one(write(json.dumps(chat, indent=1), name=name)).prompt == [user("p")], "a row of lists is no table"
    with pytest.raises(UserError, match="has the keys conversations"):
        read_rows(write({"conversations": [{"from": "human", "value": "p"}]}, name=name))
    both = json.dumps({"train": [PAIR], "test": [PAIR]}, indent=1)
    with pytest.raises(UserError, match=r"holds 2 lists of rows, train, test; write one of them to a file"):
        read_rows(write(both, name=name))


def test_a_key_that_stands_twice_is_refused(write):
    refused(write('{"prompt": "p", "chosen": "a", "rejected": "b", "chosen": "c"}'), 'the key "chosen" stands twice')
    nested = '{"prompt": [{"role": "user", "content": "p", "content": "q"}], "chosen": "a", "rejected": "b"}'
    refused(write(nested), 'the key "content" stands twice')
    with pytest.raises(UserError, match='the key "prompt" stands twice'):
        read_rows(write('[{"prompt": "p",', '"prompt": "q"}]', name="a.json"))


def test_a_data_set_of_the_hub(tmp_path, write, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    files = {
        "one/set": ["README.md", "data/pairs.jsonl"],
        "two/set": ["train.jsonl", "test.jsonl"],
        "none/set": ["a.bin"],
    }
    files["many/set"] = ["train-0.parquet", "train-1.parquet"]
    fetched = []

    def download(name, file, repo_type):
        fetched.append((name, file, repo_type))
        return str(write(PAIR))

    monkeypatch.setattr(hub, "list_repo_files", lambda name, repo_type: files[name])
    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert one("hf://one/set").responses == ["a", "b"]
    assert one("hf://two/set").responses == ["a", "b"] == one("hf://many/set:sub/x.jsonl").responses
    assert fetched == [
        ("one/set", "data/pairs.jsonl", "dataset"),
        ("two/set", "train.jsonl", "dataset"),
        ("many/set", "sub/x.jsonl", "dataset"),
    ]
    with pytest.raises(
        UserError, match=r"name one of its files as hf://many/set:FILE; it has train-0.parquet, train-1"
    ):
        local_file("hf://many/set")
    with pytest.raises(UserError, match="it has none that can be read"):
        local_file("hf://none/set")
    with pytest.raises(UserError, match=r"hf://other/set: cannot be fetched from the Hub \("):
        local_file("hf://other/set")
    with pytest.raises(UserError, match=r"is written hf://OWNER/NAME or hf://OWNER/NAME:FILE"):
        local_file("hf://name")
