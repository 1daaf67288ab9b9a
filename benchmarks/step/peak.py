"""What this machine's matrix products reach, the roof of every training step on it."""

import time

import torch

SIZES = (1024, 2048, 4096)
SECONDS = 1.5  # that a size may take


def matrix_peak(dtype: torch.dtype) -> float:
    """The most operations a second that torch.mm of two matrices did."""
    best = 0.0
    for size in SIZES:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        began = time.perf_counter()
        while (start := time.perf_counter()) < began + SECONDS:
            a @ b
            best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
