"""TDPO, WPO and LD-DPO: by hand, from recorded logits through the kernels, autograd and central differences."""

import math
from dataclasses import replace

import pytest
import torch
from loss_checks import (
    FIELDS,
    GOLDEN,
    GOLDEN_LOSSES,
    check_autograd,
    check_central_differences,
    check_finite_in_float32,
    golden_cases,
    golden_id,
    golden_loss,
    inputs,
    logits_gradient,
    token_inputs,
)

from align.losses.base import LossInputs
from align.losses.dpo import DPO
from align.losses.token_level import LDDPO, TDPO, TDPO1, WPO

LOSSES = [TDPO1(beta=0.3), TDPO(), TDPO(beta=0.3, alpha=1.0), WPO(), WPO(beta=0.3), LDDPO(), LDDPO(beta=0.3, alpha=0.0)]
FIXTURES = GOLDEN["token_level"]
# whatever is recorded on logits: the three of this page, and others, down to weighted sums
CASES = golden_cases(*GOLDEN_LOSSES, section="token_level")


def random_token_inputs(seed=0, spread=20.0):
    """Random inputs with every token-level field, of pairs whose responses differ in length."""
    x = inputs(seed=seed, spread=spread)
    g = torch.Generator().manual_seed(seed + 100)
    share = torch.rand(6, 2, generator=g, dtype=torch.float64)
    return replace(
        x,
        kl=spread / 10 * torch.rand(6, 2, generator=g, dtype=torch.float64),
        weights=2 * torch.rand(6, 2, generator=g, dtype=torch.float64),
        shared_logps=share * x.logps,
        ref_shared_logps=share * x.ref_logps,
    )


@pytest.mark.parametrize("fixture", FIXTURES)
def test_token_sums_match_golden(fixture):
    _, x = token_inputs(fixture)
    for name, got in {"sum": x.logps, "ref_sum": x.ref_logps, "tdpo_position_kl": x.kl}.items():
        expected = torch.tensor(fixture["logps"][name], dtype=torch.float64).view(2, 3).T
        torch.testing.assert_close(got.detach(), expected, rtol=1e-12, atol=1e-14)
    recorded = next(c["pair_weights"] for c in fixture["cases"] if "pair_weights" in c)
    torch.testing.assert_close(WPO().pair_weight(x).tolist(), recorded, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name, fixture, case", CASES, ids=golden_id)
def test_loss_matches_golden_down_to_the_logits(name, fixture, case):
    """Recorded gradients are with respect to the policy's logits: by autograd, and from our closed forms chained."""
    loss = golden_loss(name, case)
    expected = torch.tensor(case["grad_policy_logits"], dtype=torch.float64)
    policy, x = token_inputs(fixture)
    value = loss(x).mean()
    assert value.item() == pytest.approx(case["loss_mean"], rel=1e-12)
    if "loss_per_example" in case:
        assert loss(x).tolist() == pytest.approx(
            case["loss_per_example"], rel=1e-5 if "halos" in case["loss"] else 1e-12
        )
    value.backward()
    torch.testing.assert_close(policy.grad, expected, rtol=1e-10, atol=1e-15)

    gradient = logits_gradient(loss, *token_inputs(fixture))
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("spread", [1.0, 20.0, 300.0])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_gradient_is_autograd_and_central_differences(loss, spread):
    x = random_token_inputs(seed=int(spread), spread=spread)
    check_autograd(loss, x)
    check_central_differences(loss, x)


@pytest.mark.parametrize("spread", [1.0, 20.0, 300.0])
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if set(loss.token_inputs) & FIELDS.keys()], ids=str)
def test_loss_gradient_in_its_other_input(loss, spread):
    x = random_token_inputs(seed=int(spread), spread=spread)
    (field,) = loss.token_inputs
    gradient = getattr(loss, FIELDS[field])(x)
    leaf = getattr(x, field).clone().requires_grad_()
    loss(replace(x, **{field: leaf})).sum().backward()
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-15)
    step = 1e-4
    for n in range(6):
        # the stopped gradient of TDPO2's D_w is no slope of its loss
        for k in (1,) if type(loss) is TDPO else (0, 1):
            bump = torch.zeros_like(leaf)
            bump[n, k] = step
            up, down = (loss(replace(x, **{field: leaf.detach() + s * bump})).sum() for s in (1, -1))
            assert gradient[n, k].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("ratio", [-350.0, 350.0])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_is_finite_in_float32(loss, ratio):
    more = {"kl": torch.full((3, 2), 900.0), "weights": torch.tensor([[1e-30, 1e-30], [50.0, 0.5], [0.3, 0.0]])}
    shared = {"shared_logps": torch.full((3, 2), -3000.0), "ref_shared_logps": torch.full((3, 2), -3000.0 - ratio)}
    check_finite_in_float32(loss, ratio, **more, **shared)


def pair(ratio_w, ratio_l, **fields):
    """One pair with these log-ratios, and token-level fields given as (w, l)."""
    fields = {name: torch.tensor([value], dtype=torch.float64) for name, value in fields.items()}
    logps = torch.tensor([[ratio_w, ratio_l]], dtype=torch.float64)
    return LossInputs(logps, torch.zeros(1, 2).double(), **fields)


