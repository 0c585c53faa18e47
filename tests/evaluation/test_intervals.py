"""Intervals against independent formulas, known examples and simulations of how often they hold the truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tracelift_lib.evaluation.intervals import (
    Comparison,
    compare,
    crossed_interval,
    holm,
    mcnemar,
    mean_interval,
    newcombe,
    paired_shares,
    stratified,
    verdict,
    wilson,
)

# --- one share --------------------------------------------------------------------------------


def test_wilson_is_scipys():
    for k, n in [(0, 1), (1, 1), (0, 16), (16, 16), (3, 7), (250, 500), (1, 400)]:
        interval = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert wilson(k, n) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_wilson_by_a_known_example():
    """8 of 10, from a table: 0.490 to 0.943."""
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


def test_none_of_sixteen_is_not_certainty():
    assert mean_interval(np.zeros(16)) == pytest.approx((0, 0, 0.1936), abs=1e-4)
    assert mean_interval(np.ones(16)) == pytest.approx((1, 0.8064, 1), abs=1e-4)
    assert mean_interval([True, False, True, True])[0] == 0.75


@given(st.integers(2, 60), st.data())
def test_values_of_0_and_1_get_the_wilson_interval(n, data):
    k = data.draw(st.integers(0, n))
    values = [1.0] * k + [0.0] * (n - k)
    assert mean_interval(values) == pytest.approx((k / n, *wilson(k, n)))


def test_values_beyond_0_to_1_get_the_t_interval():
    values = np.random.default_rng(0).normal(3, 2, size=25)
    half = stats.t.ppf(0.975, 24) * values.std(ddof=1) / 5
    assert mean_interval(values) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))


def test_one_value_shows_no_spread():
    assert mean_interval([0.5]) == (0.5, 0.0, 1.0)
    assert np.isnan(mean_interval([7.0])[1:]).all()


@pytest.mark.parametrize("a, b, n", [(0.5, 0.5, 30), (0.1, 0.9, 60), (4, 1, 30)])
def test_shares_of_several_samples_are_covered_near_their_rate(a, b, n):
    """Each problem has its own rate, Beta(a, b), and four samples; 600 experiments."""
    rng, covered = np.random.default_rng(1), 0
    for rates in rng.beta(a, b, size=(600, n)):
        _, low, high = mean_interval(rng.binomial(4, rates) / 4)
        covered += low <= a / (a + b) <= high
    assert 0.925 <= covered / 600 <= 0.985


def test_newcombe_by_the_examples_of_its_paper():
    """Newcombe (1998), table II, method 10: 56/70 - 48/80 and 10/10 - 0/20."""
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert newcombe(10, 10, 0, 20) == pytest.approx((1.0, 0.6791, 1.0), abs=1e-4)


# --- seeds and problems as crossed samples ----------------------------------------------------


def test_one_seed_gives_the_t_interval_and_test_over_problems():
    values = np.random.default_rng(0).normal(0.3, size=(1, 25))
    half = stats.t.ppf(0.975, 24) * values.std(ddof=1) / 5
    found = compare(values)
    assert found[:3] == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))
    assert found.p == pytest.approx(stats.ttest_1samp(values[0], 0).pvalue)


def test_seeds_that_differ_alone_give_the_t_interval_over_seeds():
    by_seed = np.array([0.1, 0.4, 0.7])
    half = stats.t.ppf(0.975, 2) * by_seed.std(ddof=1) / math.sqrt(3)
    assert crossed_interval(np.repeat(by_seed[:, None], 40, 1)) == pytest.approx((0.4, 0.4 - half, 0.4 + half))


def test_no_spread_is_no_certainty():
    assert crossed_interval(np.ones((3, 50))) == pytest.approx((1.0, 0.94, 1.06))
    assert crossed_interval(np.ones((1, 50)), np.ones((1, 50))) == pytest.approx((0.0, -0.06, 0.06))
    assert compare(np.ones((1, 50)), np.ones((1, 50))).p == 1 and compare(np.ones((3, 50))).p < 1e-6
    assert np.isnan(crossed_interval(np.full((3, 50), np.nan))).all()


def test_what_can_be_paired_is_paired():
    control = np.random.default_rng(0).normal(size=(1, 30))
    treated = control + np.random.default_rng(1).normal(0.2, 0.01, size=(4, 30))
    mean, low, high = crossed_interval(treated, control)
    assert low < 0.2 < high and high - low < 0.03 and mean == pytest.approx((treated - control).mean())
    assert crossed_interval(treated, control) == pytest.approx(crossed_interval(treated, np.repeat(control, 4, 0)))


@pytest.mark.parametrize("treated, control", [((2, 5), (2, 4)), ((2, 5), (3, 5)), ((3, 5), (2, 5)), ((1, 5), (3, 5))])
def test_shapes_that_cannot_be_paired_are_refused(treated, control):
    """A silent broadcast of (1, n) against (3, n) would claim seeds that are not there."""
    with pytest.raises(ValueError, match="cannot be paired"):
        compare(np.zeros(treated), np.zeros(control))


def test_one_problem_is_too_few():
    with pytest.raises(ValueError, match="at least two"):
        crossed_interval(np.zeros((3, 1)))


CASES = {  # spread of problems, of seeds, of single values
    "seeds alone": (0, 0.1, 0),
    "seeds, noise": (0, 0.1, 0.3),
    "problems, seeds, noise": (0.3, 0.1, 0.4),
    "problems alone": (0.3, 0, 0.01),
    "noise alone": (0, 0, 0.4),
}


@pytest.mark.parametrize("case, seeds", [(case, n) for case in CASES for n in (3, 5)] + [("seeds, noise", 2)])
def test_truth_is_covered_near_95_percent_with_few_seeds(case, seeds):
    """500 experiments of 60 problems. A bootstrap covers 78 % of those with three seeds that alone differ."""
    of_problems, of_seeds, noise = CASES[case]
    rng, covered = np.random.default_rng(7), 0
    for _ in range(500):
        values = rng.normal(0, of_problems, (1, 60)) + rng.normal(0, of_seeds, (seeds, 1))
        _, low, high = crossed_interval(0.5 + values + rng.normal(0, noise, (seeds, 60)))
        covered += low <= 0.5 <= high
    assert 0.925 <= covered / 500 <= 0.995


def test_a_difference_of_the_detectable_size_is_found_in_eight_of_ten():
    rng, found, size = np.random.default_rng(2), 0, 0.0
    for _ in range(300):
        noise = rng.normal(0, 0.4, (5, 100)) + rng.normal(0, 0.05, (5, 1))
        size += compare(noise).detectable / 300
    for _ in range(300):
        noise = rng.normal(0, 0.4, (5, 100)) + rng.normal(0, 0.05, (5, 1))
        found += crossed_interval(size + noise)[1] > 0
    assert 0.70 <= found / 300 <= 0.92


@given(st.integers(0, 10_000))
def test_p_is_below_5_percent_exactly_where_the_interval_excludes_0(seed):
    rng = np.random.default_rng(seed)
    found = compare(rng.normal(rng.normal(0, 0.3), 1, (int(rng.integers(1, 5)), 12)))
    assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


# --- right or wrong, once each ----------------------------------------------------------------


def test_mcnemar_by_hand():
    """9 against 1 of 10 problems that differ: 2 x (1 + 10) / 2^10."""
    assert mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar(0, 0) == 1 and mcnemar(4, 4) == 1


def test_paired_shares_by_hand():
    """Bonett and Price: 9 and 1 of 40 become 10/42 and 2/42; 8/42 +- 1.96 sqrt((12/42 - (8/42)^2) / 42)."""
    half = 1.959964 * math.sqrt((12 / 42 - (8 / 42) ** 2) / 42)
    found = paired_shares(9, 1, 40)
    assert found[:3] == pytest.approx((0.2, 8 / 42 - half, 8 / 42 + half), abs=1e-5)
    assert found.p == mcnemar(9, 1) and found.detectable > half
    assert paired_shares(0, 0, 40).low < 0 < paired_shares(0, 0, 40).high


def test_paired_shares_cover_the_truth():
    """The exact rate: over all outcomes of 60 problems of which 15 % are for one side and 3 % for the other."""
    covered = 0.0
    for b in range(31):
        for c in range(13):
            found = paired_shares(b, c, 60)
            covered += stats.multinomial.pmf([b, c, 60 - b - c], 60, [0.15, 0.03, 0.82]) * (
                found.low <= 0.12 <= found.high
            )
    assert 0.94 <= covered <= 0.98


# --- averages over sets, tables, words --------------------------------------------------------


def test_macro_counts_sets_alike_and_micro_problems():
    values, sets = np.array([[1.0, 1, 1, 0, 0, 0, 0, 0]]), ["a"] * 2 + ["b"] * 6
    assert stratified(values, sets, macro=True).mean() == pytest.approx((1 + 1 / 6) / 2)
    assert stratified(values, sets, macro=False).mean() == pytest.approx(3 / 8)


def test_the_interval_of_a_macro_average_is_that_of_a_stratified_mean():
    """Variance of the mean of two set means: the sum of theirs over four; which sets were chosen adds nothing."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 400), rng.normal(50, 2, 100)
    _, low, high = crossed_interval(stratified(np.concatenate([a, b])[None], ["a"] * 400 + ["b"] * 100, macro=True))
    half = 1.96 * math.sqrt((a.var() / 400 + b.var() / 100) / 4)
    assert (high - low) / 2 == pytest.approx(half, rel=0.02)


