"""Intervals against independent formulas and simulations; the two-stage evaluation with stand-ins."""

import math
import random

import numpy as np
import pandas as pd
import pytest
from common import story
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tracelift_lib.evaluation.intervals import crossed_interval, newcombe
from tracelift_lib.evaluation.planner_evaluation import (
    evaluate_planner,
    mean_interval,
    paired_bootstrap,
    per_problem,
    wilson,
)
from tracelift_lib.groups.habits import write_habit
from tracelift_lib.problems.prompts import PromptLimits, wrap_trace
from tracelift_lib.problems.tinyworld import generate_splits, read_calculations

# --- Wilson -----------------------------------------------------------------------------------

Z = 1.959963984540054


@given(st.integers(1, 500), st.data())
def test_wilson_against_its_formula(n, data):
    k = data.draw(st.integers(0, n))
    p = k / n
    center = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    assert wilson(k, n) == pytest.approx((max(0, center - half), min(1, center + half)), abs=1e-9)


def test_wilson_by_a_known_example():
    """8 of 10, from a table: 0.490 to 0.943."""
    assert wilson(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


# --- the paired bootstrap ---------------------------------------------------------------------


def test_the_mean_is_the_plain_mean_difference():
    treated, control = np.array([[1.0, 0, 1], [1, 1, 1]]), np.array([[0.0, 0, 1], [1, 0, 0]])
    mean, low, high = paired_bootstrap(treated, control, 500, seed=0)
    assert mean == pytest.approx((2 / 3 + 1) / 2 - 1 / 3)  # (5 - 2) / 6 = 0.5
    assert low <= mean <= high


def test_without_control_it_is_the_mean_itself():
    values = np.array([[0.2, 0.4, 0.9]])
    assert paired_bootstrap(values, None, 300, seed=1)[0] == pytest.approx(0.5)
    assert mean_interval(values[0], 300, seed=1) == paired_bootstrap(values, None, 300, seed=1)
    assert mean_interval(np.array([True, False, True, True]), 50, seed=0)[0] == pytest.approx(0.75)


@pytest.mark.parametrize("treated, control", [((2, 5), (2, 4)), ((2, 5), (3, 5)), ((3, 5), (2, 5)), ((1, 5), (3, 5))])
def test_shapes_that_cannot_be_paired_are_refused(treated, control):
    """A silent broadcast of (1, n) against (3, n) would claim seeds that are not there."""
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_bootstrap(np.zeros(treated), np.zeros(control), 10, seed=0)


def test_one_row_of_control_serves_all_seeds():
    treated = np.array([[1.0, 2.0], [3.0, 4.0]])
    repeated = paired_bootstrap(treated, np.array([[0.5, 1.0], [0.5, 1.0]]), 200, seed=3)
    assert paired_bootstrap(treated, np.array([[0.5, 1.0]]), 200, seed=3) == pytest.approx(repeated)


def test_same_seed_same_interval():
    values = np.random.default_rng(0).random((3, 30))
    assert paired_bootstrap(values, None, 100, seed=4) == paired_bootstrap(values, None, 100, seed=4)
    assert paired_bootstrap(values, None, 100, seed=4) != paired_bootstrap(values, None, 100, seed=5)


def test_pairing_cancels_what_is_common_to_a_problem():
    """Problems from -50 to 50, and the treated side always 0.3 above: no spread is left in the difference."""
    common = np.linspace(-50, 50, 40)[None, :]
    mean, low, high = paired_bootstrap(common + 0.3, common, 200, seed=0)
    assert (mean, low, high) == pytest.approx((0.3, 0.3, 0.3))
    unpaired = paired_bootstrap(common + 0.3, np.random.default_rng(0).permutation(common[0])[None, :], 200, seed=0)
    assert unpaired[2] - unpaired[1] > 10


def test_pairing_cancels_what_is_common_to_a_seed():
    luck = np.array([[0.0], [5.0], [-9.0]]) + np.zeros((3, 20))
    assert paired_bootstrap(luck + 0.1, luck, 100, seed=0) == pytest.approx((0.1, 0.1, 0.1))


def test_seeds_are_resampled_too():
    """Two seeds that differ by 1 on every problem: the resampled means are 0, 1/2 or 1; each end in a quarter."""
    treated = np.array([[0.0] * 50, [1.0] * 50])
    assert paired_bootstrap(treated, None, 400, seed=0) == pytest.approx((0.5, 0.0, 1.0))


def test_interval_against_the_exact_distribution():
    """One seed, 3 problems with values 0, 0, 1: the resampled mean is Binomial(3, 1/3) / 3.

    P(0) = 8/27 and P(1) = 1/27 = 0.037, both beyond 2.5 %, so the interval is [0, 1]. With 2 ones in 60
    problems the sum of a resample is Binomial(60, 1/30): P(0) = 0.131, P(>= 5) = 0.048, P(>= 6) = 0.014.
    """
    assert paired_bootstrap(np.array([[0.0, 0, 1]]), None, 4000, seed=0)[1:] == pytest.approx((0, 1))
    sparse = np.array([[1.0] * 2 + [0.0] * 58])
    assert paired_bootstrap(sparse, None, 4000, seed=0)[1:] == pytest.approx((0, 5 / 60))


def test_interval_covers_the_true_difference_at_about_its_rate():
    """200 simulated experiments, one seed, 40 problems with a strong common part; nominal rate 95 %."""
    rng = np.random.default_rng(11)
    covered = 0
    for i in range(200):
        ability = rng.normal(0, 3, size=(1, 40))
        treated = ability + 0.5 + rng.normal(0, 1, size=(1, 40))
        control = ability + rng.normal(0, 1, size=(1, 40))
        _, low, high = paired_bootstrap(treated, control, 200, seed=i)
        covered += low <= 0.5 <= high
    assert 176 <= covered <= 199  # 88 % to 99.5 %


# --- seeds and problems as crossed samples ----------------------------------------------------


def test_newcombe_by_the_examples_of_its_paper():
    """Newcombe (1998), table II, method 10: 56/70 - 48/80 and 10/10 - 0/20."""
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert newcombe(10, 10, 0, 20) == pytest.approx((1.0, 0.6791, 1.0), abs=1e-4)


def test_one_seed_gives_the_t_interval_over_problems():
    values = np.random.default_rng(0).normal(size=(1, 25))
    half = stats.t.ppf(0.975, 24) * values.std(ddof=1) / 5
    assert crossed_interval(values) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half))


