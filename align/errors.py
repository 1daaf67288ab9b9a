"""UserError, the exception for what the user can fix, and helpers for its text."""

import difflib
import re
from collections.abc import Iterable

ECHO = 200  # characters of what a message repeats, be it a value, a path or another error
LONGEST = 1000  # characters of a message
# what moves a terminal's cursor or turns the direction of a text, and halves of surrogate pairs
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
# a path or a value: a word, or what stands between quotes or brackets
LONG = re.compile(r"\S{201,}|(?<!\w)'[^']{200,}'|\"[^\"]{200,}\"|\[.{200,}\]|\{.{200,}\}")


class UserError(Exception):
    """Something the user can fix. Its text is one line that names the file, row, flag or key, and the fix.

    train.py prints that line and exits with status 2. Any other exception is a bug and keeps its traceback.
    Files that others wrote are named and quoted in it, so it is made safe to print, by tidy().
    """

    def __init__(self, message: str):
        super().__init__(tidy(message))


def tidy(message: str) -> str:
    """A message with escapes in place of control characters, and with long words, quotes and middles cut."""
    if len(message) > 5 * LONGEST:  # LONG takes the square of a length
        message = f"{message[: 3 * LONGEST]}...{message[-LONGEST:]}"
    message = UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], re.sub(r"[\n\r\t\v\f]+", " ", message))
    message = LONG.sub(lambda found: shortened(found[0]), message)
    return shortened(message, LONGEST)


def shortened(text: str, most: int = ECHO) -> str:
    """At most this much of a text: its beginning and its end."""
    return text if len(text) <= most else f"{text[: 2 * most // 3 - 3]} ... {text[-(most // 3 - 2) :]}"


def one_line(error: BaseException, with_type: bool = False) -> str:
    """An exception's message without line breaks, or its type's name if it has none. with_type puts the type before it."""
    kind, message = type(error).__name__, shortened(" ".join(str(error).split()))
    return f"{kind}: {message}" if with_type else message or kind


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message on an unknown name: "; did you mean alert?", or nothing where no name is similar enough."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""
