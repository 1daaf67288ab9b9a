"""The card and its ceilings: a copy, a large matrix product, and the head's own products by the vendor's library."""

import subprocess

import torch

from align import command
from benchmarks.gpu.part import CUDA, DEVICE, DRY, Part, milliseconds

part = Part("card")
HEADS = {"Falcon 11B": (4096, 65024), "Falcon3 7B": (3072, 131072)}  # (D, V)
TOKENS = 64 if DRY else 8192


def card() -> None:
    if not CUDA:
        return part.row("card", device="cpu")
    properties = torch.cuda.get_device_properties(0)
    asked = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True).stdout.strip().split(", ")
    part.row(
        "card",
        device=properties.name,
        units=properties.multi_processor_count,
        gib=round(properties.total_memory / 2**30, 1),
        l2_mib=properties.L2_cache_size / 2**20,
        **dict(zip(asked.split(","), said, strict=False)),
    )


def copy() -> None:
    n = 2**16 if DRY else 2**32
    x, y = (torch.zeros(n, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    ms = milliseconds(lambda: y.copy_(x))
    part.row("copy", ms=ms, tb_s=2 * n / ms / 1e9)


def product(name: str, m: int, n: int, k: int) -> None:
    """(m, k) @ (k, n) in bfloat16."""
    a, b = (torch.randn(size, device=DEVICE, dtype=torch.bfloat16) for size in ((m, k), (k, n)))
    out = torch.empty(m, n, device=DEVICE, dtype=torch.bfloat16)
    ms = milliseconds(lambda: torch.mm(a, b, out=out), rounds=20, warm=5)
    part.row(name, ms=ms, tflops=2 * m * n * k / ms / 1e9)


def main(argv: list[str]) -> None:
    part.attempt("card", card)
    part.attempt("copy", copy)
    size = 64 if DRY else 8192
    part.attempt("matrix product", product, "matrix product", size, size, size)
    for head, (d, v) in HEADS.items():
        d, v = (32, 128) if DRY else (d, v)
        for name, sizes in {
            f"{head} z": (TOKENS, v, d),
            f"{head} dh": (TOKENS, d, v),
            f"{head} dW": (v, d, TOKENS),
        }.items():
            part.attempt(name, product, name, *sizes)


if __name__ == "__main__":
    command.run(main)