def test_seeds_that_differ_alone_give_the_t_interval_over_seeds():
    by_seed = np.array([0.1, 0.4, 0.7])
    half = stats.t.ppf(0.975, 2) * by_seed.std(ddof=1) / math.sqrt(3)
    assert crossed_interval(np.repeat(by_seed[:, None], 40, 1)) == pytest.approx((0.4, 0.4 - half, 0.4 + half))


def test_no_spread_is_no_certainty():
    assert crossed_interval(np.ones((3, 50))) == pytest.approx((1.0, 0.94, 1.06))
    assert crossed_interval(np.ones((1, 50)), np.ones((1, 50))) == pytest.approx((0.0, -0.06, 0.06))
    assert np.isnan(crossed_interval(np.full((3, 50), np.nan))).all()


def test_crossed_pairs_what_can_be_paired():
    control = np.random.default_rng(0).normal(size=(1, 30))
    treated = control + np.random.default_rng(1).normal(0.2, 0.01, size=(4, 30))
    mean, low, high = crossed_interval(treated, control)
    assert low < 0.2 < high and high - low < 0.02 and mean == pytest.approx((treated - control).mean())
    with pytest.raises(ValueError, match="cannot be paired"):
        crossed_interval(np.zeros((1, 5)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="at least two"):
        crossed_interval(np.zeros((3, 1)))


@pytest.mark.parametrize("seeds, luck, least", [(3, 0.0, 0.93), (3, 0.1, 0.92), (5, 0.1, 0.92)])
def test_crossed_covers_the_truth_with_few_seeds(seeds, luck, least):
    """1,000 simulated experiments of 100 problems each; `luck` is the spread between seeds."""
    rng, covered = np.random.default_rng(7), 0
    for _ in range(1000):
        problems, luck_of = rng.normal(0, 0.3, size=(1, 100)), rng.normal(0, luck, size=(seeds, 1))
        _, low, high = crossed_interval(0.5 + problems + luck_of + rng.normal(0, 0.4, size=(seeds, 100)))
        covered += low <= 0.5 <= high
    assert covered >= 1000 * least


def test_a_bootstrap_over_three_seeds_is_too_narrow():
    """Why there is a second interval; intervals.py names the rate."""
    rng, covered = np.random.default_rng(3), 0
    for i in range(200):
        values = rng.normal(0, 0.1, size=(3, 1)) + rng.normal(0, 0.3, size=(3, 100))
        _, low, high = paired_bootstrap(values, None, 200, seed=i)
        covered += low <= 0 <= high
    assert covered <= 176  # at most 88 %


# --- means ------------------------------------------------------------------------------------


def test_per_problem_means_come_in_order_of_the_ids():
    rows = pd.DataFrame({"problem_id": ["c", "a", "b", "a", "c", "c"], "x": [3.0, 1, 2, 0, 0, 0], "y": 9.0})
    assert per_problem(rows, "x").tolist() == [0.5, 2.0, 1.0]
    assert per_problem(rows.sample(frac=1, random_state=3), "x").tolist() == [0.5, 2.0, 1.0]


# --- the two stages ---------------------------------------------------------------------------


class FakeTokenizer:
    chat_template = None

    def __call__(self, texts):
        return {"input_ids": [list(range(len(t.split()))) for t in texts]}


class FakePlanner:
    tokenizer = FakeTokenizer()

    def __init__(self, completions):
        self.completions = completions

    def sample(self, prompts, n, seed, progress=None):
        self.asked = (list(prompts), n, seed)
        return self.completions


class FakeExecutor:
    """Succeeds exactly with traces that say so."""

    def verdicts(self, problems, traces, n, seed, progress=None):
        self.asked = ([p.problem_id for p in problems], list(traces), n, seed)
        return np.array([["success" in z] for z in traces], dtype=int).reshape(len(traces), n)


class FakeScorer:
    """A quality that can be told from the trace: its length over 100."""

    def score(self, problems, traces, progress=None):
        return np.array([len(z) / 100 for z in traces]), np.zeros((len(traces), 5))


def evaluate(completions, problems, second=None):
    planner, executor = FakePlanner(completions), FakeExecutor()
    n = len(completions[0])
    rows = evaluate_planner(planner, executor, FakeScorer(), problems, n, "short", PromptLimits(), 5, second)
    return rows, planner, executor


def test_each_row_has_the_values_of_its_own_trace():
    """Malformed completions stand in between, so a shifted row would show."""
    a, b = story(3, ("+", 2), problem_id="a"), story(4, ("*", 2), problem_id="b")
    rows, planner, executor = evaluate(
        [
            [wrap_trace("gets 2: 3 + 2 = 5 success"), "no tags success", wrap_trace("wrong")],
            ["<reasoning></reasoning>", wrap_trace("times 2: 4 * 2 = 8"), wrap_trace("gets 2: 3 + 2 = 5 success")],
        ],
        [a, b],
    )
    assert rows["problem_id"].tolist() == ["a"] * 3 + ["b"] * 3 and rows["sample"].tolist() == [0, 1, 2] * 2
    assert [z if isinstance(z, str) else None for z in rows["trace"]] == [
        "gets 2: 3 + 2 = 5 success",
        None,
        "wrong",
        None,
        "times 2: 4 * 2 = 8",
        "gets 2: 3 + 2 = 5 success",
    ]
    assert rows["success"].tolist() == [1, 0, 0, 0, 0, 1]
    assert rows["faithful"].tolist() == [1, 0, 0, 0, 1, 0]  # the last trace is true of the other problem
    assert rows["quality"].tolist() == pytest.approx([0.25, 0, 0.05, 0, 0.18, 0.25])
    assert rows["tokens"].tolist() == [8, 0, 1, 0, 7, 8]
    assert executor.asked[0] == ["a", "a", "b", "b"] and executor.asked[2] == 1
    assert planner.asked[1] == 3 and a.problem in planner.asked[0][0] and b.problem in planner.asked[0][1]


def test_a_planner_that_never_keeps_the_format_scores_zero():
    rows, _, _ = evaluate([["x", "y"]], [story(3, ("+", 2))], FakeExecutor())
    measures = ["success", "faithful", "quality", "tokens", "second", "intermediate"]
    assert rows[measures].to_numpy().tolist() == [[0] * 6] * 2


class Reading:
    """Right if one of the trace's results, of those that `which` picks, is the answer to what it is asked."""

    def __init__(self, which):
        self.which = which

    def verdicts(self, problems, traces, n, seed, progress=None):
        found = [[str(c.after) for c in self.which(read_calculations(z))] for z in traces]
        return np.array([[int(p.answer in results)] * n for p, results in zip(problems, found)])


def test_other_readers_of_a_trace():
    """An executor that takes the last result of a trace, and a second one that takes the first."""
    p = generate_splits({"a": 1}, {"a": [2]}, 9, 20, seed=1, shortcut={"a": 1.0})["a"][0]
    traces = [p.reference_solution, write_habit(p, "lucky_order", random.Random(0)), "nothing"]
    rows = evaluate_planner(
        FakePlanner([[wrap_trace(z) for z in traces]]),
        Reading(lambda results: results[-1:]),
        FakeScorer(),
        [p],
        3,
        "short",
        PromptLimits(),
        7,
        second=Reading(lambda results: results[:1]),
    )
    assert rows["habit"].tolist() == ["full", "lucky_order", "bare_answer"]
    assert rows["success"].tolist() == rows["sufficient"].tolist() == [1, 1, 0]
    assert rows["corrupted"].tolist() == [0, 0, 0]  # one step falsified: the last result is no longer the answer
    assert rows["second"].tolist() == [0, 0, 0]  # the first result is not what is asked at the end
    assert rows["intermediate"].tolist() == [1, 0, 0]  # but what comes after the first event, if the order is right
    assert rows["well_formed"].tolist() == [1, 1, 1]
