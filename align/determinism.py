"""--deterministic: the same command gives the same bits again, on the same machine (docs/determinism.md)."""

import os

import torch


def make_deterministic(on: bool) -> None:
    """Take only operations that add in one order, from here on, or any again. PyTorch raises where there is none."""
    torch.use_deterministic_algorithms(on)
    # it would fill memory that is about to be written; nothing here reads what it has not
    torch.utils.deterministic.fill_uninitialized_memory = not on  # type: ignore[attr-defined]
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used, which is later
