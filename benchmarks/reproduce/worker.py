"""Runs one job after another: a job's JSON on a line of stdin, its result's on a line of stdout.

What training prints goes to stderr, of which the parent keeps the end. A process that lives on saves each run the imports.
"""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import train
from align.config import load_config
from align.errors import UserError
from align.parallel import World, distributed
from align.tiny.evaluate import kl_to_base, respond_to_requests, scores, verdicts
from align.tiny.paths import resolve_path, resolve_tiny
from benchmarks.reproduce.experiment import Job
from benchmarks.reproduce.lines import packed


def run(job: Job, world: World) -> dict[str, Any]:
    """The line of a job, which says why where the training ended early."""
    began = time.process_time()
    line: dict[str, Any] = {"key": job.key, **vars(job)}
    base = resolve_path(f"tiny:base@{job.world}", world, train.train)
    with tempfile.TemporaryDirectory(prefix="reproduce-") as scratch:
        try:
            model = base if job.stage == "base" else trained(job, Path(scratch), world)
        except UserError as error:  # it diverged
            return line | {"failed": str(error)}
        for which in ("dev", "final") if job.stage == "base" else ("dev" if "choose" in job.stage else "final",):
            asked = respond_to_requests(model, f"tiny:requests@{job.world}", which)
            line |= {which: {"scores": scores(asked), "passed": {k: packed(v) for k, v in verdicts(asked).items()}}}
        line["kl"] = kl_to_base(model, base)
    return line | {"cpu_s": round(time.process_time() - began, 1)}


def trained(job: Job, scratch: Path, world: World) -> str:
    flags = {
        "model": f"tiny:base@{job.world}",
        "data": f"tiny:pairs@{job.world}",
        "train.seed": job.order,
        "output": scratch / "run",
        **job.flags,
    }
    config = load_config([f"--{name}={value}" for name, value in flags.items()])
    resolve_tiny(config, world, train.train)
    folder = train.train(config, world)
    assert folder is not None
    return str(folder)


def main() -> None:
    results = sys.stdout
    torch.set_num_threads(1)  # one run a core: most of them are too small to be shared by two
    with distributed() as world:
        for text in sys.stdin:
            with contextlib.redirect_stdout(sys.stderr):
                line = run(Job(**json.loads(text)), world)
            print(json.dumps(line), file=results, flush=True)


if __name__ == "__main__":
    main()
