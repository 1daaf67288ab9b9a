"""The learning rate's shape, by hand, and what weight decay touches."""

import math

import pytest
import torch

from align.optim import build_optimizer, learning_rate
from align.sections import OptimSection


def test_learning_rate_rises_then_follows_its_curve():
    optim = OptimSection(lr=1.0, warmup=0.2, schedule="linear")
    rates = [learning_rate(step, 10, optim) for step in range(10)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    cosine = OptimSection(lr=2.0, warmup=0.0, schedule="cosine")
    assert learning_rate(5, 20, cosine) == pytest.approx(1 + math.cos(math.pi / 4))
    assert {learning_rate(s, 7, OptimSection(lr=3.0, warmup=0.0, schedule="constant")) for s in range(7)} == {3.0}
    assert learning_rate(0, 1, OptimSection(lr=1.0)) == 1.0


def test_weight_decay_is_for_matrices():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer = build_optimizer(model, OptimSection(weight_decay=0.1))
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert [tuple(p.shape) for p in decayed] == [(3, 3)]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
