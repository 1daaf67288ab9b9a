"""Chat templates: where a model folder has its own, and what a template may do."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from align.data.messages import dialogue_turns
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

    def render(self, messages: list[dict], add_generation_prompt: bool = False, tools: list[dict] | None = None) -> str:
        """The messages as one string; with add_generation_prompt, up to where the assistant is to speak.

        tools: schemas of the functions that the model may call, for templates that write them.

        Raises UserError when the template refuses the messages or fails on them.
        """
        try:
            return self.template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=tools,
                documents=None,
                **self.special_tokens,
            )
        # whatever fails in there is the template's error, which the user can fix
        except Exception as error:
            raise UserError(f"{self.where}: the chat template refuses these messages ({one_line(error)})") from None


def folder_template(
    folder: Path, configured: object, special_tokens: dict[str, str], adds_bos: bool = False
) -> ChatTemplate:
    """A model folder's template: its chat_template.jinja, else tokenizer_config.json's (configured), else Falcon2's.

    configured is a template, or a list of {"name", "template"} of which "default" counts. A rendered dialogue is encoded
    as it is, so that Falcon2's writes the BOS of a tokenizer that puts one before every text (adds_bos).
    """
    if (folder / "chat_template.jinja").is_file():
        return ChatTemplate.from_file(folder / "chat_template.jinja", special_tokens)
    if not configured:
        source = "{{ bos_token }}" + FALCON if adds_bos else FALCON
        return ChatTemplate(source, "Falcon2's chat template (the tokenizer has none)", special_tokens)
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
