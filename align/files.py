"""Reading rows and settings from many kinds of file, and writing files that are never left half-written."""

import csv
import gzip
import json
import math
import re
import tomllib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from align.errors import UserError, one_line


@dataclass(frozen=True)
class BrokenRow:
    """Stands for a line that is not JSON. The caller decides whether to stop there."""

    problem: str


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, the one before .gz where there is one."""
    return Path(path.name.removesuffix(".gz")).suffix


def open_text(path: Path, newline: str | None = None) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)


def read_records(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """(where, row) of every row of a file whose kind is in READERS; where is "file:line" or "file, row n".

    A row is what its JSON holds, or a BrokenRow. A .json file holds one list, or an object a line as .jsonl does; a .txt
    file has a prompt a line. columns names those of a .csv or .tsv file that has no header.
    Raises UserError naming the file and the row.
    """
    try:
        yield from READERS[kind_of(path)](path, columns)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg}, column {error.colno})") from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read to its end ({one_line(error)})") from None


def _jsonl(path: Path, columns: Sequence[str], hint: str = "") -> Iterator[tuple[str, Any]]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line.rstrip("\n"))
                except (ValueError, RecursionError) as error:
                    row = BrokenRow(f"broken JSON ({str(error).replace('line 1 ', '')}){hint}")
                yield f"{path}:{number}", row


def _json(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    with open_text(path) as file:
        if re.match(r"\s*\[", file.read(4096)):
            file.seek(0)
            for number, row in enumerate(json.load(file), start=1):
                yield f"{path}, row {number}", row
            return
    yield from _jsonl(path, columns, "; a .json file holds a list of rows, or one object a line")


def _table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    # csv wants the line ends as they are: a quoted field may hold some
    with open_text(path, newline="") as file:
        lines = csv.reader(file, delimiter="\t" if kind_of(path) == ".tsv" else ",", strict=True)
        header, where = list(columns), f"{path}:1"
        try:
            for fields in lines:
                if header and fields:
                    if len(fields) != len(header):
                        raise UserError(f"{where}: {len(fields)} fields, but there are {len(header)} columns")
                    yield where, dict(zip(header, fields, strict=True))
                header = header or fields
                where = f"{path}:{lines.line_num + 1}"
        except csv.Error as error:
            raise UserError(f"{where}: not a row of a table ({error})") from None


def _lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", {"prompt": line.strip()}


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading .parquet needs pyarrow: pip install .[parquet]") from None
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable parquet file ({one_line(error)})") from None


READERS = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _lines,
    ".parquet": _parquet,
}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file of settings holds. Raises UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return value


def read_toml(path: Path, flag: str = "--config") -> dict[str, Any]:
    """The tables of a TOML file that the user named with this flag. Raises UserError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {flag} takes a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def to_toml(tables: dict[str, Any]) -> str:
    """Strings, numbers, booleans and lists of them, one level of tables: all that a configuration has.

    A key "module:Class.beta" is beta in the table named by all before its last dot.
    """

    def text(value: Any) -> str:
        # JSON's values are TOML's, except for infinities, escapes of letters beyond 16 bits, and a bare DEL
        if isinstance(value, float) and math.isinf(value):
            return str(value)
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    def key(name: str) -> str:
        table, _, last = name.rpartition(".")
        return f"{json.dumps(table)}.{last}" if ":" in table else name

    lines = [f"{name} = {text(value)}" for name, value in tables.items() if not isinstance(value, dict)]
    for section, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]", *(f"{key(name)} = {text(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to, renamed to `path` when the block succeeds: a file of that name is always whole."""
    part = path.with_name(f"{path.name}.part")
    yield part
    part.replace(path)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, value: object, **layout: Any) -> None:
    """layout: arguments of json.dumps; default: an indent of 2."""
    # half of a surrogate pair that a model wrote is kept as its escape, which is JSON too
    write_text(path, json.dumps(value, **{"indent": 2, **layout}) + "\n", errors="backslashreplace")
