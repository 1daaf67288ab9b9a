"""How every command ends."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """main(arguments) and out, with its exit status. A reader that has gone, as `| head` has, ends it without a word."""
    try:
        try:
            status = main(sys.argv[1:]) or 0
        except SystemExit as end:  # argparse's, after --help
            status = int(end.code or 0)
        sys.stdout.flush()
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
    with suppress(BrokenPipeError):
        sys.stderr.flush()
    # without the interpreter's shutdown, in which a thread of gloo's can abort a process that has done its work
    os._exit(status)
