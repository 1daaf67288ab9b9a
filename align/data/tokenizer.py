"""A model folder's tokenizer: its vocabulary, its special tokens and its chat template."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import tokenizers

from align.data.formatter import TEMPLATES, PromptFormatter
from align.data.templates import ChatTemplate, folder_template
from align.errors import UserError, one_line
from align.files import read_json

# the key of tokenizer_config.json for what a chat template cannot say: how training put plain text to the model
TRAINED_TEMPLATE = "align_template"
SAMPLE = "Two words, 3 signs: é你.\n"  # a file can be read and still fail on the first text


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizers.Tokenizer with what its model folder says about it; load_tokenizer makes one."""

    backend: tokenizers.Tokenizer
    folder: str
    eos_id: int  # ends every finished response
    eos_ids: frozenset[int]  # each of which ends a generation
    bos_id: int | None  # None where the tokenizer itself adds none
    pad_id: int  # may equal eos_id: masks go by position
    chat_template: ChatTemplate
    model_max_length: int | None
    trained_template: str = "auto"  # --data.template of the training that the folder comes from: what "auto" means

    @cached_property
    def vocab_size(self) -> int:
        """Largest id + 1."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def bos_token_id(self) -> int | None:
        """The id of the BOS that a template may write, whether or not the tokenizer adds one by itself."""
        text = self.chat_template.special_tokens.get("bos_token")
        return None if text is None else self.backend.token_to_id(text)

    @cached_property
    def special_text(self) -> re.Pattern:
        """Finds a special token spelled in a text."""
        special = [t.content for t in self.backend.get_added_tokens_decoder().values() if t.special]
        return re.compile("|".join(map(re.escape, special)) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """Ids of the text with nothing added around it. A special token spelled in it becomes that token."""
        with readable(self.folder):
            return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with readable(self.folder):
            return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        with readable(self.folder):
            return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """The messages through the chat template. Raises UserError naming it when it refuses them."""
        return self.chat_template.render(messages, add_generation_prompt)

    def formatter(self, template: str) -> PromptFormatter:
        """How rows become text under --data.template; "auto" is as the model was trained, if its folder says how."""
        eos_texts = [text for i in sorted(self.eos_ids) if (text := self.backend.id_to_token(i)) is not None]
        return PromptFormatter(template, self.chat_template, eos_texts, self.trained_template)

    def encode_after(self, prompt: str, prompt_ids: list[int], texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as it stands after the prompt: prompt_ids and they are those of the two as one text.

        Where the two merge at their border the text is encoded apart, as a model that was given the prompt writes it.
        """
        after = []
        for text, ids in zip(texts, self.encode_batch([prompt + text for text in texts]), strict=True):
            joined = ids[: len(prompt_ids)] == prompt_ids
            after.append(ids[len(prompt_ids) :] if joined else self.encode_apart(text))
        return after

    def encode_apart(self, text: str) -> list[int]:
        """Ids of a text that goes on from another: without the space that some tokenizers put before every text."""
        if not self.adds_space:
            return self.encode(text)
        before, ids = self.encode("\n"), self.encode("\n" + text)
        return ids[len(before) :] if ids[: len(before)] == before else self.encode(text)

    @cached_property
    def adds_space(self) -> bool:
        """Does it put a space before every text, as SentencePiece's do (Llama 2)?"""
        text = "a"
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        if self.backend.pre_tokenizer is not None:
            text = "".join(piece for piece, _ in self.backend.pre_tokenizer.pre_tokenize_str(text))
        return text != "a"

    def with_bos(self, ids: list[int]) -> list[int]:
        """Ids of a plain prompt with their one BOS. A chat template writes its own, or none."""
        return ids if self.bos_id is None or ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def with_eos(self, ids: list[int]) -> list[int]:
        """Response ids up to the EOS with which their template closed the turn, else with an EOS appended."""
        end = next((t for t, i in enumerate(ids) if i in self.eos_ids), None)
        return [*ids, self.eos_id] if end is None else ids[: end + 1]


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read a model folder's tokenizer.json, tokenizer_config.json and, where they exist, its other settings.

    EOS is the tokenizer's eos_token, else the eos_token_id (an id or a list) of generation_config.json or config.json.
    BOS is added where tokenizer_config.json says add_bos_token, else where the tokenizer puts one before an empty text.
    Raises UserError naming the file.
    """
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; a model folder needs its tokenizer.json")
    config, special, listed = folder_settings(folder)
    with unheard(), readable(path):
        backend = tokenizers.Tokenizer.from_file(str(path))
        # a saved file may carry either, and would silently go on applying it
        backend.no_truncation()
        backend.no_padding()
        first = backend.encode("", add_special_tokens=True).ids[:1]
        backend.encode(f"{SAMPLE}{SAMPLE}")
    ids = {key: backend.token_to_id(special[key]) for key in special}
    for key in ("bos_token", "eos_token", "pad_token"):
        if key in ids and ids[key] is None:
            raise UserError(f"{folder}/tokenizer_config.json: {key} {special[key]} is not in tokenizer.json")
    known = set(backend.get_vocab(with_added_tokens=True).values())
    listed = [i for i in listed if i in known]
    eos_id = ids.get("eos_token", listed[0] if listed else None)
    if eos_id is None:
        raise UserError(f"{folder}: tokenizer_config.json names no eos_token, config.json no eos_token_id; add one")
    bos_id = ids.get("bos_token", first[0] if first and first[0] != eos_id else None)
    adds_bos = bos_id is not None and config.get("add_bos_token", first == [bos_id])
    special["eos_token"] = cast(str, backend.id_to_token(eos_id))
    if bos_id is not None:
        special["bos_token"] = cast(str, backend.id_to_token(bos_id))
    max_length = config.get("model_max_length")
    trained = config.get(TRAINED_TEMPLATE, "auto")
    if trained not in TEMPLATES:
        raise UserError(f"{folder}/tokenizer_config.json: {TRAINED_TEMPLATE} must be one of {', '.join(TEMPLATES)}")
    return Tokenizer(
        backend=backend,
        folder=str(folder),
        eos_id=eos_id,
        eos_ids=frozenset([eos_id, *listed]),
        bos_id=bos_id if adds_bos else None,
        pad_id=cast(int, ids.get("pad_token", eos_id)),
        chat_template=folder_template(folder, config.get("chat_template"), special, bool(adds_bos)),
        # published files write 1e30 for "no limit"
        model_max_length=int(max_length) if isinstance(max_length, int | float) and max_length < 1e9 else None,
        trained_template=trained,
    )


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Whatever the tokenizers library raises inside, as a UserError that names the file."""
    try:
        yield
    # a plain Exception, whatever is wrong with the file; where its Rust panics, what is not even that
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{path}: not a readable tokenizer ({one_line(error)})") from None


