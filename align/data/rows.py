"""Preference files in, checked rows out.

A file holds rows of one format (docs/data.md shows each):

    {"prompt", "chosen", "rejected"}                strings, or chat messages [{"role", "content"}, ...]
    {"chosen", "rejected"}                          whole dialogues; the prompt is what they share
    {"prompt", "responses": [...], "scores": [...]} K >= 2 responses with rewards, put best first
    {"prompt", "completion", "label": true|false}   unpaired; without any label: demonstrations

A row that cannot be trained on is never silently repaired: it is an error that names its line, or a counted drop.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.errors import UserError, one_line
from align.files import BrokenRow, kind_of, read_records

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SPEAKERS = {"user": HUMAN, "assistant": ASSISTANT}
ROLES = ("system", "developer", "user", "assistant", "tool")
BAD_ROWS = ("auto", "error", "drop")
KINDS = (".jsonl", ".json", ".parquet")
FORMATS = (
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
    """One prompt with its K responses, response 0 the preferred one. extra holds the file's other keys.

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
        return UserError(
            f"{where}: {one_line(self)}; fix the row, or skip and count such rows with --data.bad_rows drop"
        )


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
    rows: list[Row] = []
    bad: list[tuple[str, BadRow]] = []
    first = None
    for where, record in _records(Path(path)):
        try:
            row_format, row = _parse(record, where)
            first = first or row_format
            if row_format != first:
                raise BadRow("another format", f"this row is {row_format} where the file's first is {first}")
            rows.append(row)
        except BadRow as problem:
            if bad_rows == "error" or (bad_rows == "auto" and problem.reason != EMPTY_TURN):
                raise problem.error(where) from None
            bad.append((where, problem))
    if bad_rows == "auto" and len(bad) > TOLERATED * (len(rows) + len(bad)):
        where, first_problem = bad[0]
        raise first_problem.error(where)
    dropped = Counter(problem.reason for _, problem in bad)
    if not rows:
        raise UserError(f"{path}: no usable row" + (f", {describe(dropped)}" if dropped else ": the file is empty"))
    return rows, dropped


def describe(dropped: Counter) -> str:
    """'4 dropped (3 empty response, 1 broken JSON)'."""
    return f"{dropped.total()} dropped ({', '.join(f'{n} {reason}' for reason, n in dropped.most_common())})"


def _records(path: Path) -> Iterator[tuple[str, object]]:
    """(where, record) of each row of the file. Raises UserError."""
    if kind_of(path) not in KINDS:
        raise UserError(f"{path}: preference data is .jsonl, .jsonl.gz, .json or .parquet")
    if not path.is_file():
        raise UserError(f"{path}: no such file; --data takes a preference file")
    return read_records(path)


def _parse(record: object, where: str) -> tuple[str, Row]:
    """The row's format, in words, and the row. Raises BadRow."""
    if isinstance(record, BrokenRow):
        raise BadRow("broken JSON", record.problem)
    if not isinstance(record, dict):
        raise BadRow("not an object", f"a row must be a JSON object, this is a {type(record).__name__}")
    # tables write an absent field as null
    has = [key for key, value in record.items() if value is not None]
    used = next((keys for keys in FORMATS if set(keys) <= set(has)), None)
    if used is None:
        possible = ", or ".join(" + ".join(keys) for keys in FORMATS)
        raise BadRow("missing fields", f"has the keys {', '.join(has) or '(none)'}, but a row needs {possible}")
    scores = label = None
    if "chosen" in used:
        prompt, responses = _paired(record.get("prompt"), record["chosen"], record["rejected"])
    elif "responses" in used:
        prompt = _prompt(record["prompt"])
        responses, scores = _scored(record["responses"], record["scores"])
    else:
        prompt, label = _prompt(record["prompt"]), record.get("label")
        responses = [_response(record["completion"], "completion")]
        if label is not None and not isinstance(label, bool):
            raise BadRow("wrong type", f"label must be true or false, not {label!r}")
    if is_dialogue(prompt) and any(HUMAN in response for response in responses):
        raise BadRow("no single response", "a response goes on with another Human turn")
    if len(responses) > 1 and len({response.strip() for response in responses}) == 1:
        raise BadRow("equal responses", "chosen equals rejected" if "chosen" in used else "all responses are equal")
    extra = {key: record[key] for key in has if key not in used}
    return f"{' + '.join(used)} with K = {len(responses)}", Row(prompt, responses, scores, label, extra, where)


