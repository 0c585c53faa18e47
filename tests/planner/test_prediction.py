"""Tabular GRPO on measured habits, on tables whose fate is known."""

import numpy as np
import pandas as pd
import pytest

from tracelift_lib.planner.prediction import Simulation, fit_step_size, habit_table, predict, shift


def rows_of(habits, problems=20):
    """Habits as (name, traces per problem, s, q); no trace succeeds without one in a tenth of the cases."""
    return pd.DataFrame(
        {"problem_id": f"p{i}", "habit": name, "s": s, "q": q, "truth": q, "s_none": 0.1}
        for i in range(problems)
        for name, n, s, q in habits
        for _ in range(n)
    )


def simulation(arm, **changes):
    base = dict(arm=arm, k=3, baseline_samples=8, fresh=False, groups=8, generations=8, steps=20, step_size=0.5)
    return Simulation(**(base | {"saturation": 0.955} | changes))


def ends(rows, arm, **changes):
    path = predict(rows, simulation(arm, **changes), trainings=5, seed=0)
    return path[path["step"] == path["step"].max()].set_index("habit")["share"]


LUCKY = rows_of([("full", 4, 1.0, 0.9), ("lucky", 4, 1.0, 0.5), ("wrong", 2, 0.0, 0.4)])


def test_the_outcome_cannot_tell_two_habits_that_both_succeed():
    end = ends(LUCKY, "exec_only")
    assert end["wrong"] < 0.1 and abs(end["full"] - end["lucky"]) < 0.25


@pytest.mark.parametrize("arm", ["tracelift", "no_uplift", "quality_among_equals", "success_times_quality"])
def test_arms_that_see_quality_prefer_the_sound_habit(arm):
    end = ends(LUCKY, arm)
    assert end["full"] > 0.8 and end["lucky"] < 0.15


def test_the_released_code_bonus_is_lost_where_the_trace_succeeds():
    """r = clip(s + 0.2 q c, 0, 1) is 1 for both habits."""
    end = ends(LUCKY, "released_code", fresh=True)
    assert abs(end["full"] - end["lucky"]) < 0.25


def test_a_path_starts_at_the_measured_shares_and_stays_a_distribution():
    path = simulation("tracelift").path(LUCKY, np.random.default_rng(0))
    assert path.shape == (21, 3)
    assert path.iloc[0].to_dict() == pytest.approx({"full": 0.4, "lucky": 0.4, "wrong": 0.2})
    assert path.sum(axis=1).to_numpy() == pytest.approx(np.ones(21))


def test_equal_habits_have_no_drift():
    same = rows_of([("a", 5, 1.0, 0.7), ("b", 5, 1.0, 0.7)])
    path = predict(same, simulation("exec_only"), trainings=3, seed=1)
    assert path["share"].to_numpy() == pytest.approx(
        np.full(len(path), 0.5)
    )  # s is 1 throughout: no group has variance


def test_a_completion_without_a_trace_is_paid_nothing():
    rows = rows_of([("full", 5, 1.0, 0.9), ("no_trace", 5, 0.0, 0.0)])
    assert ends(rows, "no_uplift")["no_trace"] < 0.1


def test_the_table_of_habits_by_hand():
    table = habit_table(LUCKY)
    assert table.loc["full", ["share", "s", "q", "u", "n"]].tolist() == pytest.approx([0.4, 1.0, 0.9, 0.9, 80])
    assert table.loc["wrong", "u"] == pytest.approx(-0.1)


def test_shares_on_another_split_move_by_the_same_logits():
    before, after = pd.Series({"a": 0.5, "b": 0.5}), pd.Series({"a": 0.8, "b": 0.2})
    moved = shift(pd.Series({"a": 0.25, "b": 0.75}), before, after)
    assert moved.to_dict() == pytest.approx({"a": 4 / 7, "b": 3 / 7})  # odds 1/3 times 4


def test_the_step_size_is_found_again():
    path = predict(LUCKY, simulation("exec_only", step_size=0.4), trainings=10, seed=3)
    observed = path.pivot(index="step", columns="habit", values="share")
    assert fit_step_size(LUCKY, observed, simulation("exec_only"), [0.1, 0.4, 1.6], seed=4) == 0.4
