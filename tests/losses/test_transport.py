"""AOT: sorting is the optimal transport plan, and the whole batch is one loss however it is cut."""

import math
from dataclasses import replace
from itertools import permutations

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
from align.losses.relative import CDPO
from align.losses.transport import AOT, AOTUnpaired, partners

LOSSES = {"aot": AOT, "aot_unpaired": AOTUnpaired}
BOTH = pytest.mark.parametrize("name", LOSSES)


@pytest.mark.parametrize("name, case", golden_cases(*LOSSES), ids=golden_id)
def test_aot_loss_matches_golden_pairs(name, case):
    check_golden(golden_loss(name, case), case)


@BOTH
@pytest.mark.parametrize("spread", [3.0, 20.0, 300.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_aot_loss_gradient_is_autograd_and_central_differences(name, spread, label_smoothing):
    loss, x = LOSSES[name](0.1, label_smoothing), inputs(n=9, spread=spread, seed=int(spread))
    check_autograd(loss, x)
    check_central_differences(loss, x)


@BOTH
@pytest.mark.parametrize("ratio", [-350.0, 350.0])
def test_aot_loss_is_finite_in_float32_far_from_the_reference(name, ratio):
    for beta in (0.01, 1.0, 10.0):
        check_finite_in_float32(LOSSES[name](beta=beta), ratio)


def test_partners_have_the_same_rank():
    u = torch.tensor([0.3, -1.0, 2.0, 0.3])
    v = torch.tensor([5.0, 5.0, 1.0, 9.0])
    # ranks of u: 1, 0, 3, 2 (of equal values the earlier row first); v in order: rows 2, 0, 1, 3
    assert partners(u, v).tolist() == [0, 2, 3, 1]


def test_aot_losses_by_hand():
    # policy margins 3, 1 and reference margins 0, 2: sorted, 1 meets 0 and 3 meets 2
    x = LossInputs(
        torch.tensor([[3.0, 0.0], [1.0, 0.0]], dtype=torch.float64),
        torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64),
    )
    aot = AOT(1.0)
    assert aot(x).tolist() == pytest.approx([math.log1p(math.exp(-1))] * 2, rel=1e-14)
    push = 1 / (1 + math.e)
    assert aot.gradient(x).tolist() == [pytest.approx([-push, push])] * 2
    # log-ratios of the chosen 3, -1, of the rejected 0, -2, crossing: -1 meets -2 of the other row, 3 meets 0
    x = LossInputs(torch.tensor([[3.0, -2.0], [-1.0, 0.0]], dtype=torch.float64), torch.zeros(2, 2).double())
    unpaired = AOTUnpaired(1.0)
    assert unpaired(x).tolist() == pytest.approx([math.log1p(math.exp(-3)), math.log1p(math.exp(-1))], rel=1e-14)
    far, near = 1 / (1 + math.exp(3)), 1 / (1 + math.e)
    assert unpaired.gradient(x).tolist() == [pytest.approx([-far, near]), pytest.approx([-near, far])]


@BOTH
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_aot_loss_is_the_least_over_all_pairings(name, label_smoothing):
    """The transport problem by brute force: 5 quantiles, 120 plans."""
    x, loss = inputs(n=5, seed=7), LOSSES[name](0.1, label_smoothing)
    if name == "aot":
        u, v = x.logps[:, 0] - x.logps[:, 1], x.ref_logps[:, 0] - x.ref_logps[:, 1]
    else:
        u, v = x.ratios.unbind(1)
    cost = CDPO(0.1, label_smoothing=label_smoothing)
    plans = [
        cost(LossInputs(torch.stack([u, v[list(plan)]], 1), torch.zeros(5, 2).double())).mean().item()
        for plan in permutations(range(5))
    ]
    assert loss(x).mean().item() == pytest.approx(min(plans), rel=1e-14)
    assert max(plans) > 1.1 * min(plans)


@BOTH
def test_aot_loss_is_dpo_for_a_batch_of_one_and_never_above_it(name):
    x, loss = inputs(n=33, spread=10.0), LOSSES[name](0.1)
    one_by_one = [LossInputs(x.logps[i : i + 1], x.ref_logps[i : i + 1]) for i in range(33)]
    torch.testing.assert_close(torch.cat([loss(one) for one in one_by_one]), DPO(0.1)(x), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(
        torch.cat([loss.gradient(one) for one in one_by_one]), DPO(0.1).gradient(x), rtol=1e-13, atol=1e-15
    )
    in_threes = sum(loss(LossInputs(x.logps[i : i + 11], x.ref_logps[i : i + 11])).sum().item() for i in (0, 11, 22))
    assert loss(x).mean().item() < in_threes / 33 < DPO(0.1)(x).mean().item()


@BOTH
def test_aot_loss_of_a_global_batch_has_the_same_gradient_however_it_is_cut(name):
    """A micro-batch puts its rows, with their gradient, into a table of the whole batch, else constant."""
    x, loss = inputs(n=8), LOSSES[name](0.1, 0.1)
    assert loss.needs_global_batch
    whole = loss.gradient(x)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 8)):
        mine = x.logps[rows].clone().requires_grad_()
        table = x.logps.clone()
        table[rows] = mine
        loss(replace(x, logps=table)).sum().backward()
        torch.testing.assert_close(mine.grad, whole[rows], rtol=1e-12, atol=1e-15)


