"""Time and peak memory of the head's log-probs: every implementation, ours and others', compared with the floor.

The floor is that of the products, 2 N D V operations each, at the rate of a large one: one in forward, three in backward,
where the logits are recomputed. tflops counts these four whatever an implementation does, so that it compares them all.
"""

import functools
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from align import command
from benchmarks.gpu.card import HEADS
from benchmarks.gpu.correctness import errors, inputs, run, truth
from benchmarks.gpu.part import CUDA, DEVICE, DRY, Part, allocated_gib, earlier, free, left, milliseconds, peak_gib
from kernels import IMPLEMENTATIONS
from kernels.chunked import chunked_logp
from kernels.tools.bench_cases import (
    HAS_TORCH_OP,
    Case,
    DPOStep,
    cce,
    liger_scaled,
    make_inputs,
    plain_logp,
    run_step,
    torch_op,
)

part = Part("head")
TOKENS = (8,) if DRY else (8192, 16384, 2048)  # the one of the goal first
DPO = Case(pairs=2, tokens=8, hidden=16, vocab=250) if DRY else Case(pairs=8, tokens=1024, hidden=4096, vocab=65024)
NEAR = 2e-2  # of the truth: what is further off is not timed

Logp = Callable[[Tensor, Tensor, Tensor], Tensor]


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def implementations(first: bool) -> dict[str, Logp]:
    """first: with those that compile for half a minute, or that show what a budget does."""
    found: dict[str, Logp] = {"triton": IMPLEMENTATIONS["triton"], "chunked": chunked_logp, "log_softmax": plain_logp}
    if HAS_TORCH_OP:
        found["F.linear_cross_entropy"] = torch_op
    if installed("liger_kernel"):
        found["liger scaled cross entropy"] = liger_scaled
    if installed("cut_cross_entropy"):
        exact = {"filter_eps": None, "impl": "cce"} if CUDA else {"impl": "torch_compile"}
        found["cut-cross-entropy, exact"] = functools.partial(cce, **exact)
    if first:
        for mib in (8, 64, 1024):
            found[f"chunked, {mib} MiB"] = functools.partial(chunked_logp, budget=mib * 2**20)
        found["torch.compile"] = torch.compile(plain_logp, dynamic=False)
        found["compiled"] = IMPLEMENTATIONS["compiled"]
    return found


def shape(head: str, n: int, first: bool) -> None:
    d, v = (16, 250) if DRY else HEADS[head]
    label = f"{head} N={n}"
    x = inputs(n, d, v, torch.bfloat16)
    expected = truth(*x)
    rate = earlier("card", "matrix product", "tflops")
    product = 2 * n * d * v / 1e9  # operations in a millisecond at 1 TFLOP/s
    if rate:
        part.row(f"{label} floor", ms=4 * product / rate, forward_ms=product / rate, backward_ms=3 * product / rate)
    hidden, weight = (t.detach().requires_grad_() for t in x[:2])

    def step(fn: Logp) -> None:
        hidden.grad = weight.grad = None
        out = fn(hidden, weight, x[2])
        out.backward(x[3].to(out.dtype))

    def peaks(fn: Logp) -> dict[str, float]:
        """GiB over the inputs in forward, and in backward, which has what forward kept."""
        hidden.grad = weight.grad = None
        free()
        before = allocated_gib()
        forward, out = peak_gib(lambda: fn(hidden, weight, x[2]))
        backward, _ = peak_gib(lambda: out.backward(x[3].to(out.dtype)))
        peak = max(forward, backward) - before
        # dH and dW are every implementation's: what one works in is what it takes beyond them
        working = peak - 2 * (n * d + v * d) / 2**30
        return {"forward_gib": forward - before, "backward_gib": backward - before, "working_gib": working}

    def one(name: str, fn: Logp) -> None:
        off = dict(zip(("logp_error", "dh_error", "dW_error"), errors(run(fn, *x), expected), strict=True))
        if not all(e <= NEAR for e in off.values()):
            return part.row(f"{label} {name}", failed="too far from the truth, not timed", **off)
        memory = peaks(fn)
        ms = milliseconds(lambda: step(fn), rounds=7, warm=1)
        forward = milliseconds(lambda: fn(hidden, weight, x[2]), rounds=7, warm=1)
        hidden.grad = weight.grad = None
        times = {"ms": ms, "forward_ms": forward, "backward_ms": ms - forward, "tflops": 4 * product / ms}
        part.row(f"{label} {name}", **times, **memory, **off)

    for name, fn in implementations(first).items():
        part.attempt(f"{label} {name}", one, name, fn, need=25 if "compile" in name else 4)


def dpo() -> None:
    """The head of a DPO step, policy and reference, and what a log-prob in bfloat16 does to its margin."""
    x = make_inputs(DPO, torch.bfloat16, str(DEVICE))
    exact = DPOStep(chunked_logp).margins(x.to(torch.float64)).detach()
    functions: dict[str, Logp] = {"triton": IMPLEMENTATIONS["triton"], "chunked": chunked_logp}
    if HAS_TORCH_OP:
        functions["F.linear_cross_entropy"] = torch_op

    def one(name: str, step: DPOStep) -> None:
        with torch.no_grad():
            off = (step.margins(x).double() - exact).abs().max().item()
        x.hidden.grad = x.weight.grad = None
        free()
        before = allocated_gib()
        memory = peak_gib(lambda: run_step(step, x))[0] - before
        ms = milliseconds(lambda: run_step(step, x), rounds=5, warm=1)
        part.row(f"DPO {name}", ms=ms, peak_gib=memory, margin_off_by_nats=off)

    for name, fn in functions.items():
        part.attempt(f"DPO {name}", one, name, DPOStep(fn), need=4)


def main(argv: list[str]) -> None:
    for n in TOKENS:
        for head in HEADS:
            first = n == TOKENS[0] and head == next(iter(HEADS))
            part.attempt(f"{head} N={n}", shape, head, n, first, need=8)
    part.attempt("DPO", dpo, need=6)
    print(f"{left():.0f} s left")


if __name__ == "__main__":
    command.run(main)
