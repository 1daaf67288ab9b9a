"""What a decoder does between its matrix products, each operation behind one function: norm, rotary, SwiGLU.

The definitions here are plain PyTorch, written to be read, and are what a CPU runs. Run step by step they are bound by
memory: every step reads and writes a tensor as large as the activations. The kernels of triton/pointwise.py do all
steps of one operation, forward or backward, in one pass.

What has a kernel was decided by tools/traffic.py, a model of the bytes that each operation moves either way.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import evidence

IMPLEMENTATIONS = ("auto", "reference", "triton")


def use_triton(impl: str, *tensors: Tensor) -> bool:
    """Whether the kernels serve these tensors. Raises ValueError for an unknown impl, or for a forced one that cannot."""
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown impl {impl!r}; choose from {', '.join(IMPLEMENTATIONS)}")
    if impl == "triton":
        from .triton import pointwise as triton_pointwise

        triton_pointwise.check(*tensors)
        return True
    one_dtype = len({t.dtype for t in tensors}) == 1
    return impl == "auto" and one_dtype and choose_pointwise(tensors[0].dtype, tensors[0].device) == "triton"


def choose_pointwise(dtype: torch.dtype, device: torch.device) -> str:
    """What "auto" means: triton on a card on which these kernels have passed their tests (evidence.py), else reference."""
    return "triton" if evidence.serve("pointwise", dtype, device) else "reference"


def rms_norm(x: Tensor, weight: Tensor, eps: float, impl: str = "auto") -> Tensor:
    """weight · x / sqrt(mean(x²) + eps) over the last dimension, in float32 at least (RMSNorm, arXiv 1910.07467).

    x: (..., D); weight: (D,). Returns (..., D). The definition rounds to the dtype of x before it multiplies by the
    weight, the kernel afterwards. impl: "reference" or "triton", or "auto" for what choose_pointwise names. The kernel
    has no second derivatives.
    Raises ValueError for a weight that does not fit, an unknown impl, or "triton" where no kernel can run.
    """
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm takes x (..., D) and weight (D,); got {tuple(x.shape)}, {tuple(weight.shape)}")
    if use_triton(impl, x, weight):
        from .triton import pointwise as triton_pointwise

        return triton_pointwise.RMSNorm.apply(x, None, weight, eps)
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return weight * y.to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float, impl: str = "auto") -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual): the next residual stream and its norm, in one pass.

    x, residual: (..., D); weight: (D,). Returns two (..., D). impl and errors: those of rms_norm.
    """
    if not x.shape == residual.shape == (*x.shape[:-1], *weight.shape):
        raise ValueError(
            f"add_rms_norm takes x, residual (..., D) and weight (D,); got {tuple(x.shape)}, {tuple(residual.shape)}, "
            f"{tuple(weight.shape)}"
        )
    if use_triton(impl, x, residual, weight):
        from .triton import pointwise as triton_pointwise

        return triton_pointwise.RMSNorm.apply(x, residual, weight, eps)
    total = x + residual
    return rms_norm(total, weight, eps, impl), total


def rotate(x: Tensor, cos: Tensor, sin: Tensor, impl: str = "auto") -> Tensor:
    """Rotate the pairs (i, i + d/2), as published weights expect (RoPE; arXiv 2104.09864 rotates neighbours).

    x: (B, heads, T, d), d even; cos, sin: (T, d), or (B, 1, T, d) where the rows differ, each half of d the same;
    they get no gradient. Returns (B, heads, T, d). The definition rounds the tables to the dtype of x, the
    kernel does not. impl: as for rms_norm. Raises ValueError for shapes that do not fit and as rms_norm does.
    """
    tables = (x.shape[-2:], (x.shape[0], 1, *x.shape[-2:]), (1, 1, *x.shape[-2:]))
    if x.ndim != 4 or x.shape[-1] % 2 or cos.shape != sin.shape or cos.shape not in tables:
        raise ValueError(
            f"rotate takes x (B, heads, T, even d) and cos, sin (T, d) or (B, 1, T, d); got {tuple(x.shape)}, "
            f"{tuple(cos.shape)}, {tuple(sin.shape)}"
        )
    if use_triton(impl, x):
        from .triton import pointwise as triton_pointwise

        return triton_pointwise.Rotate.apply(x, cos, sin)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def swiglu(gate: Tensor, up: Tensor, impl: str = "auto") -> Tensor:
    """silu(gate) · up, silu(g) = g / (1 + exp(-g)) (arXiv 2002.05202).

    gate, up: of one shape, which is returned. The definition rounds silu(gate) to the dtype of gate, the kernel does
    not. impl: as for rms_norm. Raises ValueError for shapes that differ and as rms_norm does.
    """
    if gate.shape != up.shape:
        raise ValueError(f"swiglu takes gate and up of one shape; got {tuple(gate.shape)}, {tuple(up.shape)}")
    if use_triton(impl, gate, up):
        from .triton import pointwise as triton_pointwise

        return triton_pointwise.SwiGLU.apply(gate, up)
    return F.silu(gate) * up
