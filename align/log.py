"""metrics.jsonl and what a person sees: a progress bar on a terminal, plain lines elsewhere."""

import json
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from align.files import write_text


def trim_metrics(file: Path, step: int) -> None:
    """Keep the lines of the first `step` steps: those after the checkpoint will be written again, the same."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break  # the half-written last line of a killed run
    write_text(file, "".join(kept))


class Log:
    """Where rank 0 writes; on the other ranks it does nothing."""

    def __init__(self, file: Path, done: int, steps: int, active: bool):
        self.file = file.open("a", encoding="utf-8") if active else None
        terminal = active and sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True) if terminal else None
        self.steps = steps

    def step(self, metrics: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and the same in short for the reader."""
        if self.file is None:
            return
        self.file.write(json.dumps(metrics) + "\n")
        self.file.flush()
        shown = {
            name: metrics[name]
            for name in ("loss", "rewards/accuracy", "rewards/margin", "grad_norm")
            if name in metrics
        }
        if self.bar is not None:
            self.bar.set_postfix({name.removeprefix("rewards/"): f"{value:.4g}" for name, value in shown.items()})
            self.bar.update()
        else:
            text = "  ".join(f"{name.removeprefix('rewards/')} {value:.4f}" for name, value in shown.items())
            print(f"step {metrics['step']}/{self.steps}  {text}  {metrics['seconds']:.2f} s", flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.file is not None:
            self.file.close()
