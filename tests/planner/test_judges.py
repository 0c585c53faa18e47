"""Judges that stand in for an LLM's."""

import numpy as np
from common import story

from tracelift_lib.planner.judges import RandomJudge, SaturatedJudge, TruthJudge, judge_of

PROBLEM = story(3, ("+", 2))
TRACES = [f"- gets 2: 3+2={i}" for i in range(2000)]
PROBLEMS = [PROBLEM] * len(TRACES)


def test_a_saturated_judge_gives_the_top_score_to_its_share_whatever_the_trace():
    totals, _ = SaturatedJudge(0.9, seed=1).score(PROBLEMS, TRACES)
    truth, _ = TruthJudge().score(PROBLEMS, TRACES)
    top = totals == 1.0
    assert 0.87 < top.mean() < 0.93  # 6.7 standard errors
    np.testing.assert_array_equal(totals[~top], truth[~top])
    again, _ = SaturatedJudge(0.9, seed=1).score(PROBLEMS[:50], TRACES[:50])
    np.testing.assert_array_equal(again, totals[:50])
    assert (SaturatedJudge(0.9, seed=2).score(PROBLEMS, TRACES)[0] != totals).any()


def test_the_random_judge_is_uniform_and_knows_nothing_of_the_trace():
    totals, _ = RandomJudge(seed=1).score(PROBLEMS, TRACES)
    assert 0 <= totals.min() and totals.max() < 1 and abs(totals.mean() - 0.5) < 0.03
    assert RandomJudge(seed=1).score([PROBLEM], TRACES[:1])[0] == totals[0]


def test_who_judges():
    assert judge_of("tracelift", 0.9, 0) is None
    assert judge_of("llm_judge", 0.9, 5) == SaturatedJudge(0.9, 5)
    assert judge_of("random_bonus", 0.9, 5) == RandomJudge(5)
