"""Intervals, tests and verdicts that hold with few seeds, and for shares near 0 or 1.

| question | function |
| --- | --- |
| one share, or the mean of values of problems | `wilson`, `mean_interval` |
| two shares of different problems | `newcombe` |
| the same problems under two policies, perhaps with seeds | `compare`, `crossed_interval` |
| right or wrong on the same problems, once each | `paired_shares`, `mcnemar` |
| several sets of problems together | `stratified`, then `compare` |
| a whole table of comparisons | `holm` |
| what a comparison says | `verdict` |

A bootstrap over three seeds can only repeat the three it has and covers the truth in 78 of 100 cases; 0 successes of 16
would get the interval [0, 0]. tests/evaluation/test_intervals.py counts how often each interval here holds the truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import optimize, stats
from scipy.special import ndtri, stdtrit  # quantiles of the normal and of Student's t; stats.t.ppf is 50 times slower

CONFIDENCE = 0.95
POWER = 0.80  # of a detectable difference
UPPER = (1 + CONFIDENCE) / 2
RULE_OF_THREE = 3.0  # where n cases show nothing, a share of 3 / n elsewhere is not excluded


# --- one sample -------------------------------------------------------------------------------------------------------


def wilson(successes: float, n: float, quantile: float = ndtri(UPPER)) -> tuple[float, float]:
    """95 % Wilson score interval of a share of n independent trials; both numbers may be effective, not whole."""
    p, z = successes / n, quantile**2 / n
    half = math.sqrt(z * p * (1 - p) + z**2 / 4)
    middle = p + z / 2
    low, high = (0.0 if p == 0 else (middle - half) / (1 + z)), (1.0 if p == 1 else (middle + half) / (1 + z))
    return max(0.0, low), min(1.0, high)


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high) of one value for each problem: 95 % interval over problems.

    Values within [0, 1] (shares of a problem's samples, pair accuracies, scores) get the Wilson interval of as many
    trials as have the variance that the values show (an effective sample size, as for clustered samples): of values 0
    and 1 it is the plain Wilson interval, and where all are equal there are as many trials as problems. Other values
    get the t interval.
    """
    x = np.asarray(values, float)
    n, mean = len(x), float(x.mean())
    if n < 2 or np.isnan(mean):
        return mean, *((0.0, 1.0) if n == 1 and 0 <= mean <= 1 else (math.nan, math.nan))
    t = float(stdtrit(n - 1, UPPER))
    if x.min() < 0 or x.max() > 1:
        half = t * float(x.std(ddof=1)) / math.sqrt(n)
        return mean, mean - half, mean + half
    spread = float(x.var())
    if np.isin(x, (0, 1)).all() or np.isclose(spread, 0, atol=1e-12):
        return mean, *wilson(mean * n, n)
    effective = mean * (1 - mean) / spread * (n - 1)
    return mean, *wilson(mean * effective, effective, t)


def percentile_interval(draws: Sequence[float]) -> tuple[float, float]:
    """(low, high): the middle 95 % of bootstrap draws; NaN ones are left out."""
    low, high = np.nanquantile(draws, [1 - UPPER, UPPER])
    return float(low), float(high)


def newcombe(successes: int, n: int, others: int, m: int) -> tuple[float, float, float]:
    """(difference, low, high) of two independent proportions: 95 % hybrid score interval (Newcombe 1998, method 10).

    Unlike the difference of two normal intervals it has a width where both proportions are 0 or 1.
    """
    p, q = successes / n, others / m
    (p_low, p_high), (q_low, q_high) = wilson(successes, n), wilson(others, m)
    below, above = math.hypot(p - p_low, q_high - q), math.hypot(p_high - p, q - q_low)
    return p - q, p - q - below, p - q + above


