"""InfoNCA and EXO on lists of responses with rewards, and their relations to DPO and NCA."""

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
    list_inputs,
)

from align.losses import LossInputs
from align.losses.dpo import DPO
from align.losses.infonca import EXORewards, InfoNCA
from align.losses.nca import NCA

CLASSES = {"infonca": InfoNCA, "exo_list": EXORewards}


def scored(k=4, seed=0, n=6, **more):
    g = torch.Generator().manual_seed(100 + seed)
    return inputs(n=n, k=k, seed=seed, scores=torch.randn(n, k, generator=g, dtype=torch.float64), **more)


@pytest.mark.parametrize("name, sample, case", golden_cases(*CLASSES, section="k_responses"), ids=golden_id)
def test_loss_matches_golden_with_rewards(name, sample, case):
    loss, x = golden_loss(name, case), list_inputs(sample, case)
    assert loss(x).mean().item() == pytest.approx(case["loss_mean"], rel=1e-12)
    expected = torch.tensor(case["grad_pi"], dtype=torch.float64)
    torch.testing.assert_close(loss.gradient(x) / len(expected), expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name, case", golden_cases(*CLASSES), ids=golden_id)
def test_loss_of_pairs_without_rewards_matches_golden_dpo_and_exo(name, case):
    check_golden(golden_loss(name, case), case)


def cases():
    for name, cls in CLASSES.items():
        for temperature in (0.5, 0.05):  # at 1e-3 exo's log p is about -1000, and either gradient a difference of such
            for spread in (5.0, 300.0):
                yield pytest.param(cls(0.1, temperature), scored(spread=spread), id=f"{name}-{temperature}-{spread}")
        yield pytest.param(cls(0.1), inputs(), id=f"{name}-pair")
        yield pytest.param(cls(1.0, 0.7), scored(k=5, seed=3), id=f"{name}-five")


@pytest.mark.parametrize("loss, x", list(cases()))
def test_loss_gradient_is_autograd_and_central_differences(loss, x):
    check_autograd(loss, x)
    check_central_differences(loss, x)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("ratio", [-350.0, 350.0])
def test_loss_is_finite_in_float32_far_from_the_reference(name, ratio):
    check_finite_in_float32(CLASSES[name](1.0), ratio)
    scores = torch.tensor([[9.0, 1.0], [1.0, 9.0], [5.0, 5.0]])
    check_finite_in_float32(CLASSES[name](1.0, temperature=1e-3), ratio, scores=scores)


def test_losses_by_hand():
    # β = 1, q = softmax(log 6, log 3, 0) = (6, 3, 1)/10, p = softmax(log 2, log 2, 0) = (2, 2, 1)/5
    logs = [[math.log(6), math.log(3), 0.0], [math.log(2), math.log(2), 0.0]]
    r, s = (torch.tensor([values], dtype=torch.float64) for values in logs)
    x = LossInputs(r, torch.zeros_like(r), scores=s)
    info, exo = InfoNCA(1.0, temperature=1.0), EXORewards(1.0, temperature=1.0)
    forward = -0.4 * math.log(0.6) - 0.4 * math.log(0.3) - 0.2 * math.log(0.1)
    assert info(x).item() == pytest.approx(forward, rel=1e-14)
    assert info.gradient(x)[0].tolist() == pytest.approx([0.2, -0.1, -0.1], rel=1e-13)
    f = [math.log(1.5), math.log(0.75), math.log(0.5)]
    reverse = 0.6 * f[0] + 0.3 * f[1] + 0.1 * f[2]
    assert exo(x).item() == pytest.approx(reverse, rel=1e-13)
    slopes = [q * (each - reverse) for q, each in zip((0.6, 0.3, 0.1), f, strict=True)]
    assert exo.gradient(x)[0].tolist() == pytest.approx(slopes, rel=1e-12)


def test_loss_values_and_slopes_at_the_reference():
    x = scored()
    x = replace(x, logps=x.ref_logps.clone())
    info, exo = InfoNCA(0.2, temperature=0.5), EXORewards(0.2, temperature=0.5)
    p = torch.softmax(x.scores / 0.5, 1)
    assert info(x).tolist() == pytest.approx([math.log(4)] * 6, rel=1e-14)
    torch.testing.assert_close(info.gradient(x), 0.2 * (0.25 - p), rtol=1e-13, atol=1e-16)
    torch.testing.assert_close(exo(x), -math.log(4) - p.log().mean(1), rtol=1e-13, atol=0)


def test_infonca_loss_of_a_pair_is_dpo_loss():
    x, sharp = inputs(spread=10.0), torch.tensor([[1.0, 0.0]]).double().expand(6, 2)
    for given in (x, replace(x, scores=sharp)):
        torch.testing.assert_close(InfoNCA(0.1)(given), DPO(0.1)(x), rtol=1e-14, atol=0)
        torch.testing.assert_close(InfoNCA(0.1).gradient(given), DPO(0.1).gradient(x), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("name", CLASSES)
def test_list_losses_ignore_a_shift_and_their_forces_cancel(name):
    x, loss = scored(spread=3.0), CLASSES[name](0.1, 0.5)
    torch.testing.assert_close(loss(replace(x, logps=x.logps + 2.5)), loss(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.gradient(x).sum(1), torch.zeros(6).double(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", CLASSES)
def test_list_losses_follow_a_permutation_of_the_answers(name):
    x, loss, order = scored(), CLASSES[name](0.1, 0.5), torch.tensor([2, 0, 3, 1])
    permuted = LossInputs(x.logps[:, order], x.ref_logps[:, order], scores=x.scores[:, order])
    torch.testing.assert_close(loss(permuted), loss(x), rtol=1e-13, atol=0)
    torch.testing.assert_close(loss.gradient(permuted), loss.gradient(x)[:, order], rtol=1e-12, atol=1e-16)


def test_all_list_losses_rest_at_the_target_and_nca_loss_fixes_the_shift():
    x, beta = scored(), 0.1
    log_p = torch.log_softmax(x.scores / 0.5, 1)
    info, exo, nca = (cls(beta, 0.5) for cls in (InfoNCA, EXORewards, NCA))

    def at(shift):
        return replace(x, logps=x.ref_logps + (log_p + shift) / beta)

    still = torch.zeros(6, 4).double()
    for shift in (-3.0, 0.0, math.log(4)):
        for loss in (info, exo):
            torch.testing.assert_close(loss.gradient(at(shift)), still, rtol=0, atol=1e-14)
        torch.testing.assert_close(exo(at(shift)), still[:, 0], rtol=0, atol=1e-12)
        torch.testing.assert_close(info(at(shift)), -(log_p.exp() * log_p).sum(1), rtol=1e-12, atol=0)  # entropy of p
    torch.testing.assert_close(nca.gradient(at(math.log(4))), still, rtol=0, atol=1e-14)
    assert nca.gradient(at(0.0)).abs().max() > 1e-3


def test_exo_list_loss_gives_up_on_an_answer_that_the_policy_has_dropped():
    """Reverse and forward KL on a list whose best response has lost all probability."""
    ratios = torch.tensor([[-400.0, 0.0, 0.0]], dtype=torch.float64)
    x = LossInputs(ratios, torch.zeros_like(ratios), scores=torch.tensor([[1.0, 0.0, 0.0]]).double())
    assert InfoNCA(0.1, 0.5).gradient(x)[0, 0] < -0.05
    assert EXORewards(0.1, 0.5).gradient(x).abs().max() < 1e-15


def test_parameters_are_checked():
    with pytest.raises(ValueError, match=r"loss\.temperature must be greater than 0, not 0"):
        InfoNCA(temperature=0.0)
    with pytest.raises(ValueError, match=r"loss\.label_smoothing must be between 0 and 1, exclusive, not 0"):
        EXORewards(label_smoothing=0.0)
