"""The executor's verdicts, with a stand-in for the model."""

import numpy as np
import pytest
from common import story

from tracelift_lib.executor import Executor, SelfTestError
from tracelift_lib.generation import Sampling
from tracelift_lib.prompts import PromptLimits


class FakeTokenizer:
    chat_template = None


class FakeSampler:
    """Answers by a function of (prompt, number of the sample)."""

    tokenizer = FakeTokenizer()
    sampling = Sampling(0.5, 1.0, 10, 1000)

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def sample(self, prompts, n, seed, progress=None):
        self.asked.append((list(prompts), n, seed))
        return [[self.answer(p, i) for i in range(n)] for p in prompts]


def executor(answer, rule="strict", limits=None):
    return Executor(FakeSampler(answer), "short", limits or PromptLimits(), rule)


A, B = story(3, ("+", 2), problem_id="a"), story(4, ("*", 2), problem_id="b")  # answers 5 and 8


def test_verdicts_have_a_row_a_pair_and_a_column_a_sample():
    """Right only for problem a with a trace, and there in samples 0 and 2."""
    e = executor(lambda p, i: "Answer: 5" if "(story a)" in p and "help" in p and i != 1 else "Answer: 9")
    table = e.verdicts([A, A, B, B], ["help", None, "help", None], 3, seed=1)
    assert table.shape == (4, 3) and table.dtype == int
    assert table.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_each_answer_is_held_against_its_own_problem():
    e = executor(lambda p, i: f"Answer: {(5, 8)[i]}")
    assert e.verdicts([A, B], [None, None], 2, seed=1).tolist() == [[1, 0], [0, 1]]


def test_the_rule_of_the_preset_decides():
    assert executor(lambda p, i: "it is 5").verdicts([A], ["z"], 1, 0).tolist() == [[0]]
    assert executor(lambda p, i: "it is 5", "last_number").verdicts([A], ["z"], 1, 0).tolist() == [[1]]


def test_nothing_asked_nothing_answered():
    assert executor(lambda p, i: "").verdicts([], [], 4, seed=0).shape == (0, 4)


def test_problems_and_traces_must_pair():
    """A missing trace must not shift the others, nor drop the last problem in silence."""
    for problems, traces in (([A, B], ["z"]), ([A], ["z", "y"]), ([A], [])):
        with pytest.raises(ValueError):
            executor(lambda p, i: "").answer(problems, traces, 1, seed=0)
        with pytest.raises(ValueError):
            executor(lambda p, i: "").verdicts(problems, traces, 1, seed=0)


def test_the_executor_never_reads_the_answer_or_the_reference():
    e = executor(lambda p, i: "x")
    e.answer([A.model_copy(update={"answer": "777", "reference_solution": "SECRET"})], [None], 1, seed=0)
    (prompt,) = e.sampler.asked[0][0]
    assert "777" not in prompt and "SECRET" not in prompt


def test_the_limits_of_the_preset_cut_its_prompts():
    e = executor(lambda p, i: "x", limits=PromptLimits(problem=8, trace=3))
    e.answer([A], ["abcdef"], 1, seed=0)
    (prompt,) = e.sampler.asked[0][0]
    assert "Mia has " in prompt and "Mia has 3" not in prompt and "abc" in prompt and "abcd" not in prompt


def test_self_test_refuses_an_executor_that_does_not_sample():
    with pytest.raises(SelfTestError, match="temperature"):
        executor(lambda p, i: f"always the same for {len(p)}").self_test([A, B])


def test_self_test_accepts_one_that_differs_anywhere():
    """Some prompts may be answered with certainty; one that varies is enough."""
    e = executor(lambda p, i: f"Answer: {i}" if "(story b)" in p else "Answer: 5")
    e.self_test([A, B])
    prompts, n, _ = e.sampler.asked[0]
    assert n >= 4 and not any("<reasoning>" in p for p in prompts)
    assert np.shape(e.answer([A], [None], 2, 0)) == (1, 2)
