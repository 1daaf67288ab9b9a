"""From checked rows to batches of whole prompt groups: the tokenizer, the ids, and the only masks there are.

Prompt and answer are encoded apart and their ids joined, so the border between them is exactly where the mask has it.
A prompt starts with one BOS where the model has one; an answer ends with one EOS, unless it was cut.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
import torch

from align.data import BadRow, Row, count_or_raise, describe
from align.errors import UserError
from align.templates import ChatTemplate, Form, folder_settings, folder_template

OVERLONG = ("drop", "error", "truncate")
# what a truncated prompt keeps at least, or all of a shorter one
MIN_PROMPT = 8
# rows encoded at a time: enough to be fast, few enough that their encodings do not pile up
BLOCK = 1024


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizers.Tokenizer with what its model folder says about it; load_tokenizer makes one."""

    backend: tokenizers.Tokenizer
    folder: str
    eos_id: int  # ends every finished answer
    eos_ids: frozenset[int]  # each of which ends a generation
    bos_id: int | None  # None where the tokenizer itself adds none
    pad_id: int  # may equal eos_id: masks go by position
    chat_template: ChatTemplate
    model_max_length: int | None

    @cached_property
    def vocab_size(self) -> int:
        """Largest id + 1."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special_text(self) -> re.Pattern:
        """Finds a special token spelled in a text."""
        special = [t.content for t in self.backend.get_added_tokens_decoder().values() if t.special]
        return re.compile("|".join(map(re.escape, special)) or "(?!)")

    def encode(self, text: str) -> list[int]:
        """Ids of the text with nothing added around it. A special token spelled in it becomes that token."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """The messages through the chat template. Raises UserError naming it when it refuses them."""
        return self.chat_template.render(messages, add_generation_prompt)

    def form(self, template: str) -> Form:
        """How rows become text under --data.template."""
        return Form(template, self.chat_template, [self.backend.id_to_token(i) for i in sorted(self.eos_ids)])

    def with_bos(self, ids: list[int]) -> list[int]:
        """Prompt ids with their one BOS; a template may have written it."""
        return ids if self.bos_id is None or ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def with_eos(self, ids: list[int]) -> list[int]:
        """Answer ids up to the EOS their template closed the turn with, else with an EOS put behind them."""
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
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    # the library raises a plain Exception, whatever is wrong with the file
    except Exception as error:
        raise UserError(f"{path}: not a readable tokenizer ({error})") from None
    # a saved file may carry either, and would go on applying it in silence
    backend.no_truncation()
    backend.no_padding()
    config, special, listed = folder_settings(folder)
    ids = {key: backend.token_to_id(special[key]) for key in special}
    for key in ("bos_token", "eos_token", "pad_token"):
        if key in ids and ids[key] is None:
            raise UserError(f"{folder}/tokenizer_config.json: {key} {special[key]} is not in tokenizer.json")
    known = set(backend.get_vocab(with_added_tokens=True).values())
    listed = [i for i in listed if i in known]
    eos_id = ids.get("eos_token", listed[0] if listed else None)
    if eos_id is None:
        raise UserError(f"{folder}: tokenizer_config.json names no eos_token, config.json no eos_token_id; add one")
    first = backend.encode("", add_special_tokens=True).ids[:1]
    bos_id = ids.get("bos_token", first[0] if first and first[0] != eos_id else None)
    adds_bos = bos_id is not None and config.get("add_bos_token", first == [bos_id])
    special["eos_token"] = backend.id_to_token(eos_id)
    if bos_id is not None:
        special["bos_token"] = backend.id_to_token(bos_id)
    max_length = config.get("model_max_length")
    return Tokenizer(
        backend=backend,
        folder=str(folder),
        eos_id=eos_id,
        eos_ids=frozenset([eos_id, *listed]),
        bos_id=bos_id if adds_bos else None,
        pad_id=ids.get("pad_token", eos_id),
        chat_template=folder_template(folder, config.get("chat_template"), special),
        # published files write 1e30 for "no limit"
        model_max_length=int(max_length) if isinstance(max_length, int | float) and max_length < 1e9 else None,
    )


def check_fits(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Raise UserError unless the model in where, with vocab_size embeddings, has one for every id of the tokenizer."""
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{tokenizer.folder}: the tokenizer's ids go up to {tokenizer.vocab_size - 1}, but the model in {where} "
            f"has vocab_size {vocab_size}; use the tokenizer that belongs to the model"
        )


