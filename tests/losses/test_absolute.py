"""SPPO, APO-zero, APO-down, and BCO on pairs: by hand, against recorded numbers, autograd and central differences."""

import math
from dataclasses import replace

import pytest
import torch
from loss_checks import (
    GOLDEN,
    bco_steps,
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
from align.losses.absolute import BCO, SPPO, APODown, APOZero
from align.losses.dpo import DPO

CLASSES = {"sppo": SPPO, "apo_zero": APOZero, "apo_down": APODown, "bco": BCO}
SEQUENCES = [s for s in GOLDEN["sequences"] if s["loss"] == "bco_pair_running"]


def pair(*ratios):
    """LossInputs of pairs with these log-ratios (Δ_w, Δ_l)."""
    ratios = torch.tensor(ratios, dtype=torch.float64)
    return LossInputs(ratios - 50, torch.full_like(ratios, -50))


@pytest.mark.parametrize("name, case", golden_cases(*CLASSES), ids=golden_id)
def test_loss_matches_golden(name, case):
    check_golden(golden_loss(name, case), case)


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda s: f"beta{s['params']['beta']}")
def test_bco_loss_matches_golden_sequence(sequence):
    """The recorded running mean counts each batch once; with batches of one size that is the mean over rewards."""
    for loss, x, step in bco_steps(sequence):
        assert loss.delta(x) == pytest.approx(step["delta"], rel=1e-12)
        if step["batch"] in GOLDEN["batches"]:
            expected = torch.tensor([step["grad_pi_w"], step["grad_pi_l"]], dtype=torch.float64).T
            assert loss(x).mean().item() == pytest.approx(step["loss_mean"], rel=1e-12)
            torch.testing.assert_close(loss.gradient(x) / 8, expected, rtol=1e-10, atol=1e-15)
    assert [step["batch"] in GOLDEN["batches"] for step in sequence["steps"]] == [False, True, False, True]


def test_bco_loss_counts_rewards_not_batches():
    loss = BCO(beta=0.1)
    loss.observe(pair(*[[4.0, 2.0]] * 8))
    loss.observe(pair([-6.0, -6.0], [0.0, 0.0]))
    assert loss.delta(pair([0.0, 0.0])) == pytest.approx(0.1 * (8 * 3 + 2 * -3) / 10, rel=1e-14)


def cases():
    for name, cls in CLASSES.items():
        for seed, spread in enumerate((5.0, 20.0, 300.0)):
            for beta in (0.01, 0.1, 1.0):
                loss, x = cls(beta), inputs(spread=spread, seed=seed)
                loss.observe(x)  # fixes bco's δ, which is a constant to its gradient
                yield pytest.param(loss, x, id=f"{name}-{spread}-{beta}")


@pytest.mark.parametrize("loss, x", list(cases()))
def test_loss_gradient_is_autograd_and_central_differences(loss, x):
    check_autograd(loss, x)
    check_central_differences(loss, x)


def test_bco_loss_gradient_takes_its_own_delta_for_a_constant():
    check_autograd(BCO(beta=0.1), inputs())


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("ratio", [-350.0, 350.0])
@pytest.mark.parametrize("beta", [0.01, 1.0])
def test_loss_is_finite_in_float32_far_from_the_reference(name, ratio, beta):
    check_finite_in_float32(CLASSES[name](beta), ratio)


@pytest.mark.parametrize("name", CLASSES)
def test_loss_of_a_prompt_does_not_depend_on_the_order_of_the_batch(name):
    x, order = inputs(), torch.tensor([3, 0, 5, 1, 4, 2])
    loss = CLASSES[name](0.1)
    shuffled = LossInputs(x.logps[order], x.ref_logps[order])
    torch.testing.assert_close(loss(shuffled), loss(x)[order], rtol=1e-13, atol=0)
    torch.testing.assert_close(loss.gradient(shuffled), loss.gradient(x)[order], rtol=1e-13, atol=0)


def test_loss_values_and_slopes_at_the_reference():
    beta, x = 0.2, pair([0.0, 0.0], [0.0, 0.0])
    expected = {"sppo": (12.5, [-5, 5]), "apo_zero": (1, [-0.05, 0.05]), "apo_down": (1, [0, 0.05])}
    expected["bco"] = (2 * math.log(2), [-0.1, 0.1])
    for name, (value, slopes) in expected.items():
        loss = CLASSES[name](beta)
        assert loss(x).tolist() == pytest.approx([value] * 2, rel=1e-15), name
        assert loss.gradient(x)[0].tolist() == pytest.approx(slopes, rel=1e-15), name


