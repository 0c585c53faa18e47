"""Tests a second of the warm worker against a fresh interpreter for each test, on the references of HumanEval and MBPP.

The naive ways run program and test code together in one new interpreter (so they would show the program its expected
values): once under the same isolation (bubblewrap with the same view, no capabilities, the same filter of system calls,
a memory folder, limits) and once with limits only. They import nothing more than they need. All three take turns on
small portions of the same tests, because other work on the machine changes the speed from minute to minute.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from tracelift_lib.problems.code_sets import load_humaneval, load_mbpp
from tracelift_lib.problems.code_tests import AssertTests, read_tests
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem
from tracelift_lib.sandbox.host import Limits, bubblewrap_command, interpreter, memory_file
from tracelift_lib.sandbox.system_calls import system_call_filter
from tracelift_lib.sandbox.tiers import tier_fault
from tracelift_lib.verifier.verify_code import CodeVerifier

TIER = "bubblewrap"
PORTION = 48  # problems between two turns
SLOW = {"mbpp-0123"}  # its reference needs more than ten seconds
FRESH = """
import resource, sys
for which, value in ((resource.RLIMIT_CPU, 3), (resource.RLIMIT_AS, 1 << 30), (resource.RLIMIT_FSIZE, 16 << 20),
                     (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(which, (value, value))
exec(compile(sys.stdin.read(), "<program>", "exec"), {"__name__": "program"})
"""


@dataclass(frozen=True)
class Job:
    program: str
    tests: AssertTests

    def scripts(self) -> Iterator[str]:
        """Program and test code as one text, one a test."""
        name = self.tests.entry_point
        for code in self.tests.code:
            check = f"\ncheck({name})" if "def check(" in code else ""
            yield f"{self.program}\n{'' if check else self.tests.setup}\n{code}{check}\n"


def _jobs(problems: list[Problem]) -> list[Job]:
    return [
        Job(p.reference_solution, read_tests(p.metadata, p.problem_id)) for p in problems if p.problem_id not in SLOW
    ]


def _load() -> tuple[list[Job], str]:
    """The jobs, and what they are from. MBPP is in no wheel, so without a folder there is only HumanEval."""
    humaneval = _jobs(load_humaneval())
    try:
        return humaneval + _jobs(load_mbpp()), "HumanEval and MBPP"
    except InputError as error:
        print(f"bench sandbox: HumanEval only, MBPP is missing: {error}")
        return humaneval, "HumanEval only"


def _fresh(command: list[str], script: str, fds: list[int]) -> None:
    done = subprocess.run(command, input=script, text=True, capture_output=True, env={}, pass_fds=fds)
    if done.returncode:
        raise RuntimeError(f"a reference program failed in a fresh interpreter: {done.stderr[-300:]}")


def _naive(isolated: bool, pool: ThreadPoolExecutor) -> Callable[[list[Job]], None]:
    def one(script: str) -> None:
        command = [interpreter(TIER), "-I", "-S", "-c", FRESH]
        if not isolated:
            return _fresh(command, script, [])
        with memory_file(system_call_filter(namespaces=True)) as rules:  # bwrap reads it once
            inside = ["--unshare-user", "--cap-drop", "ALL", "--tmpfs", "/tmp", "--seccomp", str(rules), "--"]
            _fresh([*bubblewrap_command()[:-1], *inside, *command], script, [rules])

    return lambda jobs: list(pool.map(one, [script for job in jobs for script in job.scripts()]))


def _warm(verifier: CodeVerifier) -> Callable[[list[Job]], None]:
    def way(jobs: list[Job]) -> None:
        if not all(result.passed for result in verifier.verify([(job.program, job.tests) for job in jobs])):
            raise RuntimeError("a reference program failed in the warm worker")

    return way


def _rates(jobs: list[Job], workers: int) -> list[float]:
    """Tests a second: warm, fresh under bubblewrap, fresh with limits only."""
    seconds, tests = [0.0] * 3, sum(len(job.tests.code) for job in jobs)
    with CodeVerifier(workers, Limits(), tier=TIER) as verifier, ThreadPoolExecutor(workers) as pool:
        ways = [_warm(verifier), _naive(True, pool), _naive(False, pool)]
        for way in ways:
            way(jobs[:workers])  # start the workers, fill the caches
        portions = [jobs[i : i + PORTION] for i in range(0, len(jobs), PORTION)]
        for portion in tqdm(portions, desc=f"{workers} worker(s)", unit="portion", mininterval=5):
            for index, way in enumerate(ways):
                start = time.perf_counter()
                way(portion)
                seconds[index] += time.perf_counter() - start
    return [tests / s for s in seconds]


def run() -> list[dict]:
    """Two rows: against the same isolation and against limits only; each the lower of 1 and 2 workers.

    Raises:
        InputError: bubblewrap or the data are missing.
    """
    if fault := tier_fault(TIER):
        raise InputError(f"needs the tier {TIER}: {fault}")
    jobs, data = _load()
    tests = sum(len(job.tests.code) for job in jobs)
    rates = {workers: _rates(jobs, workers) for workers in (1, 2)}
    rows = []
    for column, name, other in (
        (1, "sandbox_throughput", "a fresh interpreter a test under the same isolation"),
        (2, "sandbox_throughput_bare", "a bare fresh interpreter a test"),
    ):
        ratios = {workers: rate[0] / rate[column] for workers, rate in rates.items()}
        worst = min(ratios, key=ratios.get)
        note = "; ".join(
            f"{w} worker{'s' * (w > 1)}: {rates[w][0]:.0f} against {rates[w][column]:.0f}, {ratios[w]:.1f} times"
            for w in rates
        )
        rows.append(
            {
                "name": name,
                "ours": rates[worst][0],
                "other": rates[worst][column],
                "ratio": ratios[worst],
                "unit": "tests/s",
                "note": f"warm worker (tier {TIER}) against {other}, {tests} tests of {data}; {note}",
            }
        )
    return rows
