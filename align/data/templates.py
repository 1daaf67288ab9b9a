"""From rows to text: chat templates, and where in a rendered dialogue the response begins."""

import json
from datetime import datetime
from os.path import commonprefix
from pathlib import Path
from typing import Any, NoReturn, cast

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from align.data.rows import BadRow, Row, dialogue_turns, is_dialogue
from align.errors import UserError, one_line

# Falcon2-11B's format. Nothing closes a turn: the end-of-text token comes after the last response only.
FALCON = r"""{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{ 'System: ' + message['content'] + '\n' }}
    {%- elif message['role'] == 'user' -%}
        {{ 'User: \n' + message['content'] + '\n' }}
    {%- elif message['role'] == 'assistant' -%}
        {{ 'Falcon:\n' + message['content'] + '\n' }}
    {%- else -%}
        {{ raise_exception('roles are system, user and assistant, not ' + message['role']) }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ 'Falcon:\n' }}
{%- endif -%}
"""


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: some published templates mark a response so. It renders as its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's filter escapes <, > and & for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplate:
    """A template and the special tokens it may name (bos_token, eos_token, ...).

    where is the file it comes from, for messages. Raises UserError naming it if the text does not parse.
    """

    def __init__(self, source: str, where: str, special_tokens: dict[str, str] | None = None):
        self.source, self.where, self.special_tokens = source, where, special_tokens or {}
        # a template comes with a download: it may read what it is given and nothing else
        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        env.filters["tojson"] = _tojson
        env.globals["raise_exception"] = _raise_exception
        env.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        try:
            self.template = env.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"{where}: the chat template does not parse ({one_line(error)})") from None

    @classmethod
    def from_file(cls, path: str | Path, special_tokens: dict[str, str] | None = None) -> "ChatTemplate":
        try:
            source = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--data.template {path}: cannot be read ({one_line(error)})") from None
        return cls(source, str(path), special_tokens)

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """The messages as one string; with add_generation_prompt, up to where the assistant is to speak.

        Raises UserError when the template refuses the messages or fails on them.
        """
        try:
            return self.template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self.special_tokens,
            )
        # whatever fails in there is the template's error, which the user can fix
        except Exception as error:
            raise UserError(f"{self.where}: the chat template refuses these messages ({one_line(error)})") from None


def folder_template(folder: Path, configured: object, special_tokens: dict[str, str]) -> ChatTemplate:
    """A model folder's template: its chat_template.jinja, else tokenizer_config.json's (configured), else Falcon2's.

    configured is a template, or a list of {"name", "template"} of which "default" counts.
    """
    if (folder / "chat_template.jinja").is_file():
        return ChatTemplate.from_file(folder / "chat_template.jinja", special_tokens)
    if not configured:
        return ChatTemplate(FALCON, "Falcon2's chat template (the tokenizer has none)", special_tokens)
    where = f"{folder}/tokenizer_config.json"
    if isinstance(configured, list):
        configured = {entry.get("name"): entry.get("template") for entry in configured if isinstance(entry, dict)}
        configured = configured.get("default")
    if not isinstance(configured, str):
        raise UserError(f'{where}: chat_template must be text, or a list of named ones with a "default"')
    return ChatTemplate(configured, where, special_tokens)


def dialogue_messages(prompt: str) -> list[dict]:
    """Chat messages of a Human/Assistant prompt. Consecutive turns of one speaker are joined: templates alternate."""
    messages: list[dict] = []
    for turn in dialogue_turns(prompt)[:-1]:
        if messages and messages[-1]["role"] == turn["role"]:
            messages[-1]["content"] += "\n\n" + turn["content"].strip()
        else:
            messages.append({"role": turn["role"], "content": turn["content"].strip()})
    return messages


class PromptFormatter:
    """How a row becomes texts, its prompt's and its responses': --data.template auto, none, chat or a template file.

    "auto" takes plain strings as they are and puts messages and Human/Assistant dialogues through the chat template;
    "chat" and a file put everything through it, a plain prompt as a user's turn; "none" takes all text as it is.
    """

    def __init__(self, template: str, chat: ChatTemplate, eos_texts: list[str]):
        self.mode, self.chat, self.eos_texts = template, chat, eos_texts
        if template not in ("auto", "none", "chat"):
            self.mode, self.chat = "chat", ChatTemplate.from_file(template, chat.special_tokens)

    def __str__(self) -> str:
        return "none" if self.mode == "none" else f"{self.mode}, chats through {self.chat.where}"

    def messages(self, prompt: str | list[dict]) -> list[dict] | None:
        """The prompt as chat messages; None where its text is to be taken as it is."""
        if isinstance(prompt, list):
            if self.mode == "none":
                raise UserError(
                    "--data.template none takes text as it is, but these prompts are chat messages; use auto"
                )
            return prompt
        if self.mode != "none" and is_dialogue(prompt):
            return dialogue_messages(prompt)
        return [{"role": "user", "content": prompt}] if self.mode == "chat" else None

    def prompt(self, prompt: str | list[dict]) -> str:
        """The text to generate a response from."""
        messages = self.messages(prompt)
        return cast(str, prompt) if messages is None else self.chat.render(messages, add_generation_prompt=True)

    def texts(self, row: Row) -> tuple[str, list[str]]:
        """The prompt's text and what each of the K responses adds to it, an EOS included where the template writes one.

        Raises BadRow for a response that is empty or has an EOS inside, and when the template refuses the row.
        """
        responses = [self._without_eos(response) for response in row.responses]
        messages = self.messages(row.prompt)
        if messages is None:
            return cast(str, row.prompt), responses
        if is_dialogue(row.prompt):
            responses = [response.strip() for response in responses]
        try:
            prompt = self.chat.render(messages, add_generation_prompt=True)
            full = [self.chat.render([*messages, {"role": "assistant", "content": text}]) for text in responses]
        except UserError as error:
            raise BadRow("refused by the chat template", str(error)) from None
        # some templates open a turn with more than they write before a response: cut where all of them agree
        cut = len(commonprefix([prompt, *full]))  # noqa: RUF071  (texts, not paths)
        tails = [text[cut:] for text in full]
        for response, tail in zip(responses, tails, strict=True):
            if not tail.strip() or (cut < len(prompt) and response.strip() not in tail):
                raise UserError(
                    f"{self.chat.where}: the chat template does not write the response of {row.where} after what it "
                    "writes for the prompt alone; give another one with --data.template FILE.jinja"
                )
        closed = [any(eos in tail for eos in self.eos_texts) for tail in tails]
        return prompt[:cut], [t if is_closed else t.rstrip() for t, is_closed in zip(tails, closed, strict=True)]

    def _without_eos(self, response: str) -> str:
        """The response without the EOS it may come with at its end."""
        while end := next((eos for eos in self.eos_texts if response.rstrip().endswith(eos)), None):
            response = response.rstrip().removesuffix(end)
        if inside := next((eos for eos in self.eos_texts if eos in response), None):
            raise BadRow("EOS inside a response", f"a response goes on after {inside}, which ends a response")
        if not response.strip():
            raise BadRow("empty response", "a response is empty but for its EOS")
        return response
