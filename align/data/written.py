"""What a chat template wrote, compared with the messages it was given."""

import json
from collections.abc import Iterator
from typing import Any

from align.data.messages import REASONING
from align.files import loads

# templates put these where they like: first, or before the last question
MOVED = ("system", "developer")


def lost(written: str, messages: list[dict], response: dict | None = None, prompt: str = "") -> str:
    """What of these messages a rendered text does not hold, in words; "" where it holds all. White space aside.

    Turns stand in order, but for the system's, which templates move; what a turn says beside its content stands after
    the turn before. Templates shorten earlier turns, their reasoning and the arguments of their calls, and do so in the
    prompt of generation too. The response ends after `prompt`, what a model is asked with.
    """
    text, at = squeeze(written), 0
    for message in messages:
        content = message["content"] or ""
        before = 0 if message["role"] in MOVED else at
        if "name" in message and message["role"] != "tool" and not find(text, message["name"], before)[0]:
            return f"the name of the {message['role']} turn ({message['name']!r})"
        if message["role"] in MOVED:
            found, start = find(text, content, 0)
        else:
            found, start = find(text, content, at)
            if not found and message["role"] == "assistant" and "</think>" in content:
                found, start = find(text, content.rpartition("</think>")[2], at)
            if found and (missing := calls_lost(text, message, at, arguments=False)):
                return missing
            at = start
        if not found:
            return f"the {message['role']} turn ({content.strip()[:40]!r})"
    if response is None:
        return ""
    if missing := calls_lost(text, response, at, arguments=True):
        return missing
    for key in (*REASONING, "refusal", "name"):
        if key in response and not find(text, response[key], at)[0]:
            return f"the {key} of a response ({response[key].strip()[:40]!r})"
    content = response["content"] or ""
    # a generation prompt may have opened the <think> with which a response begins
    begin = max(at, len(squeeze(prompt)) - len(squeeze(content)) + 1)
    if not find(text, content, begin)[0] or len(text) <= len(squeeze(prompt)):
        return f"the whole response ({content.strip()[:40]!r})"
    return ""


def squeeze(text: str) -> str:
    """The text without its white space, which templates trim."""
    return "".join(text.split())


def find(text: str, part: str, at: int) -> tuple[bool, int]:
    """Is the part in the squeezed text, as it is or as JSON writes it, from `at` on; and where does it end?"""
    for spelling in (part, json.dumps(part, ensure_ascii=False)[1:-1], json.dumps(part)[1:-1]):
        squeezed = squeeze(spelling)
        if (start := text.find(squeezed, at)) >= 0:
            return True, start + len(squeezed)
    return False, at


def forgets_reasoning(prompt: str, messages: list[dict]) -> bool:
    """Does the text of a prompt lack the reasoning of one of its earlier turns?"""
    reasoned = [m[key] for m in messages for key in REASONING if key in m]
    reasoned += [m["content"].partition("</think>")[0] for m in messages if "</think>" in (m["content"] or "")]
    return bool(reasoned) and not all(find(squeeze(prompt), text.replace("<think>", ""), 0)[0] for text in reasoned)


def calls_lost(text: str, message: dict, at: int, arguments: bool) -> str:
    """Which call's name, or which of its arguments, the squeezed text lacks from `at` on, in words."""
    calls = [*message.get("tool_calls", []), *([message["function_call"]] if "function_call" in message else [])]
    parts = names(calls)
    if arguments:
        parts += [leaf for call in calls for leaf in leaves(call.get("function", call).get("arguments"))]
    for part in parts:
        as_json = part if isinstance(part, str) else json.dumps(part)
        if not find(text, as_json, at)[0] and not find(text, str(part), at)[0]:
            return f"the tool_calls of the {message['role']} turn ({part!r})"
    return ""


def names(functions: list[dict]) -> list:
    return [name for f in functions if isinstance(name := f.get("function", f).get("name"), str)]


def leaves(value: Any) -> Iterator[Any]:
    """The texts and numbers in the arguments of a call; the object's text where it is written as JSON."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        try:
            value = loads(value)
        except ValueError:
            yield value
            return
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    elif value is not None:
        yield value


def spellings(dialogue: list[dict]) -> Iterator[list[dict]]:
    """The dialogue as templates want its calls: arguments as an object or as JSON text, no content as "" or as null."""
    yield dialogue
    if not any("tool_calls" in message for message in dialogue):
        return
    for as_text, null in ((False, True), (True, False), (True, True)):
        yield [_spell(message, as_text, null) if "tool_calls" in message else message for message in dialogue]


def _spell(message: dict, as_text: bool, null: bool) -> dict:
    calls = [_with_text(call) for call in message["tool_calls"]] if as_text else message["tool_calls"]
    return message | {"tool_calls": calls} | ({"content": None} if null and not message["content"] else {})


def _with_text(call: dict) -> dict:
    function = call.get("function", call)
    function = function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return call | {"function": function} if "function" in call else function


def mark(message: dict, number: int) -> dict:
    """The message with words of its own for all that it says: no template writes them by chance."""
    word = f"xqz{number}zqx"
    marked = message | {key: f"{word}{key}" for key in (*REASONING, "refusal", "name") if key in message}
    if "tool_calls" in message:
        marked["tool_calls"] = [_mark_call(call, f"{word}{k}") for k, call in enumerate(message["tool_calls"])]
    return marked | {"content": word} if message["content"] else marked


def _mark_call(call: dict, word: str) -> dict:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = {key: word if isinstance(value, str) else value for key, value in arguments.items()}
    marked = function | {"name": f"{word}name", "arguments": arguments}
    return call | {"function": marked} if "function" in call else marked
