"""The verifier interface on programs, with the real sandbox."""

import asyncio
from concurrent.futures import Future

import pytest

from tracelift_lib.executor.client import CallFailed
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.planner.reward_engine import RewardEngine
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptLimits, wrap_trace
from tracelift_lib.sandbox.host import SandboxError
from tracelift_lib.verifier.verdicts import Verdict, Verifier
from tracelift_lib.verifier.verify_code import CodeVerifier, extract_program

CASES = [{"input": str(n), "output": str(2 * n)} for n in (1, 2, 5, 10)]
DOUBLE = Problem(
    problem_id="double",
    source="hand",
    domain="code",
    task_type="stdin",
    problem="Read a number and print its double.",
    reference_solution="",
    answer="",
    metadata={"tests": {"style": "stdio", "cases": CASES}},
)
RIGHT = "Here it is:\n```python\nprint(2 * int(input()))\n```"
HALF = "n = int(input())\nprint(2 * n if n < 3 else 0)"  # passes two of four
CRASH = "n = int(input())\nprint(2 * n if n < 10 else 1 / 0)"  # passes three, then raises
NO_CODE = "```python\nprint(2 *\n```"


def verdicts_of(style, *answers):
    return Verifier(style=style).verify([DOUBLE] * len(answers), list(answers))


@pytest.mark.parametrize(
    "style, expected",
    [
        ("binary", [1, 0, 0, 0]),
        ("pass_rate", [1, 0.5, 0.75, 0]),
        ("coderl", [1, -0.3, -0.6, -1]),
        ("hybrid", [1, 0.8 * 0.5 + 0.2, 0.8 * 0.75 + 0.05, 0]),
    ],
)
def test_success_s_and_outcome_of_a_program(style, expected):
    """Method section 4, by hand."""
    verdicts = verdicts_of(style, RIGHT, HALF, CRASH, NO_CODE)
    assert [v.success for v in verdicts] == [1, 0, 0, 0]
    assert [v.s for v in verdicts] == pytest.approx(expected)
    assert [v.outcome for v in verdicts] == ["pass", "wrong", "error", "error"]


def test_a_problem_without_tests_is_an_error_that_names_it():
    with pytest.raises(InputError, match="double"):
        Verifier().verify([DOUBLE.model_copy(update={"metadata": {}})], [RIGHT])


def test_math_and_code_in_one_batch():
    """Each stands at its place, and math alone starts no sandbox."""
    four = Problem(
        problem_id="m", source="hand", domain="math", task_type="t", problem="2 + 2?", reference_solution="", answer="4"
    )
    verifier = Verifier()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tracelift_lib.verifier.verdicts.CodeVerifier", None)
        assert verifier.verify([four], ["Answer: 4"]) == [Verdict(1, 1.0, "right")]
    verdicts = verifier.verify([four, DOUBLE, four], ["Answer: 4", RIGHT, "Answer: 5"])
    assert verdicts == [Verdict(1, 1.0, "right"), Verdict(1, 1.0, "pass"), Verdict(0, 0.0, "wrong")]


UNBOUND = DOUBLE.model_copy(
    update={"metadata": {"tests": {"style": "asserts", "code": ["assert near(f(1), 1)"], "entry_point": "f"}}}
)


def test_tests_that_cannot_be_judged_are_no_verdict():
    """No reward (the call counts as failed), and in an evaluation a warning that names problem and reason."""
    answer = "```python\ndef f(x): return x\ndef near(*_): return True\n```"
    verifier = Verifier()
    (verdict,) = verifier.verify([UNBOUND], [answer])
    assert (verdict.success, verdict.s, verdict.outcome) == (0, 0.0, "unsupported") and "near" in verdict.reason
    executor = Executor(None, "short", PromptLimits(3500, 2500), verifier)
    failure, _ = executor._verify_timed(UNBOUND, [answer])
    assert isinstance(failure, CallFailed) and "near" in str(failure)
    with pytest.warns(UserWarning, match="1 of 2 answers could not be judged.*double.*near"):
        assert executor.successes([DOUBLE, UNBOUND], [RIGHT, answer]) == [1, 0]


