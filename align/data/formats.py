"""The formats that a row may have: from a file's record to a prompt, its responses, and what is known of them."""

import re
from os.path import commonprefix
from typing import Any

from align.data.messages import (
    ASSISTANT,
    HUMAN,
    SAYS,
    SPEAKERS,
    BadRow,
    check_messages,
    check_text,
    content_of,
    dialogue_turns,
    is_begun,
    is_dialogue,
    opens_with_human,
    says_nothing,
    without_nulls,
)
from align.errors import shortened
from align.files import BrokenRow, loads

FORMATS = (
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
    ("prompt", "responses", "scores"),
    ("prompt", "completion", "label"),
    ("prompt", "completion"),
    ("messages",),
    ("text",),
)
# beside a text these would be its prompt or its response, and not be read
PARTS_OF_TEXT = ("prompt", "completion", "question", "instruction", "input", "query", "response", "answer", "output")
# these change a prompt, and nothing here can say them
UNREADABLE = ("documents", "images", "image", "videos", "audio", "history", "chat_template_kwargs", "system_prompt")
# published dialogue sets end a few dialogues on "Assistant:" and nothing after it (4 of the 2,312 in HH harmless test)
EMPTY_TURN = "dialogue ends with an empty turn"


def parse(record: Any) -> tuple[str, dict[str, Any]]:
    """The format of a record, in words, and the fields of the Row that it is. Raises BadRow."""
    if isinstance(record, BrokenRow):
        raise BadRow("broken JSON", record.problem)
    if not isinstance(record, dict):
        raise BadRow("not an object", f"a row must be a JSON object, this is a {type(record).__name__}")
    record = without_nulls(record)
    used = next((keys for keys in FORMATS if set(keys) <= record.keys()), None)
    if used is None or (used == ("text",) and record.keys() & {*PARTS_OF_TEXT}):
        possible = ", or ".join(" + ".join(keys) for keys in FORMATS)
        alone = " (text stands alone)" if used else ""
        raise BadRow(
            "missing fields",
            f"has the keys {shortened(', '.join(record)) or '(none)'}, but a row needs {possible}{alone}",
        )
    if unreadable := [key for key in UNREADABLE if record.get(key)]:
        raise BadRow("unreadable column", f"the column {unreadable[0]} changes the prompt, and is not supported")
    record |= {key: _unquoted(record[key], key) for key in ("prompt", *used) if isinstance(record.get(key), str)}
    scores = label = None
    if "chosen" in used:
        prompt, responses = _paired(record.get("prompt"), record["chosen"], record["rejected"])
    elif "responses" in used:
        prompt = _prompt(record["prompt"])
        responses, scores = _scored(record["responses"], record["scores"])
    elif "completion" in used:
        prompt, label = _prompt(record["prompt"]), record.get("label")
        responses = [_response(record["completion"], "completion")]
        if label is not None and not isinstance(label, bool):
            raise BadRow("wrong type", f"label must be true or false, not {label!r}")
    else:
        prompt, responses = _demonstration(record[used[0]], used[0])
        if used == ("messages",):
            _agree(record.get("prompt"), prompt)
    if is_dialogue(prompt) and any(HUMAN in content_of(response) for response in responses):
        raise BadRow("no single response", "a response goes on with another Human turn")
    if len(responses) > 1 and all(_same(response, responses[0]) for response in responses):
        raise BadRow("equal responses", "chosen equals rejected" if "chosen" in used else "all responses are equal")
    if isinstance(prompt, str) and not is_dialogue(prompt) and _are_messages(record, used):
        prompt = [{"role": "user", "content": prompt}]
    prompt, system = _with_system(prompt, record.get("system", ""))
    extra = {key: record[key] for key in record if key not in (*used, "system", "tools")}
    fields = {"prompt": prompt, "responses": responses, "scores": scores, "label": label, "extra": extra}
    fields |= {"system": system, "tools": _tools(record.get("tools"))}
    return f"{' + '.join(used)} with K = {len(responses)}", fields


