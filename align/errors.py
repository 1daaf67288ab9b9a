"""UserError, the exception for what the user can fix, and helpers for its text."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix. Its text is one line that names the file, row, flag or key, and the fix.

    train.py prints that line and exits with status 2. Any other exception is a bug and keeps its traceback.
    """


def one_line(error: BaseException, with_type: bool = False) -> str:
    """An exception's message without line breaks, or its type's name if it has none. with_type puts the type before it."""
    kind, message = type(error).__name__, " ".join(str(error).split())
    return f"{kind}: {message}" if with_type else message or kind


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message on an unknown name: "; did you mean alert?", or nothing where no name is similar enough."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""
