"""TOML as the configuration has it: read by the standard library, written here."""

import json
import math
import tomllib
from pathlib import Path
from typing import Any

from align.errors import UserError


def read_toml(path: Path, flag: str = "--config") -> dict[str, Any]:
    """The tables of a TOML file, which the user named with this flag. Raises UserError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {flag} takes a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def to_toml(tables: dict[str, Any]) -> str:
    """Strings, numbers, booleans and lists of them, one level of tables: all that a configuration has.

    A key "module:Class.beta" is that of beta in a table of the name before its last dot.
    """

    def text(value: Any) -> str:
        # JSON's values are TOML's, but for infinities, escapes of letters beyond 16 bits, and a bare DEL
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
