"""Statements (a) to (g) of notebook 09 on rewards.py itself, and theory.py against brute force.

The brute force goes through every sequence of verdicts with its probability and shares no code with theory.py.
"""

import itertools
import math
import statistics

import jupytext
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from tracelift_lib.planner import theory
from tracelift_lib.planner.rewards import ARMS, code_coefficient, released_code_reward, uplift
from tracelift_lib.runs.run_notebooks import NOTEBOOKS, convert, without_solutions

unit = st.floats(0, 1)
inner = st.floats(0.02, 0.98)
effect = st.floats(-1, 1)
runs = st.integers(1, 3)


def verdicts(p, k):
    """Every sequence of k verdicts with its probability."""
    return [(list(y), math.prod(p if v else 1 - p for v in y)) for y in itertools.product((0, 1), repeat=k)]


def expectation(function, *sources):
    """Mean of function(sequence, ...) over independent sources."""
    return sum(
        function(*(y for y, _ in combination)) * math.prod(w for _, w in combination)
        for combination in itertools.product(*sources)
    )


def expected_reward(arm, p_z, q, p_0, k, j=0.0):
    """Brute force: one run for s, k more with the trace, k without."""
    return expectation(
        lambda s, a, b: ARMS[arm](s[0], q, uplift(a, b), j), verdicts(p_z, 1), verdicts(p_z, k), verdicts(p_0, k)
    )


# --- (a) the uplift ---------------------------------------------------------------------------


@given(unit, unit, runs, runs)
def test_a_the_uplift_is_unbiased_with_the_stated_variance(p_z, p_0, k, k_0):
    tau = p_z - p_0
    with_trace, without = verdicts(p_z, k), verdicts(p_0, k_0)
    assert expectation(uplift, with_trace, without) == pytest.approx(tau, abs=1e-12)
    variance = expectation(lambda a, b: (uplift(a, b) - tau) ** 2, with_trace, without)
    assert variance == pytest.approx(p_z * (1 - p_z) / k + p_0 * (1 - p_0) / k_0, abs=1e-12)
    assert theory.uplift_variance(p_z, p_0, k, k_0) == pytest.approx(variance, abs=1e-12)


@given(unit, unit, unit, st.integers(1, 2), st.integers(1, 2))
def test_a_a_shared_baseline_correlates_a_group_and_leaves_differences_alone(p_1, p_2, p_0, k, k_0):
    one, two, base = verdicts(p_1, k), verdicts(p_2, k), verdicts(p_0, k_0)
    covariance = expectation(lambda x, y, b: (uplift(x, b) - p_1 + p_0) * (uplift(y, b) - p_2 + p_0), one, two, base)
    own = expectation(lambda x, y, b, c: (uplift(x, b) - p_1 + p_0) * (uplift(y, c) - p_2 + p_0), one, two, base, base)
    difference = expectation(lambda x, y, b: (uplift(x, b) - uplift(y, b) - p_1 + p_2) ** 2, one, two, base)
    table = theory.uplift_covariance(np.array([p_1, p_2]), p_0, k, k_0, shared=True)
    assert table[0, 1] == table[1, 0] == pytest.approx(covariance, abs=1e-12)
    assert theory.uplift_covariance(np.array([p_1, p_2]), p_0, k, k_0, False)[0, 1] == pytest.approx(own, abs=1e-12)
    assert table[0, 0] + table[1, 1] - 2 * table[0, 1] == pytest.approx(difference, abs=1e-12)
    assert difference == pytest.approx(p_1 * (1 - p_1) / k + p_2 * (1 - p_2) / k, abs=1e-12)  # no p_0 in it


# --- (b) zero effect, and signs ---------------------------------------------------------------