@dataclass(frozen=True)
class Group:
    """A prompt and its K answers as ids. index is its position among the kept rows."""

    prompt_ids: list[int]
    response_ids: list[list[int]]  # K
    index: int
    scores: list[float] | None = None  # K
    label: bool | None = None
    where: str = ""

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        return len(self.prompt_ids) + max(map(len, self.response_ids))

    @property
    def n_tokens(self) -> int:
        """Tokens of all its rows, padding left out."""
        return len(self.response_ids) * len(self.prompt_ids) + sum(map(len, self.response_ids))


@dataclass(frozen=True)
class Report:
    """What became of a preference file's rows, for people to read: str(report)."""

    n_read: int
    n_kept: int
    dropped: Counter  # reason -> rows
    prompts_truncated: int
    answers_truncated: int
    spelled_special: int  # rows whose own text spells a special token
    lengths: dict[str, list[int]]  # in tokens, of every prompt, answer and both together
    template: str

    def __str__(self) -> str:
        dropped = describe(self.dropped) if self.dropped else "0 dropped"
        lines = [f"rows: {self.n_read} read, {self.n_kept} kept, {dropped}", f"template: {self.template}"]
        for name, lengths in self.lengths.items():
            p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
            lines.append(f"{name} tokens: p50 {p50}, p95 {p95}, max {max(lengths)}")
        lines.append(f"truncated: {self.prompts_truncated} prompts, {self.answers_truncated} answers")
        if self.spelled_special:
            lines.append(f"special tokens spelled in the text of {self.spelled_special} rows, and read as those tokens")
        return "\n".join(lines)


def encode_prompts(
    prompts: Sequence[str | list[dict]], tokenizer: Tokenizer, template: str = "auto"
) -> list[list[int]]:
    """Ids to generate from: for each prompt, what training puts before its answers."""
    form = tokenizer.form(template)
    return [tokenizer.with_bos(ids) for ids in tokenizer.encode_batch([form.prompt(prompt) for prompt in prompts])]


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    template: str = "auto",
    max_length: int = 1024,
    overlong: str = "drop",
    bad_rows: str = "auto",
    dropped: Counter | None = None,
) -> tuple[list[Group], Report]:
    """Rows as ids, no prompt + answer longer than max_length, and a report on what was dropped and cut.

    A prompt too long beside its longest answer is cut once for its whole group, from the left, keeping its BOS. It
    keeps MIN_PROMPT tokens at least, or all of a shorter one. Where an answer leaves less room than that, overlong
    decides: "drop" the row and count it, "error", or "truncate" the end of the answer, which then gets no EOS.
    bad_rows and dropped are those of read_rows: some rows only turn out bad as ids, and the report counts all drops.
    Raises UserError naming the row or the flag, and when no row is left.
    """
    if overlong not in OVERLONG:
        raise UserError(f"--data.overlong {overlong}: must be one of {', '.join(OVERLONG)}")
    if max_length <= MIN_PROMPT:
        raise UserError(f"--data.max_length {max_length}: must be more than {MIN_PROMPT}")
    form, groups, dropped = tokenizer.form(template), [], Counter(dropped)
    n_read = len(rows) + dropped.total()
    prompts_truncated = answers_truncated = spelled_special = 0
    for start in range(0, len(rows), BLOCK):
        for row, prompt, answers in _encode(rows[start : start + BLOCK], form, tokenizer, bad_rows, dropped):
            kept_prompt, kept = _fit(prompt, answers, max_length, overlong, row.where, tokenizer.bos_id)
            if not kept:
                dropped["answer too long for max_length"] += 1
            elif len(kept) > 1 and all(answer == kept[0] for answer in kept):
                dropped["equal answers once truncated"] += 1
            else:
                groups.append(Group(kept_prompt, kept, len(groups), row.scores, row.label, row.where))
                prompts_truncated += len(kept_prompt) < len(prompt)
                answers_truncated += sum(len(k) < len(a) for k, a in zip(kept, answers, strict=True))
                spelled_special += any(map(tokenizer.special_text.search, _own_texts(row)))
    if not groups:
        raise UserError(f"no row is left to train on: {n_read} read, {describe(dropped)}")
    lengths = {
        "prompt": [len(g.prompt_ids) for g in groups],
        "answer": [len(r) for g in groups for r in g.response_ids],
        "prompt + answer": [len(g.prompt_ids) + len(r) for g in groups for r in g.response_ids],
    }
    counts = (prompts_truncated, answers_truncated, spelled_special)
    return groups, Report(n_read, len(groups), dropped, *counts, lengths, str(form))


