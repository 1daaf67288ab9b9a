"""Mutations: of bytes, of JSON, of TOML and other lines, each a function of a text's bytes and a random generator."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]
# JSON and, but for the last, TOML: what a reader may not have thought of
VALUES = (
    *("null", "true", "false", "0", "-1", "1", "2", "0.5", "-0.0", "1e308", "1e-308", "1000000000000"),
    *(
        "4294967296",
        "9223372036854775808",
        "9" * 400,
        "9" * 5000,
        '""',
        '" "',
        '"a"',
        '"auto"',
        '"٣"',
        '"1e3"',
        '"true"',
    ),
    *(
        '"a\\u0000b"',
        '"\\u001b[31mred"',
        '"\\n\\n"',
        f'"{"x" * 300}"',
        f'"{"word " * 2000}"',
        '"/"',
        '"../../x"',
        '"*"',
    ),
    *('"\\u202eleft"', '"</s>"', '"<|endoftext|>"', '"module:Class"', '"{{ 1 }}"', '"tiny:base"', '"hf://a/b"'),
    *("[]", "[[1]]", "[null]", '["a", "a"]', "[" + "0," * 2000 + "0]", "[" * 3000 + "]" * 3000, "[" * 150 + "]" * 150),
    *("{}", '{"a": 1}', '{"content": "a"}', '{"a": 1, "a": 2}', '{"a":' * 3000 + "1" + "}" * 3000),
    *("NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', "nan", "inf", "1_000", "0x10", "1979-05-27", "'a'", "+1"),
)
BYTES = (b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b'"', b"{", b"]", b",", b"\\", b"\xed\xa0\x80", b"\x1b[2J")
COSTLY = (
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'a' * 10**9 }}",
    "{{ [0] * 10**9 }}",
    "{{ 2 ** 10**9 }}",
    "{{ messages | tojson(indent=10**9) }}",
    "{% set n = namespace(x='ab') %}{% for i in range(50) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{% break %}",
    "{% if messages %}" * 500,
    "{{ " + "(" * 5000,
    "{{ messages.__class__.__mro__ }}",
    "{{ raise_exception('\x1b[31m' * 999) }}",
    "{{ '\\ud800' }}",
    "{{ 'a' | center(10**8) }}",
    "{{ lipsum(n=10**6) }}",
    "{% include '/etc/passwd' %}",
    "{{ messages | batch(10**9, 0) | list }}",
)


def mutate(file: Path, draw: Random) -> None:
    """Change a file, by what its name says that it is."""
    kinds: dict[str, tuple[Mutation, ...]] = {
        ".json": (as_json, as_json, as_bytes),
        ".jsonl": (as_rows, as_rows, as_bytes),
        ".toml": (as_toml, as_toml, as_bytes),
    }
    kinds |= {".safetensors": (as_safetensors, as_bytes), ".jinja": (as_template, as_bytes)}
    content = file.read_bytes()
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = draw.choice(kinds.get(file.suffix, (as_bytes,)))(content, draw)
    file.unlink()  # it may be a link to the healthy one
    file.write_bytes(content)


def as_bytes(content: bytes, draw: Random) -> bytes:
    start, length = draw.randrange(len(content) + 1), draw.choice((1, 1, 8, 64, 512, 4096))
    piece, rest = content[start : start + length], content[start + length :]
    return (
        content[:start]
        + draw.choice(
            (
                lambda: bytes([piece[0] ^ 1 << draw.randrange(8)]) + content[start + 1 :] if piece else b"\x00",
                lambda: bytes(len(piece)) + rest,
                lambda: draw.randbytes(len(piece)) + rest,
                lambda: rest,
                lambda: b"",
                lambda: piece + piece + rest,
                lambda: draw.choice(BYTES) + content[start:],
                lambda: draw.choice(VALUES).encode(errors="surrogatepass") + content[start:],
            )
        )()
    )


def as_json(content: bytes, draw: Random) -> bytes:
    """Another value somewhere in it, or a key that is gone, twice there, or has another name."""
    try:
        whole = {"": json.loads(content)}
    except (ValueError, RecursionError):
        return as_bytes(content, draw)
    places: list[tuple[Any, Any]] = []
    todo: list[Any] = [whole]
    while todo:
        here = todo.pop()
        keys = list(here) if isinstance(here, dict) else range(min(len(here), 20))
        places += [(here, key) for key in keys]
        todo += [here[key] for key in keys if isinstance(here[key], dict | list)]
    here, key = draw.choice(places)
    raw: dict[str, str] = {}

    def mark(text: str) -> str:
        raw[f'"@@{len(raw)}@@"'] = text
        return f"@@{len(raw) - 1}@@"

    action = draw.choice(("value", "value", "value", "gone", "twice", "name", "swap"))
    if action == "gone" and here is not whole:
        del here[key]
    elif action == "twice" and isinstance(here, dict) and here is not whole:
        here[mark(json.dumps(key))] = here[key]
    elif action == "name" and isinstance(here, dict) and here is not whole:
        here[draw.choice((key + "s", key.upper(), "", "\x1b", "x" * 300))] = here.pop(key)
    elif action == "swap":
        other, there = draw.choice(places)
        here[key] = json.loads(json.dumps(other[there]))
    else:
        here[key] = mark(draw.choice(VALUES))
    text = json.dumps(whole[""])
    for name, value in raw.items():
        text = text.replace(name, value)
    return text.encode(errors="surrogatepass")


def as_rows(content: bytes, draw: Random) -> bytes:
    """One line of JSON lines as JSON; or two of them exchanged, or one of them gone or twice there."""
    lines = content.splitlines(keepends=True) or [b"\n"]
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    action = draw.choice(("json", "json", "json", "gone", "twice", "exchange"))
    if action == "json":
        lines[i] = as_json(lines[i], draw) + b"\n"
    elif action == "gone":
        del lines[i]
    elif action == "twice":
        lines.insert(j, lines[i])
    else:
        lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


def as_toml(content: bytes, draw: Random) -> bytes:
    """Another value or another key in a line, a line elsewhere, gone, or twice there."""
    lines = content.decode(errors="replace").splitlines()
    if not lines:
        return as_bytes(content, draw)
    i, j = draw.randrange(len(lines)), draw.randrange(len(lines))
    found = re.match(r"(\s*)([\w.\"-]+)\s*=\s*(.*)", lines[i])
    action = draw.choice(("value", "value", "value", "key", "gone", "twice", "move", "table"))
    if found and action == "value":
        lines[i] = f"{found[1]}{found[2]} = {draw.choice(VALUES)}"
    elif found and action == "key":
        name = draw.choice((found[2] + "s", "a.b.c", '"' + "x" * 300 + '"', '"\\u001b"'))
        lines[i] = f"{name} = {found[3]}"
    elif action == "gone":
        del lines[i]
    elif action == "move":
        lines.insert(j, lines.pop(i))
    elif action == "table":
        lines.insert(i, draw.choice(("[train]", "[loss]", "[a.b]", "[[train]]", "[benchmarks.x]", "[summary.x]", "[]")))
    else:
        lines.insert(j, lines[i])
    return "\n".join(lines).encode(errors="replace") + b"\n"


def as_safetensors(content: bytes, draw: Random) -> bytes:
    """Another header, its length as it should be, or not."""
    size = int.from_bytes(content[:8], "little")
    header = draw.choice((as_json, as_bytes))(content[8 : 8 + size], draw)
    size = draw.choice((len(header),) * 6 + (0, 2**63, len(header) + 8))
    return size.to_bytes(8, "little") + header + content[8 + int.from_bytes(content[:8], "little") :]


def as_template(content: bytes, draw: Random) -> bytes:
    """Something costly or wrong put in at the border of a tag."""
    text = content.decode(errors="replace")
    borders = [0, len(text), *(found.start() for found in re.finditer(r"\{[%{]", text))]
    at = draw.choice(borders)
    return (text[:at] + draw.choice(COSTLY) + text[at:]).encode(errors="surrogatepass")


def as_flags(flags: list[str], draw: Random) -> list[str]:
    """A command line with another value, another flag, or one that is gone or twice there."""
    flags, i = list(flags), draw.randrange(len(flags))
    value = draw.choice(VALUES).strip('"').replace("\\u0000", "").encode().decode("unicode_escape", errors="replace")
    action: Callable[[], Any] = draw.choice(
        (
            lambda: flags.__setitem__(i, value),
            lambda: flags.__setitem__(i, value),
            lambda: flags.__setitem__(i, flags[i] + draw.choice(("=", "=" + value, "s", ".", "\x1b"))),
            lambda: flags.pop(i),
            lambda: flags.insert(i, draw.choice(flags)),
            lambda: flags.insert(i, draw.choice(("--", "--plan", "--resume", "--override", "-h", "--loss.", ""))),
        )
    )
    action()
    return flags
