"""What token-level losses need of whole next-token distributions, a slice of the vocabulary at a time.

    linear_kl(hidden, weight, ref_hidden, ref_weight)[n] = KL(ρ_n ‖ π_n) = Σ_v ρ_n(v) (log ρ_n(v) - log π_n(v))
    the same with reverse=True                           = KL(π_n ‖ ρ_n)
    linear_collision(hidden, weight)[n]                  = log Σ_v π_n(v)²

with π_n = softmax(weight @ hidden[n]) and ρ_n = softmax(ref_weight @ ref_hidden[n]). As in chunked.py the (N, V) logits
never exist, of neither model: forward keeps running sums under a running maximum, backward recomputes each slice.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunked import tile_columns
from .reference import accumulation_dtype


class ChunkedKL(torch.autograd.Function):
    """With logits b = weight @ hidden and a = ref_weight @ ref_hidden the log-partitions leave the sum:

        KL = Σ_v ρ_v (a_v - b_v) - lse(a) + lse(b),    d KL / d b_v = π_v - ρ_v

    so one pass over the vocabulary gathers s_a = Σ exp(a - m_a), s_b = Σ exp(b - m_b) and t = Σ exp(a - m_a) (a - b).
    Where the models agree bit by bit, a - b = 0 and lse(a) = lse(b): the result is exactly 0.

    Reversed it is the same sum with a and b exchanged, and d KL(π ‖ ρ) / d b_v = π_v (log π_v - log ρ_v - KL(π ‖ ρ)).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, ref_hidden: Tensor, ref_weight: Tensor, reverse: bool, chunk: int
    ) -> Tensor:
        dtype = accumulation_dtype(hidden.dtype)
        n, v = hidden.shape[0], weight.shape[0]
        m_a, m_b = (torch.full((n,), -torch.inf, dtype=dtype, device=hidden.device) for _ in "ab")  # (N,) maxima
        s_a, s_b, t = (torch.zeros(n, dtype=dtype, device=hidden.device) for _ in "abt")  # (N,) sums
        for start in range(0, v, chunk):
            a = (ref_hidden @ ref_weight[start : start + chunk].T).to(dtype)  # (N, C)
            b = (hidden @ weight[start : start + chunk].T).to(dtype)  # (N, C)
            a, b = (b, a) if reverse else (a, b)
            new_a, new_b = torch.maximum(m_a, a.amax(dim=1)), torch.maximum(m_b, b.amax(dim=1))
            rescale = torch.exp(m_a - new_a)
            e = torch.exp(a - new_a[:, None])  # (N, C) ρ, or π if reverse, unnormalised
            s_a = s_a * rescale + e.sum(dim=1)
            t = t * rescale + e.mul_(a.sub_(b)).sum(dim=1)
            s_b = s_b * torch.exp(m_b - new_b) + b.sub_(new_b[:, None]).exp_().sum(dim=1)
            m_a, m_b = new_a, new_b
        lse_a, lse_b = m_a + torch.log(s_a), m_b + torch.log(s_b)  # (N,)
        kl = t / s_a - lse_a + lse_b
        lse_a, lse_b = (lse_b, lse_a) if reverse else (lse_a, lse_b)  # of ρ and of π
        ctx.save_for_backward(hidden, weight, ref_hidden, ref_weight, lse_a, lse_b, kl)
        ctx.reverse, ctx.chunk = reverse, chunk
        return kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, ref_hidden, ref_weight, lse_a, lse_b, kl = ctx.saved_tensors
        dtype = lse_a.dtype
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        d_hidden = torch.zeros_like(hidden, dtype=dtype) if need_hidden else None  # (N, D)
        d_weight = torch.empty_like(weight) if need_weight else None  # (V, D)
        grad = grad.to(dtype)[:, None]  # (N, 1)
        for start in range(0, weight.shape[0], ctx.chunk):
            w = weight[start : start + ctx.chunk]  # (C, D)
            log_rho = (ref_hidden @ ref_weight[start : start + ctx.chunk].T).to(dtype).sub_(lse_a[:, None])  # (N, C)
            log_pi = (hidden @ w.T).to(dtype).sub_(lse_b[:, None])  # (N, C)
            if ctx.reverse:
                db = log_rho.neg_().add_(log_pi).sub_(kl[:, None]).mul_(log_pi.exp_())  # π (log π - log ρ - KL)
            else:
                db = log_pi.exp_().sub_(log_rho.exp_())  # π - ρ
            db = db.mul_(grad).to(hidden.dtype)  # (N, C)
            if d_hidden is not None:
                d_hidden += db @ w
            if d_weight is not None:
                torch.mm(db.T, hidden, out=d_weight[start : start + ctx.chunk])
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, None, None, None, None


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    ref_hidden: Tensor,
    ref_weight: Tensor,
    reverse: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """KL(ρ ‖ π) of each position, the reference first, in nats; KL(π ‖ ρ) if reverse.

    hidden: (N, D), weight: (V, D) of the policy; ref_hidden: (N, D'), ref_weight: (V, D') of the reference, in the
    policy's dtype or another; chunk: columns of logits alive at once, by default tile_columns. Returns (N,)
    float32 (float64 for a float64 policy), differentiable in hidden and weight alone. Raises ValueError for shapes that
    do not fit.
    """
    fits = all(tensor.ndim == 2 for tensor in (hidden, weight, ref_hidden, ref_weight))
    fits = fits and hidden.shape[1] == weight.shape[1] and ref_hidden.shape[1] == ref_weight.shape[1]
    if not fits or hidden.shape[0] != ref_hidden.shape[0] or weight.shape[0] != ref_weight.shape[0]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (hidden, weight, ref_hidden, ref_weight))
        raise ValueError(
            f"linear_kl takes hidden (N, D), weight (V, D), ref_hidden (N, D'), ref_weight (V, D'); got {shapes}"
        )
    chunk = chunk or tile_columns(len(hidden), hidden.dtype, device=hidden.device.type)
    return ChunkedKL.apply(hidden, weight, ref_hidden, ref_weight, reverse, chunk)


