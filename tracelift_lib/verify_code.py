"""Verification of programs: V(x, y) and the execution reward s for the code domain (method.md section 4).

Each test of a program runs in a process of its own in the sandbox. Expected results are not in it: standard output is
compared here, and test code runs in a judge's process, which calls the program's functions from outside
(sandbox_calls.py).
"""

from __future__ import annotations

import ast
import json
import os
import queue
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from tracelift_lib.assert_plans import NeedsJudge, Plan, foreign_names, plan
from tracelift_lib.problems import InputError
from tracelift_lib.sandbox import (
    MAX_WAITING,
    Limits,
    Run,
    SandboxError,
    Tier,
    Worker,
    choose_tier,
    memory_file,
    read_file,
)
from tracelift_lib.sandbox_worker import OUT_OF_MEMORY

ExecStyle = Literal["binary", "pass_rate", "coderl", "hybrid"]
MAX_TESTS = 8  # a program, as in the paper's code


class Outcome(StrEnum):
    """How one test of a program ended."""

    PASS = "pass"
    WRONG = "wrong"  # it ran to its end with another result
    ERROR = "error"  # it does not compile, raised, crashed, or ended before the test did
    TIMEOUT = "timeout"  # CPU or wall limit
    MEMORY = "memory"
    INFRA = "infra"  # the harness failed; says nothing about the program


@dataclass(frozen=True)
class CodeResult:
    """The outcomes of one program, one a test in order, and the tier of isolation they were got in."""

    outcomes: tuple[Outcome, ...]
    compiled: bool
    tier: str

    @property
    def passed(self) -> bool:
        """V(x, y): all tests pass."""
        return all(outcome is Outcome.PASS for outcome in self.outcomes)

    @property
    def pass_rate(self) -> float:
        """Share of tests that pass."""
        return sum(outcome is Outcome.PASS for outcome in self.outcomes) / len(self.outcomes)

    @property
    def failed_to_run(self) -> bool:
        """Whether the harness failed on any test, so that there is no verdict."""
        return Outcome.INFRA in self.outcomes


def execution_reward(result: CodeResult, style: ExecStyle) -> float | None:
    """s of method.md section 4; None if the harness failed: that is never a reward.

    With several tests `coderl` takes the worst: -0.6 if any test crashed or ran out of time, else -0.3 if any is wrong.
    `hybrid` is 0.8 times the pass rate, plus 0.2 if the program ran to its end on every test (so all passed gives 1),
    0.05 if it compiles but crashed or hit a limit on any, and nothing if it does not compile.
    """
    if result.failed_to_run:
        return None
    ended = all(outcome in (Outcome.PASS, Outcome.WRONG) for outcome in result.outcomes)
    if style == "binary":
        return float(result.passed)
    if style == "pass_rate":
        return result.pass_rate
    if style == "coderl":
        return 1.0 if result.passed else -1.0 if not result.compiled else -0.3 if ended else -0.6
    return 0.8 * result.pass_rate + (0.0 if not result.compiled else 0.2 if ended else 0.05)


FENCE = re.compile(r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)[^\n]*\n", re.MULTILINE)


def extract_program(answer: str) -> str:
    """The program in an executor's answer.

    The last fenced block that is marked as Python, else the last block without a mark, else the last block: models
    often show a draft or an example first. A block that is never closed runs to the end of the text (the answer was cut
    off). Without any fence the whole text is the program.
    """
    blocks, place = [], 0
    while opening := FENCE.search(answer, place):
        closing = re.compile(rf"^[ \t]*{opening['fence'][0]}{{{len(opening['fence'])},}}[ \t]*$", re.MULTILINE)
        end = closing.search(answer, opening.end())
        blocks.append((opening["language"].lower(), answer[opening.end(): end.start() if end else len(answer)]))
        place = end.end() if end else len(answer)
    if not blocks:
        return answer
    for languages in (("python", "py", "python3"), ("",)):
        if marked := [text for language, text in blocks if language in languages]:
            return marked[-1]
    return blocks[-1][1]


