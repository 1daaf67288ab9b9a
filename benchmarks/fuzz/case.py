"""One case: a mutated copy of healthy files, and what became of reading it."""

import os
import shutil
import traceback
from pathlib import Path
from random import Random

from align.errors import LONGEST, UNPRINTABLE, UserError
from align.parallel import World
from benchmarks.fuzz.kinds import KINDS, Silent, change

# the last five are faults
OUTCOMES = ("accepted", "refused", "traceback", "unclear", "hang", "blow-up", "silent")
FAULTS = OUTCOMES[2:]
MEMORY = 256 * 2**20  # bytes that reading may take


def kind_of(number: int) -> str:
    return list(KINDS)[number % len(KINDS)]


def prepare(place: Path, world: World) -> None:
    """The healthy files of every kind, each of which must be accepted."""
    for name, kind in KINDS.items():
        healthy = place / name / "healthy"
        healthy.mkdir(parents=True)
        kind.make(healthy, world)
        shutil.copytree(healthy, place / name / "probe")
        kind.read(place / name / "probe", world)


def run_case(place: Path, seed: int, number: int, world: World) -> tuple[str, str]:
    """The outcome of a case, one of OUTCOMES, and what was said. Only the seed and the number decide what it is."""
    name = kind_of(number)
    healthy, folder = place / name / "healthy", place / name / f"case-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(healthy, folder, copy_function=lambda source, target: os.symlink(source, target))
    change(KINDS[name], folder, Random(f"{seed} {number}"))
    begin = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the most of this case
    try:
        KINDS[name].read(folder, world)
        outcome, said = "accepted", ""
    except UserError as error:
        said = str(error)
        clear = "\n" not in said and len(said) <= LONGEST and not UNPRINTABLE.search(said)
        outcome = "refused" if clear else "unclear"
    except Silent:
        outcome, said = "silent", "something else was taken for what was written"
    except MemoryError:
        outcome, said = "blow-up", "MemoryError"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome, said = "traceback", traceback.format_exc()
    if memory("VmHWM") - begin > MEMORY:
        outcome, said = "blow-up", f"{(memory('VmHWM') - begin) // 2**20} MiB"
    return outcome, said


def memory(what: str) -> int:
    """A number of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024
