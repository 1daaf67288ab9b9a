"""Reading rows and settings from many kinds of file, and writing files that are never left half-written."""

import csv
import gzip
import json
import math
import os
import re
import tomllib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeGuard

from align.errors import UserError, one_line, shortened

DEEPEST = 100  # lists and objects inside one another; a schema of tools has ten
# an object with no other keys holds lists of rows
SPLITS = {"train", "test", "validation", "valid", "dev", "data", "rows", "examples"}


@dataclass(frozen=True)
class BrokenRow:
    """Stands for a line that is not JSON. The caller decides whether to stop there."""

    problem: str


def reachable(path: str | Path) -> Path:
    """The path, whether or not there is a file. Raises UserError for one that no file can have, or none of ours."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # too long, in a circle of links or a closed folder; with a NUL
        why = error.strerror if isinstance(error, OSError) else one_line(error)
        raise UserError(f"{path}: {why}; give another path") from None
    return Path(path)


def local_file(path: str | Path) -> Path:
    """The file at this path; one of a data set of the Hub, hf://OWNER/NAME[:FILE], fetched into the Hub's cache.

    Without FILE the data set must have one file that READERS can read, or one whose name has "train" in it.
    Raises UserError.
    """
    if not str(path).startswith("hf:"):
        return reachable(path)
    match = re.fullmatch(r"hf://(\w[\w.-]*/\w[\w.-]*)(?::(.+))?", str(path))
    if match is None:
        raise UserError(f"{path}: a data set of the Hub is written hf://OWNER/NAME or hf://OWNER/NAME:FILE")
    name, file = match.groups()
    import huggingface_hub

    try:
        if file is None:
            listed = huggingface_hub.list_repo_files(name, repo_type="dataset")
            files = sorted(f for f in listed if kind_of(Path(f)) in READERS and kind_of(Path(f)) != ".txt")
            trained = [f for f in files if "train" in f]
            if len(files) != 1 and len(trained) != 1:
                found = ", ".join(files[:8]) + (", ..." if len(files) > 8 else "") or "none that can be read"
                raise UserError(f"{path}: name one of its files as hf://{name}:FILE; it has {found}")
            file = (files if len(files) == 1 else trained)[0]
        return Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset"))
    except UserError:
        raise
    except Exception as error:  # whatever the network, the Hub, the disk or a gate raises means the same to the user
        raise UserError(f"{path}: cannot be fetched from the Hub ({one_line(error)})") from None


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, the one before .gz where there is one."""
    return Path(path.name.removesuffix(".gz")).suffix


def open_text(path: Path, newline: str | None = None) -> TextIO:
    opener = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)


def read_records(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """(where, row) of every row of a file whose kind is in READERS; where is "file:line" or "file, row n".

    A row is what its JSON holds, or a BrokenRow. A .json or .jsonl file holds an object a line, or one list, or one
    object of a single list; a .txt file has a prompt a line. columns names those of a .csv or .tsv file that has no header.
    Raises UserError naming the file and the row.
    """
    try:
        yield from READERS[kind_of(path)](path, columns)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg}, column {error.colno})") from None
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read to its end ({one_line(error)})") from None


def _json(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
        whole = _whole(path, first, file.read) if first else None
    if whole is not None:
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(whole, start=1))
        return
    hint = "; a .json file holds a list of rows, or one object a line" if kind_of(path) == ".json" else ""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = loads(line.rstrip("\n"))
                except ValueError as error:
                    row = BrokenRow(f"broken JSON ({str(error).replace('line 1 ', '')}){hint}")
                yield f"{path}:{number}", row


