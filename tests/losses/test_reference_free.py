"""SimPO, AlphaPO, CPO and ORPO: by hand, against recorded numbers, autograd and central differences."""

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
from align.losses.dpo import DPO
from align.losses.reference_free import CPO, EDGE, ORPO, AlphaPO, SimPO
from align.losses.sft import SFT

CLASSES = {"simpo": SimPO, "alphapo": AlphaPO, "cpo": CPO, "orpo": ORPO}
LOSSES = [
    *(cls() for cls in CLASSES.values()),
    SimPO(beta=10.0, gamma=-0.3, label_smoothing=0.2),
    AlphaPO(beta=0.7, gamma=0.5, alpha=-0.6, label_smoothing=0.1),
    AlphaPO(alpha=0.0),
    CPO(beta=2.0, nll_weight=0.3, label_smoothing=0.1),
    ORPO(beta=3.0, nll_weight=0.0),
]


def pair(w, l, n_w=1, n_l=1):  # noqa: E741
    """LossInputs of one pair with these summed log-probs and token counts."""
    return LossInputs(torch.tensor([[w, l]], dtype=torch.float64), n_tok=torch.tensor([[n_w, n_l]]))


@pytest.mark.parametrize("name, case", golden_cases(*CLASSES), ids=golden_id)
def test_loss_matches_golden(name, case):
    check_golden(golden_loss(name, case), case)


@pytest.mark.parametrize("spread", [1.0, 20.0, 300.0])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_gradient_is_autograd_and_central_differences(loss, spread):
    x = inputs(spread=spread, seed=int(spread))
    x = replace(x, logps=-x.logps.abs())  # without a reference, log-probs are what counts: none is above 0
    check_autograd(loss, x)
    # a difference over a step of 1e-4 is no better than the rounding of the sum: 2e-16 / 1e-4 of it
    check_central_differences(loss, x, atol=1e-8 + 2e-12 * loss(x).sum().item())


@pytest.mark.parametrize("ratio", [-350.0, 350.0])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_is_finite_in_float32(loss, ratio):
    check_finite_in_float32(loss, ratio)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_is_finite_in_float32_for_answers_of_one_token(loss):
    """Sums of -6000 in a single token are beyond AlphaPO's exponentials; its tangent takes over."""
    for logps in ([[-6000.0, -1.0]], [[-1.0, -6000.0]], [[-6000.0, -6350.0]], [[-1e-9, -1e-9]]):
        logps = torch.tensor(logps, requires_grad=True)
        x = LossInputs(logps, n_tok=torch.ones(1, 2))
        value = loss(x)
        value.sum().backward()
        assert torch.isfinite(value).all() and torch.isfinite(logps.grad).all()
        torch.testing.assert_close(loss.gradient(x).detach(), logps.grad, rtol=1e-5, atol=1e-7)


def test_simpo_loss_by_hand():
    # means -1 and -3/2 are half a nat apart, which at β = 2 is just the margin γ = 1: z = 0
    x = pair(-4.0, -3.0, 4, 2)
    assert SimPO()(x).item() == pytest.approx(math.log(2), rel=1e-14)
    assert SimPO().gradient(x)[0].tolist() == pytest.approx([-1 / 4, 1 / 2], rel=1e-14)
    equal = pair(-4.0, -2.0, 4, 2)
    assert SimPO()(equal).item() == pytest.approx(math.log(1 + math.e), rel=1e-14)


def test_alphapo_loss_by_hand():
    # α = 1: R = 1 - 1/p, so p = 1/2 and 1/4 give -1 and -3; β = log(3)/2 makes z = log 3, σ(-z) = 1/4
    x = pair(2 * math.log(1 / 2), math.log(1 / 4), 2, 1)
    beta = math.log(3) / 2
    loss = AlphaPO(beta=beta, gamma=0.0, alpha=1.0)
    assert loss(x).item() == pytest.approx(math.log(4 / 3), rel=1e-14)
    assert loss.gradient(x)[0].tolist() == pytest.approx([-beta / 4 * 2 / 2, beta / 4 * 4], rel=1e-14)


def test_cpo_loss_by_hand():
    # z = log 3; NLL of the chosen response per token 5/2
    x = pair(-5.0, -5 - math.log(3), 2, 7)
    assert CPO(beta=1.0)(x).item() == pytest.approx(math.log(4 / 3) + 5 / 2, rel=1e-14)
    assert CPO(beta=1.0).gradient(x)[0].tolist() == pytest.approx([-1 / 4 - 1 / 2, 1 / 4], rel=1e-14)


