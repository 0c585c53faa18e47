"""One program on its tests, in a sandbox worker, with the outcome of each test."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from enum import StrEnum

from tracelift_lib.problems.code_tests import AssertTests, StdioTests
from tracelift_lib.sandbox.assert_plans import NeedsTestRunner, plan
from tracelift_lib.sandbox.host import MAX_WAITING, ProcessEnd, Worker, memory_file
from tracelift_lib.sandbox.worker import OUT_OF_MEMORY, read_all


class Outcome(StrEnum):
    """How one test of a program ended."""

    PASS = "pass"
    WRONG = "wrong"  # it ran to its end with another result
    ERROR = "error"  # it does not compile, raised, crashed, or ended before the test did
    TIMEOUT = "timeout"  # CPU or wall limit
    MEMORY = "memory"


def same_output(printed: str, expected: str) -> bool:
    """Token by token: white space separates and otherwise does not count."""
    return printed.split() == expected.split()


Borrow = Callable[[], AbstractContextManager[Worker]]  # only for as long as a program runs


def run_tests(
    borrow: Borrow, program: str, tests: StdioTests | AssertTests, max_tests: int
) -> tuple[list[Outcome], bool]:
    """The outcomes of the first `max_tests` tests, and whether the program compiles.

    Raises:
        SandboxError: the worker broke.
    """
    if isinstance(tests, StdioTests):
        cases = tests.cases[:max_tests]
        ends, outputs = run_each(borrow, program, "", [case.input for case in cases], 2)
        same = ["pass" if same_output(output, case.output) else "wrong" for output, case in zip(outputs, cases)]
        verdicts = [None if end.code or end.reason else verdict for end, verdict in zip(ends, same)]
    else:
        cases = tests.code[:max_tests]
        ends, verdicts = _run_asserts(borrow, program, tests, cases)
    if not ends[-1].compiled:
        return [_outcome(ends[-1], None)] * len(cases), False
    return list(map(_outcome, ends, verdicts)), True


def run_each(
    borrow: Borrow, program: str, preamble: str, inputs: list[str], outputs: int, test_code: bool = False
) -> tuple[list[ProcessEnd], list[str]]:
    """A run of the program for each input (see Worker.run), and the first of its `outputs` files. Ends early if the
    program does not compile."""
    ends, texts = [], []
    for start in range(0, len(inputs), MAX_WAITING):
        with ExitStack() as stack:
            open_file = stack.enter_context
            text = open_file(memory_file(json.dumps([preamble, program])))
            files = [
                [text, open_file(memory_file(data)), *(open_file(memory_file()) for _ in range(outputs))]
                for data in inputs[start : start + MAX_WAITING]
            ]
            with borrow() as worker:
                ends += worker.run(files, test_code)
            texts += [read_all(test[2]).decode(errors="replace") for test in files]
        if not ends[-1].compiled:
            break
    return ends, texts


def _run_asserts(
    borrow: Borrow, program: str, tests: AssertTests, code: list[str]
) -> tuple[list[ProcessEnd], list[str | None]]:
    """By plans if all tests have one and their results can be compared here, else with the test runner."""
    plans = [plan(text, tests.setup, tests.entry_point) for text in code]
    if None not in plans:
        ends, results = run_each(borrow, program, tests.preamble, [one.calls for one in plans], 1)
        with suppress(NeedsTestRunner):
            return ends, [one.verdict(lines) for one, lines in zip(plans, results)]
    jobs = [json.dumps({"setup": tests.setup, "code": text, "entry_point": tests.entry_point}) for text in code]
    return run_each(borrow, program, tests.preamble, jobs, 1, test_code=True)


def _outcome(end: ProcessEnd, verdict: str | None) -> Outcome:
    """By the verdict; where there is none, the reason is how the program's process ended.

    A test runner that ended itself before its verdict had a value it could not compare within the limits.
    """
    if verdict in ("pass", "wrong"):
        return Outcome(verdict)
    if verdict == "MemoryError" or end.reason == "memory" or end.code == OUT_OF_MEMORY:
        return Outcome.MEMORY
    return Outcome.TIMEOUT if end.reason in ("cpu", "wall") else Outcome.ERROR
