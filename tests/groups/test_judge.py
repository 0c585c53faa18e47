"""The rubric judge: mapping, the ground truth, programmatic rubrics, and calibration against hand-made judges."""

import json
import math

import numpy as np
import pytest
from common import CODE, MATH, story
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.executor.structured import Failure
from tracelift_lib.groups.by_model import score_schema
from tracelift_lib.groups.group_maker import build_group
from tracelift_lib.groups.judge import (
    RubricJudgement,
    calibrate,
    judge_by_truth,
    judge_candidate,
    programmatic_judgement,
    rubric_from_scores,
)
from tracelift_lib.groups.kinds import KINDS, Flaw
from tracelift_lib.groups.schema import Rubric
from tracelift_lib.groups.truth import true_rubric
from tracelift_lib.problems.problem import Problem


@given(st.lists(st.integers(0, 10), min_size=5, max_size=5), st.integers(0, 10))
def test_label_is_the_floor_of_half_the_score_and_total_a_tenth(scores, overall):
    rubric = rubric_from_scores(dict(zip(CODE, scores)), overall)
    assert list(rubric.labels.values()) == [min(4, math.floor(score / 2)) for score in scores]
    assert rubric.total == overall / 10


@pytest.mark.parametrize(("domain", "names"), [("math", MATH), ("code", CODE)])
def test_the_schema_asks_for_five_dimensions_an_overall_score_and_a_reason(domain, names):
    schema = score_schema(domain).model_json_schema()
    assert set(schema["properties"]) == {*names, "overall", "reason"} == set(schema["required"])
    assert schema["additionalProperties"] is False and schema["properties"]["overall"]["maximum"] == 10
    good = dict.fromkeys(names, 5) | {"overall": 5, "reason": "r"}
    assert score_schema(domain).model_validate_json(json.dumps(good)).overall == 5


def test_the_ground_truth_judge_knows_the_tiny_world_only():
    problem = story(3, ("+", 2), ("*", 2))
    right = judge_by_truth(problem, problem.reference_solution)
    assert right.rubric.total == 1 and right.overall == 10 and "no flaw" in right.reason
    wrong = judge_by_truth(problem, "gets 2: 3 + 2 = 6.\ntimes 2: 6 * 2 = 12.")
    assert wrong.rubric == true_rubric(problem, "gets 2: 3 + 2 = 6.\ntimes 2: 6 * 2 = 12.") and wrong.overall < 10
    assert "calculation_correctness" in wrong.reason
    assert judge_by_truth(seed("math"), "1 + 1 = 2") == Failure("no ground truth")


def test_programmatic_rubrics_by_hand():
    shallow = programmatic_judgement(KINDS["math", "wrong_operation"], Flaw("t", 0.5))
    assert shallow.rubric.labels == dict.fromkeys(MATH, 4) | {"solution_strategy": 2, "answer_support": 1}
    assert shallow.rubric.total == round(((4 * 3 + 2 + 1) / 20 + 1 / 4) / 2, 4) == 0.5
    deep = programmatic_judgement(KINDS["math", "lost_event"], Flaw("t", 0.75))
    assert deep.rubric.labels == dict.fromkeys(MATH, 4) | {
        "problem_understanding": 1,
        "solution_strategy": 2,
        "answer_support": 0,
    }
    leap = programmatic_judgement(KINDS["math", "unsupported_leap"], Flaw("t", 0.25))
    assert leap.rubric.labels == dict.fromkeys(MATH, 3) | {"step_coherence": 2, "calculation_correctness": 4}
    leak = programmatic_judgement(KINDS["code", "leaked_code"], Flaw("t", 1.0))
    assert leak.rubric.labels == dict.fromkeys(CODE, 4) | {"non_leakage": 1}
    assert "programmatic" in leak.reason and "non_leakage" in leak.reason and leak.overall == 10 * leak.rubric.total


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: f"{kind.domain}-{kind.name}")
def test_a_kind_hurts_dimensions_of_its_domain_and_deeper_flaws_hurt_more(kind):
    names = MATH if kind.domain == "math" else CODE
    assert set(kind.hurts) <= set(names)
    low, high = (programmatic_judgement(kind, Flaw("t", s)) for s in (1.0, 0.1))
    assert low.rubric.total < high.rubric.total < 1
    assert all(high.rubric.labels[n] == 4 for n in set(names) - set(kind.hurts))
    assert all(low.rubric.labels[n] < high.rubric.labels[n] < 4 for n in kind.hurts)


