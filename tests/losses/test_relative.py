"""Losses of a pair's margin: values by hand, reference numbers, derivations re-enacted on small worlds, identities."""

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
    golden_inputs,
    golden_loss,
    golden_pairs,
    inputs,
)

from align.losses import LossInputs
from align.losses.dpo import DPO
from align.losses.relative import CDPO, DPOP, RDPO, DPONorm, Robust
from align.losses.shapes import EXO, IPO, DiscoPOP, IPOSum, SLiC

LOSSES = {
    "cdpo": CDPO,
    "robust": Robust,
    "dpo_norm": DPONorm,
    "rdpo": RDPO,
    "dpop": DPOP,
    "slic": SLiC,
    "ipo": IPO,
    "ipo_sum": IPOSum,
    "exo": EXO,
    "discopop": DiscoPOP,
}
OF_THE_MARGIN = ["cdpo", "robust", "slic", "exo", "discopop"]  # of z = β (Δ_w - Δ_l) and nothing else


def pair(ratio_w, ratio_l, n_w=1, n_l=1):
    """One prompt with these log-ratios, against a reference at 0."""
    return LossInputs(
        torch.tensor([[ratio_w, ratio_l]], dtype=torch.float64),
        torch.zeros(1, 2, dtype=torch.float64),
        torch.tensor([[n_w, n_l]]),
    )


def swapped(x):
    return replace(x, logps=x.logps.flip(1), ref_logps=x.ref_logps.flip(1), n_tok=x.n_tok.flip(1))


