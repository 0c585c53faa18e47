"""Many programs in a row through one sandbox worker: processes, descriptors, memory and files must not grow, nor time.

Programs are of all sorts: right, wrong, crashing, forking, writing files, printing much, with test code or without.
Time a program is CPU time of this process and of the worker's, since the wall clock measures other work as well; the
middle of the first and of the last tenth are compared, so that a pause in one of them does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from tracelift_lib.problems.code_tests import AssertTests, StdioCase, StdioTests
from tracelift_lib.sandbox.host import Limits, Tier, Worker
from tracelift_lib.verifier.verify_code import CodeVerifier

BLOCK = 50  # programs between two looks
PRINTED = StdioTests(style="stdio", cases=[StdioCase(input="3", output="6"), StdioCase(input="4", output="8")])
PLANNED = AssertTests(style="asserts", code=["assert solve(3) == 6"], entry_point="solve")
RUN = AssertTests(style="asserts", code=["x = [3]\nassert solve(x[0]) == 6"], entry_point="solve")
# Each with whether it passes
JOBS = [
    ("print(2 * int(input()))", PRINTED, True),
    ("def solve(x): return 2 * x", PLANNED, True),
    ("def solve(x): return 2 * x", RUN, True),
    ("def solve(x): return [x] * 1000", PLANNED, False),
    ("print(2 * int(input())", PRINTED, False),
    ("1 / 0", PRINTED, False),
    ("open('f', 'w').write('x' * 5000)\nprint(2 * int(input()))", PRINTED, True),
    ("import os\nif os.fork() == 0: os._exit(0)\nos.wait()\nprint(2 * int(input()))", PRINTED, True),
    ("print('x' * 100_000)", PRINTED, False),
    ("import os\nos._exit(3)", RUN, False),
]


@dataclass(frozen=True)
class State:
    """Of the verifying process and its worker."""

    processes: int
    descriptors: int
    memory_mb: float
    files: int


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:  # grows
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def _state(worker: Worker) -> State:
    time.sleep(0.3)  # the worker makes the process of the next test after its reply
    pids = [os.getpid(), *_tree(worker.process.pid)]
    memory = [int(Path(f"/proc/{p}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") for p in pids]
    descriptors = sum(len(os.listdir(f"/proc/{p}/fd")) for p in pids)
    files = sum(len(files) for _, _, files in os.walk(worker.scratch)) if worker.scratch else 0
    return State(len(pids), descriptors, sum(memory) / 1e6, files)


def _cpu(pids: list[int]) -> float:
    """Seconds of these processes and of their children that have ended."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _blocks(verifier: CodeVerifier, worker: Worker, programs: int) -> Iterator[float]:
    """CPU seconds a program of each block. The process that waits for the next test is new each time: not counted."""
    jobs = [JOBS[i % len(JOBS)] for i in range(BLOCK)]
    pids = [os.getpid(), *_tree(worker.process.pid)[:-1]]
    for _ in tqdm(range(programs // BLOCK), unit="block", mininterval=5):
        start = _cpu(pids)
        results = verifier.verify([job[:2] for job in jobs])
        if [result.passed for result in results] != [passes for _, _, passes in jobs]:
            raise RuntimeError(f"a verdict is wrong: {[str(r.outcomes) for r in results[: len(JOBS)]]}")
        yield (_cpu(pids) - start) / BLOCK


def soak(programs: int, tier: Tier | None = None) -> dict:
    """What there was before and after so many programs, and CPU milliseconds a program at the beginning and the end.

    Raises:
        RuntimeError: a verdict was wrong.
        SandboxError: this machine does not offer the tier.
    """
    with CodeVerifier(1, Limits(), tier=tier) as verifier:
        verifier.verify([job[:2] for job in JOBS] * 10)
        worker = verifier._idle.get()
        verifier._idle.put(worker)
        before = _state(worker)
        seconds = list(_blocks(verifier, worker, programs))
        again = verifier._idle.get()
        verifier._idle.put(again)
        if again is not worker:
            raise RuntimeError("the worker was replaced")
        after = _state(worker)
    tenth = max(1, len(seconds) // 10)
    first, last = (1000 * statistics.median(part) for part in (seconds[:tenth], seconds[-tenth:]))
    return {
        "tier": verifier.tier,
        "programs": programs,
        "before": asdict(before),
        "after": asdict(after),
        "first_ms": first,
        "last_ms": last,
    }


def faults(result: dict) -> list[str]:
    """What has grown: more than 5 MB of memory, or 10 % of a program's time; of the rest anything."""
    before, after = result["before"], result["after"]
    found = [name for name in ("processes", "descriptors", "files") if after[name] > before[name]]
    found += ["memory"] if after["memory_mb"] > before["memory_mb"] + 5 else []
    return found + (["time"] if result["last_ms"] > 1.1 * result["first_ms"] else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--tier", default=None)
    arguments = parser.parse_args()
    result = soak(arguments.programs, arguments.tier)
    print(json.dumps(result, indent=1))
    if grown := faults(result):
        raise SystemExit(f"grown: {', '.join(grown)}")


if __name__ == "__main__":
    main()
