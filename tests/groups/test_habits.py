"""Habits of planners: what is written for each, and what is read off a trace."""

import random

import pytest
from common import story

from tracelift_lib.groups.habits import WRITERS, habit_of, write_habit
from tracelift_lib.groups.truth import corrupted, is_faithful, is_sufficient
from tracelift_lib.problems import tinycode, tinyworld

FULL = "- buys three: 4+3=7\n- loses two: 7-2=5"


@pytest.fixture(scope="module")
def stories():
    shares = {"holds": 1.0, "fails": 0.0}
    return tinyworld.generate_splits(
        dict.fromkeys(shares, 60), dict.fromkeys(shares, [2, 3]), 9, 20, seed=3, shortcut=shares
    )


@pytest.fixture(scope="module")
def programs():
    return tinycode.generate_splits({"a": 60}, {"a": [2, 3]}, 9, 20, seed=3)["a"]


@pytest.fixture
def problem():
    """Four, buys three, loses two: five."""
    steps = [
        tinyworld.Step(before=4, op="+", operand=3, after=7, event="buys three"),
        tinyworld.Step(before=7, op="-", operand=2, after=5, event="loses two"),
    ]
    p = story(4, ("+", 3), ("-", 2))
    metadata = {"start": 4, "steps": [step.model_dump() for step in steps]}
    return p.model_copy(update={"metadata": metadata, "reference_solution": tinyworld.write_trace(steps)})


@pytest.mark.parametrize(
    "habit, trace",
    [
        ("full", FULL),
        ("lucky_order", "- loses two: 4-2=2\n- buys three: 2+3=5"),
        ("restored_slip", "- buys three: 4+3=8\n- loses two: 7-2=5"),
        ("padding", "- buys three: 4+3=7\n- buys three: 4+3=7\n- loses two: 7-2=5"),
        ("wrong_reason", "- loses three: 4+3=7\n- loses two: 7-2=5"),
        ("bare_answer", "The result is 5."),
        ("skipped_step", "- loses two: 7-2=5"),
    ],
)
def test_habits_by_hand(problem, habit, trace):
    assert write_habit(problem, habit, random.Random(0)) == trace
    assert habit_of(problem, trace) == habit
    assert is_faithful(problem, trace) == (habit == "full")
    assert is_sufficient(problem, trace) == (habit != "bare_answer")  # who follows the calculations ends right


@pytest.mark.parametrize(
    "habit, trace",
    [
        ("no_trace", None),
        ("no_trace", float("nan")),  # as pandas gives a missing text
        ("no_trace", " "),
        ("slip", "- buys three: 4+3=8\n- loses two: 8-2=6"),
        ("misread", "- buys four: 4+4=8\n- loses two: 8-2=6"),
        ("wrong_operation", "- buys three: 4+3=7\n- loses two: 7+2=9"),
        ("other", "- buys three: 4+3=7\n- loses two: 7-2=5\n- buys one: 5+1=6"),
    ],
)
def test_other_traces_by_hand(problem, habit, trace):
    assert habit_of(problem, trace) == habit
    assert habit == "no_trace" or not is_sufficient(problem, trace)


def test_what_is_written_is_what_is_read(stories, programs):
    """Of a habit that applies; where it does not, the full trace is written."""
    for p in [*stories["holds"], *stories["fails"]]:
        for habit in WRITERS:
            assert habit_of(p, write_habit(p, habit, random.Random(1))) in (habit, "full")
    for p in programs:
        for habit in set(WRITERS) - {"misread"}:  # a misread example can look like a slip
            assert habit_of(p, write_habit(p, habit, random.Random(1))) in (habit, "full")


def test_the_lucky_order_is_right_exactly_where_the_shortcut_holds(stories):
    for split, right in (("holds", True), ("fails", False)):
        traces = [(p, write_habit(p, "lucky_order", random.Random(0))) for p in stories[split]]
        assert all(habit_of(p, z) == "lucky_order" and is_sufficient(p, z) is right for p, z in traces)


@pytest.mark.parametrize("habit", ["padding", "wrong_reason", "restored_slip"])
def test_habits_that_the_outcome_cannot_see_end_right(stories, programs, habit):
    problems = [*stories["holds"], *stories["fails"], *programs]
    assert all(is_sufficient(p, write_habit(p, habit, random.Random(0))) for p in problems)


def test_corruption_changes_the_last_number_only():
    assert corrupted(FULL) == "- buys three: 4+3=7\n- loses two: 7-2=6"
    assert corrupted("no number") == "no number"
    assert corrupted("Plan: times 3, plus 19") == "Plan: times 3, plus 20"
