"""What several test modules need: a small preference file, a model folder with a tokenizer, runs on several processes."""

import fcntl
import gzip
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.multiprocessing

from align.errors import UserError

# read when triton is first imported: without a GPU its kernels run in the interpreter
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
MODEL = GOLDEN / "falcon2_11b_text"  # a tiny Falcon2 with a tokenizer and a chat template


def pytest_collection_modifyitems(items):
    """Slow tests first, so that several workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory):
    """toy_world(FOLDER) puts the toy world and its base model, which all workers train once, into FOLDER/runs."""
    place = tmp_path_factory.getbasetemp()
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "toy-world"
    place.mkdir(exist_ok=True)
    program = (
        "import train\nfrom align.parallel import distributed\nfrom align.tiny.paths import resolve_path\n"
        "with distributed() as world:\n    resolve_path('tiny:base', world, train.train)"
    )
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "runs" / "tiny-base" / "model").exists():
            env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, "-c", program], cwd=place, env=env, check=True)

    def put(folder):
        (folder / "runs").mkdir()
        for made in (place / "runs").iterdir():
            (folder / "runs" / made.name).symlink_to(made.resolve())

    return put


@pytest.fixture
def pairs_file(tmp_path):
    """23 preference pairs of uneven lengths."""
    rows = [
        {
            "prompt": [{"role": "user", "content": "Tell me how to " + "really " * (i % 5) + f"hide hat number {i}."}],
            "chosen": "I am sorry, " * (1 + i % 3) + "but I will not help with that.",
            "rejected": f"Put it under {i} " + "large " * (i % 4) + "stones.",
        }
        for i in range(23)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def run_flags(pairs_file, tmp_path):
    """Flags of train.py for a run on those pairs, all of it below tmp_path."""
    flags = {"model": MODEL, "data": pairs_file, "output": tmp_path / "out", "reference.cache": tmp_path / "cache"}
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def write(tmp_path):
    """Write a file below tmp_path, rows as JSON lines, and return tmp_path."""

    def write(name, *rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return tmp_path

    return write


def refuse(function, *args, **kwargs):
    """The one line of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def read_metrics(output):
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def start_train(*flags, ranks=1, torchrun=(), env=None, **kwargs):
    """train.py in processes of its own, as a user starts it. One thread each: another number of threads is other bits."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, *torchrun, str(ROOT / "train.py"), *map(str, flags)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen(command, text=True, env=env, **kwargs)


def run_train(*flags, **kwargs):
    """start_train to its end: a CompletedProcess with its output."""
    process = start_train(*flags, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)
    try:
        out, err = process.communicate(timeout=300)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _rank(rank, size, port, fn, args):
    from align.parallel import distributed

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with distributed() as world:
        fn(world, *args)


def run_ranks(fn, size, *args):
    """fn(world, *args) on `size` gloo processes; raises what any of them raises."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # forked from a process that has imported what costs seconds
    multiprocessing.set_forkserver_preload(["align.checkpoint", "align.generate"])
    torch.multiprocessing.start_processes(_rank, (size, port, fn, args), nprocs=size, start_method="forkserver")