def _unquoted(text: str, name: str) -> Any:
    """Chat messages that a column of text holds as JSON; any other text as it is."""
    if not re.match(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""", text):
        return text
    try:
        return without_nulls(loads(text))
    except ValueError:
        raise BadRow("bad messages", f"{name} is chat messages as text that is not JSON; write them as JSON") from None


def _are_messages(record: dict, used: tuple[str, ...]) -> bool:
    """Are the responses written as chat messages?"""
    values = [record[key] for key in used if key in ("chosen", "rejected", "completion")]
    return any(isinstance(value, list) for value in [*values, *record.get("responses", [])])


def _same(a: str | dict, b: str | dict) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a == b
    return isinstance(a, str) and isinstance(b, str) and a.strip() == b.strip()


def _with_system(prompt: Any, system: object) -> tuple[Any, str]:
    """The prompt with the text of a `system` column as its first message; beside a prompt of text, that text."""
    system = check_text(system, "system")
    if not system.strip() or isinstance(prompt, str):
        return prompt, system if system.strip() else ""
    if prompt[0]["role"] in ("system", "developer"):
        if prompt[0]["content"].strip() != system.strip():
            raise BadRow("two system messages", "the system column differs from the system message of the prompt")
        return prompt, ""
    return [{"role": "system", "content": system}, *prompt], ""


def _tools(tools: Any) -> list[dict] | None:
    if isinstance(tools, str):
        try:
            tools = without_nulls(loads(tools or "[]"))
        except ValueError:
            raise BadRow("bad tools", "tools is not JSON") from None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("bad tools", "tools must be a list of function schemas")
    return tools


def _demonstration(value: Any, name: str) -> tuple[str | list[dict], list[str | dict]]:
    """The prompt and the last response of a dialogue; a text that is none is a response to nothing."""
    if name == "text" and not opens_with_human(check_text(value, name)):
        return "", [_response(value, name)]
    if name == "messages" and not isinstance(value, list):
        raise BadRow("wrong type", f"messages must be a list of chat messages, not {type(value).__name__}")
    turns = dialogue_turns(value) if name == "text" else check_messages(value, name)
    end = len(turns)
    while end and turns[end - 1]["role"] == "assistant":
        end -= 1
    if end == len(turns):
        raise BadRow("no last response", f"{name} does not end with an assistant turn")
    responses = [_response(turns[end:], name)]
    return _prompt(turns[:end] if name == "messages" else _as_text(turns[:end])), responses


def _as_text(turns: list[dict]) -> str:
    return "".join(SPEAKERS[turn["role"]] + turn["content"] for turn in turns) + ASSISTANT


def _paired(prompt: Any, chosen: Any, rejected: Any) -> tuple[str | list[dict], list[str | dict]]:
    if type(chosen) is not type(rejected):
        raise BadRow("wrong type", f"chosen is a {type(chosen).__name__}, rejected a {type(rejected).__name__}")
    if _is_whole(chosen, prompt, "chosen") and _is_whole(rejected, prompt, "rejected"):
        if isinstance(chosen, list):
            turns, responses = _split(check_messages(chosen, "chosen"), check_messages(rejected, "rejected"))
            shared = _prompt(turns)
        else:
            turns, responses = _split(dialogue_turns(chosen), dialogue_turns(rejected), EMPTY_TURN)
            shared = _prompt(_as_text(turns))
        _agree(prompt, shared)
        return shared, responses
    if prompt is None and isinstance(chosen, str):
        prompt, chosen, rejected = _split_text(check_text(chosen, "chosen"), check_text(rejected, "rejected"))
    responses = [_response(chosen, "chosen"), _response(rejected, "rejected")]
    if prompt is None:
        two = r"whole dialogues: messages, or text such as \n\nHuman: ...\n\nAssistant: ..."
        raise BadRow("missing fields", f"without a prompt, chosen and rejected must be two {two}")
    return _prompt(prompt), responses


def _is_whole(value: object, prompt: object, name: str) -> bool:
    """Is this a whole dialogue, its prompt included, rather than a response?"""
    if not isinstance(value, list):
        return opens_with_human(check_text(value, name))
    turns = check_messages(value, name)
    if not turns or turns[0]["role"] != "assistant":
        return bool(turns)
    # a dialogue may be opened by the assistant; behind a prompt of messages that would be a second dialogue
    opened = not isinstance(prompt, list) or value[: len(prompt)] == prompt
    return opened and any(turn["role"] == "user" for turn in turns)


def _agree(prompt: Any, shared: str | list[dict]) -> None:
    """Raise BadRow where the prompt column says what the dialogues do not begin with: it would not be trained on."""
    if prompt is None:
        return
    if isinstance(prompt, list):
        texts = [message["content"] for message in check_messages(prompt, "prompt")]
    else:
        text = check_text(prompt, "prompt")
        texts = [turn["content"] for turn in dialogue_turns(text)] if is_dialogue(text) else [text]
    whole = shared if isinstance(shared, str) else "".join(message["content"] for message in shared)
    if missing := [text for text in texts if "".join(text.split()) not in "".join(whole.split())]:
        raise BadRow("another prompt", f"the dialogues do not begin with the prompt: they lack {missing[0][:60]!r}")


def _split_text(chosen: str, rejected: str) -> tuple[str | None, str, str]:
    """The beginning that two plain texts share, and the rest of each; no prompt where they share none.

    The cut is not inside a word, leaves neither rest empty, and gives the space before the responses to them.
    """
    cut = len(commonprefix([chosen, rejected]))  # noqa: RUF071  (texts, not paths)
    nexts = [text[cut : cut + 1] for text in (chosen, rejected)]
    if "" in nexts or (chosen[:cut][-1:].isalnum() and any(letter.isalnum() for letter in nexts)):
        cut = next((i + 1 for i in reversed(range(cut)) if chosen[i].isspace()), 0)
    if chosen[:cut].endswith(" "):
        cut -= 1
    return (chosen[:cut] or None), chosen[cut:], rejected[cut:]


def _split(
    chosen: list[dict], rejected: list[dict], if_empty: str = "empty response"
) -> tuple[list[dict], list[str | dict]]:
    """The turns that two dialogues share, and the response of each: its last assistant turn.

    The cut is by turns, not where the texts part: "yes" and "yes, but" share more than a prompt.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    # one dialogue may be the beginning of the other, or both may respond alike
    while shared and chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    if not shared:
        raise BadRow("no shared prompt", "chosen and rejected share no beginning that ends before an assistant turn")
    responses = []
    for name, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if dialogue[-1]["role"] != "assistant":
            raise BadRow("no last response", f"the {name} dialogue does not end with an assistant turn")
        if all(map(says_nothing, dialogue[shared:])):
            raise BadRow(if_empty, f"the {name} dialogue ends with an empty turn, an empty response")
        responses.append(_response(dialogue[shared:], name))
    return chosen[:shared], responses


def _scored(responses: object, scores: object) -> tuple[list[str | dict], list[float]]:
    """Responses and scores, best first; ties keep the file's order."""
    if not isinstance(responses, list) or not isinstance(scores, list):
        raise BadRow("wrong type", "responses and scores must be lists")
    if len(responses) < 2 or len(scores) != len(responses):
        raise BadRow("wrong number", f"{len(responses)} responses and {len(scores)} scores: both must be K >= 2")
    for score in scores:
        # NaN, infinity and what float32 cannot hold all fail the comparison
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 3e38:
            raise BadRow("bad score", f"a score must be a finite number, not {score!r}")
    read = [_response(response, f"responses[{k}]") for k, response in enumerate(responses)]
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    return [read[k] for k in order], [float(scores[k]) for k in order]


def _prompt(value: Any) -> str | list[dict]:
    if isinstance(value, list):
        value = check_messages(value, "prompt")
        if not value or not value[-1]["content"].strip():
            raise BadRow("empty prompt", "the prompt is empty")
        if value[-1]["role"] == "assistant":
            _check_begun(value)
    elif not check_text(value, "prompt").strip():
        raise BadRow("empty prompt", "the prompt is empty")
    elif is_dialogue(value) and not dialogue_turns(value)[-2]["content"].strip():
        raise BadRow("empty prompt", "the last Human turn is empty")
    return value


def _check_begun(prompt: list[dict]) -> None:
    """Raise BadRow unless the assistant turn that ends a prompt is the beginning of the response, and text alone."""
    if not is_begun(prompt):
        begun = 'the beginning of a response has "prefix": true'
        raise BadRow("bad messages", f"the prompt must end before an assistant turn; {begun}")
    if more := sorted(prompt[-1].keys() & {*SAYS}):
        raise BadRow("bad messages", f"the prompt ends with the beginning of a response that has {', '.join(more)}")


def _response(value: Any, name: str) -> str | dict:
    """A response's text, from text or from the assistant message(s) it is written as; one that says more, as it is."""
    if isinstance(value, list):
        value = check_messages(value, name)
        if any(message["role"] != "assistant" for message in value):
            raise BadRow("no single response", f"{name} must be one assistant turn after the prompt")
        if any(message.keys() - {"role", "content"} for message in value):
            if len(value) > 1:
                more = sorted(set().union(*value) - {"role", "content"})
                raise BadRow("no single response", f"{name} is several messages, with {', '.join(more)}")
            if says_nothing(value[0]):
                raise BadRow("empty response", f"{name} is an empty response")
            return value[0]
        value = "\n\n".join(message["content"] for message in value)
    if not check_text(value, name).strip():
        raise BadRow("empty response", f"{name} is an empty response")
    return value