def _encode(
    rows: Sequence[Row], form: Form, tokenizer: Tokenizer, bad_rows: str, dropped: Counter
) -> Iterator[tuple[Row, list[int], list[list[int]]]]:
    """(row, prompt ids, K lists of answer ids) of the rows that are good; counts those it drops."""
    good, texts = [], []
    for row in rows:
        try:
            prompt, answers = form.texts(row)
        except BadRow as problem:
            count_or_raise(problem, row.where, bad_rows, dropped)
            continue
        good.append(row)
        texts += [prompt, *answers]
    ids = iter(tokenizer.encode_batch(texts))
    for row in good:
        prompt = tokenizer.with_bos(next(ids))
        answers = [tokenizer.with_eos(next(ids)) for _ in row.responses]
        # a vocabulary may lack some bytes, and a text vanish or its difference from another
        if not prompt or min(map(len, answers)) < 2:
            problem = BadRow("no tokens", "the tokenizer has no token for the prompt, or none for an answer")
        elif len(answers) > 1 and all(answer == answers[0] for answer in answers):
            problem = BadRow("equal answers", "the answers are equal as tokens")
        else:
            yield row, prompt, answers
            continue
        count_or_raise(problem, row.where, bad_rows, dropped)


def _fit(
    prompt: list[int], answers: list[list[int]], max_length: int, overlong: str, where: str, bos_id: int | None
) -> tuple[list[int], list[list[int]]]:
    """The group cut to max_length; no answers where it is to be dropped."""
    room = max_length - max(map(len, answers))
    least = min(len(prompt), MIN_PROMPT)
    if room < least and overlong == "drop":
        return prompt, []
    if room < least and overlong == "error":
        raise UserError(
            f"{where}: an answer of {max(map(len, answers))} tokens leaves no room for its prompt in --data.max_length "
            f"{max_length}; raise it, or set --data.overlong drop or truncate"
        )
    room = max(room, least)
    if len(prompt) > room:
        # the last turns are what the answer answers
        prompt = [bos_id, *prompt[1 - room :]] if prompt[0] == bos_id else prompt[-room:]
    return prompt, [answer[: max_length - room] for answer in answers]


def _own_texts(row: Row) -> list[str]:
    prompt = [row.prompt] if isinstance(row.prompt, str) else [message["content"] for message in row.prompt]
    return prompt + row.responses


def fingerprint(groups: Sequence[Group]) -> str:
    """A hash of which ids each index has, in hex: the reference cache's key."""
    digest = hashlib.sha256()
    for g in groups:
        counts = [g.index, len(g.prompt_ids), len(g.response_ids), *map(len, g.response_ids)]
        flat = [*counts, *g.prompt_ids, *(i for ids in g.response_ids for i in ids)]
        digest.update(np.array(flat, dtype="<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Batch:
    """N prompts with K answers each. Rows are prompt-major, group 0's answers first, and padded on the right.

    Groups after the first n are fillers that keep ranks in step: they run through the model and count for nothing.
    """

    ids: torch.Tensor  # (N*K, T) int64
    mask: torch.Tensor  # (N*K, T) bool, true where the token is the answer's, its EOS included
    n: int
    K: int
    index: torch.Tensor  # (N,) int64
    scores: torch.Tensor | None  # (N, K) float32
    labels: torch.Tensor | None  # (N,) bool

    @property
    def n_tok(self) -> torch.Tensor:
        """Answer tokens of every answer. # (N, K) int64"""
        return self.mask.sum(dim=1).view(-1, self.K)

    def to(self, device: torch.device | str) -> "Batch":
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **tensors)


def collate(groups: Sequence[Group], pad_id: int, n_real: int | None = None) -> Batch:
    """Groups with one K as a Batch, of which the first n_real are real (all, if not given)."""
    K = len(groups[0].response_ids)
    rows = [(len(g.prompt_ids), g.prompt_ids + response) for g in groups for response in g.response_ids]
    T = max(len(ids) for _, ids in rows)
    ids = torch.full((len(rows), T), pad_id, dtype=torch.int64)  # (N*K, T)
    mask = torch.zeros((len(rows), T), dtype=torch.bool)  # (N*K, T)
    for row, (start, row_ids) in enumerate(rows):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        mask[row, start : len(row_ids)] = True
    return Batch(
        ids=ids,
        mask=mask,
        n=len(groups) if n_real is None else n_real,
        K=K,
        index=torch.tensor([g.index for g in groups]),
        scores=None if groups[0].scores is None else torch.tensor([g.scores for g in groups], dtype=torch.float32),
        labels=None if groups[0].label is None else torch.tensor([g.label for g in groups]),
    )
