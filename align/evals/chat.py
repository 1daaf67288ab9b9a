"""Talk to a checkpoint in the terminal, or to two side by side: eval.py --chat --model DIR [--model DIR]."""

import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest

from align.data import encode_prompts
from align.data.tokenizer import Tokenizer
from align.errors import UserError
from align.generate import Settings, stream_tokens
from align.models import Decoder

HELP = """/reset           forget the dialogue
/undo            forget the last question and the responses to it
/system TEXT     a system message for the whole dialogue; without TEXT, none
/temperature X   0 takes the likeliest token, above 0 samples
/help, /quit     Ctrl-C stops a response, Ctrl-D leaves"""
BETWEEN = " | "
NARROW = 80  # in a terminal with fewer columns the responses stand one below the other
# a model may write anything, and a terminal obeys control characters: show pictures of them
VISIBLE = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | dict.fromkeys(range(127, 160), 0xFFFD)


def chat(
    models: Sequence[tuple[str, Decoder, Tokenizer]],
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 512,
    seed: int = 0,
    max_length: int = 0,
) -> None:
    """Respond to the lines of standard input until it ends: one model as it writes, two in columns, each its own dialogue.

    max_length: tokens of a dialogue and its next response together; 0 for what each model says. The samples depend on the
    seed and on how many questions came before. Raises UserError for other than one or two models, ValueError for
    settings that make no sense.
    """
    if not 1 <= len(models) <= 2:
        raise UserError(f"--chat talks to one model or two side by side, not to {len(models)}")
    settings = Settings(max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    session = Session([Dialogue(*model, max_length=max_length) for model in models], settings)
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() line editing and history)
    print(f"{' and '.join(name for name, _, _ in models)}; /help lists the commands")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D leaves)")
            continue
        except UnicodeDecodeError:
            raise UserError("--chat: standard input is not UTF-8 text") from None
        if not sys.stdin.isatty():
            print(line)
        if line == "/quit":
            return
        try:
            if line == "/help":
                print(HELP)
            elif line.startswith("/"):
                print(f"({session.command(line)})")
            elif line:
                session.ask(line)
        except UserError as error:
            print(f"({error})")
        except KeyboardInterrupt:
            print("\n(stopped; this question is forgotten)")


