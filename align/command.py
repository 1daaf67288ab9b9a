"""How every command ends."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn, cast

from align import stopping
from align.errors import UserError, tidy


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """main(arguments) and out, with its exit status. A reader that has gone, as `| head` has, ends it without a word."""
    for stream in (sys.stdout, sys.stderr):  # whatever a path or a text holds can be printed
        cast(TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    try:
        try:
            status = main(sys.argv[1:]) or 0
        except SystemExit as end:  # argparse's, after --help
            status = int(end.code or 0)
        sys.stdout.flush()
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
    except Exception as error:  # before the ranks have met, of which one would speak for all
        text, status = failure(error)
        print(text, file=sys.stderr)
    with suppress(BrokenPipeError):
        sys.stderr.flush()
    # without the interpreter's shutdown, in which a thread of gloo's can abort a process that has done its work
    os._exit(status)


def failure(error: Exception) -> tuple[str, int]:
    """What a command says of an error, and its exit status: 2 and a line for what the user can fix, else 1 for a bug."""
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, OSError) and error.filename is not None:  # a file or folder that the disk refuses
        return tidy(f"error: {error.filename}: {error.strerror}"), 2
    return traceback.format_exc(), 1


def attempt(work: Callable[[], None], speaks: Callable[[], bool] = lambda: True) -> int:
    """Do the work of a command: its exit status, 0 for done, as train.py and eval.py have them.

    speaks: whether this process is to say why it failed, of all ranks that fail of the same.
    """
    try:
        work()
        return 0
    except KeyboardInterrupt:
        text, status = "stopped; the same command goes on from here", 128 + signal.SIGINT
    except stopping.Stopped as stopped:
        text, status = str(stopped), 128 + stopping.signalled
    except BrokenPipeError:
        raise
    except Exception as error:
        text, status = failure(error)
    if speaks():
        print(text, file=sys.stderr, flush=True)
    return status
