"""The machine that a benchmark runs on, as its report names it."""

import os
import platform
from pathlib import Path

import torch


def hardware(device: str) -> str:
    """The GPU's name for "cuda", else the processor's and how many logical CPUs there are."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return f"{', '.join(sorted(names)) or platform.processor() or platform.machine()} ({os.cpu_count()} logical CPUs)"
