"""Intervals for few seeds and for shares near 0 or 1, where the bootstrap of planner_evaluation.py is too narrow.

With three seeds that bootstrap covers the truth in at most 88 of 100 cases (tests/evaluation).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from tracelift_lib.evaluation.planner_evaluation import CONFIDENCE, wilson


def newcombe(successes: int, n: int, others: int, m: int) -> tuple[float, float, float]:
    """(difference, low, high) of two independent proportions: 95 % hybrid score interval (Newcombe 1998, method 10).

    Unlike the difference of two normal intervals it has a width where both proportions are 0 or 1.
    """
    p, q = successes / n, others / m
    (p_low, p_high), (q_low, q_high) = wilson(successes, n), wilson(others, m)
    below, above = math.hypot(p - p_low, q_high - q), math.hypot(p_high - p, q - q_low)
    return p - q, p - q - below, p - q + above


def crossed_interval(treated: np.ndarray, control: np.ndarray | None = None) -> tuple[float, float, float]:
    """(mean difference, low, high): 95 % t interval for which seeds and problems are two crossed random samples.

    Args:
        treated: values of shape (seeds, problems).
        control: as in `paired_bootstrap`.

    The variance of the mean is (MS_seeds + MS_problems - MS_rest) / (seeds x problems), from the mean squares of the
    two-way table, at least its larger part; degrees of freedom as Satterthwaite (1946) has them, at least those of the
    smaller sample. So it holds its rate with three seeds too, where a bootstrap over seeds is too narrow. With one seed
    it speaks of problems only. NaN in, NaN out.

    Where no value differs from another, it is the mean +- 3 / problems: by the rule of three a deviation of 1 could
    still befall that share of other problems.
    """
    difference = _paired(treated, control)
    (seeds, problems), mean = difference.shape, float(difference.mean())
    if problems < 2:
        raise ValueError("an interval over problems needs at least two of them")
    by_seed, by_problem = difference.mean(1), difference.mean(0)
    rest = difference - by_seed[:, None] - by_problem + mean
    square_problems = seeds * by_problem.var(ddof=1)
    squares, degrees = [square_problems], [problems - 1]
    if seeds > 1:
        between = (seeds - 1) * (problems - 1)
        squares += [problems * by_seed.var(ddof=1), -(rest**2).sum() / between]
        degrees += [seeds - 1, between]
    total = max(sum(squares), *squares)
    if np.isclose(total, 0, atol=1e-12):
        return mean, mean - 3 / problems, mean + 3 / problems
    satterthwaite = total**2 / sum(s**2 / d for s, d in zip(squares, degrees))
    t = stats.t.ppf((1 + CONFIDENCE) / 2, max(satterthwaite, min(degrees)))
    half = float(t * math.sqrt(total / (seeds * problems)))
    return mean, mean - half, mean + half


def _paired(treated: np.ndarray, control: np.ndarray | None) -> np.ndarray:
    """(seeds, problems) of treated - control. Raises ValueError for shapes of which one would be silently repeated."""
    control = np.zeros((1, treated.shape[1])) if control is None else control
    if control.shape[1] != treated.shape[1] or control.shape[0] not in (1, treated.shape[0]):
        raise ValueError(f"shapes {treated.shape} and {control.shape} cannot be paired")
    return treated - control