# --- tests of a problem ----------------------------------------------------------------------------


class StdioCase(BaseModel):
    """One run: what the program reads, and what it must print."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    input: str
    output: str


class StdioTests(BaseModel):
    """A program from standard input to standard output."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    style: Literal["stdio"]
    cases: Annotated[list[StdioCase], Field(min_length=1)]


class AssertTests(BaseModel):
    """Functions with test code.

    code: one text a test; it passes if it ends without an exception. If a text defines `check` and there is an
        `entry_point`, `check` is called with it (HumanEval).
    setup: runs before each test in the judge, never in the program's process.
    entry_point: the function under test. Other names that the test code reads and nothing defines are looked up in the
        program too; builtins and standard modules are not.
    preamble: runs before the program, in its process: what the problem itself has shown (imports, helpers).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    style: Literal["asserts"]
    code: Annotated[list[str], Field(min_length=1)]
    setup: str = ""
    entry_point: str | None = None
    preamble: str = ""

    @field_validator("code", "setup", "preamble")
    @classmethod
    def _is_python(cls, value: list[str] | str) -> list[str] | str:
        for text in [value] if isinstance(value, str) else value:
            try:
                ast.parse(text)
            except SyntaxError as error:
                raise ValueError(f"not Python: {error.msg} (line {error.lineno})") from None
        return value


Tests = Annotated[StdioTests | AssertTests, Field(discriminator="style")]
_TESTS = TypeAdapter(Tests)


def read_tests(metadata: dict[str, Any], where: str) -> StdioTests | AssertTests:
    """The tests of a problem, from `Problem.metadata`; `where` names the problem in messages.

    Raises:
        InputError: there are none, or they are not laid out as StdioTests or AssertTests.
    """
    if "tests" not in metadata:
        raise InputError(f"{where}: metadata has no 'tests', so a program for it cannot be verified")
    try:
        return _TESTS.validate_python(metadata["tests"])
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, ("tests", *first["loc"])))
        raise InputError(f"{where}: metadata field {field}: {first['msg']}") from None


def same_output(printed: str, expected: str) -> bool:
    """Token by token: white space separates and otherwise does not count."""
    return printed.split() == expected.split()


# --- running ------------------------------------------------------------------------------------------


class CodeVerifier:
    """n warm workers that verify programs; a context manager.

    Args:
        workers: how many programs run at a time.
        limits: of one test.
        max_tests: only the first so many tests of a problem count.
        tier: a certain tier of isolation; None: the strongest that this machine offers.

    Raises:
        SandboxError: this machine offers no safe tier, or not the wanted one.
    """

    def __init__(self, workers: int = 1, limits: Limits | None = None, max_tests: int = MAX_TESTS,
                 tier: Tier | None = None):
        self.limits, self.max_tests = limits or Limits(), max_tests
        self.tier = choose_tier(tier)
        # Twice as many threads: one prepares the next program or judges the last while another waits for a worker.
        self._pool = ThreadPoolExecutor(2 * workers, thread_name_prefix="verify")
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)  # started when first needed

    def __enter__(self) -> CodeVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, after the jobs that run."""
        self._pool.shutdown(cancel_futures=True)
        while not self._idle.empty():
            if worker := self._idle.get():
                worker.close()

    def verify(self, jobs: Sequence[tuple[str, StdioTests | AssertTests]]) -> list[CodeResult]:
        """One result a (program, tests), in order; from any thread."""
        return list(self._pool.map(self._verify_one, *zip(*jobs))) if jobs else []

    def _verify_one(self, program: str, tests: StdioTests | AssertTests) -> CodeResult:
        """Twice if a worker breaks: a program that breaks the second too, while a harmless one runs, is at fault."""
        for _ in range(2):
            result = self._attempt(program, tests)
            if not result.failed_to_run:
                return result
        if self._attempt("print(1)", HARMLESS).passed:
            return CodeResult((Outcome.ERROR,) * len(result.outcomes), result.compiled, self.tier)
        return result

    def _attempt(self, program: str, tests: StdioTests | AssertTests) -> CodeResult:
        run = _run_stdio if isinstance(tests, StdioTests) else _run_asserts
        try:
            outcomes, compiled = run(self._borrow, program, tests, self.limits, self.max_tests)
            return CodeResult(tuple(outcomes), compiled, self.tier)
        except (SandboxError, SystemError):  # the second: assert_plans.foreign_names
            count = len(tests.cases if isinstance(tests, StdioTests) else tests.code)
            return CodeResult((Outcome.INFRA,) * min(count, self.max_tests), True, self.tier)

    @contextmanager
    def _borrow(self) -> Iterator[Worker]:
        """A worker, which is ended if anything goes wrong meanwhile."""
        worker = self._idle.get()
        try:
            worker = worker or Worker(self.tier)
            yield worker
        except BaseException:
            if worker:
                worker.close()
            worker = None
            raise
        finally:
            self._idle.put(worker)


