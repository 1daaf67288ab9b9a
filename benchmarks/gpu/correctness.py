"""Log-probs and both gradients against float64 at full size, against the interpreter, and from one run to the next.

Every token has a different upstream gradient, as in preference losses. An implementation is right in bfloat16 where it
is no further from the truth than the logits written out in bfloat16 are, in float32 where it is within 1e-5 of it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align import command
from benchmarks.gpu.card import HEADS
from benchmarks.gpu.part import DEVICE, DRY, Part
from benchmarks.records import ROOT
from kernels import IMPLEMENTATIONS
from kernels.tools.bench_cases import Logp, plain_logp

part = Part("correctness")
TOKENS = 16 if DRY else 2048
ROWS = 512  # tokens whose float64 logits are alive at once
WITHIN = 1e-5  # of the truth, in float32
NAMES = ("logp", "dh", "dW")

Outputs = tuple[Tensor, ...]  # logp (N,), dh (N, D), dW (V, D)


def inputs(n: int, d: int, v: int, dtype: torch.dtype, device: torch.device = DEVICE) -> Outputs:
    """hidden (N, D), weight (V, D), targets (N,), upstream (N,): logits of deviation 1.5."""
    g = torch.Generator(device).manual_seed(1)
    hidden = torch.randn(n, d, generator=g, device=device).to(dtype)
    weight = (torch.randn(v, d, generator=g, device=device) * 1.5 * d**-0.5).to(dtype)
    return (
        hidden,
        weight,
        torch.randint(v, (n,), generator=g, device=device),
        torch.randn(n, generator=g, device=device),
    )


def run(fn: Logp, hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Outputs:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logp = fn(hidden, weight, targets)
    logp.backward(upstream.to(logp.dtype))
    assert hidden.grad is not None and weight.grad is not None
    return logp.detach(), hidden.grad, weight.grad


def truth(hidden: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> Outputs:
    """The closed form in float64, some tokens at a time."""
    h, w, g = hidden.double(), weight.double(), upstream.double()
    logp, dh, dw = torch.empty_like(g), torch.empty_like(h), torch.zeros_like(w)
    for rows in torch.arange(len(h), device=h.device).split(ROWS):
        z = h[rows] @ w.T
        lse = z.logsumexp(dim=1)
        logp[rows] = z.gather(1, targets[rows, None])[:, 0] - lse
        dz = z.sub_(lse[:, None]).exp_().mul_(-g[rows, None])
        dz.scatter_add_(1, targets[rows, None], g[rows, None])
        dh[rows] = dz @ w
        dw.addmm_(dz.T, h[rows])
    return logp, dh, dw


def error(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|, a slice at a time; NaN where anything is non-finite."""
    parts = zip(got.split(8192), expected.split(8192), strict=True)
    off, size = torch.tensor([[(a.double() - b).square().sum(), b.square().sum()] for a, b in parts]).sum(dim=0).sqrt()
    return (off / size).item()


def errors(got: Outputs, expected: Outputs) -> list[float]:
    return [error(a, b) for a, b in zip(got, expected, strict=True)]


def shape(head: str, dtype: torch.dtype) -> None:
    d, v = (32, 300) if DRY else HEADS[head]
    short = str(dtype).removeprefix("torch.")
    x = inputs(TOKENS, d, v, dtype)
    expected = truth(*x)
    naive = errors(run(plain_logp, *x), expected)
    part.row(f"{head} {short} logits written out", **dict(zip(NAMES, naive, strict=True)))
    limits = [e + 1e-6 for e in naive] if dtype == torch.bfloat16 else [WITHIN] * 3

    def one(name: str) -> None:
        first, again = run(IMPLEMENTATIONS[name], *x), run(IMPLEMENTATIONS[name], *x)
        off = errors(first, expected)
        same = all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        ok = all(e <= limit for e, limit in zip(off, limits, strict=True))
        ok = ok and (same or name != "triton")  # only of our kernels we say that they are the same to the bit
        part.row(f"{head} {short} {name}", ok=ok, same_bits=same, **dict(zip(NAMES, off, strict=True)))

    for name in ("triton", "chunked"):
        part.attempt(f"{head} {short} {name}", one, name, need=3)


def as_interpreted(file: Path) -> None:
    """In a process whose kernels are interpreted: what they make of the inputs in a file, put into the same file."""
    x = load_file(file)
    logp, dh, dw = run(IMPLEMENTATIONS["triton"], x["hidden"], x["weight"], x["targets"], x["upstream"])
    save_file({"logp": logp, "dh": dh, "dW": dw}, file)


def interpreter(dtype: torch.dtype) -> None:
    """The compiled kernels against the interpreter's numbers: the same text, other tiles, other orders of summation.

    In bfloat16 an entry may round the other way, so a gradient may differ by what rounding once does.
    """
    short = str(dtype).removeprefix("torch.")
    n, d, v = (8, 16, 40) if DRY else (300, 512, 1003)
    x = inputs(n, d, v, dtype, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "inputs.safetensors"
        save_file(dict(zip(("hidden", "weight", "targets", "upstream"), x, strict=True)), file)
        environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "benchmarks.gpu.correctness", str(file)]
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
        interpreted = load_file(file)
    got = run(IMPLEMENTATIONS["triton"], *(t.to(DEVICE) for t in x))
    off = errors(got, tuple(interpreted[name].double().to(DEVICE) for name in NAMES))
    ok = off[0] <= WITHIN and max(off[1:]) <= (2**-8 if dtype == torch.bfloat16 else WITHIN)
    part.row(f"against the interpreter {short} triton", ok=ok, **dict(zip(NAMES, off, strict=True)))


def main(argv: list[str]) -> None:
    if argv:
        return as_interpreted(Path(argv[0]))
    dtypes = (torch.bfloat16, torch.float32)
    for dtype in dtypes:
        name = f"against the interpreter {str(dtype).removeprefix('torch.')} triton"
        part.attempt(name, interpreter, dtype, need=8)
    for head in HEADS:
        for dtype in dtypes:
            name = f"{head} {str(dtype).removeprefix('torch.')} triton"
            part.attempt(name, shape, head, dtype, need=6)


if __name__ == "__main__":
    command.run(main)
