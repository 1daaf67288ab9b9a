"""Time and peak memory of every log-prob implementation that this machine can run: `python -m kernels.tools.bench`.

Nothing is timed before its values and gradients agree with reference.py in float64 on the inputs of the timing.
The implementations then take turns, round by round, and each keeps its best time, so that a disturbance meets all of
them alike. Every round draws its order: what ran just before decides what lies in the caches and what malloc has at
hand. Ratios are to the materialised logits of reference.py.

Peak memory is what a step takes over its inputs. On a GPU the allocator tells. On a CPU every implementation gets a fresh
process, which runs the step once, returns what it freed (malloc_trim), writes 5 to /proc/self/clear_refs (resets
the peak of the resident set), runs the step again and reads VmHWM less the VmRSS before it.
"""

import argparse
import ctypes
import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from .. import IMPLEMENTATIONS, hardware
from .bench_cases import BASELINE, CASES, QUICK, Case, DPOStep, Inputs, Step, make_inputs, run_step, steps

MIB = 2**20
# largest error allowed, relative to the largest entry of the tensor. In bfloat16 a logit near 4 comes in steps of 1/64
LIMITS = {"float32": 1e-4, "bfloat16": 5e-2}


class Row(TypedDict):
    """What was found of one implementation."""

    case: str
    dtype: str
    implementation: str
    failed: NotRequired[str]  # why it did not run, and then nothing else is known
    errors: NotRequired[dict[str, float]]
    parity: NotRequired[bool]  # all errors are within LIMITS; only then it was timed
    margin_nats: NotRequired[float]
    seconds: NotRequired[dict[str, float]]
    ratio: NotRequired[float]
    peak_mib: NotRequired[dict[str, float] | None]