Borrow = Callable[[], AbstractContextManager[Worker]]  # only for as long as a program runs
HARMLESS = StdioTests(style="stdio", cases=[StdioCase(input="", output="1")])


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


def _run_stdio(borrow: Borrow, program: str, tests: StdioTests, limits: Limits,
               max_tests: int) -> tuple[list[Outcome], bool]:
    def judged(run: Run, printed: bytes, case: StdioCase) -> Outcome:
        same = same_output(printed.decode(errors="replace"), case.output)
        return _limit(run) or (Outcome.ERROR if run.code else Outcome.PASS if same else Outcome.WRONG)

    cases = tests.cases[:max_tests]
    inputs = [case.input.encode("utf-8", "surrogateescape") for case in cases]
    runs, outputs = _run_each(borrow, limits, [program, ""], inputs, 2)
    if not runs[-1].compiled:
        return [_limit(runs[-1]) or Outcome.ERROR] * len(cases), False
    return list(map(judged, runs, outputs, cases)), True


def _run_each(borrow: Borrow, limits: Limits, program: list[str], inputs: list[bytes],
              outputs: int) -> tuple[list[Run], list[bytes]]:
    """A run of the program for each input, and the first of its `outputs` files. Ends early if it does not compile."""
    runs, texts = [], []
    with _Files() as shared:
        text = _text_file(shared, *program)
        for start in range(0, len(inputs), MAX_WAITING):
            with _Files() as files:
                tests = [[text, files.file(data), *(files.file() for _ in range(outputs))]
                         for data in inputs[start: start + MAX_WAITING]]
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


def _run_asserts(borrow: Borrow, program: str, tests: AssertTests, limits: Limits,
                 max_tests: int) -> tuple[list[Outcome], bool]:
    plans = [plan(code, tests.setup, tests.entry_point) for code in tests.code[:max_tests]]
    if None not in plans:
        try:
            return _run_plans(borrow, program, tests.preamble, plans, limits)
        except NeedsJudge:
            pass
    return _run_judged(borrow, program, tests, limits, max_tests)


def _run_plans(borrow: Borrow, program: str, preamble: str, plans: list[Plan],
               limits: Limits) -> tuple[list[Outcome], bool]:
    runs, results = _run_each(borrow, limits, [program, preamble], [one.calls.encode() for one in plans], 1)
    if not runs[-1].compiled:
        return [_limit(runs[-1]) or Outcome.ERROR] * len(plans), False
    return [_assert_outcome(run, one.verdict(lines)) for run, one, lines in zip(runs, plans, results)], True


def _run_judged(borrow: Borrow, program: str, tests: AssertTests, limits: Limits,
                 max_tests: int) -> tuple[list[Outcome], bool]:
    code = tests.code[:max_tests]
    with _Files() as files:
        text = _text_file(files, program, tests.preamble)
        verdicts = files.file()
        foreign = [[name for name in foreign_names(test, tests.setup) if name != tests.entry_point] for test in code]
        test_file = files.file(json.dumps(
            {"setup": tests.setup, "entry_point": tests.entry_point, "code": code, "foreign": foreign}).encode())
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
            files.close(*program_ends[len(runs):])
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
