"""Preference files in, checked rows out; and which rows each optimizer step trains on.

A file holds rows of one shape (docs/data.md shows each):

    {"prompt", "chosen", "rejected"}                strings, or chat messages [{"role", "content"}, ...]
    {"chosen", "rejected"}                          whole dialogues; the prompt is what they share
    {"prompt", "responses": [...], "scores": [...]} K >= 2 answers with rewards, put best first
    {"prompt", "completion", "label": true|false}   unpaired; without any label: demonstrations

A row that cannot be trained on is never repaired in silence: it is an error that names its line, or a counted drop.
"""

import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from align.errors import UserError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SPEAKERS = {"user": HUMAN, "assistant": ASSISTANT}
ROLES = ("system", "developer", "user", "assistant", "tool")
BAD_ROWS = ("auto", "error", "drop")
SHAPES = (
    ("prompt", "chosen", "rejected"),
    ("chosen", "rejected"),
    ("prompt", "responses", "scores"),
    ("prompt", "completion", "label"),
    ("prompt", "completion"),
)
# published dialogue sets end a few dialogues on "Assistant:" and nothing after it (4 of the 2,312 in HH harmless test)
EMPTY_TURN = "dialogue ends with an empty turn"
TOLERATED = 0.01


@dataclass(frozen=True)
class Row:
    """One prompt with its K answers, response 0 the preferred one. extra holds the file's other keys.

    The prompt ends before an assistant turn: chat messages, a Human/Assistant dialogue (is_dialogue), or plain text.
    """

    prompt: str | list[dict]
    responses: list[str]  # K
    scores: list[float] | None = None  # K, descending
    label: bool | None = None  # K = 1 only: desirable or not
    extra: dict = field(default_factory=dict)
    where: str = ""  # "file.jsonl:12"


class BadRow(Exception):
    """A row that cannot be trained on. reason is what drops are counted under; str(self) says what is wrong with it."""

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason = reason

    def error(self, where: str) -> UserError:
        problem = " ".join(str(self).split())
        return UserError(f"{where}: {problem}; mend the row, or skip and count such rows with --data.bad_rows drop")


def count_or_raise(problem: BadRow, where: str, bad_rows: str, dropped: Counter) -> None:
    """Count a bad row among the dropped; raise its UserError unless bad_rows is "drop"."""
    if bad_rows != "drop":
        raise problem.error(where) from None
    dropped[problem.reason] += 1


def read_rows(path: str | Path, bad_rows: str = "auto") -> tuple[list[Row], Counter]:
    """Read and check every row of a .jsonl, .json or .parquet file (.jsonl.gz and .json.gz too).

    Returns the rows, and how many were dropped for each reason. bad_rows says what a bad row does: "error" raises at
    the first; "drop" counts them; "auto" is "error", except that whole Human/Assistant dialogues which end with an
    empty turn are dropped and counted as long as they are at most one row in a hundred.
    Raises UserError naming the file and the line, and when no row is left.
    """
    if bad_rows not in BAD_ROWS:
        raise UserError(f"--data.bad_rows {bad_rows}: must be one of {', '.join(BAD_ROWS)}")
    rows, bad, shape = [], [], None
    for where, record in _records(Path(path)):
        try:
            row_shape, row = _parse(record, where)
            shape = shape or row_shape
            if row_shape != shape:
                raise BadRow("another shape", f"this row is {row_shape} where the file's first is {shape}")
            rows.append(row)
        except BadRow as problem:
            if bad_rows == "error" or (bad_rows == "auto" and problem.reason != EMPTY_TURN):
                raise problem.error(where) from None
            bad.append((where, problem))
    if bad_rows == "auto" and len(bad) > TOLERATED * (len(rows) + len(bad)):
        where, problem = bad[0]
        raise problem.error(where)
    dropped = Counter(problem.reason for _, problem in bad)
    if not rows:
        raise UserError(f"{path}: no usable row" + (f", {describe(dropped)}" if dropped else ": the file is empty"))
    return rows, dropped


def describe(dropped: Counter) -> str:
    """'4 dropped (3 empty answer, 1 broken JSON)'."""
    return f"{dropped.total()} dropped ({', '.join(f'{n} {reason}' for reason, n in dropped.most_common())})"


def _records(path: Path) -> Iterator[tuple[str, object]]:
    """(where, record) of each row of the file; a record is a line yet to be decoded where the file has one a line."""
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in (".jsonl", ".json", ".parquet"):
        raise UserError(f"{path}: preference data is .jsonl, .jsonl.gz, .json or .parquet")
    if not path.is_file():
        raise UserError(f"{path}: no such file; --data takes a preference file")
    try:
        if kind == ".parquet":
            yield from _parquet(path)
            return
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig") as file:
            if kind == ".json" and re.match(r"\s*\[", file.read(4096)):
                file.seek(0)
                for i, record in enumerate(json.load(file), start=1):
                    yield f"{path}, row {i}", record
                return
            # a .json file that does not hold one list holds one object a line
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", line
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg}, column {error.colno})") from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read to its end ({error})") from None


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading .parquet needs pyarrow: pip install .[parquet]") from None
    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for record in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", record
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({' '.join(str(error).split())})") from None