# --- paired samples ---------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """A mean difference.

    Attributes:
        low, high: its 95 % interval.
        detectable: the smallest true difference that would have been found (interval beyond 0) in 80 of 100 such
            experiments: what "no difference found" leaves open.
        p: two-sided; below 0.05 exactly where the interval excludes 0.
    """

    difference: float
    low: float
    high: float
    detectable: float
    p: float


def compare(treated: np.ndarray, control: np.ndarray | None = None) -> Comparison:
    """Mean difference for which seeds and problems are two crossed random samples.

    Args:
        treated: values of shape (seeds, problems).
        control: the same problems in the same order and the same seeds, or one row (a policy that has no seeds, such
            as the warm start), or None for the plain mean of `treated`.

    Its squared half-width is that of the t interval over seeds (whose means hold the noise of single values) plus
    that of the t interval over problems for what problems vary beyond this noise: variances of the two-way table are
    added, and each keeps the quantile of its own degrees of freedom (the manner of Howe 1974, and of Burdick and
    Graybill 1992). So with two or three seeds it covers the truth in at least 94 of 100 cases whether seeds differ, or
    problems, or both; in up to 99 where seeds do not differ at all, which so few cannot show. With one seed it speaks
    of problems only.

    Where no value differs from another, it is the mean +- 3 / problems: by the rule of three a deviation of 1 could
    still befall that share of other problems. NaN in, NaN out.

    Raises:
        ValueError: shapes that cannot be paired, or fewer than two problems.
    """
    parts, mean, problems = _variances(_paired(treated, control))
    if np.isnan(mean):
        return Comparison(*[math.nan] * 5)
    if np.isclose(sum(variance for variance, _ in parts), 0, atol=1e-14):
        half, p = RULE_OF_THREE / problems, 1.0 if np.isclose(mean, 0, atol=1e-12) else 2.0 ** (1 - problems)
        return Comparison(mean, mean - half, mean + half, half * (1 + ndtri(POWER) / ndtri(UPPER)), p)

    def half_width(upper: float, power: float = 0.5) -> float:
        return math.sqrt(sum((stdtrit(d, upper) + stdtrit(d, power)) ** 2 * v for v, d in parts))

    half = half_width(UPPER)
    return Comparison(mean, mean - half, mean + half, half_width(UPPER, POWER), _p_value(abs(mean), half_width))


def crossed_interval(treated: np.ndarray, control: np.ndarray | None = None) -> tuple[float, float, float]:
    """(mean difference, low, high) of `compare`."""
    return compare(treated, control)[:3]


def _variances(difference: np.ndarray) -> tuple[list[tuple[float, int]], float, int]:
    """([(variance of the mean, its degrees of freedom)] from seeds and problems, mean, number of problems)."""
    seeds, problems = difference.shape
    if problems < 2:
        raise ValueError("an interval over problems needs at least two of them")
    mean, by_seed, by_problem = float(difference.mean()), difference.mean(1), difference.mean(0)
    from_problems = by_problem.var(ddof=1) / problems
    if seeds == 1:
        return [(from_problems, problems - 1)], mean, problems
    rest = difference - by_seed[:, None] - by_problem + mean
    noise = (rest**2).sum() / ((seeds - 1) * (problems - 1)) / (seeds * problems)
    from_seeds = by_seed.var(ddof=1) / seeds
    return [(from_seeds, seeds - 1), (max(from_problems - noise, 0.0), problems - 1)], mean, problems


def _p_value(mean: float, half_width) -> float:
    """The p at which the interval of level 1 - p ends at 0."""
    if mean == 0:
        return 1.0
    smallest = 1e-12
    if half_width(1 - smallest / 2) <= mean:
        return smallest
    return float(optimize.brentq(lambda p: half_width(1 - p / 2) - mean, smallest, 1.0))


def _paired(treated: np.ndarray, control: np.ndarray | None) -> np.ndarray:
    """(seeds, problems) of treated - control. Raises ValueError for shapes of which one would be silently repeated."""
    control = np.zeros((1, treated.shape[1])) if control is None else control
    if control.shape[1] != treated.shape[1] or control.shape[0] not in (1, treated.shape[0]):
        raise ValueError(f"shapes {treated.shape} and {control.shape} cannot be paired")
    return treated - control


def paired_shares(only_treated: int, only_control: int, n: int) -> Comparison:
    """Difference of two shares over the same n problems, each right or wrong: from the problems where they differ.

    95 % interval of Bonett and Price (2012), which has a width at 0 differences too; p of the exact McNemar test.
    """
    b, c = (only_treated + 1) / (n + 2), (only_control + 1) / (n + 2)
    spread = math.sqrt((b + c - (b - c) ** 2) / (n + 2))
    z, power = ndtri(UPPER), ndtri(POWER)
    low, high = max(-1.0, b - c - z * spread), min(1.0, b - c + z * spread)
    p = mcnemar(only_treated, only_control)
    return Comparison((only_treated - only_control) / n, low, high, (z + power) * spread, p)


def mcnemar(only_treated: int, only_control: int) -> float:
    """Exact two-sided p of McNemar's test: are the problems that only one policy solves split evenly?"""
    n = only_treated + only_control
    return float(stats.binomtest(only_treated, n).pvalue) if n else 1.0


def stratified(values: np.ndarray, sets: Sequence[str], macro: bool) -> np.ndarray:
    """`values` (seeds, problems) such that their mean is the average over sets, and their spread that within sets.

    Args:
        sets: the set of each problem.
        macro: sets count alike; else (micro) problems do.

    Which sets were chosen is no chance: what they differ by is taken out of the spread over problems.
    """
    names, whole = np.asarray(sets), np.empty_like(values, dtype=float)
    kinds = sorted(set(sets))
    means = {name: values[:, names == name].mean() for name in kinds}
    shares = {name: 1 / len(kinds) if macro else (names == name).mean() for name in kinds}
    average = sum(shares[name] * means[name] for name in kinds)
    for name in kinds:
        here = names == name
        whole[:, here] = average + (values[:, here] - means[name]) * shares[name] / here.mean()
    return whole


# --- tables and words -------------------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values adjusted for a whole table of comparisons (Holm 1979); NaN stays and does not count."""
    p = np.asarray(p_values, float)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = p.copy()
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * p[order]))
    return adjusted


def verdict(found: Comparison, expected: Literal["more", "less"] | None = None, same: bool = False) -> str:
    """What a comparison says: of a claim that there is `expected`, or of which side has more where nobody claims.

    same: both sides are the same model (its training had no gradient), so nothing was compared.
    """
    if same:
        return "not run (a model compared with itself)"
    if math.isnan(found.low):
        return "not testable here (no values on one side)"
    if found.low <= 0 <= found.high:
        known = not math.isnan(found.detectable)
        return "no difference found" + (f" (smallest detectable {found.detectable:.3f})" if known else "")
    side = "more" if found.low > 0 else "less"
    return side if expected is None else "agrees" if side == expected else "disagrees"