def test_losses_by_hand():
    # β = 1, Δ_w = log 3, Δ_l = -log 3: σ(r_w) = 3/4, σ(r_l) = 1/4, z = log 9, σ(z) = 9/10; δ = 0 is their mean
    x, t = pair([math.log(3), -math.log(3)]), math.log(3) - 0.5
    by_hand = {
        "sppo": (2 * t**2, [2 * t, -2 * t]),
        "apo_zero": (1 / 4 + 1 / 4, [-3 / 16, 3 / 16]),
        "apo_down": (3 / 4 + 1 / 10, [3 / 16 - 9 / 100, 9 / 100]),
        "bco": (2 * math.log(4 / 3), [-1 / 4, 1 / 4]),
    }
    for name, (value, slopes) in by_hand.items():
        loss = CLASSES[name](1.0)
        assert loss(x).item() == pytest.approx(value, rel=1e-13), name
        assert loss.gradient(x)[0].tolist() == pytest.approx(slopes, rel=1e-12), name


def test_sppo_loss_rests_at_its_targets():
    loss = SPPO()
    at_target = pair([500.0, -500.0])
    assert loss(at_target).item() == 0 and loss.gradient(at_target).tolist() == [[0, 0]]
    assert loss.gradient(pair([510.0, -490.0])).tolist() == [[20, 20]]


def test_apo_losses_are_bounded_and_push_the_rejected_answer_down():
    x = inputs(n=200, spread=30.0)
    for loss in (APOZero(0.3), APODown(0.3)):
        assert ((loss(x) >= 0) & (loss(x) <= 2)).all()
        assert (loss.gradient(x)[:, 1] >= 0).all()
    assert (APOZero(0.3).gradient(x)[:, 0] <= 0).all()


def test_apo_down_loss_pulls_the_chosen_response_to_half_the_rejected_ones_distance():
    loss = APODown(1.0)
    above, on, below = (loss.gradient(pair([r, -10.0]))[0, 0].item() for r in (-4.0, -5.0, -6.0))
    assert above > 0 and below < 0 and on == pytest.approx(0, abs=1e-15)
    # the variant with 1 - σ(r_l) for 1 - σ(z) would raise the rejected response
    r_l = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    torch.sigmoid(-r_l).backward()
    assert r_l.grad < 0


def test_shift_tells_absolute_losses_from_relative_ones():
    x = inputs(spread=3.0)
    shifted = replace(x, logps=x.logps + 2.5)
    for name, cls in CLASSES.items():
        difference = (cls(0.1)(shifted) - cls(0.1)(x)).abs().max().item()
        assert difference < 1e-12 if name == "bco" else difference > 1e-3, name  # bco's δ follows a common shift
    assert (BCO(0.1, shift=0)(shifted) - BCO(0.1, shift=0)(x)).abs().max() > 1e-3


def test_bco_loss_bounds_dpo_loss_and_tightest_at_the_midpoint():
    x = inputs(n=50, spread=20.0)
    dpo, bco = DPO(0.1), BCO(0.1)
    for shift in (0.0, 0.5, 1.0):
        assert (BCO(0.1, shift)(x) > dpo(x)).all()
    for i in range(50):  # a single pair: L = -2 log σ(z/2)
        one = LossInputs(x.logps[i : i + 1], x.ref_logps[i : i + 1])
        half = -2 * torch.nn.functional.logsigmoid(dpo.margin(one) / 2)
        torch.testing.assert_close(bco(one), half, rtol=1e-12, atol=0)
        assert bco(one).item() <= BCO(0.1, 0.9)(one).item()


def test_bco_loss_state_survives_a_checkpoint_and_evaluation_leaves_it_alone():
    loss, x, later = BCO(0.1), inputs(), inputs(seed=1)
    assert loss.state() == BCO().state() and not any(loss.state().values())
    loss.observe(x)
    saved = loss.state()
    loss(later), loss.gradient(later)
    assert loss.state() == saved and all(isinstance(value, float) for value in saved.values())
    resumed = BCO(0.1)
    resumed.load_state(saved)
    for each in (loss, resumed):
        each.observe(later)
    assert resumed.state() == loss.state() != saved
    assert torch.equal(resumed(x), loss(x))


def test_bco_loss_after_observe_does_not_depend_on_micro_batches():
    x, loss = inputs(), BCO(0.1)
    loss.observe(x)
    halves = [LossInputs(x.logps[s], x.ref_logps[s]) for s in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(torch.cat([loss(h) for h in halves]), loss(x), rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.cat([loss.gradient(h) for h in halves]), loss.gradient(x), rtol=1e-14, atol=0)
    cold = BCO(0.1)
    assert (torch.cat([cold(h) for h in halves]) - cold(x)).abs().max() > 1e-3  # what observe() is for


def test_parameters_are_checked():
    with pytest.raises(ValueError, match=r"loss\.beta must be greater than 0, not 0"):
        SPPO(beta=0.0)
    with pytest.raises(ValueError, match=r"loss\.shift must be between 0 and 1, not 2"):
        BCO(shift=2.0)
    with pytest.raises(ValueError, match="ref_logps is None"):
        BCO()(LossInputs(torch.zeros(1, 2)))
