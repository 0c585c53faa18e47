"""Verdicts on the executor's answers, in both domains."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tracelift_lib.problems.code_tests import read_tests
from tracelift_lib.problems.problem import Problem
from tracelift_lib.sandbox.host import Allowed
from tracelift_lib.sandbox.running import Outcome
from tracelift_lib.verifier.verify_code import CodeResult, CodeVerifier, ExecStyle, execution_reward, extract_program
from tracelift_lib.verifier.verify_math import AnswerRule, verify_math

MAX_KNOWN = 50_000  # results that are kept


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one answer.

    Attributes:
        success: V(x, y) for the uplift: 1 if the answer is right or all tests pass, else 0.
        s: execution reward of this answer (docs/method.md section 4).
        outcome: in a word, for the log: `right`, `wrong`, or how the first test ended that did not pass.
        reason: where the tests could not be judged (outcome `unsupported`), why. There is no verdict then: success and
            s are 0 and must not become a reward.
    """

    success: int
    s: float
    outcome: str
    reason: str = ""


class Verifier:
    """V for both domains; may be called from several threads at once.

    Math: right or wrong by the final answer and `rule` (verify_math.py); s is binary, as in the paper. Code: the
    program in the answer runs on the problem's tests (verify_code.py); success if all pass, s by `style`.

    Samples of one problem are often the same program, so a program is run once for the same tests and its result kept.
    The sandbox starts with the first program and stays open, with as many workers as there are cores, until the process
    ends. `allowed`: what programs find besides Python.
    """

    def __init__(self, rule: AnswerRule = "strict", style: ExecStyle = "hybrid", allowed: Allowed | None = None):
        self.rule, self.style, self.allowed, self._lock = rule, style, allowed, threading.Lock()
        self._known: dict[tuple[str, str], CodeResult] = {}

    @cached_property
    def _sandbox(self) -> CodeVerifier:
        return CodeVerifier(workers=os.cpu_count() or 1, allowed=self.allowed)

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Verdict]:
        """One verdict for each answer, in order.

        Raises:
            ValueError: the expected answer of a problem cannot be read, or its tests (InputError): a fault of the data.
            RuntimeError: the sandbox (SandboxError), or the process that compares expressions, does not work.
        """
        pairs = list(zip(problems, answers, strict=True))
        results = iter(self._run([(p, y) for p, y in pairs if p.domain == "code"]))
        return [
            self._program_verdict(next(results)) if p.domain == "code" else self._math_verdict(p, y) for p, y in pairs
        ]

    def _math_verdict(self, problem: Problem, answer: str) -> Verdict:
        success = verify_math(answer, problem.answer, self.rule)
        return Verdict(success, float(success), "right" if success else "wrong")

    def _program_verdict(self, result: CodeResult) -> Verdict:
        if not result.judged:
            return Verdict(0, 0.0, str(Outcome.UNSUPPORTED), result.reason or "a test cannot be judged")
        outcome = next((str(o) for o in result.outcomes if o != Outcome.PASS), "pass")
        return Verdict(int(result.passed), execution_reward(result, self.style), outcome)

    def _run(self, pairs: list[tuple[Problem, str]]) -> list[CodeResult]:
        """How the program in each answer ends, from what is known or else from the sandbox."""
        tests = [read_tests(p.metadata, f"problem {p.problem_id}") for p, _ in pairs]
        jobs = [(extract_program(y, getattr(test, "entry_point", None)), test) for (_, y), test in zip(pairs, tests)]
        keys = [(program, json.dumps(test.model_dump())) for program, test in jobs]
        if len(self._known) > MAX_KNOWN:
            self._known = {}
        known = self._known  # another thread may begin a new one meanwhile
        new = {key: job for key, job in zip(keys, jobs) if key not in known}
        if new:
            with self._lock:
                sandbox = self._sandbox
            known |= zip(new, sandbox.verify(list(new.values())))
        return [known[key] for key in keys]
