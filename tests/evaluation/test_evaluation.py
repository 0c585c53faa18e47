"""The two-stage evaluation with stand-ins."""

import random

import numpy as np
import pandas as pd
import pytest
from common import story

from tracelift_lib.evaluation.planner_evaluation import evaluate_planner, per_problem
from tracelift_lib.groups.habits import write_habit
from tracelift_lib.problems.prompts import PromptLimits, wrap_trace
from tracelift_lib.problems.tinyworld import generate_splits, read_calculations

# --- means ------------------------------------------------------------------------------------


def test_per_problem_means_come_in_order_of_the_ids():
    rows = pd.DataFrame({"problem_id": ["c", "a", "b", "a", "c", "c"], "x": [3.0, 1, 2, 0, 0, 0], "y": 9.0})
    assert per_problem(rows, "x").tolist() == [0.5, 2.0, 1.0]
    assert per_problem(rows.sample(frac=1, random_state=3), "x").tolist() == [0.5, 2.0, 1.0]


# --- the two stages ---------------------------------------------------------------------------


class FakeTokenizer:
    chat_template = bos_token = None

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