@contextmanager
def unheard() -> Iterator[None]:
    """Nothing that is written to stderr inside is seen: Rust writes its panics there, past Python, in many lines."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def folder_settings(folder: Path) -> tuple[dict, dict[str, str], list[int]]:
    """What a model folder says about its tokenizer, besides tokenizer.json.

    Returns tokenizer_config.json's keys over special_tokens_map.json's, the special tokens' texts among them
    ("eos_token" and so on), and the eos_token_id, an id or a list, of generation_config.json, else of config.json.
    """
    config = _settings(folder / "special_tokens_map.json")
    config = {key: value for key, value in config.items() if value is not None}
    config |= {key: value for key, value in _settings(folder / "tokenizer_config.json").items() if value is not None}
    special = {}
    for key, token in config.items():
        # written as the text itself or as {"content": text, ...}
        content = token.get("content") if isinstance(token, dict) else token
        if key.endswith("_token") and isinstance(content, str):
            special[key] = content
        elif key in ("bos_token", "eos_token", "pad_token"):
            raise UserError(
                f"{folder}: {key} of tokenizer_config.json or special_tokens_map.json must be text, not {token!r}"
            )
    # of the two the first that names any counts, as in transformers and vLLM
    named = (_settings(folder / name).get("eos_token_id") for name in ("generation_config.json", "config.json"))
    eos: Any = next((ids for ids in named if ids not in (None, [])), [])
    eos = eos if isinstance(eos, list) else [eos]
    if not all(type(i) is int for i in eos):
        raise UserError(f"{folder}: eos_token_id must be an id, or a list of ids, not {eos!r}")
    return config, special, eos


def _settings(file: Path) -> dict:
    return read_json(file) if file.is_file() else {}


def check_fits(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Raise UserError unless the model in where, with vocab_size embeddings, has one for every id of the tokenizer."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{tokenizer.folder}: the tokenizer's ids go up to {tokenizer.vocab_size - 1}, but the model in {where} "
            f"has vocab_size {vocab_size}; use the tokenizer that belongs to the model"
        )
