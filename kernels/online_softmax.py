"""What chunked.py does to a tile of logits between two matrix products: one source, run eagerly or compiled.

Eagerly, a bfloat16 tile is widened into a float32 scratch that all tiles share. Compiled (torch.compile, for any number
of tokens and columns), the numbers stay in registers between reading a tile and writing it, and there is no scratch.
"""

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)


def absorb(z: Tensor, m: Tensor, s: Tensor, scratch: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One more tile in m = max z and s = Σ exp(z - m). z: (N, C); m, s: (N,), in the accumulation dtype.

    scratch: Steps.scratch.

    Returns the new m and s, and exp(old m - new m) (N,), which rescales any other sum over the earlier columns. If
    `keep`, z is overwritten with exp(z - m), else with nothing of use.
    """
    x = widen(z, m.dtype, scratch)
    before, m = m, torch.maximum(m, x.amax(dim=1))
    # exp2 took a third of the time of PyTorch's exp, which asks MKL, on the CPU of docs/log.md
    e = x.sub_(m[:, None]).mul_(LOG2_E).exp2_()
    rescale = torch.exp(before - m)
    s = torch.addcmul(e.sum(dim=1), s, rescale)
    if keep:
        z.copy_(e)
    return m, s, rescale


def weigh(e: Tensor, factor: Tensor, scratch: Tensor | None, out: Tensor) -> None:
    """out (N, C) = factor e, rounded once. e: (N, C), overwritten; factor: (N,) in the accumulation dtype."""
    out.copy_(widen(e, factor.dtype, scratch).mul_(factor[:, None]))


def widen(z: Tensor, dtype: torch.dtype, scratch: Tensor | None) -> Tensor:
    """z (N, C) in dtype: z itself if it has that dtype, else a copy in the scratch."""
    if scratch is None:
        return z.to(dtype, copy=True)  # a copy that the compiler removes
    return z if z.dtype == dtype else scratch[:, : z.shape[1]].copy_(z)


class Steps(NamedTuple):
    """Both steps, EAGER or compiled. Compiled ones should get no views: the compiler would record what they are views of."""

    absorb: Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], tuple[Tensor, Tensor, Tensor]]
    weigh: Callable[[Tensor, Tensor, Tensor | None, Tensor], None]

    def scratch(self, tile: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The scratch of both: None if compiled, else a tile in the accumulation dtype, empty if `tile` has that dtype."""
        if self is not EAGER:
            return None
        return tile.new_empty(tile.shape if dtype != tile.dtype else 0, dtype=dtype)


EAGER = Steps(absorb, weigh)


@functools.cache
def compiled_steps(dtype: torch.dtype, accumulation: torch.dtype, device: torch.device) -> Steps:
    """Both steps compiled for tiles of a dtype; EAGER, with a warning, where that fails: no C++ compiler, say.

    They are tried on throwaway tensors first, so that a failure comes before any tensor of the caller's is overwritten.
    """
    # large enough for the compiler to share the rows out among threads, which it decides once
    z, out = (torch.zeros(64, 4096, dtype=dtype, device=device) for _ in range(2))
    m, s = (torch.zeros(64, dtype=accumulation, device=device) for _ in range(2))
    # it compiles again for `keep`, for one token, for one column and for more than 4,096 columns, in every dtype
    limit = {"recompile_limit": 16, "isolate_recompiles": True}
    if not limit.keys() <= inspect.signature(torch.compile).parameters.keys():
        # torch 2.11 has one limit, the process's, and counts a function's compilations in all dtypes together: 44
        limit, torch._dynamo.config.recompile_limit = {}, max(64, torch._dynamo.config.recompile_limit)
    steps = Steps(*(torch.compile(step, dynamic=True, **limit) for step in EAGER))  # type: ignore[call-overload]
    try:
        with torch.no_grad():  # as inside ChunkedLogp; a compilation holds for one grad mode
            for keep in (False, True):
                steps.absorb(z, m, s, None, keep)
            steps.weigh(z, m, None, out)
    except Exception as problem:  # a compiler may fail in any way; the same steps run without it
        reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
        warnings.warn(f"log-probs are computed without torch.compile, which failed ({reason})", stacklevel=2)
        return EAGER
    return steps
