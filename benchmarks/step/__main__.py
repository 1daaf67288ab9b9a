"""A step of train.py beside a step of TRL's DPOTrainer: seconds, real tokens, memory, share of the machine's peak.

    python -m benchmarks.step [--trl PYTHON] [--trl_batch N] [--bfloat16] [--repeats N] [--steps N] [--case NAME]
                              [--output FILE]

Same weights, pairs, order, loss (dpo), rate and AdamW; each run in a fresh process, ours and TRL's in turn. That it is
the same work is checked: the losses of all steps agree to 1e-3. `make bench-step TRL=PYTHON` names the interpreter of
an environment with trl; without one, our side alone is measured. Ours is train.py with the settings that it has by
itself; of TRL's, trl_dpo.py says which, and it takes 8 pairs at a time, as it does by itself (fewer pad less).
--bfloat16 runs ours once more with --parallel.dtype bfloat16, whose losses agree with float32's to 5e-3: for a CPU that
multiplies in bfloat16.

Real tokens are each prompt once and its responses; of the same count are the operations, of which the machine's peak is
the most that torch.mm in the dtype of compute did here. Memory above the baseline is what a run added to what its
process held before, its imports done.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from align import command
from benchmarks import records
from benchmarks.step import cases, peak
from kernels.machine import hardware

HERE = Path(__file__).resolve().parent
OURS, PEER, ROUNDED = "train.py", "TRL", "bfloat16"  # the last is train.py, too
MODES = ("live", "cached")
BETA, LR, BETA2 = 0.1, 1e-4, 0.95
AGREE = {PEER: 1e-3, ROUNDED: 5e-3}  # with ours, the losses of each step
DTYPES = {OURS: "float32", PEER: "float32", ROUNDED: "bfloat16"}
LIMIT = 600  # seconds a run may take


def run(side: str, case: str, mode: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own: what it wrote, or {"failed": why}."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        result, output = Path(scratch) / "result.json", Path(scratch) / "run"
        if side != PEER:
            flags = {
                "model": folder / "model",
                "data": folder / "pairs.jsonl",
                "output": output,
                "loss": "dpo",
                "loss.beta": BETA,
                "reference.mode": mode,
                "reference.cache": Path(scratch) / "cache",
                "train.batch_size": cases.BATCHES[case],
                "train.steps": args.steps,
                "train.seed": cases.SEED,
                "optim.lr": LR,
                "optim.beta2": BETA2,
                "optim.schedule": "constant",
                "optim.warmup": 0,
                "parallel.dtype": DTYPES[side],
            }
            words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
            command = [sys.executable, "-m", "benchmarks.step.ours", str(result), *words]
        else:
            settings = {
                "folder": str(folder),
                "output": str(output),
                "result": str(result),
                "batch": cases.BATCHES[case],
                "micro_batch": min(args.trl_batch, cases.BATCHES[case]),
                "reference": mode,
                "steps": args.steps,
                "beta": BETA,
                "lr": LR,
                "beta2": BETA2,
                "max_length": cases.MAX_LENGTH,
            }
            file = Path(scratch) / "settings.json"
            file.write_text(json.dumps(settings))
            command = [args.trl, str(HERE / "trl_dpo.py"), str(file)]
        return outcome(command, result)


def outcome(command: list[str], result: Path) -> dict[str, Any]:
    try:
        done = subprocess.run(command, cwd=records.ROOT, capture_output=True, text=True, timeout=LIMIT)
    except (OSError, subprocess.TimeoutExpired) as problem:
        return {"failed": str(problem)}
    if done.returncode or not result.is_file():
        return {"failed": (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]}
    return json.loads(result.read_text())


def row(case: str, mode: str, side: str, runs: list[dict], steps: list[cases.Step], peak_flops: float) -> dict:
    """The numbers of a case from its runs; the first step of each warms up."""
    about = {"part": case, "name": f"{side}, {mode}", "runs": len(runs)}
    if failed := next((found["failed"] for found in runs if "failed" in found), ""):
        return about | {"failed": failed}
    medians = [median(found["seconds"][1:]) for found in runs]
    best = min(range(len(runs)), key=medians.__getitem__)  # what else the machine did costs time, and never saves any
    seconds = sum(runs[best]["seconds"][1:])
    return about | {
        "s_step": medians[best],
        "s_step_of_runs": medians,
        "tokens_s": sum(step.tokens for step in steps[1:]) / seconds,
        "mfu": sum(step.flops[mode] for step in steps[1:]) / seconds / peak_flops,
        "above_mib": min(found["peak_mib"] - found["baseline_mib"] for found in runs),
        "peak_mib": min(found["peak_mib"] for found in runs),
        "loss": runs[best]["loss"],
        "logps/chosen": runs[best]["logps/chosen"][0],
    }


def disagreement(ours: dict, other: dict, side: str) -> str:
    """Where our row and that of another side were not the same work; "" where they were."""
    for step, (a, b) in enumerate(zip(ours["loss"], other["loss"], strict=True), start=1):
        if not abs(a - b) <= AGREE[side]:
            return f"the loss of step {step} is {a:.6f} by {OURS} and {b:.6f} by {side}"
    a, b = ours["logps/chosen"], other["logps/chosen"]
    return "" if abs(a - b) <= AGREE[side] * abs(a) else f"the first log-probs are {a:.3f} and {b:.3f}"


def comparisons(numbers: records.Numbers) -> Iterator[str]:
    """A line for every case that both sides ran: how many times faster, at which share of the memory."""
    rows = {(row["part"], row["name"]): row for row in numbers if "failed" not in row}
    for (case, name), ours in rows.items():
        side, _, mode = name.partition(", ")
        if side != OURS:
            continue
        for other in (PEER, ROUNDED):
            if found := rows.get((case, f"{other}, {mode}")):
                fast, slow, said = (ours, found, f"as {PEER}") if other == PEER else (found, ours, "in bfloat16")
                same = disagreement(ours, found, other)
                yield (
                    f"{case}, {mode}: {slow['s_step'] / fast['s_step']:.2f} times as fast {said}, at "
                    f"{fast['above_mib'] / slow['above_mib']:.2f} of its memory "
                    f"({fast['peak_mib'] / slow['peak_mib']:.2f} with the baseline); "
                    f"{'NOT THE SAME WORK: ' + same if same else 'losses agree'}"
                )


COLUMNS = {"s_step": ".3f", "tokens_s": ".0f", "mfu": ".1%", "above_mib": ".0f", "peak_mib": ".0f"}
HEADS = ("s/step", "tokens/s", "of peak", "MiB above", "MiB RSS")


def table(numbers: records.Numbers) -> str:
    lines = [f"{'case':12} {'side, reference':18}" + "".join(f"{head:>11}" for head in HEADS) + "   loss"]
    for row in numbers:
        if "failed" in row:
            lines.append(f"{row['part']:12} {row['name']:18} failed: {row['failed']}")
        elif row["part"] in cases.BATCHES:
            values = "".join(f"{row[key]:>11{form}}" for key, form in COLUMNS.items())
            losses = " ".join(f"{loss:.4f}" for loss in row["loss"])
            lines.append(f"{row['part']:12} {row['name']:18}{values}   {losses}")
    return "\n".join([*lines, *comparisons(numbers)])


def versions_of(trl: str) -> dict[str, str]:
    """What the other environment has."""
    code = "import torch, trl, transformers as t; print(torch.__version__, trl.__version__, t.__version__)"
    found = subprocess.run([trl, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(("its torch", "trl", "transformers"), found.stdout.split(), strict=True))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--trl", default="", metavar="PYTHON", help="the interpreter of an environment with trl")
    parser.add_argument(
        "--trl_batch", type=int, default=8, metavar="N", help="pairs that it takes at a time; default 8"
    )
    parser.add_argument("--bfloat16", action="store_true", help="run ours in bfloat16, too")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of each; the fastest counts")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="of a run, the first of which warms up")
    parser.add_argument("--case", action="append", choices=list(cases.BATCHES), help="this alone; default: all")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the record; default: a new one of today")
    args = parser.parse_args(argv)
    if args.steps < 2 or args.repeats < 1:
        parser.error("--steps must be at least 2, and --repeats at least 1")
    if args.trl_batch < 1 or any(pairs % min(args.trl_batch, pairs) for pairs in cases.BATCHES.values()):
        parser.error(f"--trl_batch must divide the pairs of a step, {cases.BATCHES}")
    sides, versions = [OURS], {"torch": str(torch.__version__)}
    if args.trl:
        try:
            versions |= versions_of(args.trl)
        except (OSError, subprocess.CalledProcessError) as problem:
            said = getattr(problem, "stderr", "") or str(problem)
            parser.error(f"--trl {args.trl} runs no Python with trl: {said.strip().splitlines()[-1]}")
        sides.append(PEER)
    else:
        print("no --trl PYTHON: our side alone")
    sides += [ROUNDED] * args.bfloat16

    cpu = hardware("cpu")
    machine = {"cpu": cpu, "threads": torch.get_num_threads(), **versions}
    settings = {
        "beta": BETA,
        "lr": LR,
        "beta2": BETA2,
        "steps": args.steps,
        "repeats": args.repeats,
        "dtype": {side: DTYPES[side] for side in sides},
    }
    settings |= {"pairs a step": cases.BATCHES, "pairs that TRL takes at a time": args.trl_batch}
    record = records.begin("a training step", machine, settings)
    file = args.output or records.new_file(records.FOLDER, "step", cpu)
    flops = {dtype: peak.matrix_peak(getattr(torch, dtype)) for dtype in dict.fromkeys(DTYPES[side] for side in sides)}
    record["numbers"] = [
        {"part": "machine", "name": f"torch.mm, {dtype}", "tflops": found / 1e12} for dtype, found in flops.items()
    ]
    records.write(file, record)
    with tempfile.TemporaryDirectory(prefix="bench-step-") as scratch:
        for case in args.case or cases.BATCHES:
            if why := cases.absent(case):
                print(f"{case}: left out, {why}")
                continue
            steps = cases.write_case(case, Path(scratch) / case, args.steps)
            for mode in MODES:
                runs: dict[str, list[dict]] = {side: [] for side in sides}
                for _ in range(args.repeats):
                    for side in sides:
                        runs[side].append(run(side, case, mode, Path(scratch) / case, args))
                        print(f"{case}, {mode}, {side}: {runs[side][-1].get('failed', 'done')}", flush=True)
                record["numbers"] += [row(case, mode, side, runs[side], steps, flops[DTYPES[side]]) for side in sides]
                records.write(file, record)
    reached = ", ".join(f"{found / 1e9:.0f} GFLOP/s in {dtype}" for dtype, found in flops.items())
    print(f"\n{cpu}, {torch.get_num_threads()} threads, torch.mm {reached}")
    print(f"{table(record['numbers'])}\n\n{os.path.relpath(file)}")
    failed = any("failed" in row for row in record["numbers"])
    return int(failed or "NOT THE SAME WORK" in table(record["numbers"]))


if __name__ == "__main__":
    command.run(main)
