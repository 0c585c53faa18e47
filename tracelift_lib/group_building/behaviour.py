"""Does a flaw in a program show when it runs on the problem's own tests, in the sandbox? Source: ours."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from tracelift_lib.problems import Problem
from tracelift_lib.sandbox import Limits, SandboxError
from tracelift_lib.verify_code import CodeVerifier, Outcome, read_tests

LIMITS = Limits(cpu_s=0.5, wall_s=10)  # of one test; the references take milliseconds


@functools.cache
def _verifier() -> CodeVerifier:
    """Stays open until the process ends."""
    return CodeVerifier(os.cpu_count() or 1, LIMITS)


def outcomes(problem: Problem, programs: Sequence[str]) -> list[tuple[Outcome, ...]]:
    """How each program ends on each test of the problem.

    Raises:
        SandboxError: this machine offers no safe place to run programs, or it broke.
    """
    tests = read_tests(problem.metadata, problem.problem_id)
    results = _verifier().verify([(program, tests) for program in programs])
    if any(result.failed_to_run for result in results):
        raise SandboxError(f"problem {problem.problem_id}: the sandbox failed; run again to go on from here")
    return [result.outcomes for result in results]


def shows(reference: Sequence[Outcome], flawed: Sequence[Outcome], may_stop: bool = False) -> bool:
    """Whether a flaw shows on a test that the reference passes: another result, or, if it `may_stop`, none at all."""
    found = {f for r, f in zip(reference, flawed, strict=True) if r is Outcome.PASS}
    return bool(found - {Outcome.PASS}) if may_stop else Outcome.WRONG in found
