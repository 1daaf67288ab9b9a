"""From checked rows to token ids, and from prompts to the ids that a model continues.

Through a chat template a prompt's ids are those that a server sends for the same messages, its BOS as the template
writes it, and prompt + response those of the whole dialogue. A prompt of plain text starts with one BOS where the
tokenizer adds one, and its response is encoded apart. A response ends with one EOS, unless it was cut.
"""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast, overload

import numpy as np
from tqdm import tqdm

from align.data.formatter import PromptFormatter
from align.data.messages import BadRow, content_of
from align.data.rows import Row, count_or_raise, describe
from align.data.tokenizer import Tokenizer
from align.errors import UserError, one_line

OVERLONG = ("drop", "error", "truncate")
# what a truncated prompt keeps at least, or all of a shorter one
MIN_PROMPT = 8
# rows encoded at a time: enough to be fast, few enough that their encodings do not pile up
BLOCK = 1024
_NUMBER = re.compile(r"(?:[1-9]\d{0,8})?\Z", re.ASCII)  # at the end of "file.jsonl:12"


class TokenIds:
    """A dataclass field of token ids, or of lists of them: arrays within, lists to whoever reads it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, group: Any, owner: type) -> list:
        if group is None:
            raise AttributeError(self.name)  # which tells dataclass that the field has no default
        packed = group.__dict__[self.name]
        return packed.tolist() if isinstance(packed, np.ndarray) else [ids.tolist() for ids in packed]

    def __set__(self, group: Any, ids: Sequence) -> None:
        nested = len(ids) > 0 and isinstance(ids[0], list | np.ndarray)
        packed = [np.asarray(one, dtype=np.int32) for one in ids] if nested else np.asarray(ids, dtype=np.int32)
        group.__dict__[self.name] = packed


@dataclass(frozen=True)
class Group:
    """A prompt and its K responses as ids. index is its position among the kept rows."""

    prompt_ids: list[int] = TokenIds()  # type: ignore[assignment]
    response_ids: list[list[int]] = TokenIds()  # type: ignore[assignment]  # K
    index: int  # type: ignore[misc]
    scores: list[float] | None = None  # K
    label: bool | None = None
    where: str = ""  # of its row

    # lengths are asked for in every step, and need no list of the ids

    @property
    def prompt_length(self) -> int:
        return len(self.__dict__["prompt_ids"])

    @property
    def response_lengths(self) -> list[int]:  # K
        return [len(ids) for ids in self.__dict__["response_ids"]]

    @property
    def length(self) -> int:
        """Tokens of its longest row."""
        return self.prompt_length + max(self.response_lengths)

    @property
    def n_tokens(self) -> int:
        """Tokens of all its rows, padding left out."""
        lengths = self.response_lengths
        return len(lengths) * self.prompt_length + sum(lengths)


class Groups(Sequence[Group]):
    """Groups that share one K, four bytes a token: all ids in one array, and a Group made when it is asked for.

    A group's index is its position here. All have scores or none has, and so with labels; ValueError otherwise.
    """

    def __init__(self, groups: Iterable[Group] = ()):
        self.K = 0
        self.ids, self.ends = array("i"), array("q", [0])  # each prompt and response begins where another ends
        self.scores, self.labels = array("d"), array("b")
        self.files: dict[str, int] = {}
        self.rows = array("i")  # (file, number) of each group
        self.extend(groups)

    def extend(self, groups: Iterable[Group]) -> None:
        """Append groups, while none of these is in anybody's hands."""
        for group in groups:
            self.add(group.prompt_ids, group.response_ids, group.scores, group.label, group.where)

    def add(
        self, prompt: list[int], responses: list[list[int]], scores: list[float] | None, label: bool | None, where: str
    ) -> None:
        """Append one."""
        self.K = self.K or len(responses)
        for ids in (prompt, *responses):
            self.ids.extend(ids)
            self.ends.append(len(self.ids))
        number = cast(re.Match, _NUMBER.search(where))
        self.rows.extend([self.files.setdefault(where[: number.start()], len(self.files)), int(number[0] or 0)])
        self.scores.extend(scores or ())
        self.labels.extend(() if label is None else (label,))
        n = len(self)
        if len(responses) != self.K or len(self.scores) not in (0, n * self.K) or len(self.labels) not in (0, n):
            raise ValueError(f"{where}: another number of responses, scores or labels than the groups before")

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every prompt and of its responses. # (N, 1 + K)"""
        return np.diff(np.array(self.ends)).reshape(len(self), -1)

    def __len__(self) -> int:
        return len(self.rows) // 2

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> list[Group]: ...
    def __getitem__(self, index: int | slice) -> Group | list[Group]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        i = range(len(self))[index]
        ids, first = np.frombuffer(self.ids, dtype=np.int32), i * (self.K + 1)
        prompt, *responses = (ids[a:b] for a, b in pairwise(self.ends[first : first + self.K + 2]))
        scores = self.scores[i * self.K : (i + 1) * self.K].tolist() if self.scores else None
        file, number = self.rows[2 * i : 2 * i + 2]
        where = f"{list(self.files)[file]}{number or ''}"
        return Group(prompt, responses, i, scores, bool(self.labels[i]) if self.labels else None, where)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Report:
    """What became of a preference file's rows, for people to read: str(report)."""

    n_read: int
    n_kept: int
    dropped: Counter  # reason -> rows
    prompts_truncated: int
    responses_truncated: int
    spelled_special: int  # rows whose text spells a special token
    lengths: dict[str, np.ndarray]  # in tokens, of every prompt, response and both together
    template: str
    forgetful: int = 0  # rows whose template leaves out the reasoning of earlier turns
    unread: tuple[str, ...] = ()  # columns that nothing was trained on

    def __str__(self) -> str:
        dropped = describe(self.dropped) if self.dropped else "0 dropped"
        lines = [f"rows: {self.n_read} read, {self.n_kept} kept, {dropped}", f"template: {self.template}"]
        for name, lengths in self.lengths.items():
            p50, p95 = np.percentile(lengths, [50, 95], method="inverted_cdf")
            lines.append(f"{name} tokens: p50 {p50}, p95 {p95}, max {max(lengths)}")
        lines.append(f"truncated: {self.prompts_truncated} prompts, {self.responses_truncated} responses")
        if self.spelled_special:
            lines.append(f"special tokens spelled in the text of {self.spelled_special} rows, and read as those tokens")
        if self.forgetful:
            lines.append(f"reasoning of earlier turns, which the template leaves out: in {self.forgetful} rows")
        if self.unread:
            lines.append(f"columns not trained on: {', '.join(self.unread)}")
        return "\n".join(lines)