@torch.no_grad()
def linear_collision(hidden: Tensor, weight: Tensor, chunk: int | None = None) -> Tensor:
    """log Σ_v π(v)² of each position: the log-chance that two draws from π collide.

    hidden: (N, D); weight: (V, D). Returns (N,) float32 (float64 for float64 inputs), without a gradient.
    Raises ValueError for shapes that do not fit.

    Σ_v π(v)² = Σ_v exp(2 b_v) / (Σ_v exp b_v)², so with both sums under one running maximum m, which cancels,
    log Σ_v π(v)² = log q - 2 log s,    q = Σ_v exp(2 (b_v - m)),    s = Σ_v exp(b_v - m).
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"linear_collision takes hidden (N, D), weight (V, D); got {tuple(hidden.shape)}, {tuple(weight.shape)}"
        )
    dtype = accumulation_dtype(hidden.dtype)
    m = torch.full((hidden.shape[0],), -torch.inf, dtype=dtype, device=hidden.device)  # (N,)
    s, q = torch.zeros_like(m), torch.zeros_like(m)
    chunk = chunk or tile_columns(len(hidden), hidden.dtype, device=hidden.device.type)
    for start in range(0, weight.shape[0], chunk):
        b = (hidden @ weight[start : start + chunk].T).to(dtype)  # (N, C)
        new_m = torch.maximum(m, b.amax(dim=1))
        rescale = torch.exp(m - new_m)
        e = b.sub_(new_m[:, None]).exp_()
        s = s * rescale + e.sum(dim=1)
        q = q * rescale.square() + e.square_().sum(dim=1)
        m = new_m
    return torch.log(q) - 2 * torch.log(s)
