"""metrics.jsonl and what a person sees: a progress bar on a terminal, plain lines elsewhere."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from align.errors import UserError
from align.files import loads, write_text, writing
from align.tracker import Tracker

# what the reader is shown of a step; metrics.jsonl has the rest
SHOWN = ("loss", "rewards/accuracy", "log_ratios/margin", "lr", "grad_norm")


def trim_metrics(file: Path, step: int) -> None:
    """Keep the lines of the first `step` steps: those after the checkpoint will be written again, the same."""
    if not file.exists():
        return
    kept = []
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):  # after the last end may be half a line
        if step_of(line, f"{file}:{number}")["step"] <= step:
            kept.append(line.decode() + "\n")
    write_text(file, "".join(kept))


def step_of(line: bytes, where: str) -> dict[str, Any]:
    """A line of metrics.jsonl. Raises UserError for what is none."""
    try:
        row = loads(line)
        if type(row["step"]) is int and all(
            type(v) is float or (type(v) is int and abs(v) < 2**63) for v in row.values()
        ):
            return row
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{where} is not a step's line of metrics; take it out, or give another folder")


class Log:
    """Where rank 0 writes; on the other ranks it does nothing."""

    def __init__(self, file: Path, done: int, steps: int, active: bool, tracker: Tracker | None = None):
        self.path = file
        with writing(file):
            self.file = file.open("a", encoding="utf-8") if active else None
        self.tracker = tracker if active else None
        terminal = active and sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True) if terminal else None
        self.steps, self.start, self.began = steps, done, time.monotonic()

    def step(self, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the same in short for the reader; eval/... has a line of its own."""
        if self.file is None:
            return
        # a held-out number may be none, and JSON has only numbers
        line = {name: value for name, value in metrics.items() if math.isfinite(value)}
        with writing(self.path, "that mended, the same command with --resume goes on from the newest checkpoint"):
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        if self.tracker is not None:
            self.tracker.log({name: value for name, value in metrics.items() if name != "step"}, metrics["step"])
        held_out = in_short(metrics, "eval/")
        if self.bar is not None:
            if held_out:
                self.bar.write(f"step {metrics['step']}  {held_out}", file=sys.stderr)
            self.bar.set_postfix_str(in_short(metrics) + rate(metrics))
            self.bar.update()
        else:
            done = metrics["step"]
            left = (time.monotonic() - self.began) / (done - self.start) * (self.steps - done)
            share, left_text = f"{100 * done // self.steps} %", tqdm.format_interval(round(left))
            print(
                f"step {done}/{self.steps}  {share}  {in_short(metrics)}{rate(metrics)}  {left_text} left", flush=True
            )
            if held_out:
                print(f"step {done}/{self.steps}  {held_out}", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.tracker is not None:
            self.tracker.close()
        if self.file is not None:
            self.file.close()


def in_short(metrics: dict[str, Any], prefix: str = "") -> str:
    """The metrics of SHOWN that are there, under the names of metrics.jsonl."""
    shown = [f"{prefix}{name}" for name in SHOWN if f"{prefix}{name}" in metrics]
    if not prefix:  # and the loss of every other source
        shown[1:1] = [name for name in metrics if name.endswith("/loss") and not name.startswith("eval/")]
    return "  ".join(f"{name} {metrics[name]:{'.2e' if name == 'lr' else '.4f'}}" for name in shown)


def rate(metrics: dict[str, Any]) -> str:
    """How fast the step was, and how much of the machine it used where that is known."""
    mfu = f"  MFU {metrics['mfu']:.0%}" if "mfu" in metrics else ""
    return f"  {metrics['tokens_per_second']:,.0f} tokens/s{mfu}"
