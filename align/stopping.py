"""SIGTERM and Ctrl-C: what is half done is finished where that can be kept, and the user told how to go on.

While a run loads, a signal ends it at once: there is nothing to keep. While it trains, the step that runs is finished and
a checkpoint written. A rank whose torchrun has been killed stops as if it had been signalled: nobody could stop it later.
"""

import os
import signal
import time
from types import FrameType

FIRST = b"\nstopping, once what is being done is kept; to end at once, press Ctrl-C again in five seconds\n"
SECOND = b"ended at once; the same command goes on from what was kept: train.py with --resume\n"

signalled, signalled_at = 0, 0.0  # the signal that asked us to stop, 0 while none has, and when it came
advice = ""  # how to go on, where a signal ends us at once
finishing = False  # whether one has to wait for asked()
launcher = 0  # the process of the torchrun that started this one, 0 where none did


class Stopped(BaseException):
    """A signal asked us to stop, and the run has: what it did is kept. The text says how to go on.

    Like KeyboardInterrupt no Exception, since it may come at any moment and nothing but the end of a command handles it.
    """


def catch_signals(how_to_go_on: str, started_by: int = 0) -> None:
    """From here on a signal raises Stopped at once, or sets asked() between finish_first() and end_at_once().

    started_by: the launcher's process, whose end asks us to stop as well; 0 where there is none.
    """
    global signalled, advice, finishing, launcher
    signalled, advice, finishing, launcher = 0, how_to_go_on, False, started_by
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, remember)


def finish_first() -> None:
    global finishing
    finishing = True


def end_at_once() -> None:
    global finishing
    finishing = False


def asked() -> bool:
    """Whether to stop as soon as what is done is kept."""
    global signalled
    if launcher and os.getppid() != launcher:
        signalled = signalled or signal.SIGTERM
    return signalled != 0


def remember(number: int, frame: FrameType | None) -> None:
    """Finish first. A second signal ends at once, but not the same one again, which torchrun passes on."""
    global signalled, signalled_at
    if not signalled:
        signalled, signalled_at = number, time.monotonic()
        if not finishing:
            raise Stopped(advice)
        say(FIRST)
    elif time.monotonic() - signalled_at > 5:
        say(SECOND)
        os._exit(128 + number)


def say(text: bytes) -> None:
    # print is not safe in a signal handler, which may interrupt a print
    if os.environ.get("RANK", "0") == "0":
        os.write(2, text)
