"""Verdicts on the executor's answers: one small interface for both domains."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from tracelift_lib.problems.code_tests import read_tests
from tracelift_lib.problems.problem import Problem
from tracelift_lib.sandbox.running import Outcome
from tracelift_lib.verifier.verify_code import CodeResult, CodeVerifier, ExecStyle, execution_reward, extract_program
from tracelift_lib.verifier.verify_math import AnswerRule, verify_math

MAX_KNOWN = 50_000  # results that are kept


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one answer.

    Attributes:
        success: V(x, y) for the uplift: 1 if the answer is right or all tests pass, else 0; None: no verdict.
        s: execution reward of this answer (docs/method.md section 4); None exactly if `success` is.
        outcome: in a word, for the log: `right`, `wrong`, ..., or `infra` for a verifier that failed.
    """

    success: int | None
    s: float | None
    outcome: str


class Verifier(Protocol):
    """Gives verdicts on answers; may be called from several threads at once."""

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Verdict]:
        """One verdict for each answer, in order."""


@dataclass(frozen=True)
class MathVerifier:
    """Right or wrong by the final answer (verify_math.py); s is binary, as in the paper."""

    rule: AnswerRule

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Verdict]:
        """One verdict for each answer. Raises ValueError if a problem's expected answer cannot be read (bad data)."""
        return [self._verdict(p, y) for p, y in zip(problems, answers, strict=True)]

    def _verdict(self, problem: Problem, answer: str) -> Verdict:
        try:
            success = verify_math(answer, problem.answer, self.rule)
        except RuntimeError:  # the process that compares expressions does not work
            return Verdict(None, None, "infra")
        return Verdict(success, float(success), "right" if success else "wrong")


class ProgramVerifier:
    """Runs the program in an answer on the problem's tests (verify_code.py); s by `style`, success if all pass.

    Samples of one problem are often the same program, so a program is run once for the same tests and its result kept.
    The verifier stays open, with as many workers as there are cores, until the process ends.
    """

    def __init__(self, style: ExecStyle):
        self.style, self._verifier = style, CodeVerifier(workers=os.cpu_count() or 1)
        self._known: dict[tuple[str, str], CodeResult] = {}

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Verdict]:
        """One verdict for each answer. Raises InputError for a problem whose metadata holds no valid tests."""
        jobs = [
            (extract_program(y), read_tests(p.metadata, f"problem {p.problem_id}"))
            for p, y in zip(problems, answers, strict=True)
        ]
        keys = [(program, tests.model_dump_json()) for program, tests in jobs]
        if len(self._known) > MAX_KNOWN:
            self._known = {}
        known = self._known  # another thread may begin a new one meanwhile
        new = {key: job for key, job in zip(keys, jobs) if key not in known}
        results = dict(zip(new, self._verifier.verify(list(new.values()))))
        known |= {key: result for key, result in results.items() if not result.failed_to_run}
        return [self._verdict(results.get(key) or known[key]) for key in keys]

    def _verdict(self, result: CodeResult) -> Verdict:
        """The outcome is that of the first test that did not pass."""
        if result.failed_to_run:
            return Verdict(None, None, "infra")
        outcome = next((str(o) for o in result.outcomes if o != Outcome.PASS), "pass")
        return Verdict(int(result.passed), execution_reward(result, self.style), outcome)


class VerifierByDomain:
    """Sends each problem's answers to the verifier of its domain, which is made when it is first needed."""

    def __init__(self, makers: dict[str, Callable[[], Verifier]]):
        self._makers = {domain: cache(make) for domain, make in makers.items()}
        self._lock = threading.Lock()

    def verify(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Verdict]:
        """One verdict for each answer, in order. Raises ValueError for a domain that has no verifier."""
        verdicts: dict[int, Verdict] = {}
        for domain in {p.domain for p in problems}:
            if domain not in self._makers:
                raise ValueError(f"no verifier for problems of domain {domain!r}")
            with self._lock:
                verifier = self._makers[domain]()
            rows = [i for i, p in enumerate(problems) if p.domain == domain]
            found = verifier.verify([problems[i] for i in rows], [answers[i] for i in rows])
            verdicts |= dict(zip(rows, found, strict=True))
        return [verdicts[i] for i in range(len(problems))]
