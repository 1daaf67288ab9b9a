"""The experiment of docs/results.md: methods and cures, chosen by one rule in one world, measured in three others.

    python -m benchmarks.reproduce [--fast] [--workers N] [--hours H] [--output FILE]    # runs what FILE lacks
    python -m benchmarks.reproduce --report [--output FILE]                              # the tables, from FILE alone

A line a run is appended as it ends: stopped at any moment, the same command goes on. Two runs at a time, each on one
thread, on two cores.
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from align import command
from align.errors import UserError
from align.tiny.paths import toy_world_folder
from benchmarks import records
from benchmarks.reproduce import lines
from benchmarks.reproduce.experiment import Experiment, Job, fast, full, key_of
from benchmarks.reproduce.report import report

WORKER = [sys.executable, "-m", "benchmarks.reproduce.worker"]
STDERR = 2000  # characters of a worker's last words in an error


class Pool:
    """Workers that run jobs, each in a thread that hands its process one job after another."""

    def __init__(self, experiment: Experiment, file: Path, workers: int, until: float):
        self.experiment, self.file, self.until = experiment, file, until
        self.lock, self.begun = threading.Condition(), set[str]()
        self.error: Exception | None = None
        # a toy world whose text has changed since is another one
        self.lines = [one for one in lines.read(file) if one["toy_world"] == toy_world_folder(one["world"]).name]
        self.threads = [threading.Thread(target=self.attempt, daemon=True) for _ in range(workers)]

    def run(self) -> None:
        """Until all is done, or it is time to stop. Raises UserError with the last words of a worker that broke."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()
        if self.error:
            raise self.error

    def next(self) -> Job | None:
        """One that has not begun; waits where what is to be run depends on what runs now. None: there is no more."""
        with self.lock:
            while not self.error and time.monotonic() < self.until:
                known = set(map(key_of, self.lines))
                left = [job for job in self.experiment.jobs(self.lines) if job.key not in known]
                free = [job for job in left if job.key not in self.begun]
                if free:
                    self.begun.add(free[0].key)
                    return free[0]
                if not left:
                    return None
                self.lock.wait(timeout=1)
        return None

    def attempt(self) -> None:
        try:
            self.work()
        except Exception as error:
            with self.lock:
                self.error = self.error or error
                self.lock.notify_all()

    def work(self) -> None:
        with (
            tempfile.TemporaryFile("w+") as said,
            subprocess.Popen(
                WORKER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            ) as worker,
        ):
            assert worker.stdin and worker.stdout
            while job := self.next():
                print(job.key, file=worker.stdin, flush=True)
                if not (text := worker.stdout.readline()):
                    said.seek(0)
                    raise UserError(f"{job.key} broke: {said.read()[-STDERR:]}")
                line = json.loads(text) | about()
                with self.lock:
                    lines.append(self.file, line)
                    self.lines.append(line)
                    self.lock.notify_all()
                    print(summary(line, len(self.lines)), flush=True)
            worker.stdin.close()


def about() -> dict[str, Any]:
    return {
        "commit": records.commit(),
        "date": str(datetime.date.today()),
        "machine": f"{platform.machine()} CPU, 1 thread, torch {torch.__version__}",
    }


def summary(line: dict[str, Any], count: int) -> str:
    scores = line.get("dev", line.get("final", {})).get("scores", {})
    told = ", ".join(
        f"{name} {scores[name]:.1f}" for name in ("safety/global", "helpfulness", "maths") if name in scores
    )
    what = f"{line['stage']} {line['name']}, world {line['world']}, order {line['order']}"
    return f"{count:4}  {what}: {line.get('failed', told)}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduce", description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="one world, two methods, one cure, in a few minutes")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="runs at a time; default 2")
    parser.add_argument("--hours", type=float, default=float("inf"), metavar="H", help="begin no run after that")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the result lines")
    args = parser.parse_args(argv)
    experiment = fast() if args.fast else full()
    file = args.output or (Path("runs/reproduce-fast.jsonl") if args.fast else records.FOLDER / "reproduce-cpu.jsonl")

    def run() -> None:
        if not args.report:
            Pool(experiment, file, args.workers, time.monotonic() + 3600 * args.hours).run()
        try:
            text = report(lines.read(file), experiment, file)
        except LookupError as error:
            raise UserError(f"{file} has not all that the report needs: {error.args[0]}") from None
        print(text, end="")

    return command.attempt(run)


if __name__ == "__main__":
    command.run(main)