@given(unit, unit, unit, st.integers(1, 2))
@example(0.4, 0.4, 1.0, 2)
def test_b_the_expected_bonus_is_quality_times_effect(p_z, p_0, q, k):
    bonus = expected_reward("tracelift", p_z, q, p_0, k) - 0.5 * p_z
    assert bonus == pytest.approx(0.5 * q * (p_z - p_0), abs=1e-12)
    assert expected_reward("rm_uplift_only", p_z, q, p_0, k) == pytest.approx(q * (p_z - p_0), abs=1e-12)
    assert expected_reward("llm_judge", p_z, 0.0, p_0, k, j=q) == pytest.approx(0.5 * p_z + bonus, abs=1e-12)


def expected_coefficient(p_z, p_0, k, ties=None):
    return expectation(lambda a, b: code_coefficient(sum(a), sum(b), k, ties), verdicts(p_z, k), verdicts(p_0, k))


@given(st.floats(0.05, 1), runs)
def test_b_the_released_coefficient_pays_where_there_is_no_effect(p, k):
    """Unless its table of ties is zero."""
    assert expected_coefficient(p, p, k) > 0
    assert expected_coefficient(p, p, k, [0.0] * (k + 1)) == pytest.approx(0, abs=1e-12)


@given(unit, unit, runs)
def test_b_with_zero_ties_the_coefficient_has_the_sign_of_the_effect(p_z, p_0, k):
    assume(abs(p_z - p_0) > 1e-3)
    assert math.copysign(1, expected_coefficient(p_z, p_0, k, [0.0] * (k + 1))) == math.copysign(1, p_z - p_0)


# --- (c) the saturated judge ------------------------------------------------------------------


@given(st.floats(0.01, 1), unit, unit, unit, st.integers(1, 2))
def test_c_a_constant_judge_ranks_by_success(c, p_1, p_2, p_0, k):
    first, second = (expected_reward("llm_judge", p, 0.3, p_0, k, j=c) for p in (p_1, p_2))
    assert first - second == pytest.approx(0.5 * (1 + c) * (p_1 - p_2), abs=1e-12)


rewards = st.lists(st.floats(-1, 1), min_size=1, max_size=7)


@given(st.floats(-1, 1), st.floats(0.001, 1), rewards)
@example(0.0, 0.5, [0.0, 0.0, 0.0])
@example(0.9, 0.1, [-1.0, 0.1])
def test_c_an_advantage_rises_with_its_own_reward(own, more, others):
    """Step 1 of the proof, at every place, far above and far below the rest."""
    low, high = (theory.advantages([x, *others])[0] for x in (own, own + more))
    assert high > low


@settings(max_examples=25)
@given(
    st.lists(inner, min_size=2, max_size=3, unique=True),
    st.sampled_from([0.3, 1.0]),
    st.integers(1, 3),
    st.integers(2, 3),
)
def test_c_grpo_ranks_as_success_does(p, c, k, generations):
    assume(min(abs(a - b) for a, b in itertools.combinations(p, 2)) > 1e-3)
    policy = np.full(len(p), 1 / len(p))
    orders = []
    for arm in ("exec_only", "llm_judge"):
        distributions = [theory.reward_distribution(arm, x, c, 0.4, k) for x in p]
        orders.append(np.argsort(theory.expected_advantages(policy, distributions, generations)).tolist())
    assert orders[0] == orders[1] == np.argsort(p).tolist()


@given(unit, unit, unit, unit, unit, unit)
def test_c_a_judge_reverses_only_pairs_within_its_spread(c, j_1, j_2, p_1, p_2, p_0):
    r_1, r_2 = (ARMS["llm_judge"](p, 0.0, p - p_0, j) for p, j in ((p_1, j_1), (p_2, j_2)))
    spread = max(abs(j_1 - c), abs(j_2 - c))
    if (1 + c) * (p_1 - p_2) > spread * (abs(p_1 - p_0) + abs(p_2 - p_0)) + 1e-12:
        assert r_1 > r_2


@pytest.mark.parametrize("c, k, value", [(1, 3, 3), (1, 1, 2), (3, 3, 4), (0.5, 1, 1.8)])
def test_c_effective_runs_by_hand(c, k, value):
    assert theory.effective_runs(c, k) == pytest.approx(value)


# --- (d) the baseline -------------------------------------------------------------------------

