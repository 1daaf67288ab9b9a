"""The same numbers as reference.py, a slice of the vocabulary at a time: the (N, V) logits never exist.

Forward keeps a running maximum m and sum s per token, so that lse = m + log s (the online softmax). Backward recomputes
each slice of logits instead of storing it, and weights every token by its own upstream gradient g before anything is
summed over tokens: that is why the gradient cannot be prepared in the forward pass, where g is not known yet.
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from kernels.reference import accumulation_dtype

CHUNK = 4096  # columns of logits alive at once; 2,048 to 4,096 were both the fastest and the smallest on a CPU


class ChunkedLogp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        dtype = accumulation_dtype(hidden.dtype)
        n, v = hidden.shape[0], weight.shape[0]
        m = torch.full((n,), -torch.inf, dtype=dtype, device=hidden.device)  # (N,) running maximum
        s = torch.zeros(n, dtype=dtype, device=hidden.device)  # (N,) running sum of exp(z - m)
        for start in range(0, v, chunk):
            z = (hidden @ weight[start : start + chunk].T).to(dtype)  # (N, C)
            new_m = torch.maximum(m, z.amax(dim=1))
            s = s * torch.exp(m - new_m) + z.sub_(new_m[:, None]).exp_().sum(dim=1)
            m = new_m
        lse = m + torch.log(s)  # (N,)
        # in bfloat16 a product comes back rounded to 8 bits, so the one logit that matters most is taken in float32
        target_logit = (hidden.to(dtype) * weight[targets].to(dtype)).sum(dim=1)  # (N,)
        ctx.save_for_backward(hidden, weight, targets, lse)
        ctx.chunk = chunk
        return target_logit - lse

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, lse = ctx.saved_tensors
        dtype = lse.dtype
        need_hidden, need_weight = ctx.needs_input_grad[:2]  # a frozen head costs no (V, D) gradient
        d_hidden = torch.zeros_like(hidden, dtype=dtype) if need_hidden else None  # (N, D)
        d_weight = torch.empty_like(weight) if need_weight else None  # (V, D)
        grad = grad.to(dtype)[:, None]  # (N, 1)
        for start in range(0, weight.shape[0], ctx.chunk):
            w = weight[start : start + ctx.chunk]  # (C, D)
            dz = (hidden @ w.T).to(dtype).sub_(lse[:, None]).exp_().mul_(-grad)  # (N, C), -g p
            # + g at the target's column: one per row, so nothing collides and the result is deterministic
            column = targets[:, None] - start
            inside = (column >= 0) & (column < w.shape[0])
            dz.scatter_add_(1, column.clamp(0, w.shape[0] - 1), grad * inside)
            dz = dz.to(hidden.dtype)
            if d_hidden is not None:
                d_hidden += dz @ w
            if d_weight is not None:
                torch.mm(dz.T, hidden, out=d_weight[start : start + ctx.chunk])
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, None, None


def chunked_logp(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """reference_logp without the logits: at most `chunk` columns of them are alive at any time.

    hidden: (N, D); weight: (V, D); targets: (N,). Returns (N,) float32 (float64 for float64 inputs).
    """
    return ChunkedLogp.apply(hidden, weight, targets, chunk)
