"""The terminal chat, from scripted lines of standard input, against align.generate and dialogues put together by hand."""

import io
import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import MODEL

from align.data import load_tokenizer
from align.data.templates import FALCON, ChatTemplate
from align.errors import UserError
from align.evals.chat import VISIBLE, Dialogue, cells, certain, chat, fold, lines, next_turn, show
from align.generate import Settings, generate
from align.models import init_weights, load_model

QUESTIONS = ["What is the falcon watching?", "Why?", "Tell me how to stay safe."]


@pytest.fixture
def model():
    return load_model(MODEL)


@pytest.fixture
def other():
    model = load_model(MODEL)
    init_weights(model, seed=1)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL)


@pytest.fixture
def talk(monkeypatch, capsys, tokenizer):
    """What chat prints when these lines are typed; models: names and models."""

    def run(typed, models, columns=60, **settings):
        monkeypatch.setattr(
            "sys.stdin", typed if isinstance(typed, io.IOBase) else io.StringIO("\n".join(typed) + "\n")
        )
        monkeypatch.setenv("COLUMNS", str(columns))
        chat([(name, model, tokenizer) for name, model in models.items()], **settings)
        printed = capsys.readouterr().out
        assert not [c for c in printed if ord(c) < 32 and c != "\n"]
        return printed

    return run


def response(model, tokenizer, turns, question, new=12, system="", **settings):
    """What the model should say after these turns: its own text, and as the terminal shows it."""
    text = f"{system}\n" if system else ""
    text += "".join(f"User: {asked}\nFalcon: {said.strip()}<|endoftext|>\n" for asked, said in turns)
    ids = tokenizer.encode(text + f"User: {question}\nFalcon:")
    settings |= {"stop": ["\nUser:"], "decode": tokenizer.decode}
    (ids,) = generate(model, [ids], new, eos_ids=sorted(tokenizer.eos_ids), **settings)
    said = tokenizer.decode(ids).strip()
    return said, said.translate(VISIBLE) + (" [...]" if len(ids) == new else "")


def transcript(model, tokenizer, questions, seed=0, **settings):
    """All of what a dialogue with one model prints, and its turns."""
    turns, printed = [], ""
    for i, question in enumerate(questions):
        said, shown = response(model, tokenizer, turns, question, seed=seed + i, **settings)
        turns.append((question, said))
        printed += f"> {question}\n{shown}\n\n"
    return f"tiny; /help lists the commands\n{printed}> \n", turns


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.5, "top_p": 0.9, "top_k": 50, "seed": 7}])
def test_responses_are_generates(talk, model, tokenizer, sampling):
    expected, turns = transcript(model, tokenizer, QUESTIONS, **sampling)
    assert talk(QUESTIONS, {"tiny": model}, max_new_tokens=12, **sampling) == expected
    assert len({said for _, said in turns}) == 3


def test_pieces_part_no_character(model, tokenizer):
    parted = 0
    for seed in range(4):
        settings = Settings(400, temperature=1.5, seed=seed)
        dialogue = Dialogue("tiny", model, tokenizer)
        ids, _ = dialogue.prompt("", "Hi", 400)
        pieces = list(dialogue.respond("Hi", ids, settings))
        ((_, said),) = dialogue.turns
        expected = response(model, tokenizer, [], "Hi", new=400, temperature=1.5, seed=seed)[0]
        assert said == expected
        assert "".join(pieces).removesuffix(" [...]") == said
        new = tokenizer.encode(said)
        parted += sum(not said.startswith(tokenizer.decode(new[:n]).rstrip()) for n in range(len(new)))
    assert len(pieces) > 100
    print(f"unfinished characters on the way, seeds 0..3: {parted}")
    assert parted > 10


def test_what_is_certain(tokenizer):
    text = "Grüße, 日本語 🙂!\nUse it.\nUser: and I"
    ids = tokenizer.encode(text)
    assert "\ufffd" in "".join(tokenizer.decode(ids[:n]) for n in range(len(ids)))
    shown = [certain(tokenizer.decode(ids[:n]), "\nUser:") for n in range(len(ids) + 1)]
    assert all(later.startswith(sooner) for sooner, later in pairwise(shown))
    assert shown[-1] == "Grüße, 日本語 🙂!\nUse it." and not any("\ufffd" in part for part in shown)
    assert certain("a\nUs", "\nUser:") == "a" and certain("a\nUs", "") == "a\nUs"


