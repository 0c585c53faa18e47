"""Verification of programs: V(x, y) and the execution reward s for the code domain (docs/method.md section 4).

Each test of a program runs in a process of its own in the sandbox. Expected results are not in it: standard output is
compared here, and test code runs in the test runner's process, which calls the program's functions from
outside (sandbox/calls.py).
"""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from tracelift_lib.problems.code_tests import AssertTests, StdioCase, StdioTests
from tracelift_lib.sandbox.host import Limits, SandboxError, Tier, Worker
from tracelift_lib.sandbox.running import Outcome, run_tests
from tracelift_lib.sandbox.tiers import choose_tier

ExecStyle = Literal["binary", "pass_rate", "coderl", "hybrid"]
MAX_TESTS = 8  # a program, as in the paper's code


@dataclass(frozen=True)
class CodeResult:
    """The outcomes of one program, one for each test in order, and the tier of isolation that they ran in."""

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


def execution_reward(result: CodeResult, style: ExecStyle) -> float:
    """s of docs/method.md section 4.

    With several tests `coderl` takes the worst: -0.6 if any test crashed or ran out of time, else -0.3 if any is wrong.
    `hybrid` is 0.8 times the pass rate, plus 0.2 if the program ran to its end on every test (so all passed gives 1),
    0.05 if it compiles but crashed or hit a limit on any, and nothing if it does not compile.
    """
    ended = all(outcome in (Outcome.PASS, Outcome.WRONG) for outcome in result.outcomes)
    if style == "binary":
        return float(result.passed)
    if style == "pass_rate":
        return result.pass_rate
    if style == "coderl":
        return 1.0 if result.passed else -1.0 if not result.compiled else -0.3 if ended else -0.6
    return 0.8 * result.pass_rate + (0.0 if not result.compiled else 0.2 if ended else 0.05)


BLOCK = re.compile(  # possessive (+): a line of many backticks is read once
    r"^[ \t]*+(?P<fence>(?P<mark>[`~])(?P=mark){2,}+)[ \t]*+(?P<language>[\w+-]*+)[^\n]*+\n"
    r"(?P<text>.*?)(?:^[ \t]*(?P=fence)(?P=mark)*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)


def extract_program(answer: str) -> str:
    """The program in an executor's answer.

    The last fenced block that is marked as Python, else the last block without a mark, else the last block: models
    often show a draft or an example first. A block that is never closed runs to the end of the text (the answer was cut
    off). Without any fence the whole text is the program.
    """
    blocks = [(block["language"].lower(), block["text"]) for block in BLOCK.finditer(answer)]
    for languages in (("python", "py", "python3"), ("",)):
        if marked := [text for language, text in blocks if language in languages]:
            return marked[-1]
    return blocks[-1][1] if blocks else answer


# --- running ------------------------------------------------------------------------------------------


class CodeVerifier(AbstractContextManager):
    """n warm workers that verify programs; a context manager.

    Args:
        workers: how many programs run at a time.
        limits: of one test.
        max_tests: only the first so many tests of a problem count.
        tier: a certain tier of isolation; None: the strongest that this machine offers.

    Raises:
        SandboxError: this machine offers no safe tier, or not the wanted one.
    """

    def __init__(
        self, workers: int = 1, limits: Limits | None = None, max_tests: int = MAX_TESTS, tier: Tier | None = None
    ):
        self.limits, self.max_tests = limits or Limits(), max_tests
        self.tier = choose_tier(tier)
        # Twice as many threads: one prepares the next program or compares the last results while another waits.
        self._pool = ThreadPoolExecutor(2 * workers, thread_name_prefix="verify")
        self._idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)  # started when first needed

    def __exit__(self, *_: object) -> None:
        """Ends the workers, after the jobs that run."""
        self._pool.shutdown(cancel_futures=True)
        while not self._idle.empty():
            if worker := self._idle.get():
                worker.close()

    def verify(self, jobs: Sequence[tuple[str, StdioTests | AssertTests]]) -> list[CodeResult]:
        """One result for each (program, tests), in order; from any thread.

        Raises:
            SandboxError: the sandbox does not work. That says nothing about a program and is never a result.
        """
        return list(self._pool.map(self._verify_one, *zip(*jobs))) if jobs else []

    def _verify_one(self, program: str, tests: StdioTests | AssertTests) -> CodeResult:
        """Twice if a worker breaks: a program that breaks the second too, while a harmless one runs, is at fault."""
        for _ in range(2):
            with suppress(SandboxError):
                outcomes, compiled = run_tests(self._borrow, program, tests, self.max_tests)
                return CodeResult(tuple(outcomes), compiled, self.tier)
        if run_tests(self._borrow, "print(1)", HARMLESS, 1)[0] != [Outcome.PASS]:
            raise SandboxError("a program that prints 1 fails in the sandbox")
        count = len(tests.cases if isinstance(tests, StdioTests) else tests.code)
        return CodeResult((Outcome.ERROR,) * min(count, self.max_tests), True, self.tier)

    @contextmanager
    def _borrow(self) -> Iterator[Worker]:
        """A worker, which is ended if anything goes wrong meanwhile."""
        worker = self._idle.get()
        sound = None
        try:
            worker = worker or Worker(self.tier, self.limits)
            yield worker
            sound = worker
        finally:
            if worker and not sound:
                worker.close()
            self._idle.put(sound)


HARMLESS = StdioTests(style="stdio", cases=[StdioCase(input="", output="1")])
