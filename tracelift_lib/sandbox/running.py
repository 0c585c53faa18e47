"""One program on its tests, in a sandbox worker, with the outcome of each test."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum

from tracelift_lib.problems.code_tests import AssertTests, StdioCase, StdioTests
from tracelift_lib.sandbox.assert_plans import NeedsJudge, Plan, foreign_names, plan
from tracelift_lib.sandbox.host import MAX_WAITING, Limits, Run, Worker, memory_file, read_file
from tracelift_lib.sandbox.worker import OUT_OF_MEMORY


class Outcome(StrEnum):
    """How one test of a program ended."""

    PASS = "pass"
    WRONG = "wrong"  # it ran to its end with another result
    ERROR = "error"  # it does not compile, raised, crashed, or ended before the test did
    TIMEOUT = "timeout"  # CPU or wall limit
    MEMORY = "memory"
    INFRA = "infra"  # the harness failed; says nothing about the program


def same_output(printed: str, expected: str) -> bool:
    """Token by token: white space separates and otherwise does not count."""
    return printed.split() == expected.split()


Borrow = Callable[[], AbstractContextManager[Worker]]  # only for as long as a program runs


class _Files:
    """Descriptors that are closed together."""

    def __init__(self):
        self.fds: list[int] = []

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self.fds:
            os.close(fd)

    def file(self, content: bytes | None = None) -> int:
        self.fds.append(memory_file(content))
        return self.fds[-1]

    def pair(self) -> tuple[int, int]:
        ends = tuple(end.detach() for end in socket.socketpair())
        self.fds += ends
        return ends

    def close(self, *fds: int) -> None:
        for fd in fds:
            self.fds.remove(fd)
            os.close(fd)


def _text_file(files: _Files, program: str, preamble: str) -> int:
    return files.file(json.dumps([preamble, program]).encode())


def _run_stdio(
    borrow: Borrow, program: str, tests: StdioTests, limits: Limits, max_tests: int
) -> tuple[list[Outcome], bool]:
    def judged(run: Run, printed: bytes, case: StdioCase) -> Outcome:
        same = same_output(printed.decode(errors="replace"), case.output)
        return _limit(run) or (Outcome.ERROR if run.code else Outcome.PASS if same else Outcome.WRONG)

    cases = tests.cases[:max_tests]
    inputs = [case.input.encode("utf-8", "surrogateescape") for case in cases]
    runs, outputs = _run_each(borrow, limits, [program, ""], inputs, 2)
    if not runs[-1].compiled:
        return [_limit(runs[-1]) or Outcome.ERROR] * len(cases), False
    return list(map(judged, runs, outputs, cases)), True


def _run_each(
    borrow: Borrow, limits: Limits, program: list[str], inputs: list[bytes], outputs: int
) -> tuple[list[Run], list[bytes]]:
    """A run of the program for each input, and the first of its `outputs` files. Ends early if it does not compile."""
    runs, texts = [], []
    with _Files() as shared:
        text = _text_file(shared, *program)
        for start in range(0, len(inputs), MAX_WAITING):
            with _Files() as files:
                tests = [
                    [text, files.file(data), *(files.file() for _ in range(outputs))]
                    for data in inputs[start : start + MAX_WAITING]
                ]
                with borrow() as worker:
                    runs += worker.run_all(limits, tests)
                texts += [read_file(test[2]) for test in tests]
            if not runs[-1].compiled:
                break
    return runs, texts


def _limit(run: Run) -> Outcome | None:
    if run.reason == "memory" or run.code == OUT_OF_MEMORY:
        return Outcome.MEMORY
    if run.reason in ("cpu", "wall"):
        return Outcome.TIMEOUT
    return Outcome.ERROR if run.reason else None


def _run_asserts(
    borrow: Borrow, program: str, tests: AssertTests, limits: Limits, max_tests: int
) -> tuple[list[Outcome], bool]:
    plans = [plan(code, tests.setup, tests.entry_point) for code in tests.code[:max_tests]]
    if None not in plans:
        try:
            return _run_plans(borrow, program, tests.preamble, plans, limits)
        except NeedsJudge:
            pass
    return _run_judged(borrow, program, tests, limits, max_tests)


def _run_plans(
    borrow: Borrow, program: str, preamble: str, plans: list[Plan], limits: Limits
) -> tuple[list[Outcome], bool]:
    runs, results = _run_each(borrow, limits, [program, preamble], [one.calls.encode() for one in plans], 1)
    if not runs[-1].compiled:
        return [_limit(runs[-1]) or Outcome.ERROR] * len(plans), False
    return [_assert_outcome(run, one.verdict(lines)) for run, one, lines in zip(runs, plans, results)], True


def _run_judged(
    borrow: Borrow, program: str, tests: AssertTests, limits: Limits, max_tests: int
) -> tuple[list[Outcome], bool]:
    code = tests.code[:max_tests]
    with _Files() as files:
        text = _text_file(files, program, tests.preamble)
        verdicts = files.file()
        foreign = [[name for name in foreign_names(test, tests.setup) if name != tests.entry_point] for test in code]
        test_file = files.file(
            json.dumps(
                {"setup": tests.setup, "entry_point": tests.entry_point, "code": code, "foreign": foreign}
            ).encode()
        )
        pairs = [files.pair() for _ in code]
        judge_ends, program_ends = zip(*pairs)
        with borrow() as worker:
            worker.start_judge(limits, [test_file, verdicts, *judge_ends])
            files.close(*judge_ends)
            runs = []
            for end in program_ends:
                runs.append(worker.run(limits, [text, end]))
                files.close(end)
                if not runs[-1].compiled:
                    break
            files.close(*program_ends[len(runs) :])
            worker.end_judge(limits)
        said = {line["test"]: line["verdict"] for line in map(json.loads, read_file(verdicts).splitlines())}
    if not runs[-1].compiled:
        return [_limit(runs[-1]) or Outcome.ERROR] * len(code), False
    return [_assert_outcome(run, said.get(index)) for index, run in enumerate(runs)], True


def _assert_outcome(run: Run, verdict: str | None) -> Outcome:
    """The judge's verdict; where it has none, the reason is how the program's process ended.

    A judge that ended itself before its verdict had a value it could not compare within the limits.
    """
    if verdict == "pass":
        return Outcome.PASS
    if verdict == "wrong":
        return Outcome.WRONG
    if verdict == "MemoryError":
        return Outcome.MEMORY
    return _limit(run) or Outcome.ERROR
