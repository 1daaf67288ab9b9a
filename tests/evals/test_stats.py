"""Intervals and tests against closed forms, enumeration, published tables and simulated coverage."""

import itertools
import math

import numpy as np
import pytest

from align.evals.scoring.stats import (
    EXACT,
    Z,
    agreement,
    bootstrap_mean,
    bootstrap_ratio,
    compare,
    holm,
    interval_of_mean,
    is_binary,
    mcnemar,
    mean_interval,
    paired_interval,
    permutation_test,
    wilson,
)


@pytest.fixture
def rng():
    seed = 20240911
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def binomial(n, p):
    """The probabilities of 0..n."""
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


# Wilson


def test_wilson_solves_the_score_equation():
    """Its ends are the p for which the score statistic of k is exactly z."""
    for k, n in [(0, 5), (3, 10), (81, 263), (119, 120), (120, 120), (2.5, 10)]:
        low, high = wilson(k, n)
        for end in (low, high):
            if 0 < end < 1:
                assert abs(k / n - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n), rel=1e-9)
        assert 0 <= low <= k / n <= high <= 1


@pytest.mark.parametrize(
    "k, n, low, high",  # to the four places of Newcombe 1998, Statistics in Medicine 17:857, and Wilson's own formula
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_in_print(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_at_its_ends():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 30)[0] == 0.0 and wilson(30, 30)[1] == 1.0
    assert wilson(30, 30)[0] == pytest.approx(1 - wilson(0, 30)[1], abs=1e-15)
    assert wilson(0, 30)[1] == pytest.approx(Z**2 / (30 + Z**2))
    for k, n in ((-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="not a proportion"):
            wilson(k, n)


def test_wilson_covers():
    """Exact coverage, summed over the binomial: 95 % on average over p, never below 83 % at n = 100."""
    n, grid = 100, np.linspace(0.005, 0.995, 199)
    ends = np.array([wilson(k, n) for k in range(n + 1)])
    coverage = np.array([binomial(n, p)[(ends[:, 0] <= p) & (p <= ends[:, 1])].sum() for p in grid])
    assert coverage.mean() == pytest.approx(0.95, abs=0.005)
    assert coverage.min() > 0.83 and coverage[10:-10].min() > 0.92
    # the usual interval p ± z sqrt(pq/n) does not
    p_hat = np.arange(n + 1) / n
    half = Z * np.sqrt(p_hat * (1 - p_hat) / n)
    wald = [binomial(n, p)[np.abs(p_hat - p) <= half].sum() for p in grid]
    assert np.mean(wald) < 0.94


# bootstrap


def test_bootstrap_of_a_mean_is_the_normal_interval_of_many_values(rng):
    values = rng.gamma(2.0, size=2000)
    low, high = bootstrap_mean(values)
    half = Z * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.06 * half)
    assert (low, high) == bootstrap_mean(list(values), seed=0) != bootstrap_mean(values, seed=1)
    assert bootstrap_mean([3.0] * 9) == (3.0, 3.0)


def test_bootstrap_by_enumeration():
    """Of three values all 27 resamples can be listed; their quantiles are the interval's ends."""
    values = [0.0, 1.0, 5.0]
    means = [np.mean(drawn) for drawn in itertools.product(values, repeat=3)]
    # 1/27 of the resamples is all zeros, more than 2.5 %
    assert bootstrap_mean(values) == (min(means), max(means)) == (0.0, 5.0)


def test_bootstrap_of_a_ratio(rng):
    tokens = rng.integers(5, 50, size=400)
    nll = tokens * rng.normal(2.0, 0.3, size=400)
    low, high = bootstrap_ratio(nll, tokens)
    ratio = nll.sum() / tokens.sum()
    # the delta method
    half = Z * np.sqrt(((nll - ratio * tokens) ** 2).sum()) / tokens.sum()
    assert (low, high) == pytest.approx((ratio - half, ratio + half), abs=0.1 * half)
    assert bootstrap_ratio(nll, np.ones(400)) == bootstrap_mean(nll)
    assert bootstrap_ratio(3 * tokens, tokens) == (3.0, 3.0)
    for top, bottom in (([], []), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="must be equally many"):
            bootstrap_ratio(top, bottom)


def test_blocks_of_a_large_bootstrap_are_one_sample():
    """More values than one block holds resamples of: the interval is still that of the mean."""
    values = np.arange(50_000) % 7 / 7
    low, high = bootstrap_mean(values, resamples=300)
    half = Z * values.std() / math.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.3 * half)


