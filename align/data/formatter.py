"""From rows to text: what goes through a chat template, where the response begins, and whether anything is lost.

A template is code that came with a download. It may leave out a system message, the reasoning before </think> or a tool
call, and then other text is trained than the file holds. So what it wrote is compared with the row.
"""

import json
from os.path import commonprefix
from typing import cast

from align.data.messages import BadRow, as_message, content_of, is_begun, is_dialogue, joined
from align.data.rows import Row
from align.data.templates import ChatTemplate, dialogue_messages
from align.data.written import forgets_reasoning, lost, mark, names, spellings
from align.errors import UserError

REFUSED, LOST = "refused by the chat template", "not written by the chat template"
TEMPLATES = ("auto", "none", "chat")  # or a file's path
ANOTHER = "give another template with --data.template FILE.jinja"


def mode_of(template: str, trained: str) -> str:
    """What --data.template means for plain strings, of a model that was trained with another."""
    return trained if template == "auto" else template if template in TEMPLATES else "chat"


class PromptFormatter:
    """How a row becomes texts, its prompt's and its responses': --data.template auto, none, chat or a template file.

    "auto" takes plain strings as they are and puts messages and Human/Assistant dialogues through the chat template;
    "chat" and a file put everything through it, a plain prompt as a user's turn; "none" takes all text as it is.
    trained: the one of the three that the model was trained with, which "auto" then takes strings and dialogues by.
    """

    def __init__(self, template: str, chat: ChatTemplate, eos_texts: list[str], trained: str = "auto"):
        self.mode, self.chat, self.eos_texts = mode_of(template, trained), chat, eos_texts
        self.takes_messages = template != "none"
        self.probed: set[int] = set()  # shapes of dialogues that the template is known to write
        self.forgetful = 0  # rows whose earlier turns lose their reasoning
        if template not in TEMPLATES:
            self.chat = ChatTemplate.from_file(template, chat.special_tokens)

    def __str__(self) -> str:
        return "none" if not self.takes_messages else f"{self.mode}, chats through {self.chat.where}"

    def messages(self, prompt: str | list[dict], system: str = "") -> list[dict] | None:
        """The prompt as chat messages; None where its text is to be taken as it is."""
        if isinstance(prompt, list):
            if not self.takes_messages:
                raise UserError(
                    "--data.template none takes text as it is, but these prompts are chat messages; use auto"
                )
            return prompt
        if self.mode != "none" and is_dialogue(prompt):
            messages = dialogue_messages(prompt)
        elif self.mode == "chat":
            messages = [{"role": "user", "content": prompt}]
        else:
            return None
        return [{"role": "system", "content": system}, *messages] if system else messages

    def prompt(self, prompt: str | list[dict]) -> str:
        """The text to generate a response from. Raises UserError where the template leaves out one of the turns."""
        messages = self.messages(prompt)
        if messages is None:
            return cast(str, prompt)
        try:
            self._probe(messages, None, None)
        except BadRow as problem:
            raise UserError(str(problem)) from None
        return self._asked(messages)

    def _asked(self, messages: list[dict], tools: list[dict] | None = None) -> str:
        """The text to go on from: up to where the assistant is to speak, or to the end of what it has said so far.

        Raises UserError where the template refuses the messages, or does not write what is said so far as it is.
        """
        if not is_begun(messages):
            return self.chat.render(messages, True, tools)
        # what two ways to go on share, as templates do something about the end of a turn
        ways = [self.chat.render(joined(messages, as_message(way)), False, tools) for way in ("xqz", "zqx")]
        text, begun = commonprefix(ways), messages[-1]["content"]  # noqa: RUF071  (texts, not paths)
        if not text.endswith(begun):
            raise UserError(
                f"{self.chat.where}: the chat template changes the beginning of a response ({begun[:40]!r}); leave out "
                f"the white space that it begins with, or {ANOTHER}"
            )
        return text

    def texts(self, row: Row) -> tuple[str, list[str]]:
        """The prompt's text and what each of the K responses adds to it, an EOS included where the template writes one.

        Raises BadRow for a response that is empty or has an EOS inside, and when the template refuses the row, leaves
        out a part of it, or does not go on from what a model will be asked with.
        """
        if self.mode == "chat" and not row.prompt:
            raise BadRow(REFUSED, "a text without a prompt is no chat; use --data.template auto")
        responses = [self._without_eos(response) for response in row.responses]
        messages = self.messages(row.prompt, row.system)
        if messages is None:
            self._check_plain(row)
            return cast(str, row.prompt), cast(list[str], responses)
        if is_dialogue(row.prompt):
            responses = [content_of(response).strip() for response in responses]
        written = [self._written(messages, as_message(response), row.tools) for response in responses]
        prompt = written[0][0]
        if any(other != prompt for other, _ in written):
            raise BadRow(
                LOST, f"{self.chat.where}: the chat template writes another prompt for each response; {ANOTHER}"
            )
        self.forgetful += forgets_reasoning(prompt, messages)
        tails = [text[len(prompt) :] for _, text in written]
        closed = [any(eos in tail for eos in self.eos_texts) for tail in tails]
        return prompt, [t if is_closed else t.rstrip() for t, is_closed in zip(tails, closed, strict=True)]

    def _check_plain(self, row: Row) -> None:
        """Raise BadRow where a row whose text is taken as it is has what only a template can write."""
        columns = [name for name in ("system", "tools") if getattr(row, name)]
        if columns or any(isinstance(response, dict) for response in row.responses):
            what = f"the {' and '.join(columns)} column" if columns else "a response of chat messages"
            raise BadRow(LOST, f"{what} has no place in a prompt that is taken as it is; use --data.template chat")

    def _written(self, messages: list[dict], response: dict, tools: list[dict] | None) -> tuple[str, str]:
        """The texts of the prompt and of the whole dialogue, in the first spelling of its calls that loses nothing."""
        problem = None
        for spelled in spellings([*messages, response]):
            try:
                return self._checked(spelled[:-1], spelled[-1], tools)
            except BadRow as found:
                problem = problem or found
        raise cast(BadRow, problem)

    def _checked(self, messages: list[dict], response: dict, tools: list[dict] | None) -> tuple[str, str]:
        self._probe(messages, response, tools)
        try:
            prompt = self._asked(messages, tools)
            whole = self.chat.render(joined(messages, response), False, tools)
            without = self._asked(messages) if tools else ""
        except UserError as error:
            raise BadRow(REFUSED, str(error)) from None
        if what := lost(prompt, messages):
            raise self._loses(f"{what} in the prompt")
        if what := lost(whole, messages, response, prompt if whole.startswith(prompt) else ""):
            raise self._loses(what)
        if not whole.startswith(prompt):
            at = max(0, len(prompt) - 40)
            raise BadRow(
                LOST,
                f"{self.chat.where}: a model will be asked with a prompt that ends {prompt[at:]!r}, but with a response "
                f"the chat template writes {whole[at : at + 60]!r} there; {ANOTHER}",
            )
        if tools and (prompt == without or any(name not in prompt for name in names(tools))):
            raise self._loses("the tools column")
        return prompt, whole

    def _probe(self, messages: list[dict], response: dict | None, tools: list[dict] | None) -> None:
        """Check a dialogue of this shape whose texts are unlike any that a template writes. Raises BadRow.

        A short text of a row may stand in the rendered one by chance, as "a" does in "assistant".
        """
        dialogue = [*messages, *([response] if response else [])]
        marked = [mark(message, number) for number, message in enumerate(dialogue)]
        shape = hash(json.dumps([marked, bool(response), bool(tools)], default=str))
        if shape in self.probed:
            return
        begun, spoken = (marked[:-1], marked[-1]) if response else (marked, None)
        try:
            text = self.chat.render(joined(begun, spoken), False, tools) if spoken else self._asked(begun, tools)
        except UserError:
            return  # the row itself decides
        if what := lost(text, begun, spoken):
            raise self._loses(what.partition(" (")[0])
        self.probed.add(shape)

    def _loses(self, what: str) -> BadRow:
        return BadRow(LOST, f"{self.chat.where}: the chat template does not write {what}; {ANOTHER}")

    def _without_eos(self, response: str | dict) -> str | dict:
        """The response without the EOS that its text may come with at its end."""
        text = content_of(response)
        while end := next((eos for eos in self.eos_texts if text.rstrip().endswith(eos)), None):
            text = text.rstrip().removesuffix(end)
        if inside := next((eos for eos in self.eos_texts if eos in text), None):
            raise BadRow("EOS inside a response", f"a response goes on after {inside}, which ends a response")
        if isinstance(response, dict):
            return response | {"content": text}
        if not text.strip():
            raise BadRow("empty response", "a response is empty but for its EOS")
        return text