def encode_prompts(
    prompts: Sequence[str | list[dict]], tokenizer: Tokenizer, template: str = "auto"
) -> list[list[int]]:
    """Ids to generate from: for each prompt, what training puts before its responses."""
    formatter = tokenizer.formatter(template)
    ids = tokenizer.encode_batch([formatter.prompt(prompt) for prompt in prompts])
    plain = [formatter.messages(prompt) is None for prompt in prompts]
    return [tokenizer.with_bos(p) if is_plain else p for p, is_plain in zip(ids, plain, strict=True)]


def encode_rows(
    rows: Sequence[Row],
    tokenizer: Tokenizer,
    template: str = "auto",
    max_length: int = 1024,
    overlong: str = "drop",
    bad_rows: str = "auto",
    dropped: Counter | None = None,
    progress: bool = False,
) -> tuple[Groups, Report]:
    """Rows as ids, no prompt + response longer than max_length, and a report on what was dropped and cut.

    A prompt that is too long with its longest response is cut once for its whole group, from the left, keeping its BOS. It
    keeps MIN_PROMPT tokens at least, or all of a shorter one. Where a response leaves less room than that, overlong
    decides: "drop" the row and count it, "error", or "truncate" the end of the response, which then gets no EOS.
    bad_rows and dropped are those of read_rows: some rows only turn out bad as ids, and the report counts all drops.
    progress: show how far it is, once it has taken two seconds.
    Raises UserError naming the row or the flag, and when no row is left.
    """
    if overlong not in OVERLONG:
        raise UserError(f"--data.overlong {overlong}: must be one of {', '.join(OVERLONG)}")
    if max_length <= MIN_PROMPT:
        raise UserError(f"--data.max_length {max_length}: must be more than {MIN_PROMPT}")
    formatter, dropped = tokenizer.formatter(template), Counter(dropped)
    groups = Groups()
    n_read = len(rows) + dropped.total()
    prompts_truncated = responses_truncated = spelled_special = 0
    bar = tqdm(total=len(rows), desc="encoding", unit="row", disable=not progress, delay=2, leave=False)
    for start in range(0, len(rows), BLOCK):
        bar.update(min(BLOCK, len(rows) - start))
        for row, prompt, responses in _encode(rows[start : start + BLOCK], formatter, tokenizer, bad_rows, dropped):
            kept_prompt, kept = _fit(prompt, responses, max_length, overlong, row.where, tokenizer.bos_token_id)
            if not kept:
                dropped["response too long for max_length"] += 1
            elif len(kept) > 1 and all(response == kept[0] for response in kept):
                dropped["equal responses once truncated"] += 1
            else:
                groups.add(kept_prompt, kept, row.scores, row.label, row.where)
                prompts_truncated += len(kept_prompt) < len(prompt)
                responses_truncated += sum(len(k) < len(r) for k, r in zip(kept, responses, strict=True))
                spelled_special += any(map(tokenizer.special_text.search, _texts(row)))
    bar.close()
    if not groups:
        raise UserError(f"no row is left to train on: {n_read} read, {describe(dropped)}")
    asked, said = groups.lengths[:, :1], groups.lengths[:, 1:]
    lengths = {"prompt": asked.ravel(), "response": said.ravel(), "prompt + response": (asked + said).ravel()}
    counts = (prompts_truncated, responses_truncated, spelled_special)
    unread = tuple(dict.fromkeys(one_line(key) for row in rows for key in row.extra))
    return groups, Report(n_read, len(groups), dropped, *counts, lengths, str(formatter), formatter.forgetful, unread)


