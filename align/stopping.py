"""SIGTERM and Ctrl-C: the step that runs is finished, its checkpoint written, and the user told how to go on."""

import os
import signal
import time
from types import FrameType

FIRST = b"\nstopping after this step, with a checkpoint; to end at once, press Ctrl-C again in five seconds\n"
SECOND = b"ended at once; the same command with --resume goes on from the newest checkpoint\n"

signalled, signalled_at = 0, 0.0  # the signal that asked us to stop, 0 while none has, and when it came


class Stopped(Exception):
    """A signal asked us to stop, and the run has: its state is in a checkpoint. The text says how to go on."""


def catch_signals() -> None:
    """Remember a signal from here on, instead of dying of it."""
    global signalled
    signalled = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, remember)


def remember(number: int, frame: FrameType | None) -> None:
    """Finish the step first. A second signal ends at once, but not the same one again, which torchrun passes on."""
    global signalled, signalled_at
    if not signalled:
        signalled, signalled_at = number, time.monotonic()
        say(FIRST)
    elif time.monotonic() - signalled_at > 5:
        say(SECOND)
        os._exit(128 + number)


def say(text: bytes) -> None:
    # print is not safe in a signal handler, which may interrupt a print
    if os.environ.get("RANK", "0") == "0":
        os.write(2, text)
