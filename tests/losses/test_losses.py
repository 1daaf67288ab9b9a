"""Every loss against hand-made values, reference numbers, autograd and central differences, in float64."""

import math

import pytest
import torch
from loss_checks import (
    GOLDEN,
    check_autograd,
    check_central_differences,
    check_finite_in_float32,
    check_golden,
    generic_cases,
    golden_pairs,
    inputs,
)

from align.losses import LOSSES, LossInputs, build_loss, loss_parameters

GOLDEN_NAMES = {"sigmoid": "dpo", "nca_pair": "nca", "sft": "sft"}  # theirs: ours
PAIRED = golden_pairs(*GOLDEN_NAMES)
K_RESPONSES = [(s, c) for s in GOLDEN["k_responses"] for c in s["cases"] if c["loss"] == "nca_k"]


CASES = [(name, loss, x) for name in LOSSES for loss, x in generic_cases(name)]
case_ids = [f"{name}-{i}" for i, (name, _, _) in enumerate(CASES)]


@pytest.mark.parametrize("case", PAIRED, ids=lambda c: f"{c['loss']}-{c['batch']}")
def test_loss_matches_golden_pairs(case):
    name = GOLDEN_NAMES[case["loss"]]
    check_golden(build_loss(name, **({} if name == "sft" else case["params"])), case)