@BOTH
def test_aot_loss_follows_a_permutation_of_the_batch(name):
    x, loss = inputs(), LOSSES[name](0.1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    y = LossInputs(x.logps[order], x.ref_logps[order])
    torch.testing.assert_close(loss(y), loss(x)[order], rtol=0, atol=0)
    torch.testing.assert_close(loss.gradient(y), loss.gradient(x)[order], rtol=0, atol=0)


@BOTH
def test_aot_loss_value_and_slopes_at_the_reference(name):
    x = inputs()
    x = replace(x, logps=x.ref_logps.clone())
    loss = LOSSES[name](0.3)
    assert loss(x).tolist() == pytest.approx([math.log(2)] * 6, rel=1e-15)
    torch.testing.assert_close(loss.gradient(x), torch.tensor([[-0.15, 0.15]]).double().expand(6, 2))


def test_shifts_that_aot_losses_see():
    x = inputs(spread=5.0)
    everything, one_prompt = torch.full((6, 1), 2.5).double(), torch.zeros(6, 1).double()
    one_prompt[2] = 2.5
    paired, unpaired = AOT(0.1), AOTUnpaired(0.1)
    for shift in (everything, one_prompt):
        torch.testing.assert_close(paired(replace(x, logps=x.logps + shift)), paired(x))
    torch.testing.assert_close(unpaired(replace(x, logps=x.logps + everything)), unpaired(x))
    assert (unpaired(replace(x, logps=x.logps + one_prompt)).mean() - unpaired(x).mean()).abs() > 1e-3


def test_aot_unpaired_loss_does_not_care_which_rejected_answer_is_beside_which_chosen_one():
    x, loss = inputs(), AOTUnpaired(0.1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    logps = torch.stack([x.logps[:, 0], x.logps[order, 1]], 1)
    ref_logps = torch.stack([x.ref_logps[:, 0], x.ref_logps[order, 1]], 1)
    torch.testing.assert_close(loss(LossInputs(logps, ref_logps)), loss(x), rtol=0, atol=0)


@BOTH
def test_aot_loss_checks_its_parameters_and_inputs(name):
    with pytest.raises(ValueError, match=r"loss\.label_smoothing must be at least 0 and less than 0\.5, not 0\.5"):
        LOSSES[name](label_smoothing=0.5)
    with pytest.raises(ValueError, match="ref_logps is None"):
        LOSSES[name]()(LossInputs(torch.zeros(2, 2)))
