"""How the next token is chosen from the logits."""

import math

import torch
from torch import Tensor


def choose(logits: Tensor, temperature: float, uniform: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """logits (B, V), uniform (B,) in [0, 1) -> (B,) token ids."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = restrict(logits.double() / temperature, top_k, top_p)
    cdf = logits.softmax(dim=-1).cumsum(dim=-1)  # (B, V)
    token = torch.searchsorted(cdf, (uniform * cdf[:, -1])[:, None], right=True)[:, 0]
    return token.clamp(max=logits.shape[-1] - 1)  # uniform * cdf can round up to the last step of cdf


def restrict(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """logits (B, V), -inf but for the top_k likeliest, and of these but for the fewest that hold top_p together.

    top_k 0: all. Among ties at the edge top_k keeps all. (top_p: nucleus sampling, arXiv 1904.09751.)
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, -math.inf)
    if top_p < 1:
        p, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)  # (B, V)
        likelier = p.cumsum(dim=-1) - p  # the mass of the tokens before
        logits = logits.masked_fill(
            torch.zeros_like(p, dtype=torch.bool).scatter(1, order, likelier >= top_p), -math.inf
        )
    return logits