def _whole(path: Path, first: str, rest: Callable[[], str]) -> list | None:
    """The rows of a file that is one JSON value over many lines: a list, a row, or {"train": list}. None of any other.

    first: its first line that is not empty; rest: gives what comes after it.
    """
    if not first.lstrip().startswith("["):
        with suppress(ValueError):
            if not _tables(loads(first)):
                return None
    text = first + rest()
    try:
        value = loads(text)
    except ValueError as error:
        if getattr(error, "msg", "") == "Extra data" or not text.lstrip().startswith("["):
            return None
        raise
    if isinstance(value, list):
        return value
    tables = _tables(value)
    if len(tables) > 1:
        raise UserError(f"{path}: holds {len(tables)} lists of rows, {', '.join(tables)}; write one of them to a file")
    rows = next(iter(tables.values()), [value])
    return rows if isinstance(rows, list) else [value]


def _tables(value: Any) -> dict[str, list]:
    """The lists of rows in an object of splits; none where it is a row itself."""
    return value if isinstance(value, dict) and value and value.keys() <= SPLITS else {}


def loads(text: str | bytes) -> Any:
    """A JSON value. Raises ValueError, also for what is nested deeper than DEEPEST, and for an object with a key twice,
    of which json would keep the last one and not say so.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    level, depth = [value], 0
    while level := [inner for outer in level if isinstance(outer, list | dict) for inner in _inside(outer)]:
        if (depth := depth + 1) > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
    return value


def is_finite(value: object) -> TypeGuard[float]:
    """Whether what a file holds is a number, and one that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def is_unicode(text: str) -> bool:
    """Whether files can hold it: half of a surrogate pair, which JSON can name, is no character."""
    return text.isascii() or not re.search("[\ud800-\udfff]", text)


def _inside(value: list | dict) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {json.dumps(twice)} stands twice in an object")
    return found


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
                if not header and len({*fields}) < len(fields):
                    raise UserError(f"{where}: a column's name stands twice in {shortened(', '.join(fields))}")
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
    ".jsonl": _json,
    ".json": _json,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _lines,
    ".parquet": _parquet,
}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that a file of settings holds. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
        value = loads(text)
        if "\\ud" in text.lower() and not is_unicode(json.dumps(value, ensure_ascii=False)):
            raise ValueError("it holds half of a surrogate pair")
    except (OSError, ValueError) as error:
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
    except (ValueError, RecursionError) as error:  # of a number of 5,000 digits too, and of 3,000 brackets
        raise UserError(f"{path} is not valid TOML: {one_line(error)}") from None


def to_toml(tables: dict[str, Any]) -> str:
    """Strings, numbers, booleans and lists of them in tables, which may hold tables: all that a configuration has.

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

    def lines(tables: dict[str, Any], above: str) -> Iterator[str]:
        own = {name: value for name, value in tables.items() if not isinstance(value, dict)}
        if above and own:
            yield from ("", f"[{above}]")
        yield from (f"{key(name)} = {text(value)}" for name, value in own.items())
        for name, value in tables.items():
            if isinstance(value, dict):
                yield from lines(value, f"{above}.{name}" if above else name)

    return "\n".join(lines(tables, "")) + "\n"


def flatten(tables: dict[str, Any]) -> dict[str, Any]:
    """{"loss": {"dpo": {"beta": 0.1}}} as {"loss.dpo.beta": 0.1}."""
    flat: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": v for key, v in flatten(value).items()}
        else:
            flat[name] = value
    return flat


@contextmanager
def writing(path: Path, then: str = "") -> Iterator[None]:
    """Whatever the disk refuses inside, as a UserError that names path: no room, no right, a folder that has gone.

    then: what can be done once that is mended.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or one_line(error)}){then and f'; {then}'}"
        ) from None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path to write to, renamed to `path` when the block succeeds: a file of that name is always whole.

    Raises UserError where the disk refuses it.
    """
    part = path.with_name(f"{path.name}.part")
    with writing(path):
        try:
            yield part
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink()  # it may be what fills the disk
            raise


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8", errors=errors)


def write_json(path: Path, value: object, **layout: Any) -> None:
    """layout: arguments of json.dumps; default: an indent of 2."""
    # half of a surrogate pair that a model wrote is kept as its escape, which is JSON too
    write_text(path, json.dumps(value, **{"indent": 2, **layout}) + "\n", errors="backslashreplace")