def test_interval_of_values_by_their_kind():
    assert mean_interval([True, False, True]) == mean_interval([1, 0, 1.0]) == wilson(2, 3)
    assert mean_interval([0.2, 0.4, 0.9]) == bootstrap_mean([0.2, 0.4, 0.9])
    assert is_binary([0, 1]) and is_binary([True]) and not is_binary([0.5, 1])


# the mean of several scores


def test_mean_of_two_benchmarks():
    value, low, high = interval_of_mean([(0.9, 0.8, 0.95), (0.5, 0.4, 0.6)])
    assert value == pytest.approx(0.7)
    assert (low, high) == pytest.approx((0.7 - math.hypot(0.1, 0.1) / 2, 0.7 + math.hypot(0.05, 0.1) / 2))
    assert interval_of_mean([(0.9, 0.8, 0.95)]) == pytest.approx((0.9, 0.8, 0.95))


def test_mean_of_two_benchmarks_covers():
    """Exact coverage for two independent proportions, near 1 and apart, as safety scores are."""
    for (n1, p1), (n2, p2) in [((60, 0.97), (120, 0.6)), ((40, 0.9), (40, 0.9)), ((100, 0.5), (30, 0.2))]:
        first, second = ([(k / n, *wilson(k, n)) for k in range(n + 1)] for n in (n1, n2))
        weight = np.outer(binomial(n1, p1), binomial(n2, p2))
        truth, inside = (p1 + p2) / 2, np.zeros_like(weight)
        for i, j in itertools.product(range(n1 + 1), range(n2 + 1)):
            _, low, high = interval_of_mean([first[i], second[j]])
            inside[i, j] = low <= truth <= high
        assert 0.935 < (weight * inside).sum() < 0.98


# paired tests


def test_mcnemar_by_enumeration():
    """p is the share of all ways to hand out the differing prompts that are as uneven as the one seen."""
    for first, second in itertools.product(range(7), repeat=2):
        n = first + second
        uneven = [abs(2 * sum(ways) - n) >= abs(first - second) for ways in itertools.product((0, 1), repeat=n)]
        assert mcnemar(first, second) == pytest.approx(sum(uneven) / len(uneven), abs=1e-15)
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == 2 / 64
    # beyond what a float's binomial would hold
    assert mcnemar(0, 1000) == 2.0**-999
    assert mcnemar(4000, 4000) == 1.0 and 0 < mcnemar(4000, 4300) < 0.01


def test_mcnemar_of_many_is_the_normal_test():
    first, second = 5200, 4800
    z = (abs(first - second) - 1) / math.sqrt(first + second)
    assert mcnemar(first, second) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_permutation_test_by_enumeration(rng):
    drawn = [rng.integers(-9, 14, size=n) for n in (1, 2, 5, 9)]
    for tenths in (*drawn, np.array([3, -1, -2, 10])):
        d = tenths / 10
        # in whole numbers, which do not round
        sums = [abs(np.dot(signs, tenths)) for signs in itertools.product((-1, 1), repeat=len(d))]
        expected = np.mean([s >= abs(tenths.sum()) for s in sums])
        assert permutation_test(d) == pytest.approx(expected, abs=1e-12)
        # prompts on which both score the same say nothing
        assert permutation_test([*d, 0.0, 0.0, *[0.0] * 30]) == permutation_test(d[d != 0])
    assert permutation_test([]) == permutation_test([0.0] * 40) == 1.0
    assert permutation_test([0.1] * 6) == 2 / 64


def test_permutation_test_of_many(rng):
    d = rng.normal(0.1, 1, size=400)
    p = permutation_test(d)
    z = d.mean() / math.sqrt((d**2).sum()) * len(d)
    assert p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.015)
    assert p == permutation_test(d, seed=0) and p == pytest.approx(permutation_test(d, seed=5), abs=0.015)
    assert permutation_test([1.0] * 40) == 1 / 10_001  # never 0
    # signs alone: McNemar's test
    signs = [1.0] * 14 + [-1.0] * 6
    assert len(signs) > EXACT and permutation_test(signs) == pytest.approx(mcnemar(14, 6), abs=0.012)


def test_paired_tests_keep_their_level(rng):
    """Under the null p is at most 0.05 in at most 5 % of the experiments, within the simulation's error."""
    small = np.mean([permutation_test(rng.normal(size=8)) <= 0.05 for _ in range(2000)])
    large = np.mean([permutation_test(rng.standard_t(3, size=30), draws=999) <= 0.05 for _ in range(1500)])
    exact = np.mean([mcnemar(k, 40 - k) <= 0.05 for k in rng.binomial(40, 0.5, size=2000)])
    assert 0.035 < small < 0.065 and 0.035 < large < 0.065 and exact < 0.06


# paired intervals


