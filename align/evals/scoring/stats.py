"""How sure a score is: 95 % intervals, and tests of two models on the same prompts. Numpy only; seeded, so repeatable.

Scores are of single models: proportions (Wilson) or means of real values (bootstrap). Comparisons are paired: the same
prompts were put to both models, so what counts is where they differ. Prompts are taken as independent draws; where they
are variations of a few (one request in several attacks, neighbouring windows of a text) the true interval is wider.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np

Values = Sequence[float] | np.ndarray
Z = 1.959963984540054  # the standard normal's 97.5 % point
LEVELS = (0.025, 0.975)
RESAMPLES = 10_000
EXACT = 16  # sign patterns are enumerated up to 2**EXACT of them
BLOCK = 2**22  # numbers drawn at a time: 32 MiB

Interval = tuple[float, float]


def wilson(k: float, n: int) -> Interval:
    """Wilson's score interval of a proportion k/n (Wilson 1927, JASA 22:209). (0, 1) for n = 0: nothing is known.

    Unlike p ± z sqrt(p(1-p)/n) it stays within 0..1 and has width at k = 0 and k = n, where safety scores are.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a proportion")
    if n == 0:
        return 0.0, 1.0
    p, zz = k / n, Z * Z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = Z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    # at the ends the two terms cancel exactly but for rounding
    return (0.0 if k == 0 else max(0.0, centre - half)), (1.0 if k == n else min(1.0, centre + half))


def is_binary(values: Values) -> bool:
    return bool(np.isin(np.asarray(values, dtype=float), (0.0, 1.0)).all())


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The interval of a mean: Wilson's where all values are 0 or 1 (or bool), else the bootstrap's."""
    if len(values) and is_binary(values):
        return wilson(int(np.sum(values)), len(values))
    return bootstrap_mean(values, seed)


def bootstrap_mean(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap of a mean (Efron 1979, Annals of Statistics 7:1)."""
    return bootstrap_ratio(values, np.ones(len(values)), seed, resamples)


