"""Triton kernels for what a step does outside matrix products. Definitions and dispatch: kernels/pointwise.py.

All of it is bound by memory, so each kernel reads every input once, writes every output once and keeps the rest in
registers. Arithmetic is float32 whatever the tensors are. Programs own disjoint tiles and nothing is added atomically:
results are the same, bit for bit, from run to run.

Letters: N rows, D their length; B batch, T tokens, H heads; a B before another letter is a tile's extent. INTERPRET:
the kernel runs in Triton's interpreter, whose bfloat16 needs help (logp_kernels.rounded).

tools/pointwise_report.py compiles every kernel for GPUs that need not be there and counts what came out.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.runtime.jit import JITFunction

from .logp_kernels import rounded

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORM_PROGRAMS = 512  # at most as many partial sums of the norm weight's gradient: one wave of programs on a large GPU
HEADS = 4  # heads that one program rotates with the angles it has loaded
ELEMENTWISE = {"BLOCK": 2048, "num_warps": 4}  # 16 elements a thread: two 16-byte loads from each bfloat16 input


@triton.jit
def rms_norm_kernel(
    x, residual, weight, out, total, scale, N, eps, D: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, ADD: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """r_n = 1 / sqrt(mean_d x_nd² + eps)    out_nd = w_d x_nd r_n    scale_n = r_n. ADD: of total = x + residual.

    A program owns BN rows, whole: x, residual, out, total are contiguous (N, D), BD >= D.
    """
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)  # (BN,), int64: N * D may pass 2^31
    d = tl.arange(0, BD)  # (BD,)
    at = n[:, None] * D + d[None, :]  # (BN, BD)
    inside = (n < N)[:, None] & (d < D)[None, :]  # (BN, BD)
    h = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)  # (BN, BD)
    if ADD:
        h = rounded(
            h + tl.load(residual + at, mask=inside, other=0.0).to(tl.float32), total.dtype.element_ty, INTERPRET
        )
        tl.store(total + at, h, mask=inside)
        # of the rounded sum: it is what backward will read
        h = h.to(tl.float32)
    r = tl.rsqrt(tl.sum(h * h, axis=1) / D + eps)  # (BN,)
    tl.store(scale + n, r, mask=n < N)
    w = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)  # (BD,)
    tl.store(out + at, rounded(w[None, :] * (h * r[:, None]), out.dtype.element_ty, INTERPRET), mask=inside)


@triton.jit
def rms_norm_backward_kernel(
    total, weight, scale, grad, grad_total, dx, partial, N, tiles, D: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr, ADD: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """With u = x r, the normed row before its weight, and g = w · grad:

        dx = r (g - u mean_d(g u))  (+ grad_total if ADD: x and residual have the same gradient)
        dw = Σ_n grad_n u_n

    dx: the mean's derivative, dr/dx_d = -r³ x_d / D, gives the second term. A program owns `tiles` consecutive tiles of
    BN rows, and one row of partial (programs, D), its part of dw; the parts are summed afterwards, in a fixed order.
    """
    d = tl.arange(0, BD)  # (BD,)
    w = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)  # (BD,)
    dw = tl.zeros((BN, BD), tl.float32)
    for tile in range(tiles):
        n = (tl.program_id(0).to(tl.int64) * tiles + tile) * BN + tl.arange(0, BN)  # (BN,)
        at = n[:, None] * D + d[None, :]  # (BN, BD)
        inside = (n < N)[:, None] & (d < D)[None, :]  # (BN, BD)
        r = tl.load(scale + n, mask=n < N, other=0.0)[:, None]  # (BN, 1)
        u = tl.load(total + at, mask=inside, other=0.0).to(tl.float32) * r  # (BN, BD)
        dy = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)  # (BN, BD)
        g = w[None, :] * dy  # (BN, BD)
        h = r * (g - u * (tl.sum(g * u, axis=1) / D)[:, None])  # (BN, BD)
        if ADD:
            h += tl.load(grad_total + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, rounded(h, dx.dtype.element_ty, INTERPRET), mask=inside)
        dw += dy * u
    tl.store(partial + tl.program_id(0).to(tl.int64) * D + d, tl.sum(dw, axis=0), mask=d < D)


@triton.jit
def rotate_kernel(
    x, cos, sin, out, T, H, HALF: tl.constexpr,
    stride_xb, stride_xh, stride_xt, stride_xd, stride_ob, stride_oh, stride_ot, stride_od, stride_cb, stride_ct,
    BT: tl.constexpr, BD: tl.constexpr, HEADS: tl.constexpr, SIGN: tl.constexpr, INTERPRET: tl.constexpr,
):  # fmt: skip
    """Turns each pair (a, b) = (x_i, x_{i + HALF}) by its angle θ, or by -θ if SIGN is -1, which is the gradient:

        a' = a cos θ - b sin θ        b' = b cos θ + a sin θ

    x, out: (B, H, T, 2 HALF); cos, sin: (B, T, 2 HALF) with contiguous rows, read in their first half. A program owns BT
    tokens of HEADS heads of one row of the batch.
    """
    blocks = tl.cdiv(T, BT)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    t = (tl.program_id(0) % blocks * BT + tl.arange(0, BT)).to(tl.int64)[:, None]  # (BT, 1)
    d = tl.arange(0, BD)[None, :]  # (1, BD)
    inside = (t < T) & (d < HALF)  # (BT, BD)
    angle = row * stride_cb + t * stride_ct + d  # (BT, BD)
    c = tl.load(cos + angle, mask=inside, other=0.0)  # (BT, BD)
    s = SIGN * tl.load(sin + angle, mask=inside, other=0.0)  # (BT, BD)
    first = tl.program_id(1).to(tl.int64) * HEADS
    at = x + row * stride_xb + first * stride_xh + t * stride_xt + d * stride_xd  # (BT, BD)
    to = out + row * stride_ob + first * stride_oh + t * stride_ot + d * stride_od  # (BT, BD)
    for _ in range(min(HEADS, H - tl.program_id(1) * HEADS)):
        a = tl.load(at, mask=inside, other=0.0).to(tl.float32)  # (BT, BD)
        b = tl.load(at + HALF * stride_xd, mask=inside, other=0.0).to(tl.float32)  # (BT, BD)
        tl.store(to, rounded(a * c - b * s, out.dtype.element_ty, INTERPRET), mask=inside)
        tl.store(to + HALF * stride_od, rounded(b * c + a * s, out.dtype.element_ty, INTERPRET), mask=inside)
        at += stride_xh
        to += stride_oh


@triton.jit
def swiglu_kernel(gate, up, out, N, BLOCK: tl.constexpr, INTERPRET: tl.constexpr):
    """out = silu(g) u,  silu(g) = g σ(g).  All (N,), contiguous; a program owns BLOCK elements."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    g = tl.load(gate + at, mask=at < N, other=0.0).to(tl.float32)  # (BLOCK,)
    u = tl.load(up + at, mask=at < N, other=0.0).to(tl.float32)  # (BLOCK,)
    tl.store(out + at, rounded(g * tl.sigmoid(g) * u, out.dtype.element_ty, INTERPRET), mask=at < N)


