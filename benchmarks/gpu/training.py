"""train.py itself on the card, small: process group, sharding, reference, checkpoint, export; kernels against chunked."""

import json
import subprocess
import sys

from align import command
from benchmarks.gpu.models import TEXT
from benchmarks.gpu.part import CUDA, DRY, ROWS, Part, left
from benchmarks.records import ROOT

part = Part("training")
RUNS = {
    "chunked": ["--model.logp_impl", "chunked"],
    "triton": ["--model.logp_impl", "triton", "--model.pointwise_impl", "triton"],
    "triton, live, checkpointing": [
        *("--model.logp_impl", "triton", "--model.pointwise_impl", "triton"),
        *("--reference.mode", "live", "--parallel.checkpointing", "full"),
    ],
}
NEAR = 1e-4  # relative, of the last loss


def run(name: str, flags: list[str]) -> float:
    """The last loss of a run of four steps."""
    folder = ROWS.parent / "training"
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "pairs.jsonl"
    rows = [
        {"prompt": f"Hide hat {i}!", "chosen": "No." * (1 + i % 3), "rejected": "Dig." * (1 + i)} for i in range(16)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = folder / name.replace(", ", "-")
    command = [sys.executable, str(ROOT / "train.py"), "--loss", "nca", "--model", str(TEXT), "--data", str(data)]
    command += ["--output", str(output), "--train.steps", "4", "--train.batch_size", "8", "--optim.lr", "1e-3"]
    command += ["--reference.cache", str(folder / "cache"), "--parallel.dtype", "float32", *flags]
    limit = None if DRY else max(left() - 2, 1)
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=folder)
    print(done.stdout[-1000:], done.stderr[-3000:])
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    exported = (output / "model" / "model.safetensors").exists()
    part.row(name, ok=last["step"] == 4 and exported, loss=last["loss"], grad_norm=last["grad_norm"])
    return last["loss"]


def main(argv: list[str]) -> None:
    found = {}
    for name, flags in RUNS.items():
        if CUDA or "triton" not in name:  # without a GPU, train.py refuses the kernels
            found[name] = part.attempt(name, run, name, flags, need=8)
    losses = [loss for loss in found.values() if loss is not None]
    if losses:
        spread = (max(losses) - min(losses)) / abs(losses[0])
        part.row("the same loss", ok=len(losses) == len(found) and spread <= NEAR, spread=spread, runs=len(losses))


if __name__ == "__main__":
    command.run(main)