@pytest.mark.parametrize("sample, case", K_RESPONSES, ids=lambda c: c.get("name") or str(c["params"]))
def test_nca_loss_matches_golden_with_rewards(sample, case):
    t = {k: torch.tensor(v, dtype=torch.float64) for k, v in sample["inputs"].items() if k != "seed"}
    t["score"][:, 0] += 0.01  # the recorded implementation breaks ties so; our method does not
    x = LossInputs(logps=t["pi"], ref_logps=t["rho"], scores=t["score"])
    loss = build_loss("nca", beta=case["params"]["beta"], temperature=case["params"]["temperature_alpha"])
    assert loss(x).mean().item() == pytest.approx(case["loss_mean"], rel=1e-12)
    expected = torch.tensor(case["grad_pi"], dtype=torch.float64)
    torch.testing.assert_close(loss.gradient(x) / len(expected), expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name, loss, x", CASES, ids=case_ids)
def test_loss_gradient_is_autograd(name, loss, x):
    check_autograd(loss, x)


@pytest.mark.parametrize("name, loss, x", CASES, ids=case_ids)
def test_loss_gradient_is_central_differences(name, loss, x):
    check_central_differences(loss, x)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("ratio", [-350.0, 350.0])
def test_loss_is_finite_in_float32_far_from_the_reference(name, ratio):
    check_finite_in_float32(build_loss(name, **({"beta": 1.0} if "beta" in loss_parameters(name) else {})), ratio)


def at_reference(n=4):
    x = inputs(n)
    return LossInputs(x.ref_logps.clone(), x.ref_logps, x.n_tok)


def test_loss_values_and_slopes_at_the_reference():
    """What every run must show at step 0: log 2 for dpo, 2 log 2 for nca."""
    x = at_reference()
    dpo, nca = build_loss("dpo", beta=0.3), build_loss("nca", beta=0.3)
    assert dpo(x).tolist() == pytest.approx([math.log(2)] * 4, rel=1e-15)
    assert nca(x).tolist() == pytest.approx([2 * math.log(2)] * 4, rel=1e-15)
    assert dpo.gradient(x)[0].tolist() == pytest.approx([-0.15, 0.15])
    assert nca.gradient(x)[0].tolist() == pytest.approx([-0.075, 0.075])


def test_nca_loss_by_hand():
    # r_w = log 3 and r_l = -log 3: σ(r_w) = 3/4, σ(-r_w) = 1/4, σ(r_l) = 1/4, σ(-r_l) = 3/4
    r = math.log(3)
    x = LossInputs(torch.tensor([[r, -r]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    nca = build_loss("nca", beta=1.0)
    by_hand = -math.log(3 / 4) - 0.5 * math.log(1 / 4) - 0.5 * math.log(3 / 4)
    assert nca(x).item() == pytest.approx(by_hand, rel=1e-14)
    assert nca.gradient(x)[0].tolist() == pytest.approx([3 / 2 * 3 / 4 - 1, 1 / 2 * 1 / 4], rel=1e-14)


def test_dpo_loss_by_hand():
    x = LossInputs(torch.tensor([[math.log(3), 0.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    dpo = build_loss("dpo", beta=1.0)
    assert dpo(x).item() == pytest.approx(math.log(4 / 3), rel=1e-14)
    assert dpo.gradient(x)[0].tolist() == pytest.approx([-1 / 4, 1 / 4], rel=1e-14)


def test_nca_loss_fixed_points_and_floor():
    nca = build_loss("nca", beta=0.5)
    chosen = LossInputs(torch.tensor([[math.log(2) / 0.5, -1e4]], dtype=torch.float64), torch.zeros(1, 2).double())
    torch.testing.assert_close(nca.gradient(chosen), torch.zeros(1, 2).double(), atol=1e-15, rtol=0)
    assert nca(chosen).item() == pytest.approx(math.log(3 / 2) + math.log(3) / 2, rel=1e-14)
    # with rewards: stationary at r_i = log(K p_i)
    scores = torch.tensor([[0.3, 0.1, -0.2]], dtype=torch.float64)
    r = torch.log(3 * torch.softmax(scores / 0.5, 1)) / 0.5
    at_target = LossInputs(r, torch.zeros(1, 3).double(), scores=scores)
    soft = build_loss("nca", beta=0.5, temperature=0.5)
    torch.testing.assert_close(soft.gradient(at_target), torch.zeros(1, 3).double(), atol=1e-15, rtol=0)


def test_nca_loss_with_sharp_rewards_is_the_pair_loss():
    x = inputs()
    scored = LossInputs(x.logps, x.ref_logps, scores=torch.tensor([[1.0, 0.0]]).double().expand(6, 2))
    nca = build_loss("nca")
    torch.testing.assert_close(nca(scored), nca(x), rtol=1e-14, atol=0)


def test_dpo_loss_ignores_a_shift_and_nca_loss_does_not():
    x = inputs(spread=3.0)
    shifted = LossInputs(x.logps + 2.5, x.ref_logps)
    torch.testing.assert_close(build_loss("dpo")(shifted), build_loss("dpo")(x))
    assert (build_loss("nca", beta=0.1)(shifted) - build_loss("nca", beta=0.1)(x)).abs().max() > 1e-3


def test_sft_loss_is_a_token_mean_whatever_the_split():
    x = inputs()
    sft = build_loss("sft")
    token_mean = -x.logps[:, 0].sum() / x.n_tok[:, 0].sum()
    assert sft(x).mean().item() == pytest.approx(token_mean.item(), rel=1e-14)
    m = x.n_tok[:, 0].double().mean()
    halves = [LossInputs(x.logps[s], n_tok=x.n_tok[s], tokens_per_prompt=m) for s in (slice(0, 2), slice(2, 6))]
    assert sum(sft(h).sum().item() for h in halves) / 6 == pytest.approx(token_mean.item(), rel=1e-14)


def test_unknown_losses_and_parameters_are_named():
    with pytest.raises(ValueError, match="did you mean 'nca'"):
        build_loss("nac")
    with pytest.raises(ValueError, match="no parameter 'betta'; it takes beta"):
        build_loss("dpo", betta=1.0)
    with pytest.raises(ValueError, match=r"loss\.beta must be greater than 0"):
        build_loss("dpo", beta=0.0)
    with pytest.raises(ValueError, match="ref_logps is None"):
        build_loss("dpo")(LossInputs(torch.zeros(1, 2)))
