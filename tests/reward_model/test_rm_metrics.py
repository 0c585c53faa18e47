"""Metrics of the reward model on held-out groups, by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from common import MATH, group_record

from tracelift_lib.groups.schema import Group
from tracelift_lib.reward_model.metrics import (
    calibration_curve,
    metrics_by_dimension,
    metrics_by_kind,
    pair_wins,
    ranking,
    reward_model_metrics,
    score_groups,
)


class ScorerByTable:
    """q by trace, written down, in place of a model; label i of a trace is 4 q, less i tenths."""

    def __init__(self, table):
        self.table = table

    def score(self, problems, traces, progress=None):
        q = np.array([self.table[z] for z in traces])
        return q, 4 * q[:, None] - np.arange(5) / 10


@pytest.fixture
def rows():
    """Group a: reference 0.5 above one flawed trace (0.4), below another (0.6); group b: as high as its only one."""
    first, second = group_record("a"), group_record("b")
    del second["negative_bank"][1]
    second["negative_bank"][0]["reasoning"] = "gets 2: 3 * 2 = 6."
    table = {"gets 2: 3 + 2 = 5.": 0.5, "gets 2: 3 - 2 = 1.": 0.4, "gets 2: 3 + 2 = 6.": 0.6, "gets 2: 3 * 2 = 6.": 0.5}
    return score_groups(ScorerByTable(table), [Group.model_validate(r) for r in (first, second)])


def test_scores_of_groups_stand_beside_their_gold_values(rows):
    assert rows["problem_id"].tolist() == ["a", "a", "a", "b", "b"]
    assert rows["kind"].tolist() == ["reference", "wrong_operation", "arithmetic_slip", "reference", "wrong_operation"]
    assert rows["q"].tolist() == [0.5, 0.4, 0.6, 0.5, 0.5]
    assert rows["gold_total"].tolist() == [1.0, 0.45, 0.5, 1.0, 0.45]
    assert rows["gold_solution_strategy"].tolist() == [4, 2, 2, 4, 2]
    assert rows["expected_solution_strategy"].tolist() == pytest.approx([1.9, 1.5, 2.3, 1.9, 1.9])
    assert [c for c in rows if c.startswith("expected_")] == [f"expected_{name}" for name in MATH]


def test_pair_wins_by_hand(rows):
    """A tie counts half."""
    assert list(pair_wins(rows).itertuples(index=False, name=None)) == [
        ("a", "wrong_operation", 1.0),
        ("a", "arithmetic_slip", 0.0),
        ("b", "wrong_operation", 0.5),
    ]


def test_ranking_by_hand():
    """Ties count half in the pairs and are no win over the group; problems are sorted, any column can be ranked by."""
    scores = {"d": [0.1, 0.2], "b": [0.5, 0.5, 0.4], "a": [0.9, 0.1, 0.2], "c": [0.5, 0.6, 0.5, 0.4, 0.3]}
    rows = pd.DataFrame(
        {"problem_id": name, "kind": "flawed" if i else "reference", "q": 0.5, "other": value}
        for name, values in scores.items()
        for i, value in enumerate(values)
    )
    ranked = ranking(rows, "other")
    assert ranked.index.tolist() == ["a", "b", "c", "d"]
    assert ranked["pair_accuracy"].tolist() == pytest.approx([1.0, 0.75, 0.625, 0.0])
    assert ranked["group_accuracy"].tolist() == [True, False, False, False]
    says_nothing = ranking(rows)
    assert (says_nothing["pair_accuracy"] == 0.5).all() and not says_nothing["group_accuracy"].any()


def test_every_reference_of_a_group_is_compared():
    rows = pd.DataFrame({"problem_id": "a", "kind": ["reference", "reference", "x", "y"], "q": [0.9, 0.4, 0.5, 0.3]})
    assert ranking(rows).loc["a"].tolist() == [0.75, False]


def test_metrics_by_hand(rows):
    metrics = reward_model_metrics(rows)
    assert metrics["pair_accuracy"] == pytest.approx((1 / 2 + 1 / 2) / 2) and metrics["group_accuracy"] == 0
    errors = [-0.5, -0.05, 0.1, -0.5, 0.05]
    assert metrics["mae"] == pytest.approx(sum(map(abs, errors)) / 5)
    assert metrics["rmse"] == pytest.approx(math.sqrt(sum(e * e for e in errors) / 5))
    assert metrics["mae_solution_strategy"] == pytest.approx((2.1 + 0.5 + 0.3 + 2.1 + 0.1) / 5)
    better = rows.assign(q=[0.9, 0.4, 0.6, 0.5, 0.4])
    assert reward_model_metrics(better)["group_accuracy"] == reward_model_metrics(better)["pair_accuracy"] == 1
    assert reward_model_metrics(rows.assign(q=[0.7, 0.4, 0.6, 0.5, 0.5]))["group_accuracy"] == 0.5


def test_metrics_by_kind_by_hand(rows):
    table = metrics_by_kind(rows).set_index("kind")
    assert table["traces"].to_dict() == {"arithmetic_slip": 1, "reference": 2, "wrong_operation": 2}
    assert table.loc["wrong_operation", "pair_accuracy"] == 0.75 and math.isnan(table.loc["reference", "pair_accuracy"])
    assert table.loc["reference", ["mae", "rmse", "bias"]].tolist() == pytest.approx([0.5, 0.5, -0.5])
    assert table.loc["wrong_operation", "mae"] == pytest.approx(0.05)
    assert table.loc["wrong_operation", "bias"] == pytest.approx(0)


def test_metrics_by_dimension_by_hand(rows):
    table = metrics_by_dimension(rows).set_index("dimension")
    assert table.index.tolist() == list(MATH)
    assert table.loc["solution_strategy", "mae"] == pytest.approx((2.1 + 0.5 + 0.3 + 2.1 + 0.1) / 5)
    assert table.loc["solution_strategy", "accuracy"] == pytest.approx(2 / 5)  # 0.5 off is no nearest label
    assert table.loc["answer_support", "rmse"] == pytest.approx(
        math.sqrt((2.4**2 + 1.2**2 + 2.0**2 + 2.4**2 + 1.6**2) / 5)
    )


def test_calibration_by_hand():
    rows = pd.DataFrame({"q": [0.0, 0.09, 0.1, 0.55, 0.59, 1.0], "gold_total": [0.1, 0.3, 0.5, 0.6, 0.2, 0.9]})
    curve = calibration_curve(rows)
    assert curve["traces"].tolist() == [2, 1, 2, 1]
    assert curve["q"].tolist() == pytest.approx([0.045, 0.1, 0.57, 1.0])
    assert curve["gold_total"].tolist() == pytest.approx([0.2, 0.5, 0.4, 0.9])
