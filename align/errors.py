"""The one exception that means: the user can mend this; and the hint that its text often ends with."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. Its text is one line that names the file, row, flag or key, and the mend.

    train.py prints that line and exits with status 2. Any other exception is a fault of ours and keeps its traceback.
    """


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of a message on an unknown name: "; did you mean alert?", or nothing where none is as similar as cutoff."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""
