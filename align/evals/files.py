"""Benchmark files as people download them: rows of .jsonl, .json, .csv, .tsv, .txt or .parquet, in one file or many."""

import json
import zlib
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from align.errors import UserError, one_line, shortened
from align.files import READERS, BrokenRow, is_unicode, kind_of, open_text, reachable, read_records


def locate(data_dir: str | Path, name: str, get: str = "") -> list[Path]:
    """The files that `name` means below data_dir: a file, all files of a folder, or those a pattern with * matches.

    get: a line that says where to download them, which the UserError for missing files shows.
    """
    path = reachable(Path(data_dir) / name)
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and kind_of(file) in READERS]
    elif "*" in name:
        found = glob(name, root_dir=data_dir, recursive=True)  # pathlib's takes no absolute pattern
        files = [file for file in (Path(data_dir) / one for one in found) if file.is_file()]
    else:
        files = [path] if path.is_file() else []
    if not files:
        hint = f" {get.rstrip('.')}." if get else ""
        raise UserError(f"{path}: no such file.{hint} --data DIR says in which folder {name} is looked for")
    return sorted(files)


def read_file(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, dict]]:
    """(where, row) of every row of a file; where is "file:line" or "file, row n".

    A .txt file has a prompt a line. columns names those of a .csv or .tsv file that has no header. Every row also has
    "file", the file's name without suffixes, unless it has that key itself. Raises UserError naming the file and the row.
    """
    kind, found = kind_of(path), False
    if kind not in READERS:
        raise UserError(f"{path}: benchmark data is {', '.join(READERS)}, or one of them with .gz")
    stem = path.name.removesuffix(".gz").removesuffix(kind)
    for where, row in read_records(path, columns):
        if isinstance(row, BrokenRow):
            raise UserError(f"{where}: {row.problem}")
        if not isinstance(row, dict):
            raise UserError(f"{where}: a row must be a JSON object, this is a {type(row).__name__}")
        if not is_unicode(json.dumps(row, ensure_ascii=False, default=str)):
            raise UserError(f"{where}: the row holds half of a surrogate pair")
        found = True
        yield where, {"file": stem, **row}
    if not found:
        raise UserError(f"{path}: the file has no rows")


def read_text(path: Path) -> str:
    """The whole of a text file, as UTF-8. Raises UserError."""
    try:
        with open_text(path) as file:
            text = file.read()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({one_line(error)})") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    return text


def text_of(row: dict, key: str, where: str) -> str:
    """A row's text under `key`. Raises UserError when it is missing, not text, or blank."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        kind = (
            "is missing" if value is None else "is empty" if value in ("", [], {}) else f"must be text, not {value!r}"
        )
        names = shortened(", ".join(str(k) for k in row if k != "file"))
        raise UserError(f"{where}: {key} {kind}; the row has {names}")
    if not is_unicode(value):
        raise UserError(f"{where}: {key} holds half of a surrogate pair")
    return value


def texts_of(row: dict, key: str, where: str) -> list[str]:
    """A row's list of two texts or more under `key`. Raises UserError."""
    values = row.get(key)
    if not isinstance(values, list) or len(values) < 2:
        raise UserError(f"{where}: {key} must be a list of two texts or more, not {values!r}")
    return [text_of({f"{key}[{i}]": value}, f"{key}[{i}]", where) for i, value in enumerate(values)]
