"""KTO, BCO on single labelled responses, and the old KTO on pairs."""

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
    kto_inputs,
)

from align.losses import LossInputs
from align.losses.absolute import BCO, APOZero
from align.losses.unpaired import KTO, KTOPair

GOOD, BAD = True, False


def labels(*values):
    return torch.tensor(values)[:, None]


def responses(*ratios_and_labels):
    """LossInputs of single responses with these (Δ, label)."""
    ratios = torch.tensor([[r] for r, _ in ratios_and_labels], dtype=torch.float64)
    return LossInputs(ratios - 50, torch.full_like(ratios, -50), labels=labels(*[y for _, y in ratios_and_labels]))


def mixed(seed=0, **more):
    """Six responses, four of them desirable, each beside a mismatched one."""
    return inputs(seed=seed, labels=labels(GOOD, BAD, GOOD, GOOD, BAD, GOOD), **more)


def flattened(x):
    """Pairs as twice as many single responses: w, l, w, l, ..."""
    n = len(x.logps)
    return LossInputs(x.logps.view(-1, 1), x.ref_logps.view(-1, 1), labels=labels(*[GOOD, BAD] * n))


@pytest.mark.parametrize("name, sample, case", golden_cases("kto", section="kto"), ids=golden_id)
def test_kto_loss_matches_golden(name, sample, case):
    loss, x = golden_loss(name, case), kto_inputs(sample, case)
    desirable = x.labels[:, 0]
    assert float(loss.baseline(x)) == pytest.approx(case["kl"], rel=1e-14)
    values = loss(x)
    assert values.mean().item() == pytest.approx(case["loss_mean"], rel=1e-12)
    by_class = torch.cat([values[desirable], values[~desirable]])
    per_example = torch.tensor(case["loss_per_example"], dtype=torch.float64)
    torch.testing.assert_close(by_class, per_example, rtol=1e-12, atol=1e-15)
    expected = torch.tensor([case["grad_pi"], case["grad_pi_kl"]], dtype=torch.float64).T[:, : x.logps.shape[1]]
    torch.testing.assert_close(loss.gradient(x) / len(values), expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name, case", golden_cases("kto_pair"), ids=golden_id)
def test_kto_pair_loss_matches_golden(name, case):
    check_golden(golden_loss(name, case), case)


CASES = [(seed, spread, beta) for seed in range(2) for spread in (5.0, 300.0) for beta in (0.01, 0.1, 1.0)]


@pytest.mark.parametrize("seed, spread, beta", CASES)
def test_kto_loss_gradient_is_autograd_and_central_differences(seed, spread, beta):
    loss, x = KTO(beta, desirable_weight=1.3, undesirable_weight=0.7), mixed(seed, spread=spread)
    check_autograd(loss, x)
    assert (loss.gradient(x)[:, 1] == 0).all()
    # column 1 moves z0, which is a constant to the gradient: difference column 0 alone, z0 held by the same column 1
    numeric = torch.stack([slope(loss, x, i) for i in range(6)])
    torch.testing.assert_close(loss.gradient(x)[:, 0], numeric, rtol=1e-6, atol=1e-8)


def slope(loss, x, row, step=1e-4):
    bump = torch.zeros_like(x.logps)
    bump[row, 0] = step
    up, down = (loss(replace(x, logps=x.logps + sign * bump)).sum() for sign in (1, -1))
    return (up - down) / (2 * step)


@pytest.mark.parametrize("seed, spread, beta", CASES)
def test_other_loss_gradients_are_autograd_and_central_differences(seed, spread, beta):
    check_autograd(KTOPair(beta), inputs(seed=seed, spread=spread))
    check_central_differences(KTOPair(beta), inputs(seed=seed, spread=spread))
    x, bco = inputs(k=1, seed=seed, spread=spread, labels=labels(GOOD, BAD, BAD, BAD, BAD, GOOD)), BCO(beta)
    bco.observe(x)
    check_autograd(bco, x)
    check_central_differences(bco, x)


@pytest.mark.parametrize("means", [(3.0, 3.0), (3.0, -3.0), (-3.0, 3.0), (-3.0, -3.0)])
def test_kto_pair_loss_gradient_on_both_sides_of_its_clamps(means):
    x = inputs(spread=1.0)
    centred = x.ratios - x.ratios.mean(dim=0) + torch.tensor(means, dtype=torch.float64)
    x = replace(x, logps=x.ref_logps + centred)
    check_autograd(KTOPair(0.5), x)
    check_central_differences(KTOPair(0.5), x)


@pytest.mark.parametrize("ratio", [-350.0, 350.0])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_loss_is_finite_in_float32_far_from_the_reference(ratio, beta):
    check_finite_in_float32(KTO(beta), ratio, labels=labels(GOOD, BAD, GOOD))
    check_finite_in_float32(KTOPair(beta), ratio)
    check_finite_in_float32(BCO(beta), ratio, labels=torch.tensor([[GOOD, GOOD], [BAD, BAD], [BAD, GOOD]]))


def test_kto_loss_by_hand():
    # β = 1; z0 = (log 4 - log 2 + 0)/3 = log 2 / 3; u = log 3 for the first, as Δ = log 3 + z0
    z0 = math.log(2) / 3
    ratios = torch.tensor([[math.log(3) + z0, math.log(4)], [z0, -math.log(2)], [z0 + 1, 0.0]], dtype=torch.float64)
    x = LossInputs(ratios, torch.zeros(3, 2).double(), labels=labels(GOOD, BAD, GOOD))
    loss = KTO(1.0, desirable_weight=2.0, undesirable_weight=3.0)
    far = 1 / (1 + math.e)  # σ(-1)
    assert loss(x).tolist() == pytest.approx([2 * 1 / 4, 3 * 1 / 2, 2 * far], rel=1e-14)
    slopes = [-2 * 3 / 16, 3 * 1 / 4, -2 * far * (1 - far)]
    assert loss.gradient(x).flatten().tolist() == pytest.approx([slopes[0], 0, slopes[1], 0, slopes[2], 0], rel=1e-13)


def test_kto_baseline_is_averaged_over_the_batch_before_it_is_cut_at_zero():
    x = replace(mixed(), logps=mixed().ref_logps.clone())
    x.logps[:, 1] += torch.tensor([9.0, -6, 3, -6, 3, 3]).double()  # mean 1
    loss = KTO()
    assert loss.baseline(x).item() == pytest.approx(1.0)
    halves = [LossInputs(x.logps[s], x.ref_logps[s], labels=x.labels[s]) for s in (slice(0, 2), slice(2, 6))]
    assert [loss.baseline(h).item() for h in halves] == pytest.approx([1.5, 0.75])
    x.logps[:, 1] -= 2
    assert loss.baseline(x).item() == 0


def test_kto_loss_in_micro_batches_of_the_whole_batch():
    """As train.py feeds it: the whole batch each time, gradients in a micro-batch's rows alone; they add up."""
    x, loss = mixed(spread=5.0), KTO()
    total = torch.zeros_like(x.logps)
    for rows in (torch.tensor([0, 4]), torch.tensor([1, 2, 3, 5])):
        part = x.logps[rows].clone().requires_grad_()
        loss(replace(x, logps=x.logps.index_copy(0, rows, part))).sum().backward()
        total[rows] = part.grad
    torch.testing.assert_close(total, loss.gradient(x), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("label", [GOOD, BAD])
@pytest.mark.parametrize("n", [1, 3])
def test_batches_of_one_class_are_fine(label, n):
    x = inputs(n=n, labels=labels(*[label] * n))
    single = LossInputs(x.logps[:, :1], x.ref_logps[:, :1], labels=x.labels)
    for loss, given in ((KTO(), x), (KTO(), single), (BCO(), single)):
        loss.observe(given)
        assert torch.isfinite(loss(given)).all() and torch.isfinite(loss.gradient(given)).all()
        assert (torch.sign(loss.gradient(given)[:, 0]) == (-1 if label else 1)).all()


def test_loss_values_and_slopes_at_the_reference():
    x = mixed()
    x = replace(x, logps=x.ref_logps.clone())
    s = torch.tensor([1.0, -1, 1, 1, -1, 1]).double()
    kto = KTO(0.2, desirable_weight=1.0, undesirable_weight=4.0)
    assert kto(x).tolist() == pytest.approx([0.5, 2, 0.5, 0.5, 2, 0.5])
    assert kto.gradient(x)[:, 0].tolist() == pytest.approx([-0.05, 0.2, -0.05, -0.05, 0.2, -0.05])
    pairs = LossInputs(x.logps, x.ref_logps)
    assert KTOPair(0.2)(pairs).tolist() == pytest.approx([0.5] * 6)
    assert KTOPair(0.2).gradient(pairs)[0].tolist() == pytest.approx([-0.05, 0.05])
    single = LossInputs(x.logps[:, :1], x.ref_logps[:, :1], labels=x.labels)
    assert BCO(0.2)(single).tolist() == pytest.approx([math.log(2)] * 6)
    assert BCO(0.2).gradient(single)[:, 0].tolist() == pytest.approx((-0.1 * s).tolist())


def test_kto_loss_with_zero_kl_is_apo_zero_loss():
    x = inputs(spread=10.0)
    kto, apo = KTO(0.1), APOZero(0.1)
    torch.testing.assert_close(kto(flattened(x)).view(6, 2).sum(1), apo(x), rtol=1e-14, atol=0)
    torch.testing.assert_close(kto.gradient(flattened(x)).view(6, 2), apo.gradient(x), rtol=1e-14, atol=0)
    # a negative estimate of the KL is none
    negative = replace(mixed(), logps=torch.cat([mixed().logps[:, :1], mixed().ref_logps[:, 1:] - 3], 1))
    single = LossInputs(negative.logps[:, :1], negative.ref_logps[:, :1], labels=negative.labels)
    assert torch.equal(kto(negative), kto(single))


def test_kto_pair_loss_with_both_kls_cut_is_half_of_apo_zero_loss():
    x = inputs(spread=1.0)
    x = replace(x, logps=x.logps - 20)
    torch.testing.assert_close(KTOPair(0.1)(x), APOZero(0.1)(x) / 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(KTOPair(0.1).gradient(x), APOZero(0.1).gradient(x) / 2, rtol=1e-14, atol=0)


def test_bco_loss_of_single_answers_adds_up_to_that_of_pairs():
    x = inputs(spread=10.0)
    pairs, singles = BCO(0.1), BCO(0.1)
    for _ in range(2):
        torch.testing.assert_close(singles(flattened(x)).view(6, 2).sum(1), pairs(x), rtol=1e-13, atol=0)
        torch.testing.assert_close(singles.gradient(flattened(x)).view(6, 2), pairs.gradient(x), rtol=1e-13, atol=0)
        pairs.observe(inputs(seed=1)), singles.observe(flattened(inputs(seed=1)))


def test_bco_delta_lies_midway_between_uneven_classes():
    x = responses((4.0, GOOD), (-2.0, BAD), (-4.0, BAD), (-6.0, BAD))
    loss = BCO(beta=0.5)
    assert loss.delta(x) == pytest.approx(0.5 * (4 - 4) / 2)
    loss.observe(x)
    loss.observe(responses((8.0, GOOD)))  # now 6 and -4
    assert loss.delta(x) == pytest.approx(0.5 * 1.0)
    assert loss(x).tolist() == pytest.approx([math.log1p(math.exp(-u)) for u in (1.5, 1.5, 2.5, 3.5)], rel=1e-14)
    one_class = BCO(beta=0.5)
    one_class.observe(responses((3.0, GOOD), (5.0, GOOD)))
    assert one_class.delta(x) == pytest.approx(0.5 * 4)


def test_bco_midpoint_bounds_dpo_tighter_than_the_mean_of_uneven_classes():
    """Desirable rewards about 1 and nine times as many undesirable ones about -1: the excess over all cross pairs."""
    g = torch.Generator().manual_seed(0)
    good = 1 + 0.3 * torch.randn(100, generator=g).double()
    bad = -1 + 0.3 * torch.randn(900, generator=g).double()

    def excess(delta):
        return ((delta - good).exp().mean() + (bad - delta).exp().mean()).item()

    best = min(excess(d / 100) for d in range(-200, 200))
    halfway, mean = (good.mean() + bad.mean()).item() / 2, torch.cat([good, bad]).mean().item()
    assert excess(halfway) < 1.01 * best and excess(mean) > 1.2 * best


def test_missing_labels_and_bad_weights_are_named():
    with pytest.raises(ValueError, match="kto needs to know which responses are desirable"):
        KTO()(inputs())
    with pytest.raises(ValueError, match="bco takes pairs, or single responses with labels"):
        BCO()(inputs(k=1))
    for name in ("desirable_weight", "undesirable_weight"):
        with pytest.raises(ValueError, match=rf"loss\.{name} must be at least 0, not -1"):
            KTO(**{name: -1.0})
    with pytest.raises(ValueError, match=r"loss\.beta must be greater than 0"):
        KTOPair(beta=-1.0)