def bootstrap_ratio(numerators: Values, denominators: Values, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Percentile bootstrap of sum(numerators) / sum(denominators), the two drawn in pairs.

    For nll per token. A percentile interval keeps its meaning through any increasing function: exp of its ends is the
    interval of the perplexity.
    """
    top, bottom = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if not len(top) or len(top) != len(bottom):
        raise ValueError(f"{len(top)} numerators and {len(bottom)} denominators: must be equally many, at least one")
    rng = np.random.default_rng(seed)
    n, ratios = len(top), []
    block = max(1, BLOCK // n)
    for start in range(0, resamples, block):
        drawn = rng.integers(n, size=(min(block, resamples - start), n))  # (resamples, n)
        ratios.append(top[drawn].sum(axis=1) / bottom[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(ratios), LEVELS)
    return float(low), float(high)


def interval_of_mean(scores: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The mean of independent scores, each (value, low, high), and its interval.

    Each end's distances add in squares, as in Zou and Donner 2008, Statistics in Medicine 27:1693: for two proportions
    this is the sum's counterpart of Newcombe's square-and-add interval, and unlike a normal one it keeps the skew that
    scores near 100 % have.
    """
    value, low, high = np.asarray(scores, dtype=float).T  # (m,) each
    mean, m = value.mean(), len(value)
    below, above = math.sqrt(((value - low) ** 2).sum()) / m, math.sqrt(((high - value) ** 2).sum()) / m
    return float(mean), float(mean - below), float(mean + above)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p of McNemar's test: of the prompts on which two models differ, half should favour either.

    The binomial form, in whole numbers up to the last division.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    term = total = 1
    for i in range(least):
        term = term * (n - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / 2**n) if n else 1.0


def permutation_test(differences: Sequence[float], seed: int = 0, draws: int = RESAMPLES) -> float:
    """Two-sided p of the mean of paired differences, by flipping their signs (Fisher 1935).

    All sign patterns for up to EXACT differences that are not 0, beyond that random ones plus the observed
    pattern, so that p is never 0 (Phipson and Smyth 2010).
    """
    d = np.asarray(differences, dtype=float)
    d = d[d != 0]
    if not len(d):
        return 1.0
    # sums that are equal but for rounding count as equal
    observed = abs(d.sum()) - 1e-9 * np.abs(d).sum()
    if len(d) <= EXACT:
        patterns = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1  # (2^n, n)
        return float((np.abs((2 * patterns - 1) @ d) >= observed).mean())
    rng = np.random.default_rng(seed)
    block, extreme = max(1, BLOCK // len(d)), 0
    for start in range(0, draws, block):
        signs = rng.integers(2, size=(min(block, draws - start), len(d)), dtype=np.int8)
        extreme += int((np.abs((2.0 * signs - 1.0) @ d) >= observed).sum())
    return (extreme + 1) / (draws + 1)


def paired_interval(both: int, only_first: int, only_second: int, neither: int) -> Interval:
    """The interval of the difference p1 - p2 of two proportions of the same prompts: Newcombe's method 10.

    Newcombe 1998, Statistics in Medicine 17:2635: Wilson's intervals of both, their distances added in squares less
    their correlation, which is made smaller by half a prompt where it is positive.
    """
    e, f, g, h = both, only_first, only_second, neither
    n = e + f + g + h
    if n == 0:
        return -1.0, 1.0
    p1, p2 = (e + f) / n, (e + g) / n
    (low1, high1), (low2, high2) = wilson(e + f, n), wilson(e + g, n)
    covariance = float(e * h - f * g)
    if covariance > 0:
        covariance = max(0.0, covariance - n / 2)
    margins = (e + f) * (g + h) * (e + g) * (f + h)
    phi = covariance / math.sqrt(margins) if margins else 0.0

    def distance(first: float, second: float) -> float:
        return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))

    low = p1 - p2 - distance(p1 - low1, high2 - p2)
    return max(-1.0, low), min(1.0, p1 - p2 + distance(high1 - p1, p2 - low2))


def compare(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Two models on the same prompts, in the same order: {"difference", "low", "high", "p", "n"}, ours minus theirs.

    Where all values are 0 or 1: McNemar's test and Newcombe's interval. Else: the sign-flip test and the bootstrap of
    the mean difference.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} and {len(theirs)} values: must be equally many, at least one")
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    difference = a - b
    if is_binary(a) and is_binary(b):
        first, second = int((difference > 0).sum()), int((difference < 0).sum())
        low, high = paired_interval(int((a * b).sum()), first, second, int(((1 - a) * (1 - b)).sum()))
        p = mcnemar(first, second)
    else:
        low, high = bootstrap_mean(difference, seed)
        p = permutation_test(difference, seed)
    return {"difference": float(difference.mean()), "low": low, "high": high, "p": p, "n": len(a)}


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for there being several (Holm 1979, Scandinavian Journal of Statistics 6:65), in their order.

    If all those up to 0.05 are called significant, the probability of any false one is at most 0.05.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def agreement(first: Sequence[Hashable], second: Sequence[Hashable]) -> dict[str, float | int | None]:
    """Two judges on the same responses: {"agree", "kappa", "n"}.

    kappa is agreement beyond chance (Cohen 1960, Educational and Psychological Measurement 20:37): 1 for perfect, 0 for
    what two judges with the same rates would reach by chance; None where both gave one and the same verdict throughout.
    """
    n = len(first)
    if n != len(second) or not n:
        raise ValueError(f"{n} and {len(second)} verdicts: must be equally many, at least one")
    agree = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(list(first).count(v) * list(second).count(v) for v in set(first)) / n**2
    return {"agree": agree, "kappa": None if chance == 1 else (agree - chance) / (1 - chance), "n": n}
