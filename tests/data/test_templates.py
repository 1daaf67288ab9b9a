"""Chat templates: published habits render, errors name the file, the response is found in the rendered dialogue."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from align.data.formatter import PromptFormatter
from align.data.messages import BadRow
from align.data.rows import Row
from align.data.templates import FALCON, ChatTemplate, dialogue_messages, folder_template
from align.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


def render(source, messages=(), generate=False, **special):
    return ChatTemplate(source, "there.jinja", special).render(list(messages), generate)


def formatter(template, source=CHATML, eos=("<|im_end|>",)):
    return PromptFormatter(template, ChatTemplate(source, "there.jinja", {"eos_token": eos[0]}), list(eos))


def test_golden_chats():
    template = json.loads((GOLDEN / "tokenizer_config.json").read_text())["chat_template"]
    cases = json.loads((GOLDEN / "tokenizer_golden.json").read_text())["chat"]
    assert len(cases) > 4
    for case in cases:
        text = render(template, case["messages"], case["add_generation_prompt"], eos_token="<|endoftext|>")
        assert text == case["text"]


def test_falcon_format():
    chat = [{"role": "system", "content": "S"}, user("U"), bot("A"), user("V ")]
    assert render(FALCON, chat) == "System: S\nUser: \nU\nFalcon:\nA\nUser: \nV \n"
    assert render(FALCON, chat, generate=True) == "System: S\nUser: \nU\nFalcon:\nA\nUser: \nV \nFalcon:\n"
    with pytest.raises(UserError, match="not tool"):
        render(FALCON, [{"role": "tool", "content": "x"}])


def test_what_published_templates_use():
    # blocks leave no line of their own behind, and indentation before them is dropped
    assert render("{% if true %}\n  {% if true %}\na{% endif %}\n{% endif %}\nb") == "ab"
    assert render("{% for m in messages %}{% if m.content == 'x' %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
                  [user("a"), user("x"), user("b")]) == "a"  # fmt: skip
    assert render("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
                  [bot("a"), bot("b")]) == "ab"  # fmt: skip
    assert render("{{ messages | tojson }}", [user("<é'>")]) == '[{"role": "user", "content": "<é\'>"}]'
    assert render("{{ {'b': 1, 'a': [2]} | tojson(indent=1) }}") == '{\n "b": 1,\n "a": [\n  2\n ]\n}'
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("{{ bos_token }}{{ pad_token }}{% if tools is not none %}x{% endif %}", bos_token="<s>") == "<s>"
    assert render("{% if strftime_now is defined and not documents %}{{ messages[0]['content'].strip() }}{% endif %}",
                  [user(" a ")]) == "a"  # fmt: skip


@pytest.mark.parametrize(
    "source, message",
    [
        ("{{ raise_exception('turns must\nalternate') }}", "refuses these messages (turns must alternate)"),
        ("{{ messages[0].content.no.such }}", "refuses these messages"),
        ("{{ 1 + 'a' }}", "refuses these messages"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
        ("{% do messages.append(1) %}", "does not parse"),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{% for m in messages %}", "does not parse"),
    ],
)
def test_errors_name_the_file(source, message):
    with pytest.raises(UserError) as error:
        render(source, [user("a")])
    assert str(error.value).startswith("there.jinja: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_where_a_folders_template_comes_from(tmp_path):
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    assert folder_template(tmp_path, "C", {}).source == "C"
    assert folder_template(tmp_path, named, {}).source == "D"
    assert folder_template(tmp_path, None, {}).source == FALCON
    with pytest.raises(UserError, match=r'tokenizer_config\.json: .* named ones with a "default"'):
        folder_template(tmp_path, named[:1], {})
    (tmp_path / "chat_template.jinja").write_text("J")
    assert folder_template(tmp_path, "C", {}).source == "J"


def test_dialogue_turns_alternate():
    text = "\n\nHuman: a\n\nAssistant: b\n\nAssistant:  c\n\nHuman: d\n\nHuman:\ne \n\nAssistant:"
    assert dialogue_messages(text) == [user("a"), bot("b\n\nc"), user("d\n\ne")]
    assert dialogue_messages("\n\nHuman: says Human: and\n\nmore\n\nAssistant: ") == [user("says Human: and\n\nmore")]


def test_auto_takes_strings_as_they_are_and_dialogues_as_chats():
    auto = formatter("auto")
    assert auto.texts(Row("p ", [" a ", "b"])) == ("p ", [" a ", "b"])
    chat = "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"
    assert auto.texts(Row([user("p")], ["a"])) == (chat, ["a<|im_end|>\n"])
    assert auto.texts(Row("\n\nHuman: p\n\nAssistant:", [" a"])) == (chat, ["a<|im_end|>\n"])


def test_chat_and_file_put_plain_strings_through_the_template(tmp_path):
    chat = "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n"
    assert formatter("chat").texts(Row("p", ["a"])) == (chat, ["a<|im_end|>\n"])
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    # this one has no generation prompt, so its response carries the header
    assert formatter(str(path)).texts(Row("p", ["a"])) == ("[user]p", ["[assistant]a"])
    assert str(path) in str(formatter(str(path)))
    with pytest.raises(UserError, match=r"--data\.template .*missing\.jinja: cannot be read"):
        formatter(str(tmp_path / "missing.jinja"))


def test_none_takes_all_text_as_it_is_and_refuses_messages():
    head = "\n\nHuman: p\n\nAssistant:"
    assert formatter("none").texts(Row(head, [" a"])) == (head, [" a"])
    with pytest.raises(UserError, match=r"--data\.template none .* use auto"):
        formatter("none").texts(Row([user("p")], ["a"]))


def test_an_open_turn_loses_trailing_whitespace_and_a_closed_one_is_left_alone():
    assert formatter("chat", FALCON).texts(Row("p", ["a \n"])) == ("User: \np\nFalcon:\n", ["a"])
    assert formatter("chat").texts(Row("p", ["a"]))[1] == ["a<|im_end|>\n"]


def test_what_a_generation_prompt_opens_must_be_trained():
    think = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    with pytest.raises(
        BadRow, match=r"there\.jinja: a model will be asked with a prompt that ends '.*<think>\\n', but"
    ) as e:
        formatter("chat", think).texts(Row("p", ["a", "b"]))
    assert e.value.reason == "not written by the chat template" and "--data.template FILE.jinja" in str(e.value)
    head = "<|im_start|>user\np<|im_end|>\n<|im_start|>assistant\n<think>\n"
    prompt, responses = formatter("chat", think).texts(Row("p", ["<think>\nso\n</think>\na", "<think>\nno</think>b"]))
    assert (prompt, responses) == (head, ["so\n</think>\na<|im_end|>\n", "no</think>b<|im_end|>\n"])


def test_a_template_without_responses_is_refused():
    silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(BadRow, match=r"does not write the whole response; give another template with --data\.template"):
        formatter("chat", silent).texts(Row("p", ["a"]))


def test_a_row_the_template_refuses_is_a_bad_row():
    strict = "{{ raise_exception('system first') if messages[0].role != 'system' }}"
    with pytest.raises(BadRow, match="system first") as error:
        formatter("auto", strict).texts(Row([user("p")], ["a"]))
    assert error.value.reason == "refused by the chat template"


@pytest.mark.parametrize("template", ["auto", "chat", "none"])
def test_eos_in_a_response(template):
    eos = ("<|im_end|>", "<|endoftext|>")
    closed = formatter(template, eos=eos).texts(Row("p", ["a<|im_end|>\n<|endoftext|>", "b"]))
    assert closed == formatter(template, eos=eos).texts(Row("p", ["a", "b"])), (
        "an EOS the data ends with is not doubled"
    )
    with pytest.raises(BadRow, match=r"goes on after <\|endoftext\|>"):
        formatter(template, eos=eos).texts(Row("p", ["a<|endoftext|>b", "b"]))
    with pytest.raises(BadRow, match="empty but for its EOS"):
        formatter(template, eos=eos).texts(Row("p", [" <|endoftext|>", "b"]))
