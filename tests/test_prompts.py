"""align.prompts: every shape of a file of prompts means the same chats, and what is none is named."""

import csv
import io
import json

import pytest
from conftest import refuse

from align.prompts import read_prompts, with_system

ASKED = "How do I hide a hat?"
CHAT = [{"role": "user", "content": ASKED}]
PAIR = {"chosen": "I won't say.", "rejected": "Under a stone."}


def table(*rows):
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().rstrip()


@pytest.mark.parametrize(
    ("name", "row", "column"),
    [
        ("p.txt", ASKED, ""),
        ("p.jsonl", {"prompt": ASKED}, ""),
        ("p.jsonl.gz", {"prompt": CHAT}, ""),
        ("p.jsonl", {"messages": CHAT}, ""),
        ("p.jsonl", {"messages": [*CHAT, {"role": "assistant", "content": "Under a stone."}]}, ""),
        ("p.jsonl", {"prompt": ASKED, **PAIR}, ""),
        ("p.jsonl", {"prompt": ASKED, "chosen": "same", "rejected": "same"}, ""),
        ("p.jsonl", {"prompt": ASKED, "completion": "Under a stone.", "label": True}, ""),
        ("p.jsonl", {key: f"\n\nHuman: {ASKED}\n\nAssistant: {text}" for key, text in PAIR.items()}, ""),
        ("p.jsonl", {"goal": ASKED, "target": "Sure"}, "goal"),
        ("p.csv", table(["id", "prompt"], ["1", ASKED]), ""),
        ("p.csv", table(["prompt"], [json.dumps(CHAT)]), ""),
        ("p.csv", table(["n", "question"], ["1", ASKED]), "question"),
    ],
)
def test_every_shape_is_the_same_chat(write, name, row, column):
    (prompt,), left_out = read_prompts(write(name, row) / name, column)
    assert prompt["prompt"] == CHAT and not left_out
    (text,), _ = read_prompts(write("same.txt", ASKED) / "same.txt")
    assert prompt["id"] == text["id"], "what is asked decides the id"


def test_a_prompt_comes_once_and_brings_what_judges_read(write):
    rows = [
        {"prompt": ASKED, "category": "theft", "expected": 4, "note": "x"},
        {"prompt": CHAT, "category": "again"},
        {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        {"prompt": "Another?", "category": None},
    ]
    prompts, left_out = read_prompts(write("p.jsonl", *rows) / "p.jsonl")
    assert [{**prompt, "id": ""} for prompt in prompts] == [
        {"id": "", "prompt": CHAT, "category": "theft", "expected": "4"},
        {"id": "", "prompt": [{"role": "user", "content": "Another?"}]},
    ]
    assert left_out == {"repeated prompt": 1, "dialogue ends with an empty turn": 1}


def test_a_system_message_goes_in_front_and_there_is_one():
    assert with_system(CHAT, "Be kind.") == [{"role": "system", "content": "Be kind."}, *CHAT]
    robot = [{"role": "system", "content": "You are a robot."}, *CHAT]
    assert with_system(robot, "Be kind.") == [{"role": "system", "content": "Be kind.\n\nYou are a robot."}, *CHAT]
    assert with_system(robot, "") == robot and robot[0]["content"] == "You are a robot."


def test_a_response_may_be_begun(write):
    begun = [*CHAT, {"role": "assistant", "content": "Sure,", "prefix": True}]
    rows = ({"prompt": begun}, {"prompt": CHAT, "prefill": " Yes,"}, {"messages": begun, "prefill": " here"})
    prompts, _ = read_prompts(write("p.jsonl", *rows) / "p.jsonl")
    assert [p["prompt"][:-1] for p in prompts] == [CHAT] * 3
    assert [p["prompt"][-1]["content"] for p in prompts] == ["Sure,", "Yes,", "Sure,here"]
    assert all(p["prompt"][-1]["prefix"] is True for p in prompts)


@pytest.mark.parametrize(
    ("row", "column", "said"),
    [
        ({"goal": ASKED}, "", "has no prompt, but goal; --column NAME says where the prompt is"),
        ({"goal": ASKED}, "question", "has no column question; it has goal"),
        ({"prompt": "  "}, "", "the prompt is empty"),
        ({"prompt": 7}, "", "prompt must be text or chat messages, not int"),
        ({"prompt": [*CHAT, {"role": "assistant", "content": "No."}]}, "", "must end before an assistant turn"),
        ({"prompt": ASKED, "documents": ["a"]}, "", "the column documents changes the prompt"),
        ({"prompt": ASKED, "tools": [{"name": "f"}]}, "", "a prompt with tools cannot be asked"),
        ("{", "", "broken JSON"),
        ("7", "", "a row must be a JSON object"),
    ],
)
def test_a_row_that_asks_nothing_is_named(write, row, column, said):
    file = write("p.jsonl", {"prompt": "Fine?", "goal": "Fine?", "question": "Fine?"}, row) / "p.jsonl"
    line = refuse(read_prompts, file, column)
    assert line.startswith(f"{file}:2: ") and said in line


def test_a_file_that_asks_nothing_is_named(write):
    row = {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"}
    line = refuse(read_prompts, write("p.jsonl", row) / "p.jsonl")
    assert line.endswith("p.jsonl: no row asks anything, 1 dropped (1 dialogue ends with an empty turn)")


@pytest.mark.parametrize("name", ["none.txt", "folder", "p.docx"])
def test_no_file_of_prompts(write, name):
    folder = write("p.docx", "x")
    (folder / "folder").mkdir()
    assert refuse(read_prompts, folder / name).startswith(
        f"{folder / name}: no such file; --prompts takes one of .jsonl"
    )