def test_the_usage_after_a_solution_is_not_judged():
    known = UNBOUND.model_copy(
        update={"metadata": {"tests": {"style": "asserts", "code": ["assert f(1) == 1"], "entry_point": "f"}}}
    )
    answer = "```python\ndef f(x): return x\n```\nUsage:\n```python\nprint(f(1))\n```"
    assert Verifier().verify([known], [answer])[0].success == 1


def test_half_a_surrogate_pair_anywhere_is_no_exception():
    odd = DOUBLE.model_copy(
        update={"metadata": {"tests": {"style": "stdio", "cases": [{"input": "\ud800", "output": "\udfff"}]}}}
    )
    verdicts = Verifier().verify([odd, DOUBLE], ["print('\ud800')", "print('\udcff')"])
    assert [v.success for v in verdicts] == [0, 0]


def test_rewards_of_plans_for_a_program(tmp_path):
    """s is the hybrid reward of its own run , the uplift counts programs that pass all (2 of 3 and 1 of 2)."""

    class Backend:
        name = "fake"

        def submit(self, prompts, n, seed):
            assert all(p.startswith("Program.") and "<reasoning>\nplan\n</reasoning>" in p for p in prompts)
            future = Future()
            future.set_result([HALF, RIGHT, CRASH, RIGHT][:n])
            return [future]

    executor = Executor(Backend(), "short", PromptLimits(3500, 2500), Verifier())
    engine = RewardEngine(
        arm="rm_uplift_only",
        k=3,
        executor=executor,
        scorer=None,
        problems={"double": DOUBLE},
        baseline={"double": [1, 0]},
        seed=0,
        max_failure_rate=0.0,
        log_folder=tmp_path,
    )

    class Scorer:
        def score(self, problems, traces):
            return [0.5], None

    engine.scorer = Scorer()
    (row,), _ = asyncio.run(engine.score([wrap_trace("plan")], ["double"], 0))
    assert row["s"] == pytest.approx(0.6) and row["u"] == pytest.approx(2 / 3 - 1 / 2)
    assert row["reward"] == pytest.approx(0.5 * (2 / 3 - 1 / 2))


def test_the_same_program_runs_once_for_the_same_tests(monkeypatch):
    """Other tests or another program run; a verdict that is missing is asked for again."""
    verifier = Verifier(style="binary")
    ran, real = [], CodeVerifier.verify

    def verify(self, jobs):
        ran.extend(jobs)
        return real(self, jobs)

    monkeypatch.setattr(CodeVerifier, "verify", verify)
    cases = [{"input": "1", "output": "3"}]
    triple = DOUBLE.model_copy(update={"metadata": {"tests": {"style": "stdio", "cases": cases}}})
    first = verifier.verify([DOUBLE, DOUBLE, triple], [RIGHT, RIGHT, RIGHT])
    assert [v.success for v in first] == [1, 1, 0] and len(ran) == 2
    assert verifier.verify([triple, DOUBLE], [RIGHT, RIGHT]) == [first[2], first[0]] and len(ran) == 2
    assert [v.success for v in verifier.verify([DOUBLE], [HALF])] == [0] and len(ran) == 3

    def broken(self, jobs):
        raise SandboxError("no room for a process")

    monkeypatch.setattr(CodeVerifier, "verify", broken)
    with pytest.raises(RuntimeError, match="no room"):
        verifier.verify([DOUBLE], [CRASH])
    monkeypatch.setattr(CodeVerifier, "verify", verify)
    assert verifier.verify([DOUBLE], [CRASH])[0].success == 0 and len(ran) == 4


def test_a_long_line_of_backticks_is_read_in_linear_time():
    """A model that repeats itself writes such lines; half a minute for 100,000 of them would stop the training."""
    assert extract_program("`" * 1_000_000) == "`" * 1_000_000