def errors(got: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> dict[str, float]:
    """Largest error of each tensor over the largest entry that it should have."""
    pairs = zip(("value", "d_hidden", "d_weight"), got, truth, strict=True)
    return {name: ((a.double() - b).abs().max() / b.abs().max()).item() for name, a, b in pairs}


@torch.no_grad()
def margin_error(step: DPOStep, x: Inputs, truth: DPOStep, exact: Inputs) -> float:
    """How far the worst of the pairs' margins is off, in nats: what the dtype of the log-probabilities does to DPO."""
    return (step.margins(x).double() - truth.margins(exact)).abs().max().item()


def synchronise(x: Inputs) -> None:
    if x.hidden.is_cuda:
        torch.cuda.synchronize()


def seconds(step: Step, x: Inputs, clock: Callable[[], float]) -> dict[str, float]:
    """One step's time."""
    x.drop_gradients()
    synchronise(x)
    start = clock()
    out = step(x)
    synchronise(x)
    middle = clock()
    out.backward(x.upstream.to(out.dtype))
    synchronise(x)
    end = clock()
    return {"forward": middle - start, "backward": end - middle, "both": end - start}


def resident(field: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_memory(step: Step, x: Inputs) -> dict[str, float]:
    """Mebibytes over the inputs. backward's peak counts what forward left for it."""
    run_step(step, x)
    x.drop_gradients()
    gc.collect()
    if x.hidden.is_cuda:
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        before = resident("VmRSS")

    def peak() -> float:
        """Mebibytes since the last call, which this one ends."""
        if x.hidden.is_cuda:
            torch.cuda.synchronize()
            most = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            most = resident("VmHWM")
            Path("/proc/self/clear_refs").write_text("5")
        return (most - before) / MIB

    peak()
    out = step(x)
    forward = peak()
    out.backward(x.upstream.to(out.dtype))
    backward = peak()
    return {"forward": forward, "backward": backward, "both": max(forward, backward)}


def peak_in_fresh_process(implementation: str, case: str, dtype: str) -> dict[str, float] | None:
    """peak_memory of one implementation, None where the system cannot tell."""
    command = [sys.executable, "-m", __spec__.name, "--case", case, "--dtype", dtype, "--peak", implementation]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}  # it finds this module where this process did
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def measure(name: str, dtype: str, args: argparse.Namespace, device: str) -> list[Row]:
    """One row for each implementation: errors, then, for those that pass, times, ratio and peak memory."""
    case = (QUICK if args.quick else CASES)[name]
    x = make_inputs(case, getattr(torch, dtype), device)
    candidates = steps(case, compiled=not args.quick)
    exact = x.to(torch.float64)
    baseline = candidates[BASELINE]
    truth = run_step(baseline, exact)
    rows: dict[str, Row] = {}
    for implementation, step in candidates.items():
        row = rows[implementation] = {"case": name, "dtype": dtype, "implementation": implementation}
        try:
            row["errors"] = errors(run_step(step, x), truth)
            row["parity"] = all(error <= LIMITS[dtype] for error in row["errors"].values())
            if isinstance(step, DPOStep) and isinstance(baseline, DPOStep):
                row["margin_nats"] = margin_error(step, x, baseline, exact)
        except Exception as problem:  # a competitor may fail in any way it likes; the others are still measured
            row["failed"] = f"{type(problem).__name__}: {problem}".splitlines()[0]
    passed = {implementation: row for implementation, row in rows.items() if row.get("parity")}
    clock = time.process_time if args.shared else time.perf_counter
    draw = random.Random(0)
    for _ in range(args.rounds):
        for implementation in draw.sample(list(passed), len(passed)):
            row = passed[implementation]
            taken = seconds(candidates[implementation], x, clock)
            best = row.get("seconds", taken)
            row["seconds"] = {part: min(best[part], taken[part]) for part in taken}
    for implementation, row in passed.items():
        if BASELINE in passed:
            row["ratio"] = row["seconds"]["both"] / passed[BASELINE]["seconds"]["both"]
        if device == "cuda" or args.quick:
            row["peak_mib"] = peak_memory(candidates[implementation], x)
        else:
            row["peak_mib"] = peak_in_fresh_process(implementation, name, dtype)
    return list(rows.values())


def describe(case: Case) -> str:
    if case.pairs:
        what = f"DPO on {case.pairs} pairs, T = {case.tokens}, half of it prompt"
    else:
        what = f"log-probabilities of N = {case.tokens} tokens"
    return f"{what}, D = {case.hidden}, V = {case.vocab}"


def table(rows: list[Row]) -> str:
    """Markdown: milliseconds and mebibytes over the inputs, forward / backward."""
    lines = [
        "| implementation | error: value, dH, dW | margin off by, nats | forward, ms | backward, ms | both, ms | ratio |"
        " peak, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['implementation']} | did not run: {row['failed'][:80]} | | | | | | |")
            continue
        error = ", ".join(f"{e:.0e}" for e in row["errors"].values())
        margin = f"{row['margin_nats']:.0e}" if "margin_nats" in row else ""
        if not row["parity"]:
            lines.append(f"| {row['implementation']} | {error}: **too far off, not timed** | {margin} | | | | | |")
            continue
        times = " | ".join(f"{1e3 * row['seconds'][part]:.3g}" for part in ("forward", "backward", "both"))
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "?"
        peaks = row["peak_mib"]
        peak = "?" if peaks is None else f"{peaks['forward']:.0f} / {peaks['backward']:.0f}"
        lines.append(f"| {row['implementation']} | {error} | {margin} | {times} | {ratio} | {peak} |")
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kernels.tools.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, action="append", help="default: logp and dpo; on a GPU falcon-11b too")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append", help="default: both")
    parser.add_argument("--rounds", type=int, default=10, help="turns that every implementation gets; default 10")
    parser.add_argument("--quick", action="store_true", help="small shapes, nothing compiled: to see that it runs")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="for a machine that others use: one thread, and CPU time for wall-clock time",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/bench.json"), help="default runs/bench.json")
    parser.add_argument("--peak", metavar="IMPLEMENTATION", help="print the peak memory of this one only, as JSON")
    args = parser.parse_args(argv)
    args.case = args.case or ["logp", "dpo"] + ["falcon-11b"] * torch.cuda.is_available()
    args.dtype = args.dtype or ["float32", "bfloat16"]
    return args


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 if an implementation of ours failed or was too far off."""
    args = parse(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.peak:
        case = CASES[args.case[0]]
        print(json.dumps(peak_memory(steps(case)[args.peak], make_inputs(case, getattr(torch, args.dtype[0]), device))))
        return 0
    if args.shared:
        torch.set_num_threads(1)
    machine = {"hardware": hardware(device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    machine |= {"clock": "CPU time" if args.shared else "wall clock", "rounds": args.rounds}
    print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    cases = QUICK if args.quick else CASES
    rows = []
    for name in args.case:
        for dtype in args.dtype:
            found = measure(name, dtype, args, device)
            print(f"\n{name}, {dtype}: {describe(cases[name])}\n\n{table(found)}", flush=True)
            rows += found
    args.output.parent.mkdir(parents=True, exist_ok=True)
    shapes = {name: asdict(cases[name]) for name in args.case}
    report = {**machine, "cases": shapes, "rows": rows}
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    ours = [row for row in rows if row["implementation"].split(",")[0] in IMPLEMENTATIONS]
    good = all(row.get("parity", False) for row in ours)
    names = ", ".join(dict.fromkeys(row["implementation"] for row in ours))
    print(f"\n{args.output}: {len(rows)} rows, parity {'holds' if good else 'BROKEN'} for {names}")
    return 0 if good else 1


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends this quietly
    sys.exit(main())
