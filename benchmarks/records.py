"""One schema for all measurements: what, machine, date, commit, settings, numbers.

A record is rewritten as its numbers come, so that a run which is cut short leaves what it had.
"""

import datetime
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from align.files import write_text

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
KEYS = ("what", "machine", "date", "commit", "settings", "numbers")

Numbers = list[dict[str, Any]]  # each with "part" and "name", which together name it


def commit() -> str:
    """The checked-out commit, with a + where the tree differs from it; "unknown" outside a repository."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def new_file(folder: Path, what: str, card: str) -> Path:
    """<what>-<card>-<date>.json in the folder, with -2, -3, ... where that day has one already."""
    card = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    stem = f"{what}-{card}-{datetime.date.today()}"
    number, file = 1, folder / f"{stem}.json"
    while file.exists():
        number += 1
        file = folder / f"{stem}-{number}.json"
    return file


def begin(what: str, machine: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A record of today and of this commit, without numbers yet."""
    about: tuple[Any, ...] = (what, machine, str(datetime.date.today()), commit(), settings, [])
    return dict(zip(KEYS, about, strict=True))


def write(file: Path, record: dict[str, Any]) -> None:
    """Write a record under a temporary name and rename it."""
    assert tuple(record) == KEYS, tuple(record)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(record[key])}" for key in KEYS[:-1]]
    rows = ",\n  ".join(json.dumps(row) for row in record["numbers"])  # a row a line, so that a diff shows what moved
    write_text(file, "{" + ",\n ".join([*lines, f'"numbers": [\n  {rows}\n ]']) + "}\n")


def read(file: Path) -> dict[str, Any]:
    """Raises ValueError, in one line, for what is no record."""
    try:
        record = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ValueError(f"{file}: not a readable record ({problem})") from None
    if not isinstance(record, dict) or not set(KEYS) <= record.keys():
        raise ValueError(f"{file}: not a record; it must have {', '.join(KEYS)}")
    return record
