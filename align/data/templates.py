"""Chat templates: where a model folder has its own, and what a template may do."""

import inspect
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from align.data import sandbox
from align.data.messages import dialogue_turns
from align.errors import UserError, one_line

TOO_MUCH = f"it takes more than {sandbox.SECONDS:g} s or {sandbox.MEMORY // 2**20} MiB"

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


class Renderer:
    """The process of align/data/sandbox.py: one for all templates, started when the first is there."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()
        os.register_at_fork(after_in_child=self.forget)  # two processes would read each other's answers

    def __call__(self, source: str, variables: dict[str, Any] | None = None) -> str:
        """The rendered text; without variables nothing, for a template that parses. Raises ValueError, which says why."""
        request = json.dumps([source, variables], default=str).encode() + b"\n"
        with self.lock:
            self.process = process = self.process or subprocess.Popen(
                [sys.executable, "-P", "-c", inspect.getsource(sandbox) + "main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            assert process.stdin and process.stdout
            try:
                with suppress(BrokenPipeError):  # it has ended, as the answer says
                    process.stdin.write(request)
                    process.stdin.flush()
                answer = process.stdout.readline()
            except BaseException:  # a signal: what the process still says must not be taken for the next answer
                self.end()
                raise
            if not answer:
                self.end()
                raise ValueError(TOO_MUCH)
        kind, text = json.loads(answer)
        if kind == "refused":
            raise ValueError(text)
        return text

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def forget(self) -> None:
        self.process, self.lock = None, threading.Lock()


rendered = Renderer()


class ChatTemplate:
    """A template and the special tokens it may name (bos_token, eos_token, ...).

    where is the file it comes from, for messages. Raises UserError naming it if the text does not parse.
    """

    def __init__(self, source: str, where: str, special_tokens: dict[str, str] | None = None):
        self.source, self.where, self.special_tokens = source, where, special_tokens or {}
        try:
            rendered(source)
        except (ValueError, RecursionError, OSError) as error:
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
        variables = {"messages": messages, "add_generation_prompt": add_generation_prompt, "tools": tools}
        try:
            return rendered(self.source, {**variables, "documents": None, **self.special_tokens})
        except (ValueError, RecursionError, OSError) as error:
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
        named = [entry for entry in configured if isinstance(entry, dict) and entry.get("name") == "default"]
        configured = named[-1].get("template") if named else None
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
