"""Chat messages and Human/Assistant text: what a turn may hold, read so that every kind of file means the same."""

import re
from typing import Any

from align.errors import UserError
from align.files import loads

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SPEAKERS = {"user": HUMAN, "assistant": ASSISTANT}
ROLES = ("system", "developer", "user", "assistant", "tool")
# keys by which published messages say something beside their content
REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
SAYS = (*REASONING, *CALLS, "refusal")


class BadRow(Exception):
    """A row that cannot be trained on. reason is what drops are counted under; str(self) says what is wrong with it."""

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason = reason

    def error(self, where: str) -> UserError:
        return UserError(f"{where}: {self}; fix the row, or skip and count such rows with --data.bad_rows drop")


def without_nulls(value: Any) -> Any:
    """The value without the keys that are null, at every depth: tables write an absent field so."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def check_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{name} must be text or chat messages, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow("broken Unicode", f"{name} holds half of a surrogate pair") from None
    return value


def check_messages(value: list, name: str) -> list[dict]:
    """The messages with their content as one text and the arguments of their calls as objects. Raises BadRow.

    All other keys are kept for the chat template. A content of parts is joined; only parts of text are read.
    """
    return [_message(message, name) for message in value]


def _message(message: object, name: str) -> dict:
    if not isinstance(message, dict) or "role" not in message:
        raise BadRow("bad messages", f'{name}: every message must be {{"role": ..., "content": ...}}')
    role = message["role"]
    if role not in ROLES:
        raise BadRow("bad messages", f"{name}: role {role!r} must be one of {', '.join(ROLES)}")
    message = {key: value for key, value in message.items() if key not in SAYS or value}
    if "content" not in message and not (role == "assistant" and message.keys() & {*SAYS}):
        raise BadRow("bad messages", f"{name}: the {role} message has no content")
    message["content"] = _content(message.get("content", ""), name)
    for key in (*REASONING, "refusal", "name"):
        if key in message:
            check_text(message[key], f"{name}: a message's {key}")
    if "tool_calls" in message:
        if role != "assistant" or not isinstance(message["tool_calls"], list):
            raise BadRow("bad messages", f"{name}: tool_calls must be a list, in an assistant message")
        message["tool_calls"] = [_call(call, name) for call in message["tool_calls"]]
    return message


def _content(content: object, name: str) -> str:
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type", "text") != "text" or "text" not in part:
                kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise BadRow("not text", f"{name}: a message has a part of type {kind!r}; only text can be trained on")
        content = "".join(check_text(part["text"], f"{name}: a message's text") for part in content)
    return check_text(content, f"{name}: a message's content")


def _call(call: object, name: str) -> dict:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRow("bad messages", f'{name}: a tool call must be {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments", {})
    # written as JSON text by many; templates and servers take the object
    if isinstance(arguments, str):
        try:
            arguments = without_nulls(loads(arguments or "{}"))
        except ValueError:
            raise BadRow("bad messages", f"{name}: the arguments of {function['name']} are not JSON") from None
    function = function | {"arguments": arguments}
    return call | {"function": function} if "function" in call else function


def as_message(response: str | dict) -> dict:
    """A response as the message that a chat template is given."""
    return {"role": "assistant", "content": response} if isinstance(response, str) else response


def content_of(response: str | dict) -> str:
    return response if isinstance(response, str) else response["content"]


def is_begun(prompt: str | list[dict]) -> bool:
    """Does a prompt end with the beginning of the response, an assistant turn marked "prefix": true, to go on from?"""
    last = prompt[-1] if isinstance(prompt, list) and prompt else {}
    return last.get("role") == "assistant" and last.get("prefix") is True


def begin(messages: list[dict], text: str) -> list[dict]:
    """The messages with this as the beginning of the response, behind what of it they end with already."""
    return joined(messages, {"role": "assistant", "content": text, "prefix": True})


def first_words(text: str, count: int) -> str:
    """The text up to the end of so many of its words; all of it where it has no more."""
    found = re.match(rf"\s*\S+(?:\s+\S+){{0,{count - 1}}}", text)
    return found[0] if found else text


def joined(messages: list[dict], response: dict) -> list[dict]:
    """The whole dialogue: the response in a turn of its own, or behind its beginning."""
    if not is_begun(messages):
        return [*messages, response]
    *asked, begun = messages
    turn = {key: value for key, value in begun.items() if key != "prefix"} | response
    return [*asked, turn | {"content": begun["content"] + (response["content"] or "")}]


def says_nothing(message: dict) -> bool:
    return not message["content"].strip() and not message.keys() & {*SAYS}


def is_dialogue(prompt: object) -> bool:
    """Is this prompt Human/Assistant text, ending where the Assistant is to speak?"""
    return isinstance(prompt, str) and opens_with_human(prompt) and prompt.rstrip().endswith(ASSISTANT)


def opens_with_human(text: str) -> bool:
    return text.lstrip().startswith("Human:") and ASSISTANT in text


def dialogue_turns(text: str) -> list[dict]:
    """The turns of Human/Assistant text as messages, their text untouched."""
    parts = re.split(r"(?:\A\s*|\n\n)(Human|Assistant):", text)[1:]
    roles = ("user" if speaker == "Human" else "assistant" for speaker in parts[::2])
    return [{"role": role, "content": content} for role, content in zip(roles, parts[1::2], strict=True)]
