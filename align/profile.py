"""--train.profile N: what N steps spend their time on, as a trace for chrome://tracing or https://ui.perfetto.dev."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

WARM_UP = 2  # steps in which memory, kernels and the optimizer's state settle


def profiled(steps: range, count: int, folder: Path) -> Iterator[int]:
    """The steps, of which `count`, from the third on, are traced into folder/steps-3-5.json; of a short run the last."""
    if not count:
        yield from steps
        return
    first = max(steps.start, min(steps.start + WARM_UP, steps.stop - count))
    last = min(first + count, steps.stop) - 1
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    trace = profile(activities=kinds)
    for step in steps:
        if step == first:
            trace.start()
        yield step
        if step == last:
            trace.stop()
            folder.mkdir(exist_ok=True)
            trace.export_chrome_trace(str(folder / f"steps-{first + 1}-{last + 1}.json"))
