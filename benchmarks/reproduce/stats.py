"""Means with 95 % intervals that contain what differs between worlds, between orders of the data, and between requests.

A hierarchical bootstrap: worlds are drawn again with replacement, in each of them the orders, and the requests, for all
orders of a world the same ones, as they were asked the same. Three worlds say little about all worlds, which no
interval can mend. Where nothing at all failed the bootstrap has no spread, and the exact bound of a binomial, over the
distinct requests, takes its place (Clopper and Pearson 1934).
"""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS, SEED = 2000, 0
TAIL = 0.025  # on either side of a 95 % interval

Passed = list[NDArray[np.bool_]]  # of each world: (orders, requests), whether a request was passed


class Interval(NamedTuple):
    """In per cent, or in points where it is of a difference."""

    mean: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def share(passed: Passed) -> Interval:
    """Of requests that were passed, in per cent, each world alike."""
    found = average([passed])
    requests = sum(world.shape[1] for world in passed)
    slack = 100 * (1 - TAIL ** (1 / requests))
    if all(world.all() for world in passed):
        return found._replace(low=100 - slack)
    if not any(world.any() for world in passed):
        return found._replace(high=slack)
    return found


def average(sets: list[Passed]) -> Interval:
    """The mean over several sets of requests, each set alike."""
    return _bootstrap([[world.astype(np.float64) * 100 for world in passed] for passed in sets])


def change(sets: list[Passed], before: list[Passed]) -> Interval:
    """Of the share passed, in points, order by order and request by request; the mean over several sets of requests.

    before: the same requests under another method in the same orders and perhaps in more, or (1, requests) of each
    world: its base's.
    """
    pairs = (zip(after, base, strict=True) for after, base in zip(sets, before, strict=True))
    return _bootstrap([[100.0 * one - 100.0 * other[: len(one)] for one, other in pair] for pair in pairs])


def numbers(values: list[list[float]]) -> Interval:
    """Of one number a run: of each world, its orders' values."""
    return _bootstrap([[np.array(world, dtype=float)[:, None] for world in values]])


def _bootstrap(sets: list[list[NDArray[np.float64]]]) -> Interval:
    """The mean over sets, worlds, orders and requests. A draw of worlds and orders holds for all sets."""
    rng = np.random.default_rng(SEED)
    worlds = len(sets[0])
    drawn = np.zeros((worlds, worlds, DRAWS))  # of the world at each place of the draw, were it this one
    for place in range(worlds):
        for world in range(worlds):
            orders = len(sets[0][world])
            picked = rng.multinomial(orders, np.full(orders, 1 / orders), size=DRAWS) / orders  # (DRAWS, orders)
            for number, values in enumerate(sets):
                found = _draw_requests(values[world], picked, (place, world, number))
                drawn[place, world] += found / len(sets)
    which = rng.integers(worlds, size=(worlds, DRAWS))  # the world at each place
    means = np.mean([np.choose(which[place], drawn[place]) for place in range(worlds)], axis=0)  # (DRAWS,)
    low, high = np.quantile(means, [TAIL, 1 - TAIL])
    mean = np.mean([[world.mean() for world in values] for values in sets])
    return Interval(float(mean), float(low), float(high))


def _draw_requests(
    values: NDArray[np.float64], picked: NDArray[np.float64], which: tuple[int, ...]
) -> NDArray[np.float64]:
    """(DRAWS,) means of one world's values (orders, requests), its orders weighted by picked (DRAWS, orders)."""
    requests = values.shape[1]
    if requests == 1:
        return picked @ values[:, 0]
    times = _times(requests, which, DRAWS).astype(np.float32)
    found: NDArray[np.float64] = np.einsum("do,do->d", picked, times @ values.T.astype(np.float32)) / requests
    return found


@functools.cache
def _times(requests: int, which: tuple[int, ...], draws: int) -> NDArray[np.uint8]:
    """(draws, requests), how often each request is drawn: the same for all that is asked of so many requests."""
    cells = np.random.default_rng([SEED, requests, *which]).integers(requests, size=(draws, requests))
    cells += requests * np.arange(draws)[:, None]
    return np.bincount(cells.ravel(), minlength=draws * requests).reshape(draws, requests).astype(np.uint8)


def span(values: Iterable[float]) -> str:
    """The least and the most of several numbers."""
    found = list(values)
    return f"{min(found):.1f} to {max(found):.1f}"


def within(interval: Interval, bound: float) -> bool:
    """Equivalence: the whole interval lies within +- bound. It is not that no difference was found."""
    return -bound <= interval.low and interval.high <= bound
