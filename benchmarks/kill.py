"""Kill a training at many moments, resume it, and see that it ends with the bits of one that was never killed.

    make kill                                     # 40 kills: moments x victims x ranks, a table; about half an hour
    python -m benchmarks.kill --kills 4 --seed 7

Each case starts `train.py` on the toy world, kills the victim at the moment, starts the same command with --resume until
it ends, and compares every metric of every step and every byte of the weights.
"""

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from align import command
from align.evals.report.curves import read_metrics

ROOT = Path(__file__).resolve().parent.parent
STEPS = 12
NOT_A_RESULT = ("seconds", "tokens_per_second", "mfu", "peak_memory_mib")
# what is there once the moment has come; the step and the pause after it are drawn
MOMENTS: dict[str, Callable[[Path, int], bool]] = {
    "loading": lambda out, step: True,
    "reference": lambda out, step: any((out.parent / "cache").glob("*")),
    "step": lambda out, step: lines(out) >= step,
    "saving": lambda out, step: lines(out) >= step and any((out / "checkpoints").glob("*.part")),
    "saved": lambda out, step: any((out / "checkpoints").glob(f"step-{step:06d}")),
    "export": lambda out, step: (out / ".model.new").exists() or (out / "model").exists(),
}
PAUSES = {
    "loading": 8.0,
    "reference": 1.0,
    "step": 0.2,
    "saving": 0.02,
    "saved": 0.1,
    "export": 0.05,
}  # seconds, at most
# one process is its own launcher
VICTIMS = {1: ("rank 0",), 2: ("rank 0", "rank 1", "launcher", "all")}


def lines(out: Path) -> int:
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def start(out: Path, ranks: int, *more: str) -> subprocess.Popen:
    """train.py in processes of its own; more: flags, the last of which win."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    flags = ["--config", "tiny", "--output", str(out), "--train.steps", str(STEPS), "--train.checkpoint_every", "3"]
    flags += ["--train.batch_size", "8", "--reference.cache", str(out.parent / "cache"), *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def finish(out: Path, ranks: int, *more: str) -> str:
    """Run to the end; what went wrong, empty where nothing did."""
    process = start(out, ranks, *more)
    said = process.communicate()[1]
    return "" if process.returncode == 0 else f"exit {process.returncode}: {said.strip()[-300:]}"


def results(out: Path) -> tuple[list[dict], bytes]:
    metrics = [{k: v for k, v in line.items() if k not in NOT_A_RESULT} for line in read_metrics(out / "metrics.jsonl")]
    return metrics, (out / "model" / "model.safetensors").read_bytes()


def children(pid: int) -> list[int]:
    """The processes that a launcher has started, in the order of their ranks."""
    found = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout.split()[2:]
    return sorted(int(child) for child, parent in zip(found[::2], found[1::2], strict=True) if int(parent) == pid)


def kill(process: subprocess.Popen, victim: str, ranks: int) -> list[int]:
    """SIGKILL the victim; every process of the run that is then left to end by itself."""
    everyone = [process.pid, *(children(process.pid) if ranks > 1 else [])]
    chosen = {"launcher": everyone[:1], "all": everyone}
    number = int(victim.rpartition(" ")[2]) if victim.startswith("rank") else 0
    for pid in chosen.get(victim, everyone[number + 1 :][:1] if ranks > 1 else everyone):
        with suppress(ProcessLookupError):  # it may have ended since
            os.kill(pid, signal.SIGKILL)
    process.wait()  # and not for its pipe, which orphans hold open
    return everyone[1:]


def case(out: Path, flags: list[str], ranks: int, moment: str, victim: str, step: int, pause: float, truth: Any) -> str:
    """Start, kill, resume: what differs from the run that was never killed, empty where nothing does."""
    process = start(out, ranks, *flags)
    while process.poll() is None and not MOMENTS[moment](out, step):
        time.sleep(0.001)
    time.sleep(pause)
    left = kill(process, victim, ranks)
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{pid}").exists() for pid in left):  # orphans, which have to see that they are
        if time.monotonic() > deadline:
            return f"orphans {left} go on"
        time.sleep(0.05)
    if problem := finish(out, ranks, *flags, "--resume"):
        return problem
    (metrics, weights), (wanted, bytes_wanted) = results(out), truth
    if metrics != wanted:
        first = next(
            (i for i, (a, b) in enumerate(zip(metrics, wanted, strict=False)) if a != b), min(len(metrics), STEPS)
        )
        return f"other metrics from step {first + 1}"
    return "" if weights == bytes_wanted else "other weights"


def plan(kills: int, draw: random.Random) -> Iterator[tuple[int, str, str, int, float]]:
    """Every moment with every victim in turn, the order drawn: ranks, moment, victim, step, pause."""
    cases = [(ranks, moment, victim) for ranks in VICTIMS for victim in VICTIMS[ranks] for moment in MOMENTS]
    draw.shuffle(cases)
    for ranks, moment, victim in itertools.islice(itertools.cycle(cases), kills):
        step = 3 * draw.randint(1, 3) if moment == "saved" else draw.randint(1, STEPS - 2)
        yield ranks, moment, victim, step, draw.uniform(0, PAUSES[moment])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--model", default="runs/tiny-base", help="default: the toy world's base, trained where missing"
    )
    parser.add_argument("--data", default="tiny:pairs")
    options = parser.parse_args(argv)
    # the base by its path: with tiny:base a run ends with a table of what its model responds
    flags, bad, truths = ["--model", options.model, "--data", options.data], 0, {}
    with tempfile.TemporaryDirectory() as place:
        missing = options.model == "runs/tiny-base" and not Path(options.model).exists()
        if missing and (problem := finish(Path(place) / "base" / "out", 1, "--model", "tiny:base")):
            raise SystemExit(f"the base model: {problem}")
        print(
            f"seed {options.seed}\n{'':>4} {'ranks':>5}  {'victim':<9} {'moment':<10} {'step':>4} {'s after':>8}  outcome"
        )
        for i, (ranks, moment, victim, step, pause) in enumerate(plan(options.kills, random.Random(options.seed)), 1):
            if ranks not in truths:
                whole = Path(place) / f"whole-{ranks}" / "out"
                if problem := finish(whole, ranks, *flags):
                    raise SystemExit(f"the run that is not killed: {problem}")
                truths[ranks] = results(whole)
            out = Path(place) / f"case-{i}" / "out"
            problem = case(out, flags, ranks, moment, victim, step, pause, truths[ranks])
            bad += bool(problem)
            outcome = problem or "to the bit"
            print(f"{i:>4} {ranks:>5}  {victim:<9} {moment:<10} {step:>4} {pause:>8.3f}  {outcome}", flush=True)
    print(f"{options.kills - bad} of {options.kills} to the bit")
    return 1 if bad else 0


if __name__ == "__main__":
    command.run(main)
