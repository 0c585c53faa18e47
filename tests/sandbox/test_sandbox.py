"""The sandbox against hostile programs, in every tier that this machine offers.

Contained means: the right outcome, nothing left running, nothing changed outside, the next program unaffected.
"""

import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_programs import ATTACKS

from tracelift_lib.problems.code_tests import AssertTests, StdioCase, StdioTests
from tracelift_lib.sandbox.host import SAFE_TIERS, Limits, Worker, bubblewrap_command
from tracelift_lib.sandbox.tiers import tier_fault
from tracelift_lib.verifier.verify_code import CodeVerifier

LIMITS = Limits(cpu_s=1.0, wall_s=60, memory_mb=256, disk_mb=32, file_mb=4, processes=16)
NEXT = [  # uses what an attack may have spoilt: files, builtins, modules, processes
    (
        "import os, json\nopen('f', 'w').write(json.dumps(sorted(map(abs, [-2, 1]))))\n"
        "p = os.fork()\nif p == 0: os._exit(0)\nos.waitpid(p, 0)\nprint(open('f').read(), os.listdir('.'), input())",
        StdioTests(style="stdio", cases=[StdioCase(input="in", output="[1, 2] ['f'] in")]),
    ),
    (
        "def solve(x): return str(x) + 'a'",
        AssertTests(style="asserts", code=["assert solve(5) == '5a'"], entry_point="solve"),
    ),
]


@pytest.fixture(scope="module", params=SAFE_TIERS)
def verifier(request):
    if fault := tier_fault(request.param):
        pytest.skip(f"tier {request.param}: {fault}")
    with CodeVerifier(1, LIMITS, tier=request.param) as verifier:
        yield ready(verifier)


@pytest.fixture(scope="module")
def impatient_verifier(verifier):
    """For attacks that wait: in the same tier, with a short wall limit."""
    with CodeVerifier(1, replace(LIMITS, wall_s=1), tier=verifier.tier) as impatient:
        yield ready(impatient)


def ready(verifier: CodeVerifier) -> CodeVerifier:
    """Started, with the number of its processes while it waits."""
    verifier.verify(NEXT)
    time.sleep(1)  # until it waits, with a process made for the next test
    verifier.idle = len(processes_of(worker_of(verifier)))
    return verifier


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder of the host that every user could write."""
    folder = Path(tmp_path_factory.mktemp("outside"))
    for above in (folder, *folder.parents):
        if above.stat().st_uid == os.getuid() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o055)
        if above == Path("/tmp"):
            break
    folder.chmod(0o777)
    for name, mode in (("public", 0o666), ("private", 0o600)):
        (folder / name).write_text(f"{name} text")
        (folder / name).chmod(mode)
    return folder


def state(folder: Path) -> dict:
    return {p.name: (p.read_bytes(), stat.S_IMODE(p.stat().st_mode), p.stat().st_mtime_ns) for p in folder.iterdir()}


def worker_of(verifier: CodeVerifier) -> Worker:
    worker = verifier._idle.get()
    verifier._idle.put(worker)
    return worker


def processes_of(worker: Worker) -> set[int]:
    """All processes on this machine that belong to the worker: forks have its command line, others its user."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                mine = (
                    entry.stat().st_uid == worker.uid
                    or f"'uid': {worker.uid}".encode() in (entry / "cmdline").read_bytes()
                )
            except OSError:
                continue
            if mine:
                found.add(int(entry.name))
    return found


def settles(condition) -> bool:
    """Whether it becomes true; the worker makes the process for the next test after it has replied."""
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_bubblewrap_is_found_outside_the_system_folders(tmp_path, monkeypatch):
    """Conda has it elsewhere, and the worker starts with an empty environment."""
    (tmp_path / "bwrap").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bubblewrap_command()[0] == str(tmp_path / "bwrap")


def test_the_suite_is_large_and_names_are_unique():
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names) >= 60
    assert len({attack.target for attack in ATTACKS}) >= 20


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_contained(verifier, impatient_verifier, outside, attack):
    verifier = impatient_verifier if attack.waits else verifier
    worker, before = worker_of(verifier), state(outside)
    program = attack.program.replace("OUTSIDE", str(outside)).replace("PARENT", str(os.getpid()))
    (result,) = verifier.verify([(program, attack.tests)])
    assert result.outcomes[0] in attack.outcomes
    assert result.tier == verifier.tier
    assert worker_of(verifier) is worker, "the worker had to be replaced"
    assert settles(lambda: len(processes_of(worker)) == verifier.idle), "a process is left"
    assert state(outside) == before
    assert all(r.passed for r in verifier.verify(NEXT)), "the next program is affected"
