"""The reward of every arm, against numbers by hand and the properties that docs/method.md states."""

import math
import statistics

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tracelift_lib.planner.rewards import ARMS, NEEDS, code_coefficient, compares, released_code_reward, uplift

unit = st.floats(0, 1)
effect = st.floats(-1, 1)
verdicts = st.lists(st.integers(0, 1), min_size=1, max_size=8)
PAPER = ("exec_only", "tracelift", "no_uplift", "rm_uplift_only", "llm_judge", "released_code")
OURS = ("random_bonus", "success_times_quality", "quality_among_equals")
NAMES = PAPER + OURS


@pytest.mark.parametrize(
    "s, q, u, j, c, expected",
    [
        # In turn: s; 0.5 s + 0.5 q u; 0.5 s + 0.5 q; q u; 0.5 s + 0.5 j u; s + 0.2 q c between 0 and 1.
        (1.0, 0.8, 0.5, 0.6, -1.0, (1.0, 0.7, 0.9, 0.4, 0.65, 0.84)),
        (0.0, 0.5, -1.0, 1.0, 1.0, (0.0, -0.25, 0.25, -0.5, -0.5, 0.1)),
        (1.0, 1.0, 1.0, 1.0, 1.0, (1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
        (0.0, 0.0, 0.0, 0.0, -1.0, (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        (1.0, 0.25, -0.4, 0.5, 0.5, (1.0, 0.45, 0.625, -0.1, 0.4, 1.0)),
    ],
)
def test_arms_by_hand(s, q, u, j, c, expected):
    assert tuple(ARMS) == NAMES
    assert [ARMS[name](s, q, u, j, c) for name in PAPER] == pytest.approx(expected)
    assert [ARMS[name](s, q, u, j) for name in PAPER[:-1]] == pytest.approx(expected[:-1])  # the paper's arms have no c


@pytest.mark.parametrize(
    "s, q, u, j, t, expected",
    [
        # In turn: 0.5 s + 0.5 j u; s q; s + t q.
        (1.0, 0.8, 0.5, 0.6, 0.0, (0.65, 0.8, 1.0)),
        (1.0, 0.8, 0.5, 0.6, 1.0, (0.65, 0.8, 1.8)),
        (0.0, 0.8, -1.0, 0.6, 1.0, (-0.3, 0.0, 0.8)),
    ],
)
def test_arms_of_ours_by_hand(s, q, u, j, t, expected):
    assert [ARMS[name](s, q, u, j, 0.0, t) for name in OURS] == pytest.approx(expected)


def test_which_arms_compare():
    compared = {"tracelift", "rm_uplift_only", "llm_judge", "released_code", "random_bonus"}
    assert {arm for arm in ARMS if compares(arm)} == compared


@pytest.mark.parametrize(
    "with_trace, without, expected",
    [
        ([1, 1, 0], [0, 0, 0, 1], 2 / 3 - 1 / 4),
        ([1, 1, 1], [0, 0, 0], 1),
        ([0], [1, 1], -1),
        ([1, 0, 1], [0, 1, 1], 0),
        ([1], [0, 1, 1, 1, 1, 1, 1, 1], 1 / 8),
    ],
)
def test_uplift_by_hand(with_trace, without, expected):
    assert uplift(with_trace, without) == pytest.approx(expected)


@given(verdicts, verdicts)
def test_uplift_is_a_difference_of_means(a, b):
    assert uplift(a, b) == pytest.approx(statistics.fmean(a) - statistics.fmean(b))
    assert -1 <= uplift(a, b) <= 1
    assert uplift(a, b) == pytest.approx(-uplift(b, a))


@pytest.mark.parametrize("a, b", [([], [1]), ([1], []), ([], [])])
def test_uplift_of_nothing_is_an_error(a, b):
    """Not 0: a missing baseline is not 'no effect'."""
    with pytest.raises(ValueError):
        uplift(a, b)


# --- what the arms look at --------------------------------------------------------------------


def test_every_arm_says_what_it_needs():
    assert set(NEEDS) == set(ARMS)
    assert all(needs <= set("squjct") for needs in NEEDS.values())


@pytest.mark.parametrize("arm", NAMES)
@given(st.tuples(unit, unit, effect, unit, effect, unit), st.tuples(unit, unit, effect, unit, effect, unit))
def test_an_arm_ignores_what_it_does_not_need(arm, values, others):
    """While training such parts are not computed: a zero stands in their place and must not matter."""
    mixed = [v if name in NEEDS[arm] else o for name, v, o in zip("squjct", values, others)]
    blank = [v if name in NEEDS[arm] else 0.0 for name, v in zip("squjct", values)]
    assert ARMS[arm](*values) == ARMS[arm](*mixed) == ARMS[arm](*blank)


@pytest.mark.parametrize("arm", NAMES)
def test_an_arm_uses_all_that_it_needs(arm):
    base = dict(zip("squjct", (0.5,) * 6))
    used = {name for name in "squjct" if ARMS[arm](*(base | {name: 0.9}).values()) != ARMS[arm](*base.values())}
    assert used == NEEDS[arm]


# --- properties (docs/method.md sections 2, 7 and 8) -----------------------------------------------


@given(unit, unit, unit)
def test_zero_uplift_pays_no_bonus(s, q, j):
    assert ARMS["tracelift"](s, q, 0.0, j) == pytest.approx(0.5 * s)
    assert ARMS["llm_judge"](s, q, 0.0, j) == pytest.approx(0.5 * s)
    assert ARMS["rm_uplift_only"](s, q, 0.0, j) == 0


@given(unit, st.floats(0.01, 1), effect)
def test_the_bonus_has_the_sign_of_the_uplift(s, q, u):
    assume(abs(u) > 1e-6)
    bonus = ARMS["tracelift"](s, q, u, 0.0) - ARMS["tracelift"](s, q, 0.0, 0.0)
    assert math.copysign(1, bonus) == math.copysign(1, u)
    assert math.copysign(1, ARMS["rm_uplift_only"](s, q, u, 0.0)) == math.copysign(1, u)


@given(unit, effect)
def test_worthless_reasoning_earns_no_bonus_however_useful(s, u):
    assert ARMS["tracelift"](s, 0.0, u, 0.0) == pytest.approx(0.5 * s)


@given(unit, unit, unit, effect)
def test_better_reasoning_earns_more_exactly_if_it_helps(s, q, better, u):
    assume(better > q + 1e-6 and abs(u) > 1e-6)
    gain = ARMS["tracelift"](s, better, u, 0.0) - ARMS["tracelift"](s, q, u, 0.0)
    assert (gain > 0) == (u > 0)
    assert ARMS["no_uplift"](s, better, u, 0.0) > ARMS["no_uplift"](s, q, u, 0.0)


@given(unit, unit, effect, unit)
def test_rewards_stay_in_range(s, q, u, j):
    assert 0 <= ARMS["exec_only"](s, q, u, j) <= 1 and 0 <= ARMS["no_uplift"](s, q, u, j) <= 1
    assert all(-1 <= ARMS[name](s, q, u, j) <= 1 for name in ("tracelift", "rm_uplift_only", "llm_judge"))
    assert ARMS["tracelift"](s, q, u, j) >= 0.5 * s - 0.5


def advantages(rewards):
    """Group-relative, without the small constant that guards against a zero spread."""
    mean, spread = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(r - mean) / spread for r in rewards]


groups = st.lists(st.tuples(st.integers(0, 1), st.integers(-3, 3)), min_size=2, max_size=8)


@given(groups, unit)
def test_a_constant_quality_cancels_without_uplift(group, q):
    """no_uplift with a score that is the same for all traces of a group is exec_only."""
    s = [float(a) for a, _ in group]
    assume(len(set(s)) > 1)
    rewards = [ARMS["no_uplift"](a, q, 0.0, 0.0) for a in s]
    assert advantages(rewards) == pytest.approx(advantages([ARMS["exec_only"](a, q, 0.0, 0.0) for a in s]))


@given(groups, st.floats(0.1, 1))
def test_a_saturated_judge_ranks_by_execution_only(group, j):
    """With a constant score the reward is a function of executions alone, and s + j u decides the ranking."""
    rewards = [ARMS["llm_judge"](float(s), 0.3, u / 3, j) for s, u in group]
    by_execution = [s + j * u / 3 for s, u in group]
    for i in range(len(group)):
        for k in range(len(group)):
            if by_execution[i] > by_execution[k] + 1e-9:
                assert rewards[i] > rewards[k]


# --- the released code-domain reward ----------------------------------------------------------

K3 = [  # rows: successes with the trace 0..3; columns: successes without it 0..3
    [0.0, -1, -1, -1],
    [1, 0.5, -1, -1],
    [1, 1, 2 / 3, -1],
    [1, 1, 1, 1.0],
]


def test_coefficient_table_for_three_runs():
    table = [[code_coefficient(a, b, 3) for b in range(4)] for a in range(4)]
    assert table == [pytest.approx(row) for row in K3]


@pytest.mark.parametrize(
    "k, ties", [(1, [0, 1]), (2, [0, 0.5, 1]), (4, [0, 0.25, 0.5, 0.75, 1]), (5, [0, 0.2, 0.4, 0.6, 0.8, 1])]
)
def test_ties_for_other_numbers_of_runs(k, ties):
    assert [code_coefficient(a, a, k) for a in range(k + 1)] == pytest.approx(ties)


def test_a_table_of_tie_values_may_be_given():
    ties = [-0.5, 0.1, 0.2, 0.3]
    assert [code_coefficient(a, a, 3, ties) for a in range(4)] == ties
    assert code_coefficient(2, 1, 3, ties) == 1 and code_coefficient(1, 2, 3, ties) == -1  # only ties are changed
    assert code_coefficient(3, 3, 3, [0, 0, 0, 0]) == 0  # a table of zeros restores 'zero uplift, zero bonus'


@pytest.mark.parametrize(
    "arguments",
    [(4, 0, 3), (0, 4, 3), (-1, 0, 3), (0, -1, 3), (1, 1, 3, [0, 1]), (1, 1, 3, [0, 0, 0, 0, 0]), (1, 1, 3, [])],
)
def test_impossible_counts_and_tables_are_errors(arguments):
    with pytest.raises(ValueError):
        code_coefficient(*arguments)


@pytest.mark.parametrize(
    "s, q, c, expected",
    [
        (0.5, 0.5, 1, 0.6),
        (0.5, 0.5, -1, 0.4),
        (0.4, 1, 0.5, 0.5),
        (0, 1, 1, 0.2),
        (0, 1, -1, 0),
        (1, 1, 1, 1),
        (1, 0.5, -1, 0.9),
        (0.95, 1, 1, 1),
        (0.1, 1, -1, 0),
        (0.3, 0, 1, 0.3),
    ],
)
def test_released_reward_by_hand(s, q, c, expected):
    assert released_code_reward(s, q, c) == pytest.approx(expected)


@given(unit, st.integers(0, 3), st.integers(0, 3))
def test_the_clip_hides_every_positive_bonus_of_a_trace_that_passed(q, a, b):
    """docs/method.md section 8: with s = 1 only the -1 case shows."""
    c = code_coefficient(a, b, 3)
    assert released_code_reward(1.0, q, c) == pytest.approx(1.0 if a >= b else 1 - 0.2 * q)


@given(st.floats(0, 0.8), st.floats(0.01, 1), st.integers(1, 5))
def test_a_tie_of_successes_pays_in_the_released_code_but_not_in_the_paper(s, q, k):
    u, c = uplift([1] * k, [1] * k), code_coefficient(k, k, k)
    assert ARMS["tracelift"](s, q, u, 0.0) == pytest.approx(0.5 * s)
    assert released_code_reward(s, q, c) == pytest.approx(s + 0.2 * q)


@given(unit, unit, st.floats(-1, 1))
def test_released_reward_stays_in_the_unit_interval(s, q, c):
    assert 0 <= released_code_reward(s, q, c) <= 1