def seed(domain):
    return Problem(
        problem_id="p", source="gsm8k", domain=domain, task_type="t", problem="Q", reference_solution="r", answer="1"
    )


def test_a_candidate_carries_its_judgement():
    flaw = Flaw("a trace", 0.2)
    judged = programmatic_judgement(KINDS["code", "wrong_constant"], flaw)
    made = judge_candidate(seed("code"), "wrong_constant", flaw, None)
    assert (made.reasoning, made.negative_kind, made.rubric_reason) == ("a trace", "wrong_constant", judged.reason)
    assert made.rubric_score_raw == judged.overall and made.rubric_label == "acceptable"


def test_references_of_math_seeds_get_full_marks_and_those_of_code_what_the_judge_says():
    half = Fixed(lambda trace, repeat: 0.5)
    for problem, judge, total in [
        (seed("math"), half, 1),
        (seed("code"), half, 0.5),
        (seed("code"), None, 1),
        (story(3, ("+", 2)), half, 0.5),
    ]:
        made = judge_candidate(problem, None, Flaw("a reference", 0), judge)
        assert made.rubric.total == total and made.negative_kind is None
    assert judge_candidate(seed("code"), None, Flaw("r", 0), Fixed(lambda *_: None)) == Failure("no answer")


# --- calibration ------------------------------------------------------------------------------


class Fixed:
    """A judge that gives what `totals` says of a trace, in turn over repeats; None: no answer."""

    def __init__(self, totals):
        self.totals = totals

    def __call__(self, problem, trace, repeat):
        total = self.totals(trace, repeat)
        if total is None:
            return Failure("no answer")
        return RubricJudgement(Rubric(labels=dict.fromkeys(MATH, int(4 * total)), total=total), 10 * total, "fixed")


GROUP = build_group(story(3, ("+", 2), ("*", 2), ("-", 4)), seed=0)
REFERENCE = GROUP.positive_pool[0].reasoning


def test_the_ground_truth_is_perfectly_calibrated():
    shown = calibrate(judge_by_truth, [GROUP], repeats=3)
    assert shown["pair_accuracy"] == shown["group_accuracy"] == shown["agreement"] == 1
    assert shown["saturation_rate"] == pytest.approx(1 / (1 + len(GROUP.negative_bank)))
    assert shown["saturation_rate_negatives"] == shown["ties"] == shown["failure_rate"] == 0
    assert shown["total_spread"] == pytest.approx(0)
    assert shown["judged"] == 3 * (1 + len(GROUP.negative_bank))


def test_a_saturated_judge_ranks_nothing():
    shown = calibrate(Fixed(lambda trace, repeat: 1.0), [GROUP])
    assert shown["saturation_rate"] == shown["ties"] == shown["agreement"] == 1
    assert shown["pair_accuracy"] == shown["group_accuracy"] == 0


def test_equal_means_are_a_tie_however_they_came_about():
    """Means of 0, 0, 0.6 and of 0, 0.2, 0.4 differ in their last bit."""
    low, high = [0.0, 0.0, 0.6], [0.0, 0.2, 0.4]
    assert np.mean(high) > np.mean(low)
    shown = calibrate(Fixed(lambda trace, repeat: (high if trace == REFERENCE else low)[repeat]), [GROUP], 3)
    assert shown["ties"] == 1 and shown["pair_accuracy"] == 0


def test_a_judge_that_wavers_and_one_that_is_silent():
    wavering = calibrate(Fixed(lambda trace, repeat: 0.25 + 0.5 * repeat), [GROUP], repeats=2)
    assert wavering["agreement"] == 0 and wavering["total_spread"] == pytest.approx(0.25)
    silent = calibrate(Fixed(lambda trace, repeat: None), [GROUP], repeats=2)
    assert silent["failure_rate"] == 1 and math.isnan(silent["pair_accuracy"])
    half = calibrate(Fixed(lambda trace, repeat: None if repeat else float(trace == REFERENCE)), [GROUP], repeats=2)
    assert half["failure_rate"] == 0.5 and half["pair_accuracy"] == half["group_accuracy"] == 1