def test_a_seeds_luck_stays_in_averages_over_sets():
    luck = np.array([[-0.2], [0.0], [0.2]]) + np.zeros((3, 20))
    whole = stratified(luck + 0.5, ["a"] * 5 + ["b"] * 15, macro=True)
    assert crossed_interval(whole) == pytest.approx(crossed_interval(luck + 0.5))


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 (not below the one before), 0.5 x 1."""
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.04, math.nan])[0] == 0.04 and np.isnan(holm([0.04, math.nan])[1])
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_and_mcnemar_are_those_of_statsmodels(p):
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is not installed (extra dev)")
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


@pytest.mark.parametrize(
    "interval, expected, same, words",
    [
        ((0.1, 0.02, 0.2), "more", False, "agrees"),
        ((0.1, 0.02, 0.2), "less", False, "disagrees"),
        ((-0.1, -0.2, -0.02), None, False, "less"),
        ((0.1, -0.02, 0.2), "more", False, "no difference found (smallest detectable 0.300)"),
        ((0.0, -0.02, 0.02), "more", True, "not run (a model compared with itself)"),
        ((math.nan, math.nan, math.nan), "more", False, "not testable here (no values on one side)"),
    ],
)
def test_verdicts(interval, expected, same, words):
    assert verdict(Comparison(*interval, 0.3, 0.5), expected, same) == words
