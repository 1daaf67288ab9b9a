"""Train for 2,000 steps and see that memory, open files and threads stay as they are.

    make soak                                     # the toy world; a table
    python -m benchmarks.soak --steps 400 --every 40

`train.py` runs as a user starts it, with a checkpoint every so many steps, and is looked at from outside through /proc.
Its first quarter is for warming up: what it holds then may still grow.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from align import command
from benchmarks.kill import finish, lines, start

MOST_MIB = 16.0  # by which the mean of the last quarter may be above that of the second


@dataclass(frozen=True)
class Look:
    """A process at a moment. memory: what is resident, in MiB."""

    step: int
    seconds: float
    memory: float
    files: int
    threads: int


def look(pid: int, step: int, began: float) -> Look:
    """Raises OSError where the process has ended."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    memory = int(status["VmRSS"].split()[0]) / 1024
    return Look(step, time.monotonic() - began, memory, files, int(status["Threads"]))


def growth(looks: list[Look]) -> list[str]:
    """What has grown from the second quarter of a run to its last, in words; a checkpoint may be open in either."""
    quarter = len(looks) // 4
    before, after = looks[quarter : 2 * quarter], looks[-quarter:]
    grown = []
    mib = sum(one.memory for one in after) / quarter - sum(one.memory for one in before) / quarter
    if mib > MOST_MIB:
        grown.append(f"memory, by {mib:.1f} MiB")
    for name in ("files", "threads"):
        more = min(getattr(one, name) for one in after) - max(getattr(one, name) for one in before)
        if more > 0:
            grown.append(f"{name}, by {more}")
    return grown


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="steps between two looks, and between two checkpoints")
    parser.add_argument("--model", default="runs/tiny-base", help="default: the toy world's, trained where missing")
    parser.add_argument("--data", default="tiny:pairs")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run" / "out"
        missing = options.model == "runs/tiny-base" and not Path(options.model).exists()
        if missing and (problem := finish(Path(place) / "base" / "out", 1, "--model", "tiny:base")):
            raise SystemExit(f"the base model: {problem}")
        flags = ["--model", options.model, "--data", options.data, "--train.steps", str(options.steps)]
        flags += ["--train.checkpoint_every", str(options.every), "--optim.lr", "1e-5"]
        looks = watch(out, flags, options.steps, options.every)
    grown = growth(looks)
    print(f"grown: {' and '.join(grown)}" if grown else f"flat over {options.steps} steps")
    return 1 if grown else 0


def watch(out: Path, flags: list[str], steps: int, every: int) -> list[Look]:
    """Train, and look at the process after every so many steps, of which it prints a line each."""
    process = start(out, 1, *flags)
    began, looks = time.monotonic(), list[Look]()
    print(f"{'step':>6} {'s':>8} {'MiB':>8} {'files':>6} {'threads':>8}")
    try:
        while process.poll() is None:
            done = lines(out)
            # between two checkpoints, whose files are open
            if done >= every * len(looks) + every // 2 and done < steps:
                looks.append(look(process.pid, done, began))
                print("{:>6} {:>8.1f} {:>8.1f} {:>6} {:>8}".format(*astuple(looks[-1])), flush=True)
            time.sleep(0.01)
    finally:
        process.kill()
        said = process.communicate()[1]
    if process.returncode != 0 or len(looks) < 4:
        sys.exit(f"exit {process.returncode} after {len(looks)} looks: {said.strip()[-300:]}")
    return looks


if __name__ == "__main__":
    command.run(main)