def test_a_model_that_speaks_for_the_user_is_stopped(model, tokenizer):
    assert next_turn(tokenizer) == "\nUser:"
    assert next_turn(replace(tokenizer, chat_template=ChatTemplate(FALCON, "Falcon2's"))) == "\nUser:"
    whole = response(model, tokenizer, [], "Hi", new=30)[0]
    dialogue = Dialogue("tiny", model, tokenizer)
    dialogue.stop = whole[9:12]
    ids, _ = dialogue.prompt("", "Hi", 30)
    pieces = list(dialogue.respond("Hi", ids, Settings(30)))
    assert "".join(pieces) == dialogue.turns[0][1] == whole.partition(whole[9:12])[0].strip()


def test_two_models_keep_their_own_dialogues(talk, model, other, tokenizer):
    printed = talk(QUESTIONS, {"a": model, "b": other}, max_new_tokens=12)
    turns, expected = {"a": [], "b": []}, "a and b; /help lists the commands\n"
    for question in QUESTIONS:
        expected += f"> {question}\n"
        for name, one in (("a", model), ("b", other)):
            said, shown = response(one, tokenizer, turns[name], question)
            turns[name].append((question, said))
            expected += f"[{name}]\n{shown}\n\n"
    assert printed == expected + "> \n"
    assert [said for _, said in turns["a"]] != [said for _, said in turns["b"]]


def test_two_models_stand_side_by_side(talk, model, other, tokenizer):
    printed = talk(QUESTIONS[:1], {"a": model, "b": other}, columns=83, max_new_tokens=80)
    rows = printed.splitlines()[2:-2]
    assert rows[0].split() == ["[a]", "|", "[b]"] and len(rows) > 4
    sides = []
    for row in rows:
        # the bar stands 40 columns in, however many of them a character takes
        left = next(row[:n] for n in range(len(row) + 1) if cells(row[:n]) == 40)
        assert row[len(left) :].startswith(" |") and cells(row) <= 83
        sides.append((left, row[len(left) + 2 :]))
    for i, one in enumerate((model, other)):
        shown = response(one, tokenizer, [], QUESTIONS[0], new=80)[1]
        together = "".join(side[i] for side in sides[1:])
        assert re.sub(r"\s", "", together) == re.sub(r"\s", "", shown)


