"""benchmarks.reproduce.stats: intervals cover what they should, and know which draws belong together."""

import numpy as np
import pytest

from benchmarks.reproduce import stats


def worlds(rng, between_worlds, between_orders, requests=400, orders=5, mean=0.8):
    """Three worlds of a population whose mean is known."""
    found = []
    for _ in range(3):
        rates = mean + between_worlds * rng.standard_normal() + between_orders * rng.standard_normal((orders, 1))
        found.append(rng.random((orders, requests)) < rates)
    return found


@pytest.mark.parametrize(("between_worlds", "between_orders", "least"), [(0, 0, 0.93), (0, 0.05, 0.9), (0.05, 0, 0.65)])
def test_intervals_cover_the_mean_as_often_as_three_worlds_allow(between_worlds, between_orders, least, monkeypatch):
    """A bootstrap of three clusters is too narrow where the clusters differ: 3 worlds cannot show more."""
    monkeypatch.setattr(stats, "DRAWS", 200)
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        interval = stats.share(worlds(rng, between_worlds, between_orders))
        covered += interval.low <= 80 <= interval.high
    assert covered / 60 >= least


def test_spread_between_orders_and_worlds_widens_the_interval():
    rng = np.random.default_rng(2)
    width = {}
    for name, spreads in {"none": (0, 0), "orders": (0, 0.05), "worlds": (0.05, 0)}.items():
        interval = stats.share(worlds(rng, *spreads))
        width[name] = interval.high - interval.low
    assert width["none"] < 5 and width["orders"] > 1.2 * width["none"] and width["worlds"] > 1.5 * width["none"]


def test_the_mean_gives_each_world_the_same_weight():
    interval = stats.share([np.ones((5, 10), bool), np.zeros((5, 1000), bool), np.zeros((2, 10), bool)])
    assert interval.mean == pytest.approx(100 / 3)


def test_where_nothing_failed_the_bound_is_clopper_and_pearsons():
    interval = stats.share([np.ones((5, 100), bool)] * 3)
    assert interval.mean == interval.high == 100
    assert interval.low == pytest.approx(100 * 0.025 ** (1 / 300))
    none = stats.share([np.zeros((5, 100), bool)] * 3)
    assert none.low == 0 and none.high == pytest.approx(100 * (1 - 0.025 ** (1 / 300)))


def test_a_change_is_of_the_same_requests():
    """The base fails 20 of 200, and so does every run: the same ones, or others."""
    base = np.arange(200) >= 20
    same = stats.change([[np.tile(base, (5, 1))] * 3], [[base[None]] * 3])
    assert same == (0, 0, 0)
    others = stats.change([[np.tile(base[::-1], (5, 1))] * 3], [[base[None]] * 3])
    assert others.mean == 0 and others.low < -2 and others.high > 2
    assert stats.within(same, 1) and not stats.within(others, 1)


def test_requests_of_a_world_are_drawn_for_all_its_orders():
    """Five identical orders tell no more than one."""
    rng = np.random.default_rng(3)
    asked = [rng.random((1, 200)) < 0.7 for _ in range(3)]
    one, five = stats.share(asked), stats.share([np.tile(world, (5, 1)) for world in asked])
    assert five.high - five.low == pytest.approx(one.high - one.low, rel=0.1)


def test_an_average_draws_worlds_and_orders_once_for_all_sets():
    """Two sets of which one rises where the other falls: their mean is the same in all worlds."""
    rises = [np.full((5, 2000), False) for _ in range(3)]
    for world, rate in zip(rises, (400, 1000, 1600), strict=True):
        world[:, :rate] = True
    falls = [~world for world in rises]
    both = stats.average([rises, falls])
    alone = stats.share(rises)
    assert both.mean == pytest.approx(50) and both.high - both.low < 4 < 20 < alone.high - alone.low


def test_numbers_have_no_requests():
    interval = stats.numbers([[1.0, 1.0, 1.0], [2.0, 2.0], [3.0]])
    assert interval.mean == pytest.approx(2) and interval.low == pytest.approx(1) and interval.high == pytest.approx(3)