parts = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3), unit), min_size=3, max_size=6)


def grouped(group, b, quality=None):
    return np.array([ARMS["tracelift"](s, q if quality is None else quality, a / 3 - b, 0.0) for s, a, q in group])


@given(parts, unit, unit, unit)
def test_d_a_baseline_cancels_where_quality_is_constant(group, q, b, other):
    for normalise in (False, True):
        one, two = (theory.advantages(grouped(group, x, q), normalise) for x in (b, other))
        assert one == pytest.approx(two, abs=1e-10)


@given(parts, unit, unit)
def test_d_elsewhere_it_shifts_by_the_deviation_of_quality(group, b, other):
    quality = np.array([q for *_, q in group])
    assume(np.ptp(quality) > 0.01 and abs(b - other) > 0.01)
    shift = theory.advantages(grouped(group, b), False) - theory.advantages(grouped(group, other), False)
    assert shift == pytest.approx(-0.5 * (b - other) * (quality - quality.mean()), abs=1e-12)
    assert abs(shift).max() > 1e-6


@given(st.tuples(unit, unit), st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)))
def test_d_in_a_pair_only_the_sign_is_left(s, q):
    """G = 2: normalised advantages are plus and minus 1 / sqrt(2), whatever the baseline."""
    r = np.array([ARMS["tracelift"](a, x, 0.5, 0.0) for a, x in zip(s, q)])
    assume(abs(r[0] - r[1]) > 1e-3)
    assert theory.advantages(r, epsilon=0.0) == pytest.approx(np.sign(r[0] - r[1]) * np.array([1, -1]) / math.sqrt(2))


# --- (e), (f) credit --------------------------------------------------------------------------


gain = st.floats(0.01, 0.2)


@given(st.floats(0, 0.8), gain, unit, st.floats(0, 0.8), gain)
def test_e_f_quality_and_effect_in_the_expected_reward(p, more, p_0, q, q_more):
    better, q_better = p + more, q + q_more

    def R(p, q):
        return ARMS["tracelift"](p, q, p - p_0, 0.0)

    assert R(p, q) == pytest.approx(0.5 * p_0 + 0.5 * (1 + q) * (p - p_0))
    assume(abs(p - p_0) > 1e-3)
    assert R(better, q) > R(p, q)  # more useful at equal quality
    assert (R(p, q_better) > R(p, q)) == (p > p_0)  # better reasoning: credit if it helps, penalty if it harms
    assert R(better, q_better) - R(better, q) > R(p, q_better) - R(p, q)  # complements
    harm = ARMS["no_uplift"](p, q_better, -1.0, 0.0) - ARMS["no_uplift"](p, q, -1.0, 0.0)
    assert harm > 0  # the ablation pays even then


# --- (g) the clip -----------------------------------------------------------------------------


@given(unit, unit, effect)
def test_g_what_the_clip_leaves_of_the_bonus(s, q, c):
    bonus = released_code_reward(s, q, c) - s
    assert bonus == pytest.approx(min(0.2 * q * c, 1 - s) if c > 0 else -min(-0.2 * q * c, s), abs=1e-12)
    assert released_code_reward(1.0, q, abs(c)) == 1.0 and released_code_reward(0.0, q, -abs(c)) == 0.0


@given(unit, unit, unit, st.integers(1, 3), st.floats(0, 0.9))
def test_g_the_expected_bonus_by_brute_force(p_z, p_0, q, k, s_failed):
    def bonus(own, a, b):
        s = 1.0 if own[0] else s_failed
        return released_code_reward(s, q, code_coefficient(sum(a), sum(b), k)) - s

    brute = expectation(bonus, verdicts(p_z, 1), verdicts(p_z, k), verdicts(p_0, k))
    assert theory.released_bonus(np.array([p_z]), np.array([p_0]), q, k, s_failed)[0] == pytest.approx(brute, abs=1e-12)


@given(unit, unit, runs, unit)
def test_g_a_reliable_trace_never_gains(p_0, q, k, s_failed):
    assert theory.released_bonus(np.array(1.0), np.array(p_0), q, k, s_failed) <= 1e-12