def test_orpo_loss_by_hand():
    # p = 1/2 and 1/4: odds 1 and 1/3, s = log 3, σ(-s) = 1/4; slopes 1/(1 - p) are 2 and 4/3
    x = pair(2 * math.log(1 / 2), 3 * math.log(1 / 4), 2, 3)
    loss = ORPO(beta=0.5)
    assert loss(x).item() == pytest.approx(0.5 * math.log(4 / 3) + math.log(2), rel=1e-14)
    by_hand = [-0.5 * 1 / 4 * 2 / 2 - 1 / 2, 0.5 * 1 / 4 * 4 / 3 / 3]
    assert loss.gradient(x)[0].tolist() == pytest.approx(by_hand, rel=1e-14)


@pytest.mark.parametrize("x_w, x_l", [(-1e-5, -0.5), (-0.5, -1e-5), (-1e-5, -2e-5), (-1e-5, -9.0), (-2.0, -1e-5)])
def test_orpo_loss_near_certainty_is_the_one_without_cancellation(x_w, x_l):
    """σ(-s)/(1 - p_w) = p_l / D and σ(-s)/(1 - p_l) = p_l (1 - p_w) / (D (1 - p_l)), in float32 against float64."""
    p_w, p_l, q_w, q_l = math.exp(x_w), math.exp(x_l), -math.expm1(x_w), -math.expm1(x_l)
    d = p_w * q_l + p_l * q_w
    loss = ORPO(beta=1.0, nll_weight=0.0)
    x = LossInputs(torch.tensor([[x_w, x_l]]), n_tok=torch.ones(1, 2))
    assert loss(x).item() == pytest.approx(math.log(d) - x_w - math.log(q_l), rel=2e-5, abs=1e-7)
    assert loss.gradient(x)[0].tolist() == pytest.approx([-p_l / d, p_l * q_w / (d * q_l)], rel=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x_l", [-1e-9, -0.0, 0.0, 1e-7, -1.0])
@pytest.mark.parametrize("x_w", [-1e-9, -0.0, 0.0, 1e-7, -1.0])
def test_orpo_loss_at_certainty_is_finite_and_still_pushes(x_w, x_l, dtype):
    """p = 1 to the last bit, or a hair above it by rounding: where torch.where has made NaN of public gradients."""
    logps = torch.tensor([[x_w, x_l]], dtype=dtype, requires_grad=True)
    loss, x = ORPO(), LossInputs(logps, n_tok=torch.ones(1, 2))
    value = loss(x)
    value.backward()
    assert torch.isfinite(value).all() and torch.isfinite(logps.grad).all()
    torch.testing.assert_close(loss.gradient(x).detach(), logps.grad, rtol=1e-5, atol=1e-7)
    assert logps.grad[0, 0] < 0 and logps.grad[0, 1] > 0


def test_orpo_loss_joins_its_tangent_smoothly():
    loss = ORPO(beta=1.0, nll_weight=0.0)
    below, above = (pair(-EDGE * (1 + side * 1e-6), -1.0) for side in (1, -1))
    assert loss(below).item() == pytest.approx(loss(above).item(), rel=1e-5)
    torch.testing.assert_close(loss.gradient(below), loss.gradient(above), rtol=1e-5, atol=0)


def test_cpo_loss_without_nll_is_dpo_with_a_uniform_reference():
    x = inputs()
    uniform = replace(x, ref_logps=torch.full_like(x.logps, -7.0))
    torch.testing.assert_close(CPO(beta=0.3, nll_weight=0.0)(x), DPO(beta=0.3)(uniform), rtol=1e-13, atol=1e-15)


def test_cpo_loss_bounds_dpo_under_any_reference():
    x = inputs(n=200)
    slack = (0.1 * (x.ref_logps[:, 0] - x.ref_logps[:, 1])).clamp(min=0)
    bound = CPO(beta=0.1, nll_weight=0.0)(x) + slack
    assert (DPO(beta=0.1)(x) <= bound + 1e-12).all()


def test_alphapo_loss_tends_to_simpo():
    x = inputs(spread=3.0)
    torch.testing.assert_close(AlphaPO(2.0, 1.0, alpha=0.0)(x), SimPO()(x), rtol=0, atol=0)
    torch.testing.assert_close(AlphaPO(2.0, 1.0, alpha=1e-7)(x), SimPO()(x), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(AlphaPO(2.0, 1.0, alpha=0.0).gradient(x), SimPO().gradient(x), rtol=0, atol=0)


def test_simpo_loss_of_one_token_without_margin_is_cpo_without_nll():
    x = replace(inputs(), n_tok=torch.ones(6, 2))
    torch.testing.assert_close(SimPO(beta=0.4, gamma=0.0)(x), CPO(beta=0.4, nll_weight=0.0)(x), rtol=1e-14, atol=0)


def test_orpo_loss_of_improbable_answers_is_simpo():
    x = replace(inputs(), logps=-60 + 3 * inputs(seed=4).logps, n_tok=torch.tensor([1, 2]).expand(6, 2))
    or_term = ORPO(beta=1.0, nll_weight=0.0)
    torch.testing.assert_close(or_term(x), SimPO(beta=1.0, gamma=0.0)(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cls", [CPO, ORPO])
def test_loss_adds_the_token_mean_whatever_the_split(cls):
    x = inputs()
    with_nll, without = cls(nll_weight=0.7), cls(nll_weight=0.0)
    torch.testing.assert_close(with_nll(x) - without(x), 0.7 * SFT()(x), rtol=1e-12, atol=1e-12)
    m = x.n_tok[:, 0].double().mean()
    parts = [LossInputs(x.logps[s], n_tok=x.n_tok[s], tokens_per_prompt=m) for s in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat([with_nll(p) for p in parts]), with_nll(x), rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.cat([with_nll.gradient(p) for p in parts]), with_nll.gradient(x))


def test_label_smoothing_gives_simpo_and_cpo_a_fixed_point():
    z = math.log(0.9 / 0.1)
    for loss, x in [
        (SimPO(label_smoothing=0.1), pair(-1.0, -1 - (z + 1) / 2)),
        (CPO(beta=1.0, nll_weight=0.0, label_smoothing=0.1), pair(-1.0, -1 - z)),
    ]:
        torch.testing.assert_close(loss.gradient(x), torch.zeros(1, 2).double(), atol=1e-15, rtol=0)
        # the binary entropy of the label noise is the floor
        assert loss(x).item() == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), rel=1e-13)


def test_loss_invariances_to_shifts():
    """Per token for simpo, per response for cpo; the odds and the power transform see absolute likelihoods."""
    x = inputs(spread=3.0)
    per_token, per_answer = replace(x, logps=x.logps - 0.5 * x.n_tok), replace(x, logps=x.logps - 0.5)
    torch.testing.assert_close(SimPO()(per_token), SimPO()(x))
    torch.testing.assert_close(CPO(nll_weight=0.0)(per_answer), CPO(nll_weight=0.0)(x))
    for loss in (AlphaPO(), ORPO(nll_weight=0.0)):
        assert (loss(per_token) - loss(x)).abs().max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_permutes_with_the_batch_and_ignores_any_reference(loss):
    x, order = inputs(), torch.tensor([3, 0, 5, 1, 4, 2])
    bare = LossInputs(x.logps[order], n_tok=x.n_tok[order])
    torch.testing.assert_close(loss(bare), loss(x)[order], rtol=1e-14, atol=0)
    torch.testing.assert_close(loss.gradient(bare), loss.gradient(x)[order], rtol=1e-14, atol=0)
    assert loss.rewards(bare) is None and not loss.needs_reference and not loss.in_paper


def test_swapping_the_answers_turns_the_gradient_round():
    x = inputs(spread=3.0)
    swapped = replace(x, logps=x.logps.flip(1), n_tok=x.n_tok.flip(1))
    for make in (lambda e: SimPO(gamma=0.0, label_smoothing=e), lambda e: CPO(nll_weight=0.0, label_smoothing=e)):
        # L(z) - L(-z) = -(1 - 2ε) z: the swap of a logistic loss
        z, eps = make(0.0).margin(x), 0.2
        torch.testing.assert_close(make(eps)(x) - make(eps)(swapped), -(1 - 2 * eps) * z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SimPO(beta=0.0), r"loss\.beta must be greater than 0, not 0\.0"),
        (lambda: SimPO(gamma=math.inf), r"loss\.gamma must be finite, not inf"),
        (lambda: SimPO(label_smoothing=0.5), r"loss\.label_smoothing must be .* less than 0\.5, not 0\.5"),
        (lambda: AlphaPO(alpha=math.nan), r"loss\.alpha must be finite, not nan"),
        (lambda: CPO(nll_weight=-1.0), r"loss\.nll_weight must be at least 0 and finite, not -1\.0"),
        (lambda: CPO(label_smoothing=-0.1), r"loss\.label_smoothing must be"),
        (lambda: ORPO(nll_weight=math.nan), r"loss\.nll_weight must be"),
        (lambda: SimPO()(LossInputs(torch.zeros(1, 2))), "counts response tokens: LossInputs.n_tok is None"),
    ],
)
def test_bad_parameters_and_missing_inputs_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
