"""What chunked.py does to a tile of logits between two matrix products: one text, run as it stands or compiled.

As it stands, a bfloat16 tile is computed on in a float32 scratch that all tiles share. Compiled (torch.compile, for any
number of tokens and columns), the numbers stay in registers between reading a tile and writing it, and there is no scratch.
"""

import functools
import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)

Absorb = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor, Tensor]]


def absorb(z: Tensor, m: Tensor, s: Tensor, scratch: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One more tile in m = max z and s = Σ exp(z - m). z: (N, C); m, s: (N,), in the accumulation dtype.

    scratch: (N, at least C) in the accumulation dtype; None where this is compiled, and then no tensor should be a view:
        the compiler would take note of the shape of what it is a view of.

    Returns the new m and s, and exp(old m - new m) (N,), which rescales any other sum over the columns before. If
    `keep`, z then holds exp(z - m), else nothing of use.
    """
    x = widen(z, m.dtype, scratch)
    before, m = m, torch.maximum(m, x.amax(dim=1))
    # exp2 took a third of the time of PyTorch's exp, which asks MKL, on the CPU of docs/kernels.md
    e = x.sub_(m[:, None]).mul_(LOG2_E).exp2_()
    rescale = torch.exp(before - m)
    s = torch.addcmul(e.sum(dim=1), s, rescale)
    if keep:
        z.copy_(e)
    return m, s, rescale


def widen(z: Tensor, dtype: torch.dtype, scratch: Tensor | None) -> Tensor:
    """z (N, C) in dtype: itself where it can be, else in the scratch."""
    if scratch is None:
        return z.to(dtype, copy=True)  # which the compiler leaves out
    return z if z.dtype == dtype else scratch[:, : z.shape[1]].copy_(z)


@functools.cache
def compiled_absorb(dtype: torch.dtype, accumulation: torch.dtype, device: torch.device) -> Absorb:
    """absorb compiled for tiles of a dtype; absorb itself, with a warning, where that fails: no C++ compiler, say.

    It is tried first on numbers of its own, so that a failure comes before anything of the caller's is overwritten.
    """
    # large enough for the compiler to share the rows out among threads, which it decides once
    z = torch.zeros(64, 4096, dtype=dtype, device=device)
    m, s = (torch.zeros(64, dtype=accumulation, device=device) for _ in "ms")
    # it compiles anew for `keep`, for one token, for one column and for more than 4,096 columns, in every dtype
    compiled = torch.compile(absorb, dynamic=True, recompile_limit=16, isolate_recompiles=True)
    try:
        with torch.no_grad():  # as inside ChunkedLogp; a compilation holds for one grad mode
            for keep in (False, True):
                compiled(z, m, s, None, keep)
    except Exception as problem:  # a compiler may fail in any way; the same steps run without it
        reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
        warnings.warn(f"log-probs are computed without torch.compile, which failed ({reason})", stacklevel=2)
        return absorb
    return compiled