# --- theory.py: distributions and moments -----------------------------------------------------


@given(unit, st.integers(1, 4))
def test_counts_of_successes(p, k):
    brute = [sum(w for y, w in verdicts(p, k) if sum(y) == a) for a in range(k + 1)]
    assert theory.binomial(k, p) == pytest.approx(brute, abs=1e-12)
    assert theory.binomial(k, np.array([[p, 1 - p]])).shape == (k + 1, 1, 2)


@given(unit, unit, runs, runs, st.floats(-1, 1))
def test_the_distribution_of_the_uplift(p_z, p_0, k, k_0, at):
    values, weights = theory.uplift_distribution(p_z, p_0, k, k_0)
    assert weights.sum() == pytest.approx(1)
    # A hair's breadth: two ways to compute k/n - l/m may differ in the last digit.
    below = expectation(lambda a, b: float(uplift(a, b) <= at + 1e-9), verdicts(p_z, k), verdicts(p_0, k_0))
    assert weights[values <= at + 1e-9].sum() == pytest.approx(below, abs=1e-9)


@given(unit, unit, unit, runs, st.floats(0, 0.3))
def test_moments_of_the_reward_in_closed_form(p_z, q, p_0, k, q_sd):
    """Statement (j) 1, for tracelift and its ablations."""
    v, tau = p_z * (1 - p_z), p_z - p_0
    variances = {
        "exec_only": v,
        "tracelift": v / 4 + (q**2 * v / k + q_sd**2 * (tau**2 + v / k)) / 4,
        "no_uplift": v / 4 + q_sd**2 / 4,
        "rm_uplift_only": q**2 * v / k + q_sd**2 * (tau**2 + v / k),
    }
    for arm, variance in variances.items():
        means, seen = theory.reward_moments(arm, [p_z], [q], p_0, k, q_sd)
        assert means[0] == pytest.approx(ARMS[arm](p_z, q, tau, q), abs=1e-12)
        assert seen[0] == pytest.approx(variance, abs=1e-12)


# --- theory.py: groups ------------------------------------------------------------------------


def group_rewards(policy, values, weights, generations):
    """Every group: (traces, rewards, probability); each trace has a list of values and weights."""
    single = [(i, v, policy[i] * w) for i in range(len(policy)) for v, w in zip(values[i], weights[i])]
    for group in itertools.product(single, repeat=generations):
        yield [i for i, _, _ in group], [v for _, v, _ in group], math.prod(w for *_, w in group)


CASE = ([0.5, 0.3, 0.2], [[0.0, 1.0], [-0.5, 0.25], [0.4, 0.4]], [[0.3, 0.7], [0.6, 0.4], [0.5, 0.5]])


@pytest.mark.parametrize("generations", [2, 3, 4])
@pytest.mark.parametrize("normalise", [False, True])
def test_expected_advantages_by_brute_force(generations, normalise):
    policy, values, weights = CASE
    total, chance = [0.0] * 3, [0.0] * 3
    for traces, r, w in group_rewards(policy, values, weights, generations):
        a = r[0] - statistics.fmean(r)
        total[traces[0]] += w * (a / (statistics.stdev(r) + 1e-4) if normalise else a)
        chance[traces[0]] += w
    expected = [t / c for t, c in zip(total, chance)]
    pairs = [(np.array(v), np.array(w)) for v, w in zip(values, weights)]
    assert theory.expected_advantages(np.array(policy), pairs, generations, normalise) == pytest.approx(expected)


