"""Cases in forked processes, each of which may hang or die without taking the others along."""

import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

from align.parallel import distributed
from benchmarks.fuzz.case import run_case

SECONDS = 2.0  # of CPU time, after which a case hangs
SPACE = 4 * 2**30  # bytes of address space beyond those at the start: a backstop, below which run_case measures
TICKS = os.sysconf("SC_CLK_TCK")


def work(place: Path, seed: int, orders: Connection) -> None:
    """A worker: cases by their numbers, and what became of them."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):  # what a library's Rust writes, too
        os.dup2(quiet, descriptor)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with distributed() as world:
        while (number := orders.recv()) is not None:
            orders.send((number, *run_case(place, seed, number, world)))
    os._exit(0)


class Worker:
    def __init__(self, place: Path, seed: int):
        self.connection, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=work, args=(place, seed, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.number, self.began, self.cpu = -1, 0.0, 0.0

    def give(self, number: int) -> None:
        self.number, self.began, self.cpu = number, time.monotonic(), self.used()
        self.connection.send(number)

    def used(self) -> float:
        """Seconds of CPU time so far."""
        try:
            after = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(after[11]) + int(after[12])) / TICKS

    def hangs(self) -> bool:
        """Whether its case has taken too long; a busy machine, or one that waits for its disk, is given longer."""
        waited = time.monotonic() - self.began
        return waited > SECONDS and (self.used() - self.cpu > SECONDS or waited > 15 * SECONDS)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_cases(place: Path, seed: int, numbers: Sequence[int], workers: int) -> Iterator[tuple[int, str, str, float]]:
    """(number, outcome, what was said, seconds) of each case, as they end."""
    todo = list(reversed(numbers))
    pool = [Worker(place, seed) for _ in range(min(workers, len(todo)))]
    for worker in pool:
        worker.give(todo.pop())
    while pool:
        ready = wait([worker.connection for worker in pool], timeout=0.2)
        for worker in list(pool):
            number, seconds = worker.number, time.monotonic() - worker.began
            if worker.connection in ready:
                try:
                    yield (*worker.connection.recv(), seconds)
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    killed = (
                        signal.Signals(-code).name if (code := worker.process.exitcode or 0) < 0 else f"exit {code}"
                    )
                    yield number, "traceback", f"the process ended: {killed}", seconds
                else:
                    if todo:
                        worker.give(todo.pop())
                        continue
            elif worker.hangs():
                yield number, "hang", f"{seconds:.1f} s", seconds
            else:
                continue
            worker.end()
            pool.remove(worker)
            if todo:
                pool.append(Worker(place, seed))
                pool[-1].give(todo.pop())