def _parse(record: object, where: str) -> tuple[str, Row]:
    """The row's shape, in words, and the row. Raises BadRow."""
    if isinstance(record, str):
        try:
            record = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise BadRow("broken JSON", f"broken JSON ({str(error).replace('line 1 ', '')})") from None
    if not isinstance(record, dict):
        raise BadRow("not an object", f"a row must be a JSON object, this is a {type(record).__name__}")
    # tables write an absent field as null
    has = [key for key, value in record.items() if value is not None]
    used = next((keys for keys in SHAPES if set(keys) <= set(has)), None)
    if used is None:
        possible = ", or ".join(" + ".join(keys) for keys in SHAPES)
        raise BadRow("missing fields", f"has the keys {', '.join(has) or '(none)'}, but a row needs {possible}")
    scores = label = None
    if "chosen" in used:
        prompt, answers = _paired(record.get("prompt"), record["chosen"], record["rejected"])
    elif "responses" in used:
        prompt = _prompt(record["prompt"])
        answers, scores = _scored(record["responses"], record["scores"])
    else:
        prompt, label = _prompt(record["prompt"]), record.get("label")
        answers = [_answer(record["completion"], "completion")]
        if label is not None and not isinstance(label, bool):
            raise BadRow("wrong type", f"label must be true or false, not {label!r}")
    if is_dialogue(prompt) and any(HUMAN in answer for answer in answers):
        raise BadRow("no single answer", "an answer goes on with another Human turn")
    if len(answers) > 1 and len({answer.strip() for answer in answers}) == 1:
        raise BadRow("equal answers", "chosen equals rejected" if "chosen" in used else "all responses are equal")
    extra = {key: record[key] for key in has if key not in used}
    shape = f"{' + '.join(used)} with K = {len(answers)}"
    return shape, Row(prompt, answers, scores, label, extra, where)


def _paired(prompt: object, chosen: object, rejected: object) -> tuple[str | list[dict], list[str]]:
    if type(chosen) is not type(rejected):
        raise BadRow("wrong type", f"chosen is a {type(chosen).__name__}, rejected a {type(rejected).__name__}")
    if _is_whole(chosen) and _is_whole(rejected):
        if isinstance(chosen, list):
            return _split(chosen, rejected, "empty answer")
        shared, answers = _split(dialogue_turns(chosen), dialogue_turns(rejected), EMPTY_TURN)
        return _prompt("".join(SPEAKERS[turn["role"]] + turn["content"] for turn in shared) + ASSISTANT), answers
    answers = [_answer(chosen, "chosen"), _answer(rejected, "rejected")]
    if prompt is None:
        two = r"whole dialogues: messages, or text such as \n\nHuman: ...\n\nAssistant: ..."
        raise BadRow("missing fields", f"without a prompt, chosen and rejected must be two {two}")
    return _prompt(prompt), answers


def _is_whole(value: object) -> bool:
    """Is this a whole dialogue, its prompt included, rather than an answer?"""
    if isinstance(value, str):
        return _opens_with_human(_text(value, "chosen/rejected"))
    return isinstance(value, list) and bool(value) and _messages(value, "chosen/rejected")[0]["role"] != "assistant"


