"""Token log-probabilities straight from hidden states and the output head, behind one function.

    linear_logp(hidden, weight, targets)[n] = log softmax(weight @ hidden[n])[targets[n]]

`reference` is the definition, written to be read, and the truth that the others are tested against; `chunked` and `triton`
compute the same numbers and gradients without ever holding the (N, V) logits, in PyTorch and in kernels for a GPU.
`compiled` is chunked with torch.compile between its matrix products, and falls back to it where there is no compiler.

The modules import one another by relative names, since the package has two names: `kernels` in a checkout, and
`align.kernels` in an install, where PyPI's package `kernels` may stand beside it.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from . import evidence, pointwise
from .chunked import chunked_logp, kept_columns, tile_columns
from .machine import hardware
from .reference import reference_logp
from .token_stats import linear_collision, linear_kl

__all__ = [
    "IMPLEMENTATIONS",
    "choose_logp",
    "hardware",
    "kept_columns",
    "linear_collision",
    "linear_kl",
    "linear_logp",
    "pointwise",
    "resolve_impls",
    "tile_columns",
]


def _triton_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from .triton.logp import triton_logp  # triton is optional, and large

    return triton_logp(hidden, weight, targets)


IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reference": reference_logp,
    "chunked": chunked_logp,
    "compiled": functools.partial(chunked_logp, compiled=True),
    "triton": _triton_logp,
}


def choose_logp(dtype: torch.dtype, device: torch.device) -> str:
    """What "auto" means: triton on a card on which these kernels have passed their tests (evidence.py), else chunked."""
    return "triton" if evidence.serve("logp", dtype, device) else "chunked"


def resolve_impls(logp: str, pointwise_impl: str, dtype: torch.dtype, device: torch.device) -> tuple[str, str]:
    """Both choices of implementation with what "auto" is on this device in place of it."""
    return (
        choose_logp(dtype, device) if logp == "auto" else logp,
        pointwise.choose_pointwise(dtype, device) if pointwise_impl == "auto" else pointwise_impl,
    )


def linear_logp(hidden: Tensor, weight: Tensor, targets: Tensor, impl: str = "auto") -> Tensor:
    """Log-probability of each target under the distribution that the head gives at its hidden state.

    hidden: (N, D) floating point; weight: (V, D) in the same dtype; targets: (N,) int64 in [0, V).
    impl: any key of IMPLEMENTATIONS, or "auto" for what choose_logp names.

    Returns (N,) float32 (float64 for float64 inputs), differentiable in hidden and weight.
    Raises ValueError for shapes that do not fit or an unknown impl.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"linear_logp takes hidden (N, D), weight (V, D), targets (N,); got {tuple(hidden.shape)}, "
            f"{tuple(weight.shape)}, {tuple(targets.shape)}"
        )
    if impl == "auto":
        impl = choose_logp(hidden.dtype, hidden.device)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown impl {impl!r}; choose from auto, {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[impl](hidden, weight, targets)
