"""A gradient off another's direction, against the algebra. In a run, and on two ranks: tests/test_sources.py."""

import pytest
import torch
from torch import nn

from align.parallel import World
from align.projection import add_projected, take_gradients


class Alone(World):
    def sum(self, values):
        return values


ALONE = Alone(0, 1, torch.device("cpu"))


def model_with(gradients):
    model = nn.ParameterList([nn.Parameter(torch.zeros(3, 2, dtype=torch.float64)) for _ in gradients])
    for p, gradient in zip(model, gradients, strict=True):
        p.grad = None if gradient is None else gradient.clone()
    return model


def test_what_is_added_is_orthogonal_parameter_by_parameter():
    print("seed 0")
    generator = torch.Generator().manual_seed(0)
    g, b = (list(torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)) for _ in "gb")
    b[1] = -0.3 * g[1]  # they conflict, and nothing else
    b[2] = g[2] - (g[2] * b[2]).sum() / b[2].square().sum() * b[2]  # not orthogonal to g, but g has a part along it
    model = model_with(g)
    others = take_gradients(model)
    assert all(p.grad is None for p in model)
    for p, gradient in zip(model, b, strict=True):
        p.grad = gradient.clone()
    add_projected(model, others, ALONE)
    for p, one, other in zip(model, g, b, strict=True):
        rest = p.grad - other
        assert (rest * other).sum().item() == pytest.approx(0, abs=1e-13)
        # of everything orthogonal to b it is the nearest to g
        along = one - rest
        torch.testing.assert_close(along, (along * other).sum() / other.square().sum() * other)
    torch.testing.assert_close(model[1].grad, b[1], rtol=0, atol=1e-15)


def test_where_there_is_nothing_along_it_all_passes():
    g = torch.tensor([[1.0, 0], [2, 0], [3, 0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 4], [0, 5], [0, 6]], dtype=torch.float64)
    cases = [(g, b, g + b), (g, torch.zeros_like(b), g), (g, None, g), (None, b, b)]  # the last: frozen for the others
    model = model_with([one for one, _, _ in cases])
    others = take_gradients(model)
    for p, (_, kept, _) in zip(model, cases, strict=True):
        p.grad = None if kept is None else kept.clone()
    add_projected(model, others, ALONE)
    for p, (_, _, expected) in zip(model, cases, strict=True):
        assert torch.equal(p.grad, expected)