def test_columns_stand_straight_beside_wide_characters(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show(["a", "b"], [iter(["日本", "語の鳥\n", "e\u0301"]), iter(["left\t", "\x1b[31mred"])])
    rows = [f"{'[a]':38} | [b]", f"日本語の鳥{' ' * 28} | left    ␛[31mred", f"e\u0301{' ' * 37} |"]
    assert capsys.readouterr().out.splitlines() == [*rows, ""]


def test_commands(talk, model, tokenizer):
    first, second = QUESTIONS[:2]
    said, shown = response(model, tokenizer, [], first)
    _, followed = response(model, tokenizer, [(first, said)], second)
    system, with_system = "Be brief.", response(model, tokenizer, [], first, system="Be brief.")[1]
    typed = ["/undo", first, second, "/undo", second, "/reset", first, "", f"/system  {system}", "/reset", first]
    typed += ["/system", "/reset", first, "/nonsense", "/temperature -1", "/temperature x", "/temperature 0.5"]
    notes = [
        "(there is nothing to undo)",
        shown,
        followed,
        "(the last question is forgotten)",
        followed,
        "(the dialogue is forgotten)",
        shown,
        f"(system message: {system})",
        "(the dialogue is forgotten)",
        with_system,
        "(no system message)",
        "(the dialogue is forgotten)",
        shown,
        "(/nonsense is not a command; /help lists them)",
        "(/temperature -1: must be a number of at least 0)",
        "(/temperature x: must be a number of at least 0)",
        "(temperature 0.5)",
    ]
    printed = talk([*typed, "/quit", "never read"], {"tiny": model}, max_new_tokens=12)
    expected = ["tiny; /help lists the commands"]
    for line, note in zip([line for line in typed if line], notes, strict=True):
        expected += [f"> {line.strip()}", *note.split("\n"), *([""] if note[0] != "(" else [])]
    assert [line for line in printed.split("\n") if line != "> "] == [*expected, "> /quit", ""]
    assert with_system != shown


def test_temperature_holds_for_what_comes_after(talk, model, tokenizer):
    printed = talk([QUESTIONS[0], "/reset", "/temperature 2", QUESTIONS[0]], {"tiny": model}, max_new_tokens=12, seed=3)
    greedy = response(model, tokenizer, [], QUESTIONS[0])[1]
    sampled = response(model, tokenizer, [], QUESTIONS[0], temperature=2.0, seed=4)[1]
    assert greedy in printed and printed.endswith(f"> {QUESTIONS[0]}\n{sampled}\n\n> \n") and greedy != sampled


def test_help_names_every_command(talk, model):
    printed = talk(["/help"], {"tiny": model})
    for command in ("/reset", "/undo", "/system", "/temperature", "/help", "/quit", "Ctrl-C", "Ctrl-D"):
        assert command in printed


def test_a_full_context_forgets_the_oldest_turns(talk, model, tokenizer):
    length, new, turns, forgotten = 96, 12, [], 0
    printed = talk([*QUESTIONS, "word " * 60, *QUESTIONS], {"tiny": model}, max_new_tokens=new, max_length=length)
    blocks = re.split(r"^> .*\n", printed, flags=re.MULTILINE)[1:]
    tokens = len(tokenizer.encode("User: " + ("word " * 60).strip() + "\nFalcon:"))
    note = f"(tiny: a question of {tokens} tokens where {length - new} fit; ask a shorter one)\n"
    assert blocks.pop(3) == note
    for question, block in zip(QUESTIONS * 2, blocks, strict=False):
        left_out = 0
        while True:
            rest = turns[left_out:]
            text = "".join(f"User: {asked}\nFalcon: {said}<|endoftext|>\n" for asked, said in rest)
            if len(tokenizer.encode(f"{text}User: {question}\nFalcon:")) <= length - new:
                break
            left_out += 1
        said, shown = response(model, tokenizer, rest, question, new=new)
        note = f"(tiny: the context is full; oldest questions forgotten: {left_out})\n" if left_out else ""
        assert block == f"{note}{shown}\n\n"
        turns = [*rest, (question, said)]
        forgotten += left_out
    assert 0 < forgotten < 5


def test_ctrl_c_stops_a_response_and_leaves_the_dialogue_as_it_was(talk, model, other, tokenizer):
    calls = []

    def interrupt(module, inputs, output):
        calls.append(1)
        if len(calls) == 17:  # in the second response
            raise KeyboardInterrupt

    other.embedding.register_forward_hook(interrupt)
    printed = talk(QUESTIONS, {"a": model, "b": other}, max_new_tokens=12)
    assert len(calls) > 17 and "\n(stopped; this question is forgotten)\n" in printed
    for name, one in (("a", model), ("b", other)):
        said = response(one, tokenizer, [], QUESTIONS[0])[0]
        last = response(one, tokenizer, [(QUESTIONS[0], said)], QUESTIONS[2])[1]
        assert f"[{name}]\n{last}\n" in printed.partition(QUESTIONS[2])[2]


def test_ctrl_c_at_the_prompt(talk, model):
    class Typed(io.StringIO):
        def readline(self, *size):
            if (line := super().readline(*size)) == "^C\n":
                raise KeyboardInterrupt
            return line

    printed = talk(Typed("^C\n/help\n"), {"tiny": model})
    assert "(/quit or Ctrl-D leaves)\n> /help\n" in printed


def test_a_model_that_computes_nonsense(talk, model, other, tokenizer):
    with torch.no_grad():
        other.final_norm.weight.fill_(torch.nan)
    printed = talk(QUESTIONS[:2], {"tiny": other}, max_new_tokens=12)
    assert printed.count("(tiny: the prompt: ") == 2 and "non-finite" in printed
    # a question that one cannot take is forgotten by both
    printed = talk(["Hi", "/undo"], {"a": model, "b": other}, max_new_tokens=12)
    assert "(b: the prompt: " in printed and "(there is nothing to undo)" in printed


def test_bad_input(talk, model):
    with pytest.raises(UserError, match="not to 3"):
        talk([], dict.fromkeys("abc", model))
    with pytest.raises(ValueError, match="top_p"):
        talk([], {"tiny": model}, top_p=2.0)
    with pytest.raises(UserError, match="not UTF-8"):
        talk(io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"), {"tiny": model})


def test_fold():
    assert fold("the quick brown fox", 9) == ["the quick ", "brown fox"]
    assert fold("a\n\n  b c", 4) == ["a", "", "  b ", "c"]
    assert fold("incomprehensible", 6) == ["incomp", "rehens", "ible"]
    assert fold("日本語 の", 5) == ["日本", "語 の"]
    assert cells("e\u0301") == 1 and cells("日") == 2
    assert fold("", 5) == [""]


def test_lines_do_not_depend_on_the_pieces():
    print("seed 0")
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(draw.choices("abc  \n日é", k=draw.randint(0, 80)))
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randint(0, 20)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        width = draw.randint(2, 12)
        found = list(lines(iter(pieces), width))
        assert found == [line.rstrip() for line in fold(text, width)]
        assert max(map(cells, found)) <= width
        assert re.sub(r"\s", "", "".join(found)) == re.sub(r"\s", "", text)
