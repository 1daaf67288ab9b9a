"""Mutate every kind of input, read it, and count what becomes of it.

    make fuzz                                            # 10,000 cases, a table
    python -m benchmarks.fuzz --cases 500 --seed 7
    python -m benchmarks.fuzz --seed 7 --case 123        # one of them again: what is read, and what was said

An input is accepted, or refused in one line. A fault is a traceback, an unclear line (several, control characters, more
than 1,000 of them), more than two seconds or 256 MiB, or a change that had to be noticed and was not: in a checkpoint, a
reference cache or records.jsonl.
"""

import argparse
import os
import random
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from align import command
from align.parallel import distributed
from benchmarks.fuzz.case import FAULTS, OUTCOMES, kind_of, prepare, run_case
from benchmarks.fuzz.kinds import KINDS
from benchmarks.fuzz.pool import run_cases

SHOWN = 10  # faults that are shown whole


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, help="default: a new one")
    parser.add_argument("--case", type=int, help="run this one alone, in this process")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args(argv)
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.chdir(place)  # a mutated path is a path in here
        with distributed() as world:
            prepare(place, world)
            if options.case is not None:
                print(kind_of(options.case), *run_case(place, seed, options.case, world), sep="\n")
                return 0
        return fuzz(place, seed, options.cases, options.workers)


def fuzz(place: Path, seed: int, cases: int, workers: int) -> int:
    """Run the cases and print the table. The exit status: 1 where one is a fault."""
    began = time.monotonic()
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    faults: list[tuple[int, str, str]] = []
    for number, outcome, said, seconds in run_cases(place, seed, range(cases), workers):
        counts[kind_of(number)][outcome] += 1
        slowest[kind_of(number)] = max(slowest[kind_of(number)], seconds)
        if outcome in FAULTS:
            faults.append((number, outcome, said))
    print(f"{'':<22}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES) + f"{'slowest, s':>12}")
    for name in KINDS:
        print(
            f"{name:<22}" + "".join(f"{counts[name][outcome]:>10}" for outcome in OUTCOMES) + f"{slowest[name]:>12.2f}"
        )
    total = sum(counts.values(), Counter())
    print(f"{'all':<22}" + "".join(f"{total[outcome]:>10}" for outcome in OUTCOMES))
    for number, outcome, said in sorted(faults)[:SHOWN]:
        print(f"\ncase {number}, {kind_of(number)}: {outcome}\n{said[-2000:]}")
    print(f"\n{len(faults)} faults in {total.total()} cases, {time.monotonic() - began:.0f} s on {workers} processes")
    return 1 if faults else 0


if __name__ == "__main__":
    command.run(main)
