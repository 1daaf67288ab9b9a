"""The results of an evaluation so far, in a file that survives a kill: records.jsonl.

A line is one chunk of a benchmark: one model's records, or one judge's verdicts on them, with a hash of itself: one
that was edited or damaged is refused, as nobody could tell a response that a model gave from another. A line's key is a
hash of all that its content depends on (weights, prompts, settings), so the same command resumes where it was stopped,
a second command with one more model computes only that model, and nothing stale is used. Lines are only ever appended.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from align.errors import UserError
from align.files import loads, writing

CHUNK = 64  # prompts that are generated for, judged and written together: what a kill costs at most


def chunks(count: int) -> list[slice]:
    """The same pieces, and so the same batches and the same rounding, however far an evaluation got."""
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def digest(*parts: Any) -> str:
    """A short hash of JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def folder_digest(folder: Path) -> str:
    """A hash of what a model folder computes: its configuration, tokenizer, template and weights."""
    files = [
        f for pattern in ("*.json", "*.jinja", "*.txt", "*.safetensors") for f in folder.glob(pattern) if f.is_file()
    ]
    sums = []
    for file in sorted(files):
        with file.open("rb") as stream:
            sums.append([file.name, hashlib.file_digest(stream, "sha256").hexdigest()])
    return digest(sums)


def sealed(entry: dict[str, Any]) -> str:
    """The text of a line, whose last key is a hash of the rest."""
    return json.dumps(entry | {"hash": digest(entry)})


def entry_of(line: bytes) -> dict[str, Any] | None:
    """What was written as a line; None for anything else."""
    try:
        entry: dict[str, Any] = loads(line)
        whole = entry.pop("hash") == digest(entry)
        return entry if whole and type(entry["key"]) is str and type(entry["chunk"]) is int else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class Store:
    """records.jsonl of an output folder: {"key", "chunk": number, "found": [one object per prompt], "hash"} on each line.

    Every rank reads it; rank 0 writes it.
    """

    def __init__(self, file: Path, writes: bool):
        self.file, self.writes = file, writes
        self.found: dict[tuple[str, int], list[dict]] = {}
        whole = self._read() if file.exists() else 0
        if writes:
            with writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                self.stream = file.open("ab")
                self.stream.truncate(whole)  # the half-written last line of a killed run

    def _read(self) -> int:
        """Fill `found`; return how many bytes are whole lines."""
        whole = 0
        with self.file.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):
                    break
                entry = entry_of(line)
                if entry is None:
                    raise UserError(
                        f"{self.file}:{number} is not a line of an evaluation, or has changed since it was written; remove "
                        "that line, or give another --output"
                    )
                self.found[entry["key"], entry["chunk"]] = entry["found"]
                whole += len(line)
        return whole

    def has(self, key: str, chunk: int) -> bool:
        return (key, chunk) in self.found

    def add(self, key: str, chunk: int, found: list[dict]) -> None:
        """Keep the results of a chunk: on disk once this returns."""
        line = sealed({"key": key, "chunk": chunk, "found": found}) + "\n"
        if self.writes:
            with writing(self.file, "that mended, the same command resumes from here"):
                self.stream.write(line.encode())
                self.stream.flush()
        self.found[key, chunk] = json.loads(line)["found"]  # as a later reader will see it

    def all(self, key: str, count: int) -> list[dict]:
        """What the `count` chunks of a key hold, in order, as new objects that the caller may change."""
        return [dict(found) for chunk in range(count) for found in self.found[key, chunk]]