@pytest.mark.parametrize("generations", [2, 3, 4])
def test_expected_update_and_its_noise_by_brute_force(generations):
    """(i) 1 and (j): mean and covariance of one group's centred update, over all groups."""
    policy, values, weights = CASE
    updates, chances = [], []
    for traces, r, w in group_rewards(policy, values, weights, generations):
        g = np.zeros(3)
        for i, x in zip(traces, r):
            g += (x - statistics.fmean(r)) * (np.eye(3)[i] - policy) / generations
        updates.append(g)
        chances.append(w)
        assert theory.sampled_updates(np.array([traces]), np.array([r]), 3, False)[0] == pytest.approx(g, abs=1e-12)
    updates, chances = np.array(updates), np.array(chances)
    mean = chances @ updates
    spread = chances @ ((updates - mean) ** 2).sum(1)
    means = np.array([np.dot(v, w) for v, w in zip(values, weights)])
    variances = np.array([np.dot(np.square(v), w) for v, w in zip(values, weights)]) - means**2
    assert (1 - 1 / generations) * theory.expected_update(np.array(policy), means) == pytest.approx(mean, abs=1e-12)
    snr = theory.gradient_snr(np.array(policy), means, variances, generations)
    assert snr == pytest.approx(np.linalg.norm(mean) / math.sqrt(spread))


def test_advantages_are_those_of_the_trainer():
    r = [1.0, 0.5, 0.0, 0.5]
    expected = [(x - 0.5) / (statistics.stdev(r) + 1e-4) for x in r]
    assert theory.advantages(np.array([r, r]))[1] == pytest.approx(expected)
    assert theory.advantages([0.3, 0.3, 0.3]) == pytest.approx([0, 0, 0])


@given(st.floats(0.02, 0.3), st.sampled_from([0.1, 0.05, 0.01]), st.sampled_from([2, 4, 8]))
def test_planning_by_hand_and_what_the_plan_delivers(delta, alpha, generations):
    """Exact for Bernoulli rewards: the bound keeps its promise; the normal plan is close where it needs many groups."""
    p = 0.5 + delta / 2, 0.5 - delta / 2
    normal = theory.groups_needed(delta, alpha, tuple(x * (1 - x) for x in p), generations)
    noise = 2 / generations * sum(x * (1 - x) for x in p)
    assert normal - 1 < stats.norm.isf(alpha) ** 2 * noise / delta**2 <= normal
    safe = theory.groups_needed_hoeffding(delta, alpha, 1.0, generations)
    assert safe > normal

    def error(groups):
        m = groups * generations // 2
        first, second = (stats.binom(m, x) for x in p)
        counts = np.arange(m + 1)
        return float(second.pmf(counts) @ (first.cdf(counts - 1) + first.pmf(counts) / 2))

    assert error(safe) <= alpha
    m = normal * generations
    assert abs(error(normal) - alpha) <= 0.56 / math.sqrt(m * noise * generations / 4) + 1 / m


def test_a_shared_baseline_adds_to_the_plan_only_with_unequal_quality():
    plain = theory.groups_needed(0.05, 0.05, (0.1, 0.1), 4)
    assert theory.groups_needed(0.05, 0.05, (0.1, 0.1), 4, 0.02) > plain


# --- theory.py: the softmax policy ------------------------------------------------------------

R = np.array([0.3, 0.7, 0.5])


def test_the_expected_update_is_the_gradient():
    logits = np.array([0.2, -0.5, 1.0])
    step = 1e-6
    numeric = [
        (theory.softmax(logits + step * e) @ R - theory.softmax(logits - step * e) @ R) / (2 * step) for e in np.eye(3)
    ]
    assert theory.expected_update(theory.softmax(logits), R) == pytest.approx(numeric, abs=1e-9)


def test_the_flow_is_that_of_an_independent_integrator():
    start = np.array([0.6, 0.1, 0.3])
    path = theory.flow(start, R, time=40.0, steps=200)
    solved = integrate.solve_ivp(
        lambda t, x: theory.expected_update(theory.softmax(x), R), (0, 40), np.log(start), rtol=1e-10, atol=1e-12
    )
    assert path.shape == (201, 3) and path[0] == pytest.approx(start)
    assert path[-1] == pytest.approx(theory.softmax(solved.y[:, -1]), abs=1e-6)


