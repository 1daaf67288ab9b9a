"""The definition: target log-probabilities with the logits written out.

Two lines of algebra that every faster implementation must reproduce, forward and backward.
"""

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 from the logit tile on: a bfloat16 sum near -512 moves in steps of 4 nats. float64 stays, for tests."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def reference_logp(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log p(y_n) = z_{n, y_n} - log sum_v exp z_{n,v},  z = hidden @ weight.T.

    hidden: (N, D); weight: (V, D); targets: (N,). Returns (N,). Holds the (N, V) logits: for study and for tests.
    Its gradient, by autograd: with g = dL/d logp (N,) and p = softmax(z),
        dL/dz = g[:, None] * (onehot(y) - p),   dL/dhidden = dL/dz @ weight,   dL/dweight = dL/dz.T @ hidden.
    """
    dtype = accumulation_dtype(hidden.dtype)
    logits = hidden.to(dtype) @ weight.to(dtype).T  # (N, V)
    target_logit = logits.gather(1, targets[:, None])[:, 0]  # (N,)
    return target_logit - torch.logsumexp(logits, dim=1)  # (N,)
