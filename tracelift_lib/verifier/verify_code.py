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
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

from tracelift_lib.problems.code_tests import AssertTests, StdioCase, StdioTests
from tracelift_lib.sandbox.host import Allowed, Limits, SandboxError, Tier, Worker
from tracelift_lib.sandbox.running import Outcome, run_tests
from tracelift_lib.sandbox.tiers import choose_tier

ExecStyle = Literal["binary", "pass_rate", "coderl", "hybrid"]
MAX_TESTS = 8  # a program, as in the paper's code


@dataclass(frozen=True)
class CodeResult:
    """The outcomes of one program, one for each test in order, and the tier of isolation that they ran in; reason: why
    a test is unsupported, if one is."""

    outcomes: tuple[Outcome, ...]
    compiled: bool
    tier: str
    reason: str = ""

    @property
    def judged(self) -> bool:
        """Whether there is a verdict: no test is unsupported, or another one fails anyway."""
        others = [outcome for outcome in self.outcomes if outcome is not Outcome.UNSUPPORTED]
        return len(others) == len(self.outcomes) or any(outcome is not Outcome.PASS for outcome in others)

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

    The first test that does not pass decides how a failure counts, as in the released code (section 9). `coderl`: -0.6
    if that crashed or hit a limit, -0.3 if it is wrong. `hybrid` is 0.8 times the pass rate, plus 0.2 if all pass or
    the first failure is a wrong result, 0.05 if it is a crash or a limit, and nothing if the program does not compile.
    """
    first = next((outcome for outcome in result.outcomes if outcome is not Outcome.PASS), Outcome.PASS)
    ended = first in (Outcome.PASS, Outcome.WRONG)
    if style == "binary":
        return float(result.passed)
    if style == "pass_rate":
        return result.pass_rate
    if style == "coderl":
        return 1.0 if result.passed else -1.0 if not result.compiled else -0.3 if ended else -0.6
    return 0.8 * result.pass_rate + (0.0 if not result.compiled else 0.2 if ended else 0.05)


# A line that opens or closes a block: alone on its line, or (to open one) after text on it
FENCE = re.compile(r"^[ \t>]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)(?P<rest>.*)$")
LATE_FENCE = re.compile(r"[^`](?P<fence>```)(?P<language>python3?|py)[ \t]*$", re.IGNORECASE)
LANGUAGES = ("python", "py", "python3")


def blocks_of(answer: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block; one that is never closed runs to the end. Line by line: linear time."""
    found, mark, language, lines = [], "", "", []
    for line in answer.splitlines(keepends=True):
        match = FENCE.match(line.rstrip("\r\n"))
        if mark:
            closes = match and match["fence"].startswith(mark) and not (match["language"] + match["rest"]).strip()
            if not closes:
                lines.append(line)
                continue
            found.append((language, "".join(lines)))
            mark, lines = "", []
        elif line.endswith("\n") and (
            match := (match if match and "`" not in match["rest"] else LATE_FENCE.search(line.rstrip()))
        ):
            mark, language = match["fence"], match["language"].lower()
    return [*found, (language, "".join(lines))] if mark else found


def extract_program(answer: str, entry_point: str | None = None) -> str:
    """The program in an executor's answer.

    Of the fenced blocks those that are marked as Python count, else those without a mark, else all. Of these it is the
    last that defines the entry point, if one does (models show its usage after it); else the last, since models often
    show a draft first. Without any fence the whole text is the program. Line ends of Windows become ordinary ones.
    """
    answer = answer.replace("\r\n", "\n")
    blocks = blocks_of(answer)
    of_language = [[text for language, text in blocks if language in some] for some in (LANGUAGES, ("",))]
    texts = next(filter(None, of_language), [text for _, text in blocks])
    if entry_point:
        defines = re.compile(rf"^[ \t]*(async[ \t]+def|def|class)[ \t]+{re.escape(entry_point)}\b", re.MULTILINE)
        assigns = re.compile(rf"^{re.escape(entry_point)}[ \t]*(:[^=\n]*)?=[^=]", re.MULTILINE)
        for candidates in (texts, [text for _, text in blocks]):
            if defining := [text for text in candidates if defines.search(text) or assigns.search(text)]:
                return defining[-1]
    return texts[-1] if texts else answer


# --- running ------------------------------------------------------------------------------------------


class CodeVerifier(AbstractContextManager):
    """n warm workers that verify programs; a context manager.

    Args:
        workers: how many programs run at a time.
        limits: of one test.
        max_tests: only the first so many tests of a problem count.
        tier: a certain tier of isolation; None: the strongest that this machine offers.
        allowed: packages and prelude that programs find; None: those of sandbox/host.py.

    Raises:
        SandboxError: this machine offers no safe tier, or not the wanted one.
    """

    def __init__(
        self,
        workers: int = 1,
        limits: Limits | None = None,
        max_tests: int = MAX_TESTS,
        tier: Tier | None = None,
        allowed: Allowed | None = None,
    ):
        self.limits, self.max_tests, self.allowed = limits or Limits(), max_tests, allowed or Allowed()
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
        count = min(len(tests.cases if isinstance(tests, StdioTests) else tests.code), self.max_tests)
        for _ in range(2):
            try:
                outcomes, compiled, reason = run_tests(self._borrow, program, tests, self.max_tests)
                return CodeResult(tuple(outcomes), compiled, self.tier, reason)
            except SandboxError:
                continue
            except (
                Exception
            ) as error:  # a fault of ours must not cost the verdicts of others, nor count as the program's
                reason = f"{type(error).__name__}: {error}"
                return CodeResult((Outcome.UNSUPPORTED,) * count, True, self.tier, reason)
        if run_tests(self._borrow, "print(1)", HARMLESS, 1)[0] != [Outcome.PASS]:
            raise SandboxError("a program that prints 1 fails in the sandbox")
        return CodeResult((Outcome.ERROR,) * count, True, self.tier)

    @contextmanager
    def _borrow(self) -> Iterator[Worker]:
        """A worker, which is ended if anything goes wrong meanwhile."""
        worker = self._idle.get()
        sound = None
        try:
            worker = worker or Worker(self.tier, self.limits, self.allowed)
            yield worker
            sound = worker
        finally:
            if worker and not sound:
                worker.close()
            self._idle.put(sound)


HARMLESS = StdioTests(style="stdio", cases=[StdioCase(input="", output="1")])