def _split(chosen: list[dict], rejected: list[dict], if_empty: str) -> tuple[list[dict], list[str]]:
    """The turns two dialogues share, up to the assistant's last, and its answer in either.

    The cut is by turns, not where the texts part: "yes" and "yes, but" share more than a prompt.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    # one dialogue may be the beginning of the other, or both may answer alike
    while shared and chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    if not shared:
        raise BadRow("no shared prompt", "chosen and rejected share no beginning that ends before an assistant turn")
    answers = []
    for name, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if dialogue[-1]["role"] != "assistant":
            raise BadRow("no last answer", f"the {name} dialogue does not end with an assistant turn")
        if not "".join(message["content"] for message in dialogue[shared:]).strip():
            raise BadRow(if_empty, f"the {name} dialogue ends with an empty turn, an empty answer")
        answers.append(_answer(dialogue[shared:], name))
    return _prompt(chosen[:shared]), answers


def _scored(responses: object, scores: object) -> tuple[list[str], list[float]]:
    """Answers and scores, best first; ties keep the file's order."""
    if not isinstance(responses, list) or not isinstance(scores, list):
        raise BadRow("wrong type", "responses and scores must be lists")
    if len(responses) < 2 or len(scores) != len(responses):
        raise BadRow("wrong number", f"{len(responses)} responses and {len(scores)} scores: both must be K >= 2")
    for score in scores:
        # NaN, infinity and what float32 cannot hold all fail the comparison
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 3e38:
            raise BadRow("bad score", f"a score must be a finite number, not {score!r}")
    answers = [_answer(response, f"responses[{k}]") for k, response in enumerate(responses)]
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    return [answers[k] for k in order], [float(scores[k]) for k in order]


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow("wrong type", f"{name} must be text or chat messages, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow("broken Unicode", f"{name} holds half of a surrogate pair") from None
    return value


def _messages(value: list, name: str) -> list[dict]:
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise BadRow("bad messages", f'{name}: every message must be {{"role": ..., "content": ...}}')
        if message["role"] not in ROLES:
            raise BadRow("bad messages", f"{name}: role {message['role']!r} must be one of {', '.join(ROLES)}")
        _text(message["content"], f"{name}: a message's content")
    return value


def _prompt(value: object) -> str | list[dict]:
    if isinstance(value, list):
        if not value or not _messages(value, "prompt")[-1]["content"].strip():
            raise BadRow("empty prompt", "the prompt is empty")
        if value[-1]["role"] == "assistant":
            raise BadRow("bad messages", "the prompt must end before an assistant turn")
    elif not _text(value, "prompt").strip():
        raise BadRow("empty prompt", "the prompt is empty")
    elif is_dialogue(value) and not dialogue_turns(value)[-2]["content"].strip():
        raise BadRow("empty prompt", "the last Human turn is empty")
    return value


def _answer(value: object, name: str) -> str:
    """An answer's text, from text or from the assistant message(s) it is written as."""
    if isinstance(value, list):
        if any(message["role"] != "assistant" for message in _messages(value, name)):
            raise BadRow("no single answer", f"{name} must be one assistant turn after the prompt")
        value = "\n\n".join(message["content"] for message in value)
    if not _text(value, name).strip():
        raise BadRow("empty answer", f"{name} is an empty answer")
    return value


def _opens_with_human(text: str) -> bool:
    return text.lstrip().startswith("Human:") and ASSISTANT in text


def is_dialogue(prompt: object) -> bool:
    """Is this prompt Human/Assistant text, ending where the Assistant is to speak?"""
    return isinstance(prompt, str) and _opens_with_human(prompt) and prompt.rstrip().endswith(ASSISTANT)


def dialogue_turns(text: str) -> list[dict]:
    """The turns of Human/Assistant text as messages, their text untouched."""
    parts = re.split(r"(?:\A\s*|\n\n)(Human|Assistant):", text)[1:]
    roles = ("user" if speaker == "Human" else "assistant" for speaker in parts[::2])
    return [{"role": role, "content": content} for role, content in zip(roles, parts[1::2], strict=True)]


@lru_cache(maxsize=2)
def _permutation(n_rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n_rows)


def batch_indices(n_rows: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Rows of the global batch of a step (counted from 0): a pure function, so there is nothing to save or to restore.

    Step s takes positions s*B .. s*B+B-1 of an endless stream whose epoch e is a permutation of all rows drawn from
    (seed, e). Raises UserError when the batch is larger than the data.
    """
    if batch_size > n_rows:
        raise UserError(f"--train.batch_size {batch_size} is more than the {n_rows} prompts there are; lower it")
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [int(_permutation(n_rows, seed, p // n_rows)[p % n_rows]) for p in positions]


def split_batch(
    indices: Sequence[int], lengths: Sequence[int], rank: int, world_size: int, micro_batch_size: int
) -> list[tuple[list[int], int]]:
    """This rank's micro-batches of a global batch: (group indices, how many of them are real), each in turn.

    lengths[i] is the length of group i. Every rank gets equally many micro-batches, because collectives must match;
    one left without prompts holds a filler group and counts 0 real ones. Over all ranks each prompt comes once.
    Raises UserError when there are more ranks than prompts.
    """
    n = len(indices)
    if n < world_size:
        raise UserError(f"--train.batch_size {n} is less than a prompt for each of the {world_size} ranks; raise it")
    n_chunks = world_size * math.ceil(n / (world_size * micro_batch_size))
    # longest first: similar lengths run side by side, and a batch that does not fit in memory fails at once
    ordered = sorted(indices, key=lambda i: -lengths[i])
    sizes = [n // n_chunks + (c < n % n_chunks) for c in range(n_chunks)]
    starts = np.cumsum([0, *sizes])
    chunks = [(ordered[starts[c] : starts[c] + sizes[c]] or ordered[-1:], sizes[c]) for c in range(n_chunks)]
    return chunks[rank::world_size]