@dataclass
class Dialogue:
    """What one model was asked and what it responded."""

    name: str
    model: Decoder
    tokenizer: Tokenizer
    max_length: int = 0
    turns: list[tuple[str, str]] = field(default_factory=list)  # question, response

    def __post_init__(self) -> None:
        self.max_length = self.max_length or self.model.config.context_length
        self.stop = next_turn(self.tokenizer)

    def prompt(self, system: str, question: str, max_new_tokens: int) -> tuple[list[int], int]:
        """The ids to continue as a response, and how many of the oldest turns were left out to make them fit.

        Raises UserError if the question does not fit even alone, or the chat template refuses it.
        """
        # a long response may take half of the context, so that the dialogue keeps the other
        room = self.max_length - min(max_new_tokens, self.max_length // 2)
        for left_out in range(len(self.turns) + 1):
            messages = [{"role": "system", "content": system}] if system else []
            for asked, responded in self.turns[left_out:]:
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": responded}]
            messages.append({"role": "user", "content": question})
            (ids,) = encode_prompts([messages], self.tokenizer, "chat")
            if len(ids) <= room:
                return ids, left_out
        raise UserError(f"{self.name}: a question of {len(ids)} tokens where {room} fit; ask a shorter one")

    def respond(self, question: str, ids: list[int], settings: Settings) -> Iterator[str]:
        """The response in pieces, as soon as each is certain; once all are taken, it is a turn of the dialogue."""
        settings = replace(settings, eos_ids=sorted(self.tokenizer.eos_ids), context=self.max_length)
        new, text, shown = [], "", ""
        try:
            # the stop text is found here: stream_tokens would hold back its last token, and so the end of the text
            for token in stream_tokens(self.model, ids, settings):
                new.append(token)
                text = self.tokenizer.decode(new)
                safe = certain(text, self.stop).strip()
                yield safe[len(shown) :]
                shown = safe
                if before(self.stop, text) != text:
                    break
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from None
        text = before(self.stop, text).strip()
        yield text[len(shown) :]
        if len(new) == min(settings.max_new_tokens, self.max_length - len(ids)):
            yield " [...]"  # it was cut off
        self.turns = [*self.turns, (question, text)]


@dataclass
class Session:
    """The one or two dialogues of the session, and what holds for both."""

    dialogues: list[Dialogue]
    settings: Settings
    system: str = ""
    asked: int = 0

    def ask(self, question: str) -> None:
        """Print every model's response. Raises UserError, and then no dialogue has the question."""
        prompts = [d.prompt(self.system, question, self.settings.max_new_tokens) for d in self.dialogues]
        settings = replace(self.settings, seed=self.settings.seed + self.asked)
        self.asked += 1
        for dialogue, (_, left_out) in zip(self.dialogues, prompts, strict=True):
            if left_out:
                dialogue.turns = dialogue.turns[left_out:]
                print(f"({dialogue.name}: the context is full; oldest questions forgotten: {left_out})")
        turns = [dialogue.turns for dialogue in self.dialogues]
        try:
            show(
                [dialogue.name for dialogue in self.dialogues],
                [d.respond(question, ids, settings) for d, (ids, _) in zip(self.dialogues, prompts, strict=True)],
            )
        except BaseException:
            for dialogue, old in zip(self.dialogues, turns, strict=True):
                dialogue.turns = old
            raise

    def command(self, line: str) -> str:
        """Carry out a line that begins with / and return what to print. Raises UserError."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/reset":
            for dialogue in self.dialogues:
                dialogue.turns = []
            return "the dialogue is forgotten"
        if name == "/undo":
            if not any(dialogue.turns for dialogue in self.dialogues):
                raise UserError("there is nothing to undo")
            for dialogue in self.dialogues:
                dialogue.turns = dialogue.turns[:-1]
            return "the last question is forgotten"
        if name == "/system":
            self.system = rest
            return f"system message: {rest}" if rest else "no system message"
        if name == "/temperature":
            try:
                self.settings = replace(self.settings, temperature=float(rest))
            except ValueError:
                raise UserError(f"/temperature {rest}: must be a number of at least 0") from None
            return f"temperature {self.settings.temperature:g}"
        raise UserError(f"{name} is not a command; /help lists them")


def next_turn(tokenizer: Tokenizer) -> str:
    """The line with which the chat template opens a user's next turn: a model that writes it would speak for the user.

    Only templates that mark turns in plain words need this ("\\nUser:"). Tokens that mark turns end a response as
    tokens and do not occur in decoded text.
    """
    roles = ("user", "assistant", "user")
    text = tokenizer.render([{"role": role, "content": f"@{i}@"} for i, role in enumerate(roles)])
    opening = text.partition("@1@")[2].partition("@2@")[0].rstrip().rpartition("\n")[2]
    return f"\n{opening}" if opening else ""


def before(stop: str, text: str) -> str:
    return text.partition(stop)[0] if stop else text


def certain(text: str, stop: str) -> str:
    """The part of a decoded text that further tokens cannot change: no incomplete character, and no beginning of stop."""
    text = before(stop, text).rstrip("\ufffd")  # the bytes of an incomplete character decode to these
    begun = max((n for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - begun]


def show(names: list[str], responses: list[Iterator[str]]) -> None:
    """Print responses as they come: one alone, two in columns line by line, or in a narrow terminal one after the other."""
    width = shutil.get_terminal_size().columns
    if len(responses) == 1 or width < NARROW:
        for name, pieces in zip(names, responses, strict=True):
            if len(responses) > 1:
                print(f"[{name}]")
            for piece in pieces:
                print(piece.translate(VISIBLE), end="", flush=True)
            print("\n")
        return
    width = (width - len(BETWEEN)) // 2
    columns = [lines(chain([f"[{name}]\n"], a), width) for name, a in zip(names, responses, strict=True)]
    for left, right in zip_longest(*columns, fillvalue=""):
        print(f"{left}{' ' * (width - cells(left))}{BETWEEN}{right}".rstrip(), flush=True)
    print()


def lines(pieces: Iterator[str], width: int) -> Iterator[str]:
    """The lines of a text that comes in pieces, each as soon as it is complete."""
    line = ""
    for piece in pieces:
        *complete, line = fold(line + piece.translate(VISIBLE).expandtabs(4), width)
        yield from (done.rstrip() for done in complete)
    yield line.rstrip()


def fold(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` cells, spaces at their ends not counted; broken after spaces if possible."""
    folded = [""]
    for part in re.findall(r"\n|[^\s]+[^\S\n]*|[^\S\n]+", text):
        if part == "\n":
            folded.append("")
            continue
        if folded[-1] and not part.isspace() and cells(folded[-1] + part.rstrip()) > width:
            folded.append("")
        for character in part:
            if not character.isspace() and cells(folded[-1] + character) > width:
                folded.append("")
            folded[-1] += character
    return folded


def cells(text: str) -> int:
    """How many columns a text takes in a terminal: two for wide characters, none for combining ones."""
    unseen = ("Mn", "Me", "Cf")
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in text if unicodedata.category(c) not in unseen)