def _encode(
    rows: Sequence[Row], formatter: PromptFormatter, tokenizer: Tokenizer, bad_rows: str, dropped: Counter
) -> Iterator[tuple[Row, list[int], list[list[int]]]]:
    """(row, prompt ids, K lists of response ids) of the rows that are good; counts those it drops."""
    good, prompts = [], []
    for row in rows:
        try:
            prompt, responses = formatter.texts(row)
        except BadRow as problem:
            count_or_raise(problem, row.where, bad_rows, dropped)
            continue
        good.append((row, prompt, responses))
        prompts.append(prompt)
    for (row, prompt, responses), ids in zip(good, tokenizer.encode_batch(prompts), strict=True):
        if formatter.messages(row.prompt) is not None or tokenizer.adds_space:
            encoded = tokenizer.encode_after(prompt, ids, responses)
        else:
            encoded = tokenizer.encode_batch(responses)
        response_ids = [tokenizer.with_eos(response) for response in encoded]
        prompt_ids = ids if formatter.messages(row.prompt) is not None else tokenizer.with_bos(ids)
        if not prompt:
            prompt_ids = prompt_ids or [tokenizer.eos_id]  # what precedes a text in training
        # a vocabulary may lack some bytes, so that a text, or what two texts differ in, vanishes
        if not prompt_ids or min(map(len, response_ids)) < 2:
            bad = BadRow("no tokens", "the tokenizer has no token for the prompt, or none for a response")
        elif len(response_ids) > 1 and all(response == response_ids[0] for response in response_ids):
            bad = BadRow("equal responses", "the responses are equal as tokens")
        else:
            yield row, prompt_ids, response_ids
            continue
        count_or_raise(bad, row.where, bad_rows, dropped)


def _fit(
    prompt: list[int], responses: list[list[int]], max_length: int, overlong: str, where: str, bos_id: int | None
) -> tuple[list[int], list[list[int]]]:
    """The group cut to max_length; no responses where it is to be dropped."""
    room = max_length - max(map(len, responses))
    least = min(len(prompt), MIN_PROMPT)
    if room < least and overlong == "drop":
        return prompt, []
    if room < least and overlong == "error":
        raise UserError(
            f"{where}: a response of {max(map(len, responses))} tokens leaves no room for its prompt in --data.max_length "
            f"{max_length}; raise it, or set --data.overlong drop or truncate"
        )
    room = max(room, least)
    if len(prompt) > room:
        # the last turns are those that a response replies to
        prompt = [bos_id, *prompt[1 - room :]] if prompt[0] == bos_id else prompt[-room:]
    return prompt, [response[: max_length - room] for response in responses]


def _texts(row: Row) -> list[str]:
    prompt = [row.prompt] if isinstance(row.prompt, str) else [message["content"] for message in row.prompt]
    return prompt + [content_of(response) for response in row.responses]


def fingerprint(groups: Sequence[Group]) -> str:
    """A hash of which ids each index has, in hex: the reference cache's key."""
    digest = hashlib.sha256()
    for g in groups:
        counts = [g.index, len(g.prompt_ids), len(g.response_ids), *map(len, g.response_ids)]
        flat = [*counts, *g.prompt_ids, *(i for ids in g.response_ids for i in ids)]
        digest.update(np.array(flat, dtype="<i8").tobytes())
    return digest.hexdigest()