def test_tdpo_loss_by_hand():
    # z = β (Δ - (D_l - D_w)) = (4 - (3 - 1)) log(3) / 2 = log 3; half of the excess leaves (4 - 1) log(3) / 2
    beta = math.log(3) / 2
    x = pair(2.5, -1.5, kl=[1.0, 3.0])
    assert TDPO1(beta)(x).item() == pytest.approx(math.log(4 / 3), rel=1e-14)
    assert TDPO1(beta).gradient(x)[0].tolist() == pytest.approx([-beta / 4, beta / 4], rel=1e-14)
    assert TDPO1(beta).kl_gradient(x)[0].tolist() == pytest.approx([-beta / 4, beta / 4], rel=1e-14)
    assert TDPO(beta)(x).item() == pytest.approx(math.log(1 + 3**-1.5), rel=1e-14)
    push = beta / (1 + 3**1.5)
    assert TDPO(beta).gradient(x)[0].tolist() == pytest.approx([-push, push], rel=1e-14)
    assert TDPO(beta).kl_gradient(x)[0].tolist() == pytest.approx([0, push / 2], rel=1e-14)


def test_wpo_loss_by_hand_with_and_without_the_clamp():
    for weights, w in (([0.5, 0.25], 1 / 8), ([3.0, 0.5], 1.0), ([1.0, 1.0], 1.0)):
        x = pair(math.log(3), 0.0, weights=weights)
        assert WPO(beta=1.0)(x).item() == pytest.approx(w * math.log(4 / 3), rel=1e-14)
        assert WPO(beta=1.0).gradient(x)[0].tolist() == pytest.approx([-w / 4, w / 4], rel=1e-14)


def test_wpo_loss_sends_no_gradient_into_its_weights():
    x = random_token_inputs()
    x.weights.requires_grad_()
    x.logps.requires_grad_()
    WPO()(x).sum().backward()
    assert x.logps.grad is not None and x.weights.grad is None


def test_ld_dpo_loss_by_hand():
    # shared ratios 2 and 1, tails 4 and 0: at α = 1/4 the margin is 2 + 1 - 1 = 2
    x = pair(6.0, 1.0, shared_logps=[2.0, 1.0], ref_shared_logps=[0.0, 0.0])
    loss, beta = LDDPO(beta=math.log(3) / 2, alpha=0.25), math.log(3) / 2
    assert loss(x).item() == pytest.approx(math.log(4 / 3), rel=1e-14)
    assert loss.gradient(x)[0].tolist() == pytest.approx([-beta / 16, beta / 16], rel=1e-14)
    assert loss.shared_gradient(x)[0].tolist() == pytest.approx([-3 * beta / 16, 3 * beta / 16], rel=1e-14)


def test_loss_limits_are_dpo():
    x = random_token_inputs()
    dpo, equal = DPO(beta=0.2)(x), replace(x, shared_logps=x.logps, ref_shared_logps=x.ref_logps)
    torch.testing.assert_close(TDPO(0.2, alpha=0.0)(x), dpo, rtol=1e-14, atol=0)
    torch.testing.assert_close(TDPO1(0.2)(replace(x, kl=torch.zeros(6, 2).double())), dpo, rtol=1e-14, atol=0)
    torch.testing.assert_close(TDPO1(0.2)(replace(x, kl=torch.full((6, 2), 4.0).double())), dpo, rtol=1e-14, atol=0)
    torch.testing.assert_close(WPO(0.2)(replace(x, weights=torch.ones(6, 2).double())), dpo, rtol=1e-14, atol=0)
    torch.testing.assert_close(LDDPO(0.2, alpha=1.0)(x), dpo, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(LDDPO(0.2, alpha=0.3)(equal), dpo, rtol=1e-12, atol=1e-14)
    heads = replace(x, logps=x.shared_logps, ref_logps=x.ref_shared_logps)
    torch.testing.assert_close(LDDPO(0.2, alpha=0.0)(x), DPO(beta=0.2)(heads), rtol=1e-14, atol=0)
    torch.testing.assert_close(TDPO(0.2, alpha=1.0)(x), TDPO1(0.2)(x), rtol=1e-14, atol=0)
    torch.testing.assert_close(TDPO(0.2, alpha=1.0).gradient(x), TDPO1(0.2).gradient(x), rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_value_and_slopes_at_the_reference(loss):
    zeros = [0.0, 0.0]
    x = pair(0.0, 0.0, kl=zeros, weights=[1.0, 1.0], shared_logps=zeros, ref_shared_logps=zeros)
    assert loss(x).item() == pytest.approx(math.log(2), rel=1e-15)
    in_all = loss.gradient(x) + (loss.shared_gradient(x) if isinstance(loss, LDDPO) else 0)
    assert in_all[0].tolist() == pytest.approx([-loss.beta / 2, loss.beta / 2], rel=1e-14)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_loss_ignores_a_common_shift_and_permutes_with_the_batch(loss):
    x, order = random_token_inputs(spread=3.0), torch.tensor([3, 0, 5, 1, 4, 2])
    shifted = replace(x, logps=x.logps + 2.5)
    torch.testing.assert_close(loss(shifted), loss(x), rtol=1e-11, atol=1e-12)
    fields = {name: value[order] for name, value in vars(x).items() if value is not None}
    torch.testing.assert_close(loss(LossInputs(**fields)), loss(x)[order], rtol=1e-14, atol=0)
    assert not loss.in_paper and loss.needs_reference and len(loss.token_inputs) == 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: TDPO(alpha=-1.0), r"loss\.alpha must be at least 0 and finite, not -1\.0"),
        (lambda: TDPO(alpha=math.inf), r"loss\.alpha must be"),
        (lambda: LDDPO(alpha=1.5), r"loss\.alpha must be from 0 to 1, not 1\.5"),
        (lambda: LDDPO(alpha=math.nan), r"loss\.alpha must be"),
        (lambda: WPO(beta=0.0), r"loss\.beta must be greater than 0"),
        (lambda: TDPO()(inputs()), "LossInputs.kl is None"),
        (lambda: WPO()(inputs()), "LossInputs.weights is None"),
        (lambda: LDDPO()(inputs()), "needs shared_logps, ref_logps and ref_shared_logps"),
    ],
)
def test_bad_parameters_and_missing_inputs_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