def _paired(prompt: Any, chosen: Any, rejected: Any) -> tuple[str | list[dict], list[str]]:
    if type(chosen) is not type(rejected):
        raise BadRow("wrong type", f"chosen is a {type(chosen).__name__}, rejected a {type(rejected).__name__}")
    if _is_whole(chosen) and _is_whole(rejected):
        if isinstance(chosen, list):
            return _split(chosen, rejected, "empty response")
        shared, responses = _split(dialogue_turns(chosen), dialogue_turns(rejected), EMPTY_TURN)
        return _prompt("".join(SPEAKERS[turn["role"]] + turn["content"] for turn in shared) + ASSISTANT), responses
    responses = [_response(chosen, "chosen"), _response(rejected, "rejected")]
    if prompt is None:
        two = r"whole dialogues: messages, or text such as \n\nHuman: ...\n\nAssistant: ..."
        raise BadRow("missing fields", f"without a prompt, chosen and rejected must be two {two}")
    return _prompt(prompt), responses


def _is_whole(value: object) -> bool:
    """Is this a whole dialogue, its prompt included, rather than a response?"""
    if isinstance(value, str):
        return _opens_with_human(_text(value, "chosen/rejected"))
    return isinstance(value, list) and bool(value) and _messages(value, "chosen/rejected")[0]["role"] != "assistant"


def _split(chosen: list[dict], rejected: list[dict], if_empty: str) -> tuple[Any, list[str]]:
    """The turns that two dialogues share, and the response of each: its last assistant turn.

    The cut is by turns, not where the texts part: "yes" and "yes, but" share more than a prompt.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    # one dialogue may be the beginning of the other, or both may respond alike
    while shared and chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    if not shared:
        raise BadRow("no shared prompt", "chosen and rejected share no beginning that ends before an assistant turn")
    responses = []
    for name, dialogue in (("chosen", chosen), ("rejected", rejected)):
        if dialogue[-1]["role"] != "assistant":
            raise BadRow("no last response", f"the {name} dialogue does not end with an assistant turn")
        if not "".join(message["content"] for message in dialogue[shared:]).strip():
            raise BadRow(if_empty, f"the {name} dialogue ends with an empty turn, an empty response")
        responses.append(_response(dialogue[shared:], name))
    return _prompt(chosen[:shared]), responses


def _scored(responses: object, scores: object) -> tuple[list[str], list[float]]:
    """Texts and scores, best first; ties keep the file's order."""
    if not isinstance(responses, list) or not isinstance(scores, list):
        raise BadRow("wrong type", "responses and scores must be lists")
    if len(responses) < 2 or len(scores) != len(responses):
        raise BadRow("wrong number", f"{len(responses)} responses and {len(scores)} scores: both must be K >= 2")
    for score in scores:
        # NaN, infinity and what float32 cannot hold all fail the comparison
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 3e38:
            raise BadRow("bad score", f"a score must be a finite number, not {score!r}")
    texts = [_response(response, f"responses[{k}]") for k, response in enumerate(responses)]
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    return [texts[k] for k in order], [float(scores[k]) for k in order]


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


def _prompt(value: Any) -> str | list[dict]:
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


def _response(value: Any, name: str) -> str:
    """A response's text, from text or from the assistant message(s) it is written as."""
    if isinstance(value, list):
        if any(message["role"] != "assistant" for message in _messages(value, name)):
            raise BadRow("no single response", f"{name} must be one assistant turn after the prompt")
        value = "\n\n".join(message["content"] for message in value)
    if not _text(value, name).strip():
        raise BadRow("empty response", f"{name} is an empty response")
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
