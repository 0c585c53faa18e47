"""One program on its tests, in a sandbox worker, with the outcome of each test."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from itertools import zip_longest
from math import isclose, isfinite
from typing import Literal

from tracelift_lib.problems.code_tests import AssertTests, StdioTests
from tracelift_lib.sandbox.assert_plans import NeedsTestRunner, Plan, plan
from tracelift_lib.sandbox.calls import UNSUPPORTED
from tracelift_lib.sandbox.host import ProcessEnd, Worker, memory_file
from tracelift_lib.sandbox.program import OUT_OF_MEMORY, read_all
from tracelift_lib.sandbox.usage import MAX_WAITING


class Outcome(StrEnum):
    """How one test of a program ended."""

    PASS = "pass"
    WRONG = "wrong"  # it ran to its end with another result
    ERROR = "error"  # it does not compile, raised, crashed, or ended before the test did
    TIMEOUT = "timeout"  # CPU or wall limit
    MEMORY = "memory"  # too much of it, or too many processes
    UNSUPPORTED = "unsupported"  # the test could not be judged here, whatever the program: no verdict


TOKEN = re.compile(r"\S+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)


def same_output(printed: str, expected: str, tolerance: float | None = None) -> bool:
    """Token by token: white space separates and otherwise does not count.

    tolerance: numbers may differ by so much, absolutely or relative to the expected one (0: 0.5 is 0.50). Stops at the
    first difference, since a program may print much.
    """
    pairs = zip_longest(*(map(re.Match.group, TOKEN.finditer(text)) for text in (printed, expected)))
    return all(a == b or a is not None and b is not None and _close(a, b, tolerance) for a, b in pairs)


def _close(printed: str, expected: str, tolerance: float | None) -> bool:
    """Two numbers, exactly as decimals or else within the tolerance."""
    if tolerance is None or not (NUMBER.fullmatch(printed) and NUMBER.fullmatch(expected)):
        return False
    try:
        if Decimal(printed) == Decimal(expected):
            return True
        one, other = float(printed), float(expected)
    except (InvalidOperation, OverflowError):
        return False
    wide = abs(one - other) <= tolerance or isclose(one, other, rel_tol=tolerance)
    return isfinite(one) and isfinite(other) and tolerance > 0 and wide


Borrow = Callable[[], AbstractContextManager[Worker]]  # only for as long as a program runs


def run_tests(
    borrow: Borrow, program: str, tests: StdioTests | AssertTests, max_tests: int
) -> tuple[list[Outcome], bool, str]:
    """The outcomes of the first `max_tests` tests, whether the program compiles, and why a test is unsupported, if any.

    Raises:
        SandboxError: the worker broke.
    """
    if isinstance(tests, StdioTests):
        cases = tests.cases[:max_tests]
        expected = (case.output for case in cases)

        def judge(end: ProcessEnd, output: str) -> str | None:
            same = same_output(output, next(expected), tests.tolerance)
            return None if end.code or end.reason else "pass" if same else "wrong"

        ends, verdicts = run_each(borrow, Job(program), "input", [case.input for case in cases], judge)
    else:
        cases = tests.code[:max_tests]
        ends, verdicts = _run_asserts(borrow, program, tests, cases)
    if not ends[-1].compiled:
        return [_outcome(ends[-1], None)] * len(cases), False, ""
    reasons = [v.removeprefix(UNSUPPORTED) for v in verdicts if v and v.startswith(UNSUPPORTED)]
    return list(map(_outcome, ends, verdicts)), True, (reasons or [""])[0]


@dataclass(frozen=True)
class Job:
    """A program, what runs before it in its process, and the names that it has to define itself."""

    program: str
    preamble: str = ""
    own_names: tuple[str, ...] = ()


Judge = Callable[[ProcessEnd, str], str | None]  # how a run ended and what it left: its verdict
NEEDS_TEST_RUNNER = "needs the test runner"


def run_each(
    borrow: Borrow, job: Job, kind: Literal["input", "calls", "test"], given: list[str], judge: Judge
) -> tuple[list[ProcessEnd], list[str | None]]:
    """Runs of a program, each with what it is `given`, and a verdict for each. That is made as soon as the run has
    ended, so that what programs write is held for one run only. Ends early if the program does not compile."""
    ends, verdicts = [], []
    for start in range(0, len(given), MAX_WAITING):
        with ExitStack() as stack:
            open_file = stack.enter_context
            text = open_file(memory_file(json.dumps([job.preamble, job.program, job.own_names])))
            # A program's errors are nobody's business
            more = [open_file(open(os.devnull, "w")).fileno()] if kind == "input" else []
            part = given[start : start + MAX_WAITING]
            files = [[text, open_file(memory_file(data)), open_file(memory_file()), *more] for data in part]
            with borrow() as worker:
                for end, test in zip(worker.run(files, test_code=kind == "test"), files):
                    ends.append(end)
                    verdicts.append(judge(end, read_all(test[2]).decode(errors="replace")))
                    os.truncate(test[2], 0)
        if not ends[-1].compiled:
            break
    return ends, verdicts


def _run_asserts(
    borrow: Borrow, program: str, tests: AssertTests, code: list[str]
) -> tuple[list[ProcessEnd], list[str | None]]:
    """By plans if all tests have one and their results can be compared here, else with the test runner."""
    own = tests.from_program + [tests.entry_point] * (tests.entry_point is not None)
    job = Job(program, tests.preamble, tuple(own))
    plans = [plan(text, tests.setup, tests.entry_point) for text in code]
    if None not in plans:
        remaining = iter(plans)
        ends, verdicts = run_each(
            borrow, job, "calls", [one.calls for one in plans], lambda _, lines: _planned(next(remaining), lines)
        )
        if NEEDS_TEST_RUNNER not in verdicts:
            return ends, verdicts
    shared = {"setup": tests.setup, "entry_point": tests.entry_point, "from_program": tests.from_program}
    texts = [json.dumps(shared | {"code": text}) for text in code]
    return run_each(borrow, job, "test", texts, lambda _, verdict: verdict)


def _planned(one: Plan, lines: str) -> str | None:
    try:
        return one.verdict(lines)
    except NeedsTestRunner:
        return NEEDS_TEST_RUNNER


def _outcome(end: ProcessEnd, verdict: str | None) -> Outcome:
    """By the verdict; where there is none, the reason is how the program's process ended.

    A test runner that ended itself before its verdict had a value it could not compare within the limits.
    """
    if verdict in ("pass", "wrong"):
        return Outcome(verdict)
    if verdict and verdict.startswith(UNSUPPORTED):
        return Outcome.UNSUPPORTED
    if verdict == "MemoryError" or end.reason in ("memory", "processes") or end.code == OUT_OF_MEMORY:
        return Outcome.MEMORY
    return Outcome.TIMEOUT if end.reason in ("cpu", "wall") else Outcome.ERROR
