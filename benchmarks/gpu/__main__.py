"""`make gpu`: prove and measure on this machine's GPU, within minutes, and leave a record.

Runs every part (the modules beside this one) as a separate process with its own time limit: one that fails or hangs becomes
a row and stops nothing. The record, gpu-<card>-<date>.json, is rewritten after each part; its table is printed last.
Then kernels/evidence.json, which decides what `auto` is, is made from all records there are.

--dry runs every line of it on a CPU, with tiny shapes and the kernels interpreted; its record goes to runs/gpu.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from align import command
from benchmarks import evidence, records
from kernels import evidence as kernel_evidence
from kernels import hardware

LIMITS = {  # seconds, in the order in which they run: each part gets its share of what is left of --limit, their sum
    "card": 25,
    "tests": 100,
    "correctness": 45,
    "attention": 15,
    "head": 90,
    "steps": 80,
    "training": 40,
    "generation": 25,
    "peers": 35,
    "launches": 25,
}
PACKAGES = (
    *("torch", "triton", "numpy", "safetensors", "tokenizers", "huggingface_hub"),
    *("transformers", "trl", "liger_kernel", "cut_cross_entropy"),
)
SCRATCH = records.ROOT / "runs" / "gpu"


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(dry: bool) -> dict[str, Any]:
    """The card and the software. triton: the version that the imported compiler reports."""
    card = "cpu" if dry else torch.cuda.get_device_name()
    versions = {package: found for package in PACKAGES if (found := version(package))}
    if "triton" in versions:
        import triton

        versions["triton"] = triton.__version__
    return {"card": card, "cpu": hardware("cpu"), "python": platform.python_version(), **versions}


def run_part(name: str, limit: float, environment: dict[str, str], log: Path) -> str:
    """Run one part to its end or limit; what went wrong, if anything did."""
    environment = {**environment, "GPU_DEADLINE": str(time.time() + limit)}
    command = [sys.executable, "-m", f"benchmarks.gpu.{name}"]
    with log.open("a") as file:
        process = subprocess.Popen(
            command, cwd=records.ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it has started goes with it
            process.wait()
            return f"stopped after {limit:.0f} s"
    return f"exit status {status}; see {log}" if status else ""


def read_rows(file: Path) -> records.Numbers:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(rows: records.Numbers) -> str:
    """A line a row: part, name, what was found."""

    def cell(key: str, value: Any) -> str:
        return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"

    width = max((len(row["name"]) for row in rows), default=0)
    lines = []
    for row in rows:
        cells = [cell(k, v) for k, v in row.items() if k not in ("part", "name") and v is not None and v != []]
        lines.append(f"{row['part']:12}{row['name']:{width}}  {', '.join(cells)}"[:220])
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="on a CPU, tiny: to see that every line runs")
    parser.add_argument(
        "--parts", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="PART", help=" ".join(LIMITS)
    )
    parser.add_argument(
        "--limit", type=float, default=sum(LIMITS.values()), help="seconds for all; default %(default)s"
    )
    parser.add_argument("--commit", default=records.commit(), help="what is measured, where git cannot tell")
    parser.add_argument("--output", type=Path, help="folder of the record; default benchmarks/, with --dry runs/gpu/")
    args = parser.parse_args(argv)
    args.parts = [part for part in LIMITS if part in args.parts]
    args.output = args.output or (SCRATCH if args.dry else records.FOLDER)
    return args


def main(argv: list[str]) -> int:
    """Exit status: 0; 1 where a part or a row failed, or something was not right; 2 without a GPU."""
    args = parse(argv)
    if not args.dry and not torch.cuda.is_available():
        print(
            "there is no GPU here that torch can use; --dry (make gpu DRY=1) runs all of it on a CPU", file=sys.stderr
        )
        return 2
    SCRATCH.mkdir(parents=True, exist_ok=True)
    rows_file, log = SCRATCH / "rows.jsonl", SCRATCH / "log.txt"
    for file in (rows_file, log):
        file.unlink(missing_ok=True)
    environment = {**os.environ, "GPU_ROWS": str(rows_file), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = os.pathsep.join(filter(None, (str(records.ROOT), os.environ.get("PYTHONPATH"))))
    environment |= {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    if args.dry:
        environment |= {"GPU_DRY": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    record: dict[str, Any] = {
        "what": "gpu",
        "machine": machine(args.dry),
        "date": time.strftime("%Y-%m-%d"),
        "commit": args.commit,
        "settings": {
            "dry": args.dry,
            "parts": args.parts,
            "limit_s": args.limit,
            "kernels": {kind: kernel_evidence.source_hash(kind) for kind in kernel_evidence.SOURCES},
        },
        "numbers": [],
    }
    file = records.new_file(args.output, "gpu", record["machine"]["card"])
    began = time.monotonic()
    for name in args.parts:
        remaining = args.limit - (time.monotonic() - began)
        to_come = sum(LIMITS[part] for part in args.parts[args.parts.index(name) :])
        limit = 600.0 if args.dry else remaining * LIMITS[name] / to_come  # a CPU and an interpreter are slow
        print(f"{name}: at {time.monotonic() - began:.0f} s, at most {limit:.0f} s", flush=True)
        problem = run_part(name, limit, environment, log) if limit >= 5 else "no time was left"
        if problem:
            with rows_file.open("a") as out:
                out.write(json.dumps({"part": name, "name": "the part", "failed": problem}) + "\n")
        records.write(file, record | {"numbers": read_rows(rows_file)})
    rows = read_rows(rows_file)
    print(table(rows))
    wrong = [row for row in rows if "failed" in row or row.get("ok") is False]
    print(f"{file}: {len(rows)} rows in {time.monotonic() - began:.0f} s, {len(wrong)} failed or not right")
    if file.parent == records.FOLDER:
        evidence.main([])
    return bool(wrong)


if __name__ == "__main__":
    command.run(main)
