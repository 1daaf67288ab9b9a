"""What the parts share: the device, rows, clocks and meters. DRY: everything on a CPU, tiny, kernels interpreted.

A part's environment, set by __main__.py: GPU_DRY, GPU_ROWS (the file its rows go to), GPU_DEADLINE (when it is stopped).
"""

import gc
import json
import os
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

DRY = os.environ.get("GPU_DRY") == "1"
ROWS = Path(os.environ.get("GPU_ROWS", "runs/gpu/rows.jsonl"))
DEADLINE = float(os.environ.get("GPU_DEADLINE", "inf"))
CUDA = torch.cuda.is_available() and not DRY
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16 if CUDA else torch.float32  # of compute, as train.py chooses it
# dense bfloat16 by the datasheets, TFLOP/s: what MFU is a share of
DATASHEET = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312}


class Part:
    """The rows of one part."""

    def __init__(self, name: str):
        self.name = name

    def row(self, name: str, **values: Any) -> None:
        """One result: printed, and in the file before anything else runs."""
        row = {"part": self.name, "name": name, **values}
        ROWS.parent.mkdir(parents=True, exist_ok=True)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def attempt(self, name: str, fn: Callable[..., Any], *args: Any, need: float = 0.0) -> Any:
        """fn(*args), whose failure is a row and stops nothing; on a GPU not begun with fewer than `need` seconds left."""
        if CUDA and left() < need:
            return self.row(name, skipped=f"{left():.0f} s left of this part, {need:.0f} wanted")
        try:
            return fn(*args)
        except BrokenPipeError:
            raise
        except Exception as problem:  # whatever it is, the other rows are still wanted
            traceback.print_exc()
            self.row(name, failed=" ".join(f"{type(problem).__name__}: {problem}".split())[:300])
        finally:
            free()


def left() -> float:
    """Seconds until this part is stopped."""
    return DEADLINE - time.time()


def earlier(part: str, name: str, key: str) -> float | None:
    """A number that an earlier part has found."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []
    found = [row[key] for row in rows if (row["part"], row["name"]) == (part, name) and key in row]
    return found[-1] if found else None


def datasheet() -> float | None:
    """The card's peak in bfloat16, TFLOP/s; None for a card whose datasheet is not in the table."""
    name = torch.cuda.get_device_name() if CUDA else ""
    return next((peak for card, peak in DATASHEET.items() if card in name), None)


def synchronise() -> None:
    if CUDA:
        torch.cuda.synchronize()


def free() -> None:
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def milliseconds(fn: Callable[[], Any], rounds: int = 10, warm: int = 2) -> float:
    """The median of one call."""
    rounds, warm = (1, 0) if DRY else (rounds, warm)
    for _ in range(warm):
        fn()
    taken = []
    for _ in range(rounds):
        synchronise()
        start = time.perf_counter()
        if CUDA:
            a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            a.record()
            fn()
            b.record()
            b.synchronize()
            taken.append(a.elapsed_time(b))
        else:
            fn()
            taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken)


def allocated_gib() -> float:
    """What tensors hold on the GPU now; 0 without one."""
    return torch.cuda.memory_allocated() / 2**30 if CUDA else 0.0


def peak_gib(fn: Callable[[], Any]) -> tuple[float, Any]:
    """What tensors hold at most while fn runs, 0 without a GPU; and what fn returns."""
    free()
    synchronise()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    result = fn()
    synchronise()
    return (torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0), result
