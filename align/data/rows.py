"""Preference files in, checked rows out.

A file holds rows of one format (docs/data.md shows each):

    {"prompt", "chosen", "rejected"}                strings, or chat messages [{"role", "content"}, ...]
    {"chosen", "rejected"}                          whole dialogues or texts; the prompt is what they share
    {"prompt", "responses": [...], "scores": [...]} K >= 2 responses with rewards, put best first
    {"prompt", "completion", "label": true|false}   unpaired; without any label: demonstrations
    {"messages"} or {"text"}                        demonstrations: a dialogue and its last response, or a text

A row that cannot be trained on is never silently repaired: it is an error that names its line, or a counted drop.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.data.formats import EMPTY_TURN, parse
from align.data.messages import BadRow
from align.errors import UserError
from align.files import BrokenRow, kind_of, loads, local_file, read_records

BAD_ROWS = ("auto", "error", "drop")
KINDS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
TOLERATED = 0.01


@dataclass(frozen=True)
class Row:
    """One prompt with its K responses, response 0 the preferred one. extra holds the file's other keys.

    The prompt ends before an assistant turn: chat messages, a Human/Assistant dialogue (is_dialogue), or plain text; or
    with the beginning of the response (is_begun), which the responses go on from. A response is its text, or the
    assistant message that says more than one: tool_calls, reasoning_content.
    """

    prompt: str | list[dict]
    responses: list[str | dict]  # K
    scores: list[float] | None = None  # K, descending
    label: bool | None = None  # K = 1 only: desirable or not
    extra: dict = field(default_factory=dict)
    where: str = ""  # "file.jsonl:12"
    system: str = ""  # of a prompt that is text; one of messages holds it
    tools: list[dict] | None = None  # schemas of the functions that the model may call


def count_or_raise(problem: BadRow, where: str, bad_rows: str, dropped: Counter) -> None:
    """Count a bad row among the dropped; raise its UserError unless bad_rows is "drop"."""
    if bad_rows != "drop":
        raise problem.error(where) from None
    dropped[problem.reason] += 1


def read_rows(path: str | Path, bad_rows: str = "auto") -> tuple[list[Row], Counter]:
    """Read and check every row of a .jsonl, .json, .csv, .tsv or .parquet file (.gz too), or of hf://OWNER/NAME[:FILE].

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
    path = local_file(path)
    for where, record in _records(path):
        try:
            row_format, fields = parse(record)
            first = first or row_format
            if row_format != first:
                raise BadRow("another format", f"this row is {row_format} where the file's first is {first}")
            rows.append(Row(**fields, where=where))
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
        raise UserError(f"{path}: preference data is .jsonl, .jsonl.gz, .json, .csv, .tsv or .parquet")
    if not path.is_file():
        raise UserError(f"{path}: no such file; --data takes a preference file, or hf://OWNER/NAME[:FILE]")
    if kind_of(path) not in (".csv", ".tsv"):
        return read_records(path)
    return ((where, _from_cells(record)) for where, record in read_records(path))


def _from_cells(record: dict) -> dict | BrokenRow:
    """A row of a table of texts: an empty cell is absent, a list is written as JSON, a label as true or 1."""
    values: dict[str, Any] = {key: cell for key, cell in record.items() if cell}
    for key, cell in values.items():
        text = cell.strip()
        if key == "label" and text.lower() in ("true", "false", "0", "1"):
            values[key] = text.lower() in ("true", "1")
        elif key in ("responses", "scores", "tools"):
            try:
                values[key] = loads(text)
            except ValueError:
                return BrokenRow(f"{key}: in a table a list must be written as JSON")
    return values
