"""The results: a JSON line a run, appended as it ends, so that an experiment can be stopped at any moment and goes on."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read(file: Path) -> list[dict[str, Any]]:
    """A last line that a kill cut short is left out, and its run is done again. Raises ValueError for any other bad line."""
    if not file.exists():
        return []
    found = []
    rows = file.read_text(encoding="utf-8").split("\n")
    for number, row in enumerate(rows, 1):
        if not row:
            continue
        try:
            found.append(json.loads(row))
        except ValueError:
            if number < len(rows):
                raise ValueError(f"{file}:{number}: not JSON; remove that line and its run is done again") from None
    return found


def append(file: Path, line: dict[str, Any]) -> None:
    """Behind the last whole line."""
    text = file.read_bytes() if file.exists() else b""
    with file.open("r+b" if text else "wb") as out:
        out.seek(text.rfind(b"\n") + 1)
        out.truncate()
        out.write(json.dumps(line).encode() + b"\n")


def packed(passed: list[bool]) -> str:
    """Which of the requests of a set were passed, a bit each, so that two runs can be compared request by request."""
    return f"{len(passed)}:{base64.b64encode(np.packbits(passed).tobytes()).decode()}"


def unpacked(text: str) -> NDArray[np.bool_]:
    """(requests,)"""
    count, _, bits = text.partition(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=int(count)).astype(bool)
