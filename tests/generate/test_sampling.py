"""What top-k and top-p keep, against a walk down the sorted list. `choose` itself: test_generate.py."""

import math

import pytest
import torch

from align.generate.sampling import choose, restrict


@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, 1.0), (3, 1.0), (0, 0.6), (5, 0.7), (0, 1e-9), (64, 0.999), (100, 1.0)]
)
def test_top_k_and_top_p_keep_the_likeliest(top_k, top_p):
    logits = 2 * torch.randn(50, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    kept = restrict(logits, top_k, top_p)
    for row, got in zip(logits.tolist(), kept.tolist(), strict=True):
        order = sorted(range(20), key=lambda v: -row[v])[: top_k or 20]
        total = sum(math.exp(row[v]) for v in order)
        nucleus, held = [], 0.0
        while held < top_p - 1e-12 and len(nucleus) < len(order):
            nucleus.append(order[len(nucleus)])
            held += math.exp(row[nucleus[-1]]) / total
        assert got == [row[v] if v in nucleus else -math.inf for v in range(20)]
    # what is drawn has the shares of the softmax over what is kept
    uniform = torch.arange(10_000, dtype=torch.float64) / 10_000
    drawn = choose(logits[:1].expand(10_000, -1), 0.5, uniform, top_k, top_p)
    expected = restrict(2 * logits[:1], top_k, top_p).softmax(-1)[0]
    assert (torch.bincount(drawn, minlength=20) / 10_000 - expected).abs().max() < 2e-4


def test_equals_at_the_edge():
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0]], dtype=torch.float64)
    assert restrict(logits, 1, 1.0).isfinite().tolist() == [[False, True, True, False]]
    assert restrict(logits, 0, 0.1).isfinite().sum() == 1