@triton.jit
def swiglu_backward_kernel(gate, up, grad, d_gate, d_up, N, BLOCK: tl.constexpr, INTERPRET: tl.constexpr):
    """d_up = dy silu(g)    d_gate = dy u silu'(g),  silu'(g) = σ (1 + g (1 - σ)).  σ(g) is computed again, not kept."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # (BLOCK,)
    g = tl.load(gate + at, mask=at < N, other=0.0).to(tl.float32)  # (BLOCK,)
    u = tl.load(up + at, mask=at < N, other=0.0).to(tl.float32)  # (BLOCK,)
    dy = tl.load(grad + at, mask=at < N, other=0.0).to(tl.float32)  # (BLOCK,)
    s = tl.sigmoid(g)  # (BLOCK,)
    dg = dy * u * (s * (1 + g * (1 - s)))  # (BLOCK,)
    tl.store(d_gate + at, rounded(dg, d_gate.dtype.element_ty, INTERPRET), mask=at < N)
    tl.store(d_up + at, rounded(dy * (g * s), d_up.dtype.element_ty, INTERPRET), mask=at < N)


INTERPRET = not isinstance(swiglu_kernel, JITFunction)  # decided by TRITON_INTERPRET when this file was imported


def norm_tile(d: int) -> dict[str, int]:
    """Whole rows, and of short ones several, 16 elements a thread. At D = 16,384 backward spills on NVIDIA."""
    bd = triton.next_power_of_2(d)
    bn = max(1, 2048 // bd)
    return {"BN": bn, "BD": bd, "num_warps": min(bn * bd // 512, 32)}


def rotate_tile(half: int) -> dict[str, int]:
    bd = triton.next_power_of_2(half)
    return {"BT": max(1, 2048 // bd), "BD": bd, "HEADS": HEADS, "num_warps": 4}


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        add = residual is not None
        x, weight = x.contiguous(), weight.contiguous()  # (..., D), (D,)
        d = x.shape[-1]
        n = x.numel() // max(d, 1)
        out = torch.empty_like(x)
        total = torch.empty_like(x) if add else x
        scale = torch.empty(n, dtype=torch.float32, device=x.device)  # (N,)
        if x.numel():
            tile = norm_tile(d)
            rms_norm_kernel[(triton.cdiv(n, tile["BN"]),)](
                x, x if residual is None else residual.contiguous(), weight, out, total, scale, n, eps, d,
                ADD=add, INTERPRET=INTERPRET, **tile,
            )  # fmt: skip
        ctx.save_for_backward(total, weight, scale)
        return (out, total) if add else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_total: Tensor | None = None) -> tuple[Tensor | None, ...]:
        total, weight, scale = ctx.saved_tensors
        add, n, d = grad_total is not None, len(scale), total.shape[-1]
        grad = grad.contiguous()
        dx = torch.empty_like(total)
        tile = norm_tile(max(d, 1))
        blocks = triton.cdiv(n, tile["BN"])
        tiles = triton.cdiv(blocks, NORM_PROGRAMS)
        programs = triton.cdiv(blocks, max(tiles, 1))
        partial = torch.empty(programs, d, dtype=torch.float32, device=total.device)  # (P, D)
        of_total = grad if grad_total is None else grad_total.contiguous()
        if total.numel():
            rms_norm_backward_kernel[(programs,)](
                total, weight, scale, grad, of_total, dx, partial, n, tiles, d,
                ADD=add, INTERPRET=INTERPRET, **tile,
            )  # fmt: skip
        return dx, dx if add else None, partial.sum(dim=0).to(weight.dtype), None


class Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shape = (x.shape[0], 1, *x.shape[2:])  # (B, 1, T, d)
        # contiguous before they are spread over the batch, so that the spread costs no memory
        cos, sin = (t.float().contiguous().expand(shape)[:, 0] for t in (cos, sin))  # (B, T, d)
        ctx.save_for_backward(cos, sin)
        return launch_rotate(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return launch_rotate(grad, cos, sin, -1), None, None


def launch_rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    out = torch.empty_like(x)  # (B, H, T, d) in the memory order of x: heads inside tokens, as the projection left them
    if x.numel():
        batch, heads, tokens, d = x.shape
        tile = rotate_tile(d // 2)
        rotate_kernel[(batch * triton.cdiv(tokens, tile["BT"]), triton.cdiv(heads, HEADS))](
            x, cos, sin, out, tokens, heads, d // 2, *x.stride(), *out.stride(), *cos.stride()[:2],
            SIGN=sign, INTERPRET=INTERPRET, **tile,
        )  # fmt: skip
    return out


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        out = torch.empty_like(gate)
        if n := out.numel():
            grid = (triton.cdiv(n, ELEMENTWISE["BLOCK"]),)
            swiglu_kernel[grid](gate, up, out, n, INTERPRET=INTERPRET, **ELEMENTWISE)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        if n := gate.numel():
            grid = (triton.cdiv(n, ELEMENTWISE["BLOCK"]),)
            swiglu_backward_kernel[grid](
                gate, up, grad.contiguous(), d_gate, d_up, n, INTERPRET=INTERPRET, **ELEMENTWISE
            )
        return d_gate, d_up


def check(*tensors: Tensor) -> None:
    """Raises ValueError for tensors that these kernels do not take."""
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise ValueError(
            f"triton takes tensors of one dtype, float32, bfloat16 or float16, not {', '.join(map(str, dtypes))}; "
            'impl="reference" takes any'
        )
    if not (INTERPRET or all(t.is_cuda for t in tensors)):
        raise ValueError('triton needs a GPU (or TRITON_INTERPRET=1 before the import); on a CPU take impl="reference"')
