"""Each of the four log-prob launches by itself, with the tiles of tiles.py and others, against the vendor's product.

Variants are compiled first, by many processes at once; each is then held against what the chosen tile gives, and timed.
Last, forward and backward with other chunks of dL/dlogits alive.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import torch
import torch.multiprocessing
from torch import Tensor

from align import command
from benchmarks.gpu.correctness import error, inputs
from benchmarks.gpu.part import CUDA, DEVICE, DRY, Part, milliseconds
from kernels.triton import logp
from kernels.triton.tiles import KERNELS, Tile, tiles_for

part = Part("launches")
N, D, V = (32, 32, 256) if DRY else (8192, 4096, 65024)
CHUNK = 128 if DRY else logp.DLOGITS_BYTES // (2 * N)  # columns of dL/dlogits alive at once
SHAPES = (  # rows, columns, inner, warps, stages
    (128, 256, 64, 8, 3),
    (128, 256, 64, 8, 4),
    (256, 128, 64, 8, 3),
    (256, 128, 64, 8, 4),
    (128, 128, 64, 4, 4),
    (128, 128, 64, 8, 4),
    (128, 128, 128, 8, 3),
)
CHUNKS = (2**27, 2**28, 2**29, 2**30)  # bytes

Job = tuple[str, Tile]


def variants(kernel: str) -> list[Tile]:
    """The chosen tile first."""
    chosen = tiles_for(logp.architecture(DEVICE), "bfloat16")[kernel]
    if DRY:
        return [chosen, chosen._replace(group=1)]
    others = [Tile(*shape, chosen.group, chosen.tma) for shape in SHAPES]
    others += [chosen._replace(group=group) for group in (4, 8, 32)] + [chosen._replace(tma=not chosen.tma)]
    return list(dict.fromkeys([chosen, *others]))


class Buffers:
    """What the launches read and write, as backward has it for one chunk."""

    def __init__(self) -> None:
        self.hidden, self.weight, self.targets, self.grad = inputs(N, D, V, torch.bfloat16)
        self.lse = torch.full((N,), 11.0, device=DEVICE)
        self.dz = (1e-3 * torch.randn(N, CHUNK, device=DEVICE)).bfloat16()
        self.dh = torch.zeros(N, D, device=DEVICE)
        self.dw = torch.empty(CHUNK, D, device=DEVICE, dtype=torch.bfloat16)

    def launch(self, kernel: str, tile: Tile) -> tuple[Callable[[], Tensor], int]:
        """The launch, which returns what it computed, and its operations."""
        launcher = logp._Launch(self.hidden, self.weight, None)
        launcher.tiles = {**launcher.tiles, kernel: tile}
        h, w, dz = self.hidden, self.weight, self.dz

        def forward() -> Tensor:
            lse, _, target_logit = launcher.forward(h, w, self.targets, False, False)
            return torch.stack([lse.logsumexp(dim=0), target_logit])

        def dlogits() -> Tensor:
            launcher.dlogits(h, w, self.targets, self.lse, self.grad, None, dz, 0)
            return dz

        def d_hidden() -> Tensor:
            launcher.product("d_hidden", dz, w[:CHUNK], self.dh, None, accumulate=False)
            return self.dh

        def d_weight() -> Tensor:
            launcher.product("d_weight", dz, h, self.dw, None, accumulate=False)
            return self.dw

        run = {"forward": forward, "dlogits": dlogits, "d_hidden": d_hidden, "d_weight": d_weight}[kernel]
        return run, 2 * N * D * (V if kernel == "forward" else CHUNK)

    def product(self, kernel: str) -> tuple[Tensor, Tensor]:
        """The two matrices whose product the launch is, without what comes before or after it."""
        h, w, dz = self.hidden, self.weight, self.dz
        pairs = {"forward": (h, w.T), "dlogits": (h, w[:CHUNK].T), "d_hidden": (dz, w[:CHUNK]), "d_weight": (dz.T, h)}
        return pairs[kernel]


def compile_only(job: Job) -> str:
    """Put a launch's code into Triton's cache without running it; what went wrong, if anything did."""
    from triton.runtime.jit import KernelInterface

    KernelInterface.__getitem__ = lambda self, grid: lambda *a, **k: self.run(*a, grid=grid, warmup=True, **k)
    try:
        Buffers().launch(*job)[0]()
    except Exception as problem:  # a variant may ask for more than there is
        return f"{job[0]} {tuple(job[1])}: {type(problem).__name__}: {problem}"[:200]
    return ""


def compile_all(jobs: list[Job]) -> None:
    start = time.monotonic()
    workers = min(os.cpu_count() or 1, 8, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=torch.multiprocessing.get_context("spawn")) as pool:
        problems = [problem for problem in pool.map(compile_only, jobs) if problem]
    part.row("compile", variants=len(jobs), seconds=round(time.monotonic() - start, 1), problems=problems)


def describe(tile: Tile) -> str:
    size = f"{tile.rows}x{tile.columns}x{tile.inner}"
    return f"{size} {tile.warps} warps {tile.stages} stages group {tile.group}" + " tma" * tile.tma


def one(buffers: Buffers, kernel: str, tile: Tile, expected: list[Tensor]) -> None:
    """Time one launch. expected: what the first of a kernel's tiles computed, which that one puts there."""
    run, operations = buffers.launch(kernel, tile)
    got = run().clone()
    first = not expected
    expected.extend([got.double()] if first else [])
    ms = milliseconds(run)
    off = error(got, expected[0])
    part.row(f"{kernel} {describe(tile)}", ms=ms, tflops=operations / ms / 1e9, chosen=first, off=off)


def main(argv: list[str]) -> None:
    jobs = [(kernel, tile) for kernel in KERNELS for tile in variants(kernel)]
    part.attempt("compile", compile_all, jobs if CUDA else jobs[:2], need=20)
    buffers = Buffers()
    for kernel in KERNELS:
        a, b = buffers.product(kernel)
        out = torch.empty(a.shape[0], b.shape[1], device=DEVICE, dtype=torch.bfloat16)
        ms = milliseconds(partial(torch.mm, a, b, out=out))
        part.row(f"{kernel} vendor's product", ms=ms, tflops=2 * a.shape[0] * a.shape[1] * b.shape[1] / ms / 1e9)
        del out
        expected: list[Tensor] = []
        for tile in variants(kernel):
            part.attempt(f"{kernel} {describe(tile)}", one, buffers, kernel, tile, expected, need=3)
    hidden, weight = (t.requires_grad_() for t in (buffers.hidden, buffers.weight))

    def step() -> None:
        hidden.grad = weight.grad = None
        out = logp.triton_logp(hidden, weight, buffers.targets)
        out.backward(buffers.grad)

    def both(name: str, chunk: int) -> None:
        logp.DLOGITS_BYTES = chunk
        part.row(name, ms=milliseconds(step, rounds=5))

    for chunk in CHUNKS:
        name = f"forward and backward, chunks of {chunk // 2**20} MiB"
        part.attempt(name, both, name, chunk, need=3)


if __name__ == "__main__":
    command.run(main)