def same(a, b, x, scale=1.0):
    """Loss and gradient of `a` are `scale` times those of `b`."""
    torch.testing.assert_close(a(x), scale * b(x), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(a.gradient(x), scale * b.gradient(x), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name, case", golden_cases(*LOSSES), ids=golden_id)
def test_relative_loss_matches_golden_pairs(name, case):
    check_golden(golden_loss(name, case), case)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spread", [3.0, 20.0, 300.0])
def test_relative_loss_gradient_is_autograd_and_central_differences(name, spread):
    loss, x = LOSSES[name](beta=0.1), inputs(spread=spread, seed=int(spread))
    check_autograd(loss, x)
    check_central_differences(loss, x)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ratio", [-350.0, 350.0])
def test_relative_loss_is_finite_in_float32_far_from_the_reference(name, ratio):
    for beta in (0.01, 1.0, 10.0):
        check_finite_in_float32(LOSSES[name](beta=beta), ratio)


# value and slope at policy = reference, with the parameters of the docstrings: what a run must show at step 0
AT_REFERENCE = {
    "cdpo": (CDPO(0.3, label_smoothing=0.1), math.log(2), -0.3 * 0.4),
    "robust": (Robust(0.3, label_smoothing=0.1), math.log(2), -0.3 * 0.5 / 0.8),
    "dpo_norm": (DPONorm(0.3), math.log(2), -0.3 * 0.5 / 4),
    "rdpo": (RDPO(0.3, alpha=0.1), math.log(1 + math.exp(0.2)), -0.3 / (1 + math.exp(-0.2))),
    "dpop": (DPOP(0.3, penalty=50.0), math.log(2), -0.15),
    "slic": (SLiC(0.3), 1.0, -0.3),
    "ipo": (IPO(0.1), 25.0, -10 / 4),
    "ipo_sum": (IPOSum(0.1), 25.0, -10.0),
    "exo": (EXO(0.3, label_smoothing=1e-3), -math.log(2) - math.log(0.001 * 0.999) / 2, -0.3 / 4 * math.log(999)),
    "discopop": (DiscoPOP(0.3, tau=0.05), (1 + math.log(2)) / 2, 0.3 * (-0.75 + (1 - math.log(2)) / 0.2)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_relative_loss_value_and_slope_at_the_reference(name):
    loss, value, chosen_slope = AT_REFERENCE[name]
    x = pair(0.0, 0.0, n_w=4, n_l=6)
    assert loss(x).item() == pytest.approx(value, rel=1e-14)
    gradient = loss.gradient(x)[0].tolist()
    ratio = 4 / 6 if name in ("dpo_norm", "ipo") else 1.0
    assert gradient == pytest.approx([chosen_slope, -ratio * chosen_slope], rel=1e-13)
    check_autograd(loss, x)


def test_relative_losses_by_hand():
    # z = log 3, so that σ(z) = 3/4
    x = pair(math.log(3), 0.0)
    assert CDPO(1.0, label_smoothing=0.25)(x).item() == pytest.approx(
        0.75 * math.log(4 / 3) + 0.25 * math.log(4), rel=1e-14
    )
    assert Robust(1.0, label_smoothing=0.25)(x).item() == pytest.approx(
        (0.75 * math.log(4 / 3) - 0.25 * math.log(4)) / 0.5, rel=1e-14
    )
    assert Robust(1.0, label_smoothing=0.25).gradient(x)[0, 0].item() == pytest.approx(-(3 / 16 + 3 / 16) / 0.5)
    assert EXO(1.0, label_smoothing=0.1)(x).item() == pytest.approx(
        0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1), rel=1e-14
    )
    # 3 nats over 2 tokens against -1 nat over 4
    x = pair(3.0, -1.0, n_w=2, n_l=4)
    assert DPONorm(2.0)(x).item() == pytest.approx(math.log1p(math.exp(-2 * (1.5 + 0.25))), rel=1e-14)
    assert IPO(0.5)(x).item() == pytest.approx((1.75 - 1) ** 2, rel=1e-14)
    assert IPO(0.5).gradient(x)[0].tolist() == pytest.approx([2 * 0.75 / 2, -2 * 0.75 / 4], rel=1e-14)
    assert IPOSum(0.5)(x).item() == pytest.approx(9.0, rel=1e-14)
    assert RDPO(0.5, alpha=0.1)(x).item() == pytest.approx(math.log1p(math.exp(-(2 - 0.2))), rel=1e-14)
    assert SLiC(0.1)(x).item() == pytest.approx(0.6, rel=1e-14)
    # the chosen response 2 nats down, the rejected one 3: dpo would be content, with z = 1
    x = pair(-2.0, -3.0)
    assert DPOP(1.0, penalty=5.0)(x).item() == pytest.approx(math.log1p(math.exp(9)), rel=1e-14)
    push = 1 / (1 + math.exp(-9))
    assert DPOP(1.0, penalty=5.0).gradient(x)[0].tolist() == pytest.approx([-6 * push, push], rel=1e-14)


def test_relative_losses_reduce_to_dpo():
    x, dpo = inputs(), DPO(0.1)
    same(CDPO(0.1, label_smoothing=0.0), dpo, x)
    same(Robust(0.1, label_smoothing=0.0), dpo, x)
    same(RDPO(0.1, alpha=0.0), dpo, x)
    same(DPOP(0.1, penalty=0.0), dpo, x)
    equal = replace(x, n_tok=torch.full((6, 2), 7))
    same(RDPO(0.1, alpha=3.0), dpo, equal)
    same(DPONorm(0.7), dpo, equal)
    same(IPOSum(0.1), IPO(0.7), equal, scale=49.0)


def test_dpop_loss_is_dpo_where_the_chosen_answer_gained():
    x = pair(2.0, 1.0)
    same(DPOP(0.3, penalty=50.0), DPO(0.3), x)
    # and below, DPO on the chosen log-ratio times 1 + λ
    torch.testing.assert_close(DPOP(0.3, penalty=50.0)(pair(-2.0, 1.0)), DPO(0.3)(pair(-102.0, 1.0)))


def test_robust_loss_is_unbiased_under_flipped_labels():
    x, robust = inputs(spread=10.0), Robust(0.1, label_smoothing=0.2)
    flipped = swapped(x)
    torch.testing.assert_close(0.8 * robust(x) + 0.2 * robust(flipped), DPO(0.1)(x))
    mean_gradient = 0.8 * robust.gradient(x) + 0.2 * robust.gradient(flipped).flip(1)
    torch.testing.assert_close(mean_gradient, DPO(0.1).gradient(x))


def test_robust_loss_is_unbounded_below():
    robust = Robust(1.0, label_smoothing=0.1)
    assert [round(robust(pair(z, 0.0)).item(), 2) for z in (5.0, 20.0, 100.0)] == [-0.62, -2.5, -12.5]
    assert robust.gradient(pair(1000.0, 0.0))[0, 0].item() == pytest.approx(-0.1 / 0.8)


def test_swapping_the_answers_of_a_pair():
    """log σ(z) - log σ(-z) = z: what a label is worth."""
    x = inputs(spread=10.0)
    z = DPO(0.1).margin(x)
    cdpo, robust = CDPO(0.1, label_smoothing=0.2), Robust(0.1, label_smoothing=0.2)
    torch.testing.assert_close(cdpo(swapped(x)) - cdpo(x), 0.6 * z)
    torch.testing.assert_close(robust(swapped(x)) - robust(x), z / 0.6)


@pytest.mark.parametrize("name", OF_THE_MARGIN)
def test_losses_of_the_margin_ignore_a_shift_of_both_log_ratios(name):
    x, loss = inputs(spread=5.0), LOSSES[name](beta=0.1)
    shift = torch.linspace(-3, 3, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(replace(x, logps=x.logps + shift)), loss(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["dpo_norm", "ipo", "dpop"])
def test_losses_of_lengths_or_levels_see_a_shift_of_both_log_ratios(name):
    x, loss = inputs(spread=5.0), LOSSES[name](beta=0.1)
    assert (loss(replace(x, logps=x.logps - 2.5)) - loss(x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_relative_loss_follows_a_permutation_of_the_batch(name):
    x, loss = inputs(), LOSSES[name]()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    y = LossInputs(x.logps[order], x.ref_logps[order], x.n_tok[order])
    torch.testing.assert_close(loss(y), loss(x)[order], rtol=0, atol=0)
    torch.testing.assert_close(loss.gradient(y), loss.gradient(x)[order], rtol=0, atol=0)


def test_cdpo_and_exo_losses_are_the_two_kls_to_one_target():
    epsilon, beta = 0.1, 0.5
    cdpo, exo = CDPO(beta, label_smoothing=epsilon), EXO(beta, label_smoothing=epsilon)
    x = inputs(spread=4.0)
    p = torch.tensor([1 - epsilon, epsilon], dtype=torch.float64)
    q = torch.softmax(beta * x.ratios, dim=1)
    entropy = -(p * p.log()).sum()
    torch.testing.assert_close(cdpo(x), (p * (p / q).log()).sum(1) + entropy)
    torch.testing.assert_close(exo(x), (q * (q / p).log()).sum(1))
    goal = pair(math.log(9) / beta, 0.0)
    assert exo(goal).item() == pytest.approx(0, abs=1e-15)
    assert cdpo(goal).item() == pytest.approx(entropy.item(), rel=1e-14)
    for loss in (cdpo, exo):
        torch.testing.assert_close(loss.gradient(goal), torch.zeros(1, 2).double(), rtol=0, atol=1e-15)


def test_exo_loss_limits():
    exo = EXO(1.0, label_smoothing=0.01)
    assert exo(pair(-800.0, 0.0)).item() == pytest.approx(-math.log(0.01), rel=1e-14)
    assert exo(pair(800.0, 0.0)).item() == pytest.approx(-math.log(0.99), rel=1e-14)
    # a badly ordered pair is let go, where dpo pushes with all its force
    assert abs(exo.gradient(pair(-50.0, 0.0))[0, 0].item()) < 1e-19
    assert DPO(1.0).gradient(pair(-50.0, 0.0))[0, 0].item() == pytest.approx(-1)
    # label_smoothing -> 0: in units of z*, the error rate σ(-z)
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)
    x = LossInputs(torch.stack([z, torch.zeros_like(z)], 1), torch.zeros(9, 2).double())
    for epsilon in (1e-30, 1e-300):
        scaled = EXO(1.0, label_smoothing=epsilon)(x) / -math.log(epsilon)
        assert (scaled - torch.sigmoid(-z)).abs().max() < 1 / -math.log(epsilon)


@pytest.mark.parametrize("case", golden_pairs("exo_pref_authors"), ids=lambda c: c["batch"])
def test_exo_loss_of_the_authors_is_ours_up_to_a_constant(case):
    """Their log-targets are (0, -10), unnormalised: ours at z* = 10, less log(1 - ε)."""
    epsilon = 1 / (1 + math.exp(10))
    exo, x = EXO(case["params"]["beta"], label_smoothing=epsilon), golden_inputs(case["batch"])
    assert exo(x).mean().item() + math.log1p(-epsilon) == pytest.approx(case["loss_mean"], rel=1e-12)
    expected = torch.tensor([case["grad_pi_w"], case["grad_pi_l"]], dtype=torch.float64).T
    torch.testing.assert_close(exo.gradient(x) / len(expected), expected, rtol=1e-10, atol=1e-15)


def test_slic_loss_lets_go_at_its_margin():
    slic = SLiC(0.1)
    assert slic.gradient(pair(9.9, 0.0))[0].tolist() == [-0.1, 0.1]
    assert slic.gradient(pair(10.0, 0.0))[0].tolist() == [0.0, 0.0]
    assert slic(pair(10.0, 0.0)).item() == 0.0
    check_autograd(slic, pair(10.0, 0.0))


def test_ipo_loss_regresses_to_the_preference_of_its_population():
    """Four responses, any preference matrix: the labels' mean gradient vanishes at h = (p(y > μ) - p(y' > μ)) / τ."""
    g = torch.Generator().manual_seed(0)
    wins = torch.rand(4, 4, generator=g, dtype=torch.float64)
    wins = wins / (wins + wins.T)  # p(y > y'), with p(y' > y) = 1 - p(y > y') and 1/2 on the diagonal
    mu = torch.softmax(torch.randn(4, generator=g, dtype=torch.float64), 0)
    tau = 0.3
    log_ratio = (wins @ mu) / tau  # of the optimum, up to log Z
    i, j = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    chance = mu[i] * mu[j] * wins[i, j]  # of drawing i and j and finding i the winner
    x = LossInputs(torch.stack([log_ratio[i], log_ratio[j]], 1), torch.zeros(16, 2).double())
    gradient = chance[:, None] * IPOSum(tau).gradient(x)
    per_answer = torch.zeros(4).double().index_add(0, i, gradient[:, 0]).index_add(0, j, gradient[:, 1])
    assert gradient.abs().max() > 1e-2
    torch.testing.assert_close(per_answer, torch.zeros(4).double(), rtol=0, atol=1e-14)


def test_rdpo_loss_has_the_sign_that_its_derivation_gives():
    """RLHF with α charged for each token: the optimal policy's margin must be the difference of the true rewards."""
    beta, alpha = 0.4, 0.03
    rewards = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    tokens = torch.tensor([30, 5, 80])
    log_ref = torch.log_softmax(torch.tensor([0.2, -1.0, 0.7], dtype=torch.float64), 0)
    log_pi = torch.log_softmax(log_ref + (rewards - alpha * tokens.double()) / beta, 0)
    rdpo = RDPO(beta, alpha=alpha)
    for w, l in ((0, 1), (2, 0), (1, 2)):  # noqa: E741
        x = LossInputs(log_pi[[w, l]][None], log_ref[[w, l]][None], tokens[[w, l]][None])
        assert rdpo.margin(x).item() == pytest.approx((rewards[w] - rewards[l]).item(), rel=1e-12)


def test_rdpo_loss_teaches_less_where_the_longer_answer_won():
    longer, shorter = pair(0.0, 0.0, n_w=50, n_l=10), pair(0.0, 0.0, n_w=10, n_l=50)
    rdpo = RDPO(0.1, alpha=0.02)
    assert rdpo.gradient(longer)[0, 0].abs() < 0.05 < rdpo.gradient(shorter)[0, 0].abs()


def test_discopop_loss_goes_the_wrong_way_at_first():
    discopop = DiscoPOP(1.0, tau=0.05)
    assert discopop.gradient(pair(0.0, 0.0))[0, 0].item() == pytest.approx(0.784, abs=1e-3)
    z = torch.arange(-3000, 3000, dtype=torch.float64) / 10_000
    x = LossInputs(torch.stack([z, torch.zeros_like(z)], 1), torch.zeros(6000, 2).double())
    values, uphill = discopop(x), discopop.gradient(x)[:, 0] > 0
    edges = z[:-1][uphill[1:] != uphill[:-1]]
    assert edges.tolist() == pytest.approx([-0.119, 0.072], abs=1e-3)
    assert values[(z >= edges[0])][0].item() == pytest.approx(0.786, abs=1e-3)
    assert values[(z >= edges[1])][0].item() == pytest.approx(0.878, abs=1e-3)


def test_logged_rewards_are_the_margin_that_the_loss_compares():
    x = inputs(spread=5.0)
    for loss in (CDPO(0.1), Robust(0.1), SLiC(0.1), EXO(0.1), DiscoPOP(0.1), DPONorm(0.1)):
        r = loss.rewards(x)
        torch.testing.assert_close(r[:, 0] - r[:, 1], loss.margin(x), rtol=0, atol=0)
    r = IPO(0.1).rewards(x)
    torch.testing.assert_close((r[:, 0] - r[:, 1]) / 0.1 - 5, IPO(0.1).excess(x))
    torch.testing.assert_close(IPOSum(0.1).rewards(x), DPO(0.1).rewards(x))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CDPO(label_smoothing=0.5), r"loss\.label_smoothing must be at least 0 and less than 0\.5, not 0\.5"),
        (lambda: Robust(label_smoothing=-0.1), r"loss\.label_smoothing must be at least 0"),
        (lambda: Robust(label_smoothing=math.nan), r"loss\.label_smoothing must be at least 0"),
        (
            lambda: EXO(label_smoothing=0.0),
            r"loss\.label_smoothing must be greater than 0 and less than 0\.5, not 0\.0",
        ),
        (lambda: DiscoPOP(tau=0.0), r"loss\.tau must be greater than 0 and at most 1, not 0\.0"),
        (lambda: DiscoPOP(tau=1.5), r"loss\.tau must be greater than 0 and at most 1"),
        (lambda: DPOP(penalty=-1.0), r"loss\.penalty must be at least 0, not -1\.0"),
        (lambda: RDPO(alpha=math.inf), r"loss\.alpha must be a finite number, not inf"),
        (lambda: SLiC(beta=0.0), r"loss\.beta must be greater than 0"),
    ],
)
def test_relative_loss_parameters_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", LOSSES)
def test_relative_loss_says_what_it_misses(name):
    x, loss = inputs(), LOSSES[name]()
    with pytest.raises(ValueError, match="ref_logps is None"):
        loss(replace(x, ref_logps=None))
    if name in ("dpo_norm", "rdpo", "ipo"):
        with pytest.raises(ValueError, match="n_tok is None"):
            loss(replace(x, n_tok=None))


def test_the_inferred_ten_are_marked():
    assert {name for name, cls in LOSSES.items() if cls.in_paper} == {"robust", "slic", "ipo", "exo"}