@pytest.mark.parametrize(
    "cells, low, high",  # Newcombe 1998, Statistics in Medicine 17:2635, Table III, method 10
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((35, 14, 0, 1), 0.1461, 0.4175),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((2, 97, 1, 0), 0.8721, 0.9854),
        ((1, 97, 1, 1), 0.8736, 0.9850),
        ((0, 29, 1, 0), 0.6666, 0.9882),
        ((2, 98, 0, 0), 0.9178, 0.9945),
        ((1, 98, 0, 1), 0.9171, 0.9916),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((54, 0, 0, 0), -0.0664, 0.0664),
    ],
)
def test_paired_interval_in_print(cells, low, high):
    assert paired_interval(*cells) == pytest.approx((low, high), abs=1.1e-4)
    both, first, second, neither = cells
    mirrored = paired_interval(both, second, first, neither)
    assert mirrored == pytest.approx((-high, -low), abs=1.1e-4)


def test_paired_interval_is_within_bounds():
    assert paired_interval(0, 0, 0, 0) == (-1.0, 1.0)
    for cells in itertools.product((0, 1, 7), repeat=4):
        if sum(cells):
            low, high = paired_interval(*cells)
            difference = (cells[1] - cells[2]) / sum(cells)
            assert -1 <= low <= difference + 1e-12 and difference - 1e-12 <= high <= 1


def test_paired_interval_covers(rng):
    """4,000 experiments a setting: the share of intervals that hold the true difference."""
    for n, cells in [
        (50, (0.6, 0.2, 0.05, 0.15)),
        (120, (0.8, 0.15, 0.02, 0.03)),
        (100, (0.4, 0.1, 0.1, 0.4)),
        (200, (0.02, 0.9, 0.01, 0.07)),
    ]:
        truth = cells[1] - cells[2]
        drawn = rng.multinomial(n, cells, size=4000)
        held = [low <= truth <= high for low, high in (paired_interval(*map(int, row)) for row in drawn)]
        assert 0.935 < np.mean(held) < 0.985, (n, cells)


def test_compare_binary_and_real(rng):
    ours, theirs = [True] * 20 + [False] * 5 + [True] * 5, [True] * 15 + [False] * 15
    found = compare(ours, theirs)
    assert found["difference"] == pytest.approx(10 / 30) and found["n"] == 30
    assert (found["low"], found["high"]) == paired_interval(15, 10, 0, 5)
    assert found["p"] == mcnemar(10, 0)
    a, b = rng.normal(1, 1, size=50), rng.normal(0, 1, size=50)
    found = compare(a, b)
    assert found["difference"] == pytest.approx((a - b).mean())
    assert (found["low"], found["high"]) == bootstrap_mean(a - b) and found["p"] == permutation_test(a - b)
    back = compare(b, a)
    assert back["difference"] == -found["difference"] and back["p"] == found["p"]
    same = compare([1, 0, 1], [1, 0, 1])
    assert (same["difference"], same["p"]) == (0, 1) and same["low"] < 0 < same["high"]
    for first, second in (([], []), ([1], [1, 0])):
        with pytest.raises(ValueError, match="must be equally many"):
            compare(first, second)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.6, 0.9]) == [1.0, 1.0]
    # the step-down procedure itself
    p, alpha = [0.001, 0.2, 0.012, 0.03, 0.9], 0.05
    ordered, rejected = sorted(p), set()
    for rank, value in enumerate(ordered):
        if value > alpha / (len(p) - rank):
            break
        rejected.add(value)
    assert (
        {value for value, adjusted in zip(p, holm(p), strict=True) if adjusted <= alpha} == rejected == {0.001, 0.012}
    )


# agreement


def test_agreement():
    first = ["safe"] * 25 + ["unsafe"] * 25
    second = ["safe"] * 20 + ["unsafe"] * 5 + ["safe"] * 10 + ["unsafe"] * 15
    found = agreement(first, second)
    # 35 of 50 agree; chance: half of 30 and half of 20 of 50
    assert found == {"agree": 0.7, "kappa": pytest.approx((0.7 - 0.5) / (1 - 0.5)), "n": 50}
    assert agreement(first, first) == {"agree": 1.0, "kappa": 1.0, "n": 50}
    flipped = [not value for value in [True, False] * 4]
    assert agreement([True, False] * 4, flipped)["kappa"] == -1.0
    assert agreement([True] * 3, [True] * 3) == {"agree": 1.0, "kappa": None, "n": 3}
    assert agreement([True] * 3, [True, True, False])["kappa"] == 0.0
    with pytest.raises(ValueError, match="must be equally many"):
        agreement([], [])
