"""The margin under four f-divergences: against f itself, against the constrained optimum, and far beyond float32's exp."""

import math
from dataclasses import replace

import pytest
import torch
from loss_checks import (
    check_autograd,
    check_central_differences,
    check_finite_in_float32,
    check_golden,
    golden_cases,
    golden_id,
    golden_loss,
    inputs,
)

from align.losses import LossInputs
from align.losses.divergences import DIVERGENCES, FDPO, LARGEST_EXPONENT, Relative, score, slope
from align.losses.dpo import DPO
from align.losses.relative import CDPO, Robust
from align.losses.shapes import EXO, DiscoPOP, SLiC

LOSSES = {
    name: cls
    for name, cls in {
        "dpo": DPO,
        "fdpo": FDPO,
        "cdpo": CDPO,
        "robust": Robust,
        "slic": SLiC,
        "exo": EXO,
        "discopop": DiscoPOP,
    }.items()
    if issubclass(cls, Relative)
}

F_OF_U = {
    "reverse_kl": lambda u, a: u * u.log(),
    "forward_kl": lambda u, a: -u.log(),
    "js": lambda u, a: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "alpha": lambda u, a: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)),
}


@pytest.mark.parametrize("name, case", golden_cases("fdpo", "cdpo"), ids=golden_id)
def test_divergence_loss_matches_golden_pairs(name, case):
    check_golden(golden_loss(name, case), case)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_score_is_the_derivative_of_f(divergence, alpha):
    t = torch.linspace(-4, 4, 41, dtype=torch.float64)
    u = t.exp().requires_grad_()
    one = torch.ones(1, dtype=torch.float64, requires_grad=True)
    f = F_OF_U[divergence]
    (at_u,) = torch.autograd.grad(f(u, alpha).sum(), u)
    (at_one,) = torch.autograd.grad(f(one, alpha).sum(), one)
    torch.testing.assert_close(score(t, divergence, alpha), at_u - at_one, rtol=1e-12, atol=1e-12)
    assert score(torch.zeros(1), divergence, alpha).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_slope_is_the_derivative_of_the_score(divergence, alpha):
    edge = LARGEST_EXPONENT / alpha
    t = torch.cat([torch.linspace(-400, 400, 801, dtype=torch.float64), torch.tensor([-edge, -LARGEST_EXPONENT])])
    t.requires_grad_()
    (expected,) = torch.autograd.grad(score(t, divergence, alpha).sum(), t)
    torch.testing.assert_close(slope(t, divergence, alpha), expected, rtol=1e-12, atol=1e-15)
    increasing = score(torch.linspace(-400, 30, 500, dtype=torch.float64), divergence, alpha)
    assert (increasing[1:] >= increasing[:-1]).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_policy_is_optimal_for_the_reward_that_the_margin_implies(divergence):
    """Theorem behind f-DPO: with R = β s(log π/ρ), π maximises Σ π R - β Σ ρ f(π/ρ)."""
    print("seed 3")
    g = torch.Generator().manual_seed(3)
    ref, pi = (torch.softmax(torch.randn(5, generator=g, dtype=torch.float64), 0) for _ in range(2))
    beta, alpha = 0.7, 0.3
    reward = beta * score((pi / ref).log(), divergence, alpha)

    def objective(p):
        return (p * reward).sum() - beta * (ref * F_OF_U[divergence](p / ref, alpha)).sum()

    best = objective(pi)
    for _ in range(200):
        other = torch.softmax(pi.log() + 0.1 * torch.randn(5, generator=g, dtype=torch.float64), 0)
        assert objective(other) < best
    # and the margin of a pair is the difference of these rewards
    x = LossInputs(pi.log()[None, [0, 3]], ref.log()[None, [0, 3]])
    assert SLiC(beta, divergence, alpha).margin(x).item() == pytest.approx((reward[0] - reward[3]).item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_loss_gradient_is_autograd_and_central_differences(name, divergence):
    loss = LOSSES[name](0.1, divergence, 0.4)
    check_autograd(loss, inputs(spread=300.0, seed=1))
    x = inputs(spread=2.0, seed=4)
    check_autograd(loss, x)
    check_central_differences(loss, x)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_divergence_loss_gradient_is_central_differences_where_the_slope_is_held(divergence):
    """At the edge itself, -30 or at α = 0.5 -60, the slope has a kink: there only to the second order of the step."""
    loss = CDPO(0.1, divergence, 0.5, label_smoothing=0.0)
    for ratio_w in (-20.0, -30.0, -45.0, -60.0, -80.0, -350.0):
        x = LossInputs(torch.tensor([[ratio_w, 0.3]], dtype=torch.float64), torch.zeros(1, 2).double())
        up, down = (loss(replace(x, logps=x.logps + torch.tensor([[d, 0.0]]))) for d in (1e-4, -1e-4))
        slope_w = loss.gradient(x)[0, 0].item()
        assert slope_w == pytest.approx(((up - down) / 2e-4).item(), rel=2e-4 if ratio_w in (-30.0, -60.0) else 1e-6)
        assert slope_w < 0


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("ratio", [-350.0, 350.0])
def test_divergence_loss_is_finite_in_float32_far_from_the_reference(name, divergence, ratio):
    for beta in (0.01, 1.0, 10.0):
        check_finite_in_float32(LOSSES[name](beta, divergence), ratio)


def test_forward_kl_loss_is_exact_up_to_its_bound_and_pushes_beyond_it():
    """Python floats, free of overflow at -30, are the truth; at -100 float32's exp is not even finite."""
    loss = CDPO(0.1, "forward_kl", label_smoothing=0.0)

    def at(ratio_w, dtype):
        return LossInputs(torch.tensor([[ratio_w, 0.0]], dtype=dtype), torch.zeros(1, 2, dtype=dtype))

    for ratio_w in (5.0, 0.0, -1.0, -10.0, -29.9):
        z = 0.1 * (1 - math.exp(-ratio_w))
        exact = math.log1p(math.exp(-z)) if z > -700 else -z
        assert loss(at(ratio_w, torch.float64)).item() == pytest.approx(exact, rel=1e-14)
        assert loss(at(ratio_w, torch.float32)).item() == pytest.approx(exact, rel=5e-6)
    assert not torch.exp(torch.tensor(100.0)).isfinite()
    x = at(-100.0, torch.float32)
    assert loss.gradient(x)[0, 0].item() == pytest.approx(-0.1 * math.exp(30), rel=1e-6)
    assert (loss.gradient(x).square().sum() * 1e6).isfinite()  # what a gradient norm sums


def test_alpha_lies_between_the_two_kls():
    x = inputs(spread=2.0)
    reverse, forward = (CDPO(0.1, d, label_smoothing=0.0) for d in ("reverse_kl", "forward_kl"))
    near_0, near_1 = (CDPO(0.1, "alpha", a, label_smoothing=0.0) for a in (1e-9, 1 - 1e-9))
    for a, b in ((near_0, reverse), (near_1, forward)):
        torch.testing.assert_close(a(x), b(x), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(a.gradient(x), b.gradient(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("loss", [CDPO(0.1, "reverse_kl", label_smoothing=0.0), FDPO(0.1, "reverse_kl")], ids=str)
def test_reverse_kl_is_dpo_to_the_bit(loss):
    x = inputs()
    torch.testing.assert_close(loss(x), DPO(0.1)(x), rtol=0, atol=0)
    torch.testing.assert_close(loss.gradient(x), DPO(0.1).gradient(x), rtol=0, atol=0)


@pytest.mark.parametrize("divergence, factor", [("reverse_kl", 1), ("forward_kl", 1), ("js", 0.5), ("alpha", 1)])
def test_divergence_loss_value_and_slopes_at_the_reference(divergence, factor):
    x = LossInputs(torch.full((1, 2), -50.0), torch.full((1, 2), -50.0))
    loss = CDPO(0.3, divergence, label_smoothing=0.0)
    assert loss(x).item() == pytest.approx(math.log(2), rel=1e-7)
    assert loss.gradient(x)[0].tolist() == pytest.approx([-0.15 * factor, 0.15 * factor])
    assert loss.rewards(x).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_only_reverse_kl_ignores_a_shift_of_both_log_ratios(divergence):
    x, loss = inputs(spread=2.0), SLiC(0.1, divergence)
    change = (loss.margin(replace(x, logps=x.logps + 0.7)) - loss.margin(x)).abs().max()
    assert change < 1e-12 if divergence == "reverse_kl" else change > 1e-3


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_logged_rewards_differ_by_the_margin(divergence):
    x, loss = inputs(spread=3.0), CDPO(0.1, divergence)
    r = loss.rewards(replace(x, logps=x.logps.clone().requires_grad_()))
    assert not r.requires_grad
    torch.testing.assert_close(r[:, 0] - r[:, 1], loss.margin(x), rtol=0, atol=0)


def test_divergence_parameters_are_checked():
    with pytest.raises(ValueError, match=r"loss\.divergence must be one of reverse_kl, .*, not total_variation"):
        CDPO(divergence="total_variation")
    for alpha in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"loss\.alpha must be greater than 0 and less than 1"):
            CDPO(alpha=alpha)