@settings(max_examples=20)
@given(st.lists(st.floats(0.02, 1), min_size=3, max_size=3), st.permutations([0.1, 0.5, 0.9]))
def test_the_flow_climbs_to_the_best_trace_from_everywhere(weights, values):
    start, r = np.array(weights) / sum(weights), np.array(values)
    path = theory.flow(start, r, time=2000.0, steps=500)
    J = path @ r
    assert (np.diff(J) >= -1e-9).all()
    least = path[:, r.argmax()].min()
    assert r.max() - J[-1] <= 1 / (least**2 * 2000)


def test_a_tie_is_never_decided_by_the_flow():
    path = theory.flow(np.array([0.3, 0.2, 0.5]), np.array([0.9, 0.9, 0.2]), time=3000.0, steps=1000)
    ratio = path[:, 0] / path[:, 1]
    assert (np.diff(ratio) >= -1e-9).all() and 1.5 < ratio[-1] < 100  # the more frequent gains, and stops
    assert path[-1, 2] < 0.01


# --- theory.py: checks of simulations ---------------------------------------------------------


def test_simulated_groups_are_draws_of_the_reward_parts():
    s, u = theory.simulate(np.random.default_rng(0), 20_000, np.array([0.9, 0.2]), 0.5, 3, 2, shared=True)
    possible = {round(uplift([1] * a + [0] * (3 - a), [1] * b + [0] * (2 - b)), 9) for a in range(4) for b in range(3)}
    assert set(u.round(9).ravel()) == possible and set(s.ravel()) == {0.0, 1.0}
    difference = (u[:, 0] - u[:, 1]) * 3
    assert difference == pytest.approx(difference.round())  # one baseline for both: it cancels
    again = theory.simulate(np.random.default_rng(0), 20_000, np.array([0.9, 0.2]), 0.5, 3, 2, shared=True)
    assert (again[0] == s).all() and (again[1] == u).all()
    own = theory.simulate(np.random.default_rng(0), 1000, np.array([0.9, 0.2]), 0.5, 3, 2, shared=False)[1]
    assert not np.allclose((own[:, 0] - own[:, 1]) * 3, ((own[:, 0] - own[:, 1]) * 3).round())
    for column, (mean_s, mean_u) in enumerate([(0.9, 0.4), (0.2, -0.3)]):
        assert abs(theory.against(s[:, column], mean_s)["z"]) < theory.z_limit(4)
        assert abs(theory.against(u[:, column], mean_u)["z"]) < theory.z_limit(4)


def test_the_check_of_a_mean_finds_a_wrong_one_and_passes_a_right_one():
    samples = np.random.default_rng(1).normal(2.0, 1.0, (10_000, 3))
    found = theory.against(samples, [2.0, 2.0, 2.1])
    assert (abs(found["z"][:2]) < theory.z_limit(3)).all() and found["z"][2] < -theory.z_limit(3)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.01, rel=0.05)
    constant = theory.against(np.ones((5, 2)), [1.0, 0.9])
    assert constant["z"][0] == 0 and constant["z"][1] == math.inf


def test_limits_share_one_false_alarm():
    assert theory.z_limit(1, 0.05) == pytest.approx(1.959964, abs=1e-5)
    assert 1 - math.erf(theory.z_limit(10) / math.sqrt(2)) == pytest.approx(theory.FALSE_ALARM / 10)


# --- the notebook -----------------------------------------------------------------------------


def test_a_copy_for_a_course_is_the_notebook_without_its_solutions():
    """One source: the solutions are tagged cells, and nothing after them needs what they define."""
    source = jupytext.read(NOTEBOOKS / "09_theory_checks.py")
    solutions = [c for c in source.cells if "solution" in c.metadata.get("tags", [])]
    assert len(solutions) >= 3
    assert all(c.metadata.get("jupyter", {}).get("source_hidden") for c in solutions if c.cell_type == "code")
    notebook = convert(NOTEBOOKS / "09_theory_checks.py")
    text = "\n".join(c.source for c in without_solutions(notebook).cells)
    assert "## Exercises" in text and not any(c.source in text for c in solutions)
    assert all(c in source.cells[-6:] for c in solutions)  # they come last, so no other cell can depend on them
