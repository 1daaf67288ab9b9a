"""What a chat template wrote is compared with the row: the right texts, or one line that names what is lost."""

import time

import pytest
from tokenizer_folder import BOS, write_tokenizer

from align.data import encode_prompts, encode_rows, load_tokenizer
from align.data.formatter import PromptFormatter
from align.data.messages import BadRow
from align.data.rows import Row
from align.data.templates import ChatTemplate
from align.errors import UserError

TURNS = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}"
    "{{ '<call>' + c.function.name + c.function.arguments | tojson }}{% endfor %}{% endif %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"city": "Rome", "n": 3}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


def user(content, **more):
    return {"role": "user", "content": content, **more}


def bot(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


def formatter(source, template="auto"):
    return PromptFormatter(template, ChatTemplate(source, "there.jinja", {"eos_token": "</s>"}), ["</s>"])


def texts(source, prompt, *responses, **more):
    return formatter(source).texts(Row(prompt, list(responses), **more))


def refused(source, prompt, *responses, match, **more):
    with pytest.raises(BadRow, match=match) as error:
        texts(source, prompt, *responses, **more)
    assert error.value.reason == "not written by the chat template"
    assert str(error.value).startswith("there.jinja: ") and "--data.template FILE.jinja" in str(error.value)
    assert "\n" not in str(error.value.error("f:1"))


# published habits, each in a template of its own
NO_SYSTEM = TURNS.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
SYSTEM_LAST = (
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}{{ '[Q]' + (messages[0].content + ' ' if "
    "loop.last and messages[0].role == 'system' else '') + m.content + '[/Q]' }}{% else %}{{ m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
STRIPS = TURNS.replace(
    "m.content }}", "(m.content.split('</think>')[-1] if m.role == 'assistant' else m.content) }}", 1
)
STRIPS_EARLIER = STRIPS.replace("m.role == 'assistant' else", "m.role == 'assistant' and not loop.last else")
OPENS = TURNS.replace("'<assistant>'", "'<assistant><think>\n'")
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}{% endfor %}" + TURNS
)
LAST_TURN = TURNS.replace("in messages %}", "in messages[-1:] %}")
REASONED = bot("<think>\nwhy\n</think>\n\nYes.")


def test_a_system_message_that_is_not_written():
    prompt = [system("Be brief."), user("How?")]
    assert texts(TURNS, prompt, "A")[0] == "<system>Be brief.</s><user>How?</s><assistant>"
    refused(NO_SYSTEM, prompt, "A", match=r"does not write the system turn")
    refused(SYSTEM_LAST, prompt, "A", match=r"does not write the system turn")
    assert texts(SYSTEM_LAST, prompt[1:], "A") == ("[Q]How?[/Q]", ["A</s>"])


def test_turns_that_are_not_written_are_found_however_short_they_are():
    dialogue = [user("e"), bot("r"), user("s")]
    assert texts(TURNS, dialogue, "a")[1] == ["a</s>"]
    for text in ("e", "u", "<"):  # all of them stand in "<user>" by chance
        refused(LAST_TURN, [user(text), bot(text), user(text)], "a", match="does not write the user turn")
    swapped = TURNS.replace("in messages %}", "in messages | reverse %}")
    refused(swapped, dialogue, "a", match="does not write the assistant turn")


def test_reasoning_that_is_stripped():
    said = "<think>\nOnly 1 and 7.\n</think>\n\nYes."
    refused(STRIPS, [user("7?")], said, "No.", match=r"does not write the whole response \('<think>")
    assert texts(STRIPS, [user("7?")], "Yes.", "No.")[1] == ["Yes.</s>", "No.</s>"], "a row that loses nothing is good"
    kept = formatter(STRIPS_EARLIER)
    prompt, (response,) = kept.texts(Row([user("7?"), REASONED, user("9?")], [said]))
    assert "why" not in prompt and "Yes." in prompt and response == said + "</s>"
    assert kept.forgetful == 1, "generation forgets it too, and the report says so"
    refused(TURNS, [user("7?")], bot("Yes.", reasoning_content="so"), match="the reasoning_content of a response")


def test_a_generation_prompt_that_opens_think():
    refused(
        OPENS, [user("7?")], "Yes.", match=r"will be asked with a prompt that ends '.*<think>\\n', but with a response"
    )
    prompt, responses = texts(OPENS, [user("7?")], "<think>\nso</think>Yes.", "<think>\n</think>No.")
    assert (prompt[-8:], responses) == ("<think>\n", ["so</think>Yes.</s>", "</think>No.</s>"])


def test_a_template_that_wants_alternation():
    with pytest.raises(BadRow, match="turns must alternate") as error:
        texts(ALTERNATES, [system("S"), user("p")], "a")
    assert error.value.reason == "refused by the chat template"
    with pytest.raises(BadRow, match="turns must alternate"):
        texts(ALTERNATES, [bot("Hello!"), user("p")], "a")
    assert texts(TURNS, [bot("Hello!"), user("p")], "a")[0] == "<assistant>Hello!</s><user>p</s><assistant>"


def test_calls():
    call = bot("", tool_calls=[CALL])
    written = '<call>f{"city": "Rome", "n": 3}</s>'
    assert texts(TURNS, [user("p")], call, "No.")[1] == [written, "No.</s>"]
    without = TURNS.replace("m.tool_calls", "false")
    refused(without, [user("p")], call, "No.", match="the tool_calls of the assistant turn;")
    nameless = TURNS.replace("+ c.function.arguments | tojson", "")
    refused(nameless, [user("p")], call, match="the tool_calls of the assistant turn")
    assert "<call>f</s>" in texts(nameless, [user("p"), call, user("q")], "A")[0], "as generation will be asked"
    answered = [user("p"), call, {"role": "tool", "content": '{"t": "20"}'}]
    assert written in texts(TURNS, answered, "A")[0]
    refused(without, answered, "A", match="the tool_calls of the assistant turn")
    # a tool's answer may be written as JSON text
    assert texts(TURNS.replace("m.content }}", "m.content | tojson }}", 1), [user('say "p"')], "A")[1] == ['"A"</s>']


def test_calls_are_spelled_as_the_template_wants_them():
    as_text = TURNS.replace("c.function.arguments | tojson", "c.function.arguments")
    assert texts(as_text, [user("p")], bot("", tool_calls=[CALL]))[1] == ['<call>f{"city": "Rome", "n": 3}</s>']
    null = TURNS.replace("{% if m.tool_calls %}", "{% if m.content is none %}")
    null = null.replace("+ m.content }}", "+ (m.content or '') }}")
    assert texts(null, [user("p")], bot("", tool_calls=[CALL]))[1] == ['<call>f{"city": "Rome", "n": 3}</s>']


def test_tools():
    with_tools = "{% if tools %}{{ tools | tojson }}{% endif %}" + TURNS
    assert texts(with_tools, [user("weather")], "A", tools=[TOOL])[0].startswith('[{"type": "function"')
    refused(TURNS, [user("weather")], "A", tools=[TOOL], match="does not write the tools column")


def test_names():
    named = TURNS.replace("m.role + '>'", "(m.name or m.role) + '>'")
    assert texts(named, [user("p", name="Ann")], "A")[0] == "<Ann>p</s><assistant>"
    refused(TURNS, [user("p", name="user")], "A", match="the name of the user turn")
    tool = {"role": "tool", "content": "1", "name": "f"}
    assert texts(TURNS, [user("p"), bot("", tool_calls=[CALL]), tool], "A")[1] == ["A</s>"], "a tool's call names it"


def test_columns_beside_a_prompt_that_is_taken_as_it_is():
    row = Row("p", ["a"], system="S", tools=[TOOL])
    with pytest.raises(BadRow, match=r"the system and tools column has no place .* use --data.template chat"):
        formatter(TURNS).texts(row)
    assert formatter(TURNS, "chat").texts(Row("p", ["a"], system="S"))[0] == "<system>S</s><user>p</s><assistant>"
    dialogue = "\n\nHuman: p\n\nAssistant:"
    assert formatter(TURNS).texts(Row(dialogue, ["a"], system="S"))[0] == "<system>S</s><user>p</s><assistant>"
    with pytest.raises(BadRow, match="no place"):
        formatter(TURNS, "none").texts(Row(dialogue, ["a"], system="S"))
    with pytest.raises(BadRow, match="a text without a prompt is no chat"):
        formatter(TURNS, "chat").texts(Row("", ["a"]))


def test_evaluation_refuses_a_template_that_leaves_out_a_turn():
    assert formatter(TURNS).prompt([system("S"), user("p")]) == "<system>S</s><user>p</s><assistant>"
    with pytest.raises(UserError, match="does not write the system turn"):
        formatter(NO_SYSTEM).prompt([system("S"), user("p")])


def test_a_long_dialogue_costs_what_its_length_does():
    def seconds(n):
        dialogue = [turn for i in range(n) for turn in (user(f"question {i}"), bot(f"reply {i}"))]
        start = time.process_time()
        texts(TURNS, [*dialogue, user("and now?")], "A", "B")
        return time.process_time() - start

    seconds(10)
    assert seconds(1600) < 12 * min(seconds(400) for _ in range(3))


def test_bos_is_what_the_template_writes(tmp_path):
    config = {"bos_token": "<s>", "eos_token": "<|eot|>", "chat_template": TURNS}
    silent = load_tokenizer(write_tokenizer(tmp_path, config))
    rows = [Row([user("p")], ["a", "b"]), Row("p", ["a", "b"])]
    (chat, plain), _ = encode_rows(rows, silent)
    assert BOS not in chat.prompt_ids and plain.prompt_ids[0] == BOS, "apply_chat_template adds none either"
    assert encode_prompts([row.prompt for row in rows], silent) == [chat.prompt_ids, plain.prompt_ids]
    writes = load_tokenizer(write_tokenizer(tmp_path, config | {"chat_template": "{{ bos_token }}" + TURNS}, bos=False))
    (chat, plain), _ = encode_rows(rows, writes)
    assert chat.prompt_ids.count(BOS) == 1 and BOS not in plain.prompt_ids
    long = [Row([user("p" * 40)], ["a", "b"])]
    ((cut,), report) = encode_rows(long, writes, max_length=20)
    assert cut.prompt_ids[0] == BOS and report.prompts_truncated == 1, "a cut keeps the BOS, whoever wrote it"


def test_a_text_is_a_response_to_nothing(tmp_path):
    for bos, first in ((True, BOS), (False, 11)):
        tokenizer = load_tokenizer(write_tokenizer(tmp_path, bos=bos))
        ((group,), _) = encode_rows([Row("", ["Once upon"])], tokenizer)
        assert group.prompt_ids == [first] and group.response_ids == [[*tokenizer.encode("Once upon"), 11]]


def test_the_report_names_what_is_not_trained_on(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path))
    _, report = encode_rows(
        [Row("p", ["a", "b"], extra={"context": "c"}), Row("p", ["a", "b"], extra={"n": 1})], tokenizer
    )
    assert str(report).endswith("columns not trained on: context, n")


def begun(text, **more):
    return [user("How?"), bot(text, prefix=True, **more)]


def test_a_template_that_changes_the_beginning_of_a_response_is_named():
    assert texts(TURNS, begun("First, "), "take") == ("<user>How?</s><assistant>First, ", ["take</s>"])
    trims = TURNS.replace("m.content }}", "m.content | trim }}", 1)
    assert texts(trims, begun("First,"), " take")[0] == "<user>How?</s><assistant>First,"
    with pytest.raises(BadRow, match=r"there.jinja: the chat template changes the beginning of a response") as row:
        texts(trims, begun(" First,"), " take")
    with pytest.raises(UserError, match=r"there.jinja: the chat template changes .*' First,'") as asked:
        formatter(trims).prompt(begun(" First,"))
    assert str(row.value) == str(asked.value) and "\n" not in str(asked.value)


def test_a_begun_response_that_reasons_first_does_not_go_on():
    reasons = TURNS.replace("m.content }}", "(m.reasoning_content or '') + m.content }}", 1)
    reasoned = bot(" take", reasoning_content="Why?")
    refused(reasons, begun("First,"), reasoned, match="does not write the reasoning_content")
