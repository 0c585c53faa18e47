"""The sandbox against hostile programs, in every tier that this machine offers.

Contained means: the right outcome, nothing left running, nothing changed outside, the next program unaffected. A sample
of each kind of attack runs, a larger one in the strongest tier; all of them in all tiers where TRACELIFT_HOSTILE is
`all` (`make soak`).
"""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hostile_kinds import ALL
from hostile_table import END, START, outside, program_of

from bench.soak import faults, soak
from tracelift_lib.problems.code_tests import AssertTests, StdioCase, StdioTests
from tracelift_lib.sandbox import host, tiers, usage, worker
from tracelift_lib.sandbox.host import SAFE_TIERS, Allowed, Limits, SandboxError, Worker, bubblewrap_command
from tracelift_lib.sandbox.tiers import choose_tier, tier_fault
from tracelift_lib.sandbox.usage import Meter, Usage
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


@pytest.fixture(scope="module", name="outside")
def outside_folder():
    with outside() as folder:
        yield folder


def state(folder: Path) -> dict:
    return {
        p.name: (p.is_socket() or p.read_bytes(), stat.S_IMODE(p.stat().st_mode), p.stat().st_mtime_ns)
        for p in folder.iterdir()
    }


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


def sample(every: int) -> set[str]:
    """Names of the first attack of each kind, and of every so many after it."""
    kinds = defaultdict(list)
    for attack in ALL:
        kinds[attack.target].append(attack.name)
    return {name for names in kinds.values() for name in names[::every]}


WIDE, NARROW = sample(4), sample(1000)


def test_the_suite_is_large_and_names_are_unique():
    names = [attack.name for attack in ALL]
    assert len(set(names)) == len(names) >= 300
    assert len({attack.target for attack in ALL}) == len(NARROW) >= 40


def test_the_table_of_tiers_is_that_of_this_suite():
    """docs/sandbox.md is made from the suite by a command; it names every kind of attack, with as many as there are."""
    table = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text().split(START)[1].split(END)[0]
    for target in {attack.target for attack in ALL}:
        count = sum(attack.target == target for attack in ALL)
        assert f"| {target} |" in table and f"of {count} |" in next(
            r for r in table.splitlines() if f"| {target} |" in r
        )


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_an_attack_is_contained(verifier, impatient_verifier, outside, attack):
    strongest = verifier.tier == choose_tier()
    if os.environ.get("TRACELIFT_HOSTILE") != "all" and attack.name not in (WIDE if strongest else NARROW):
        pytest.skip("not in the sample; TRACELIFT_HOSTILE=all runs it")
    verifier = impatient_verifier if attack.waits else verifier
    worker, before = worker_of(verifier), state(outside)
    (result,) = verifier.verify([(program_of(attack, outside, LIMITS), attack.tests)])
    assert result.outcomes[0] in attack.outcomes
    assert result.tier == verifier.tier
    assert worker_of(verifier) is worker, "the worker had to be replaced"
    assert settles(lambda: len(processes_of(worker)) == verifier.idle), "a process is left"
    assert state(outside) == before
    assert all(r.passed for r in verifier.verify(NEXT)), "the next program is affected"


# --- what a program cannot show -----------------------------------------------------------------------


def test_a_long_row_of_programs_leaves_nothing():
    """`make soak` in short: no process, descriptor, file or memory more, and every verdict right."""
    result = soak(150)
    assert [fault for fault in faults(result) if fault != "time"] == []


@pytest.mark.parametrize("which", ["guard", "worker"])
def test_what_a_killed_worker_leaves_ends(which):
    """Kind 8: a program in a session of its own, where no process namespace ends with the worker."""
    if fault := tier_fault("landlock"):
        pytest.skip(fault)
    program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\ntime.sleep(100)"
    with CodeVerifier(1, LIMITS, tier="landlock") as verifier:
        verifier.verify(NEXT[:1])
        running = worker_of(verifier)
        guard, idle = running.process.pid, len(processes_of(running))
        (inner,) = Path(f"/proc/{guard}/task/{guard}/children").read_text().split()
        future = verifier._pool.submit(verifier.verify, [(program, NEXT[0][1])])
        assert settles(lambda: len(processes_of(running)) >= idle + 2)
        os.kill(guard if which == "guard" else int(inner), signal.SIGKILL)
        assert settles(lambda: not processes_of(running))
        future.cancel()


def test_an_untouched_folder_is_told_without_a_fine_clock(tmp_path, monkeypatch):
    """Kind 11: before Linux 6.13 the time of the last change is counted in steps of 4 ms."""
    real = os.stat
    monkeypatch.setattr(worker.os, "stat", lambda path, **more: CoarseStatus((*real(path, **more)[:7], 0, 0, 0)))
    clean = worker.changed(str(tmp_path))
    assert worker.changed(str(tmp_path)) == clean
    (tmp_path / "left").touch()
    assert worker.changed(str(tmp_path)) != clean
    (tmp_path / "left").unlink()
    assert worker.changed(str(tmp_path)) == clean
    tmp_path.chmod(0o755 if stat.S_IMODE(clean[0]) != 0o755 else 0o700)
    assert worker.changed(str(tmp_path)) != clean


class CoarseStatus(tuple):
    """A stat result whose times say nothing."""

    st_mtime_ns = st_ctime_ns = 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_mounts_below_a_readable_folder_are_read_only():
    """Kind 10, in a mount namespace of its own: a folder of the user's, mounted below one that programs may read."""
    if fault := tier_fault("namespaces"):
        pytest.skip(fault)
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:  # the namespaces tier covers /tmp
        base = Path(folder)
        base.chmod(0o755)
        (base / "inner").mkdir()
        script = SCRIPT.replace("BASE", folder)
        inside = f'mount -t tmpfs -o mode=777 none {base}/inner && exec {sys.executable} -c "$SCRIPT"'
        environment = {**os.environ, "SCRIPT": script}
        done = subprocess.run(["unshare", "-m", "sh", "-c", inside], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "pass", done.stderr


SCRIPT = """
import os, sys
from tracelift_lib.sandbox import host
from tracelift_lib.sandbox.host import Worker
from tracelift_lib.problems.code_tests import StdioCase, StdioTests
from tracelift_lib.verifier.verify_code import CodeVerifier
base = "BASE"
host.ROOT_FOLDERS = (*host.ROOT_FOLDERS, base)
program = "try:\\n    open(" + repr(base + "/inner/written") + ", 'w')\\n    print(1)\\nexcept OSError: print(2)"
tests = StdioTests(style="stdio", cases=[StdioCase(input="", output="2")])
with CodeVerifier(1, tier="namespaces") as verifier:
    print(verifier.verify([(program, tests)])[0].outcomes[0])
"""


def test_times_of_processes_that_are_gone_are_kept(monkeypatch):
    """Kind 5, without a control group: a child that nobody waits for takes its time with it; what was seen stays."""
    meter, used = Meter(os.open("/proc", os.O_RDONLY), {}), Usage()

    def stat(pid, seconds):
        return [b"R", b"1", *[b"0"] * 9, b"%d" % (seconds * usage.TICKS), *[b"0"] * 7, b"%d" % pid, b"0", b"0"]

    limits = {"cpu_s": 2, "memory_mb": 100, "disk_mb": 1, "file_mb": 1, "processes": 9}
    for pid in (10, 11, 12):
        monkeypatch.setattr(meter, "processes", lambda _, pid=pid: {1: stat(1, 0), pid: stat(pid, 1)})
        verdict = meter.exceeded(used, 1, limits)
        assert verdict == ("cpu" if pid > 10 else None)


def test_a_process_whose_first_thread_has_ended_shows_its_memory():
    """Kind 4: the kernel shows such a process as a zombie without memory."""
    code = (
        "import ctypes, threading, time\nx = b'x' * (64 << 20)\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\nprint(1, flush=True)\n"
        "ctypes.CDLL(None).pthread_exit(0)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            meter = Meter(os.open("/proc", os.O_RDONLY), {})
            assert settles(lambda: meter.status(str(process.pid))[0] == b"Z")
            _, memory, _ = meter._sums(Usage(), meter.processes(process.pid))
            assert memory + meter.own_pages * 4096 > 64 << 20
        finally:
            process.kill()


def test_address_spaces_of_all_processes_have_a_limit(monkeypatch):
    """Kind 4, without a control group: shared pages that nobody maps were in some address space."""
    meter = Meter(os.open("/proc", os.O_RDONLY), {})
    row = [b"S", b"1", *[b"0"] * 17, b"7", b"%d" % (meter.own_space + (300 << 20)), b"0"]
    limits = {"cpu_s": 2, "memory_mb": 256, "disk_mb": 1, "file_mb": 1, "processes": 9}
    for count, verdict in ((3, None), (4, "memory"), (20, "memory")):
        monkeypatch.setattr(meter, "processes", lambda _, count=count: dict.fromkeys(range(count), row))
        assert meter.exceeded(Usage(), 0, limits) == verdict
    row = [*row[:20], b"0", b"0"]
    monkeypatch.setattr(meter, "processes", lambda _: dict.fromkeys(range(18), row))
    assert (
        meter.exceeded(Usage(), 0, limits) == "processes"
    )  # kind 9: not left to a limit that the user's other programs share


def test_disk_that_cannot_be_counted_is_too_much_and_can_be_removed(tmp_path):
    """Kind 6: paths longer than the kernel takes; folders without rights."""
    top, here = tmp_path / "top", os.getcwd()
    top.mkdir()
    try:
        os.chdir(top)
        for _ in range(30):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        open("f", "w").close()
    finally:
        os.chdir(here)
    assert usage.is_full(str(top), 32 << 20)
    closed = top / "closed"
    closed.mkdir()
    (closed / "f").touch()
    closed.chmod(0)
    (top / "link").symlink_to(tmp_path)
    usage.remove(str(top))
    assert list(tmp_path.iterdir()) == []


def test_files_without_a_name_count(tmp_path):
    """Kind 6: written, unlinked, held open. (In another process, as a test's are.)"""
    code = (
        "import os, sys\nf = open('f', 'wb')\nos.unlink('f')\n"
        "f.write(bytes(1 << 20))\nf.flush()\nos.fsync(f.fileno())\n"
        "print(1, flush=True)\nsys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes) as process:
        process.stdout.readline()
        unlinked = Meter(os.open("/proc", os.O_RDONLY), {}).unlinked(process.pid)
        process.stdin.close()
    assert unlinked >= 1 << 20


def test_installed_packages_are_out_of_sight():
    """Kind 13: of each readable folder what is hidden is taken out, for rules that can only give."""
    assert any("site-packages" in folder or "dist-packages" in folder for folder in host._hidden())
    binds = ["/usr"]
    shown, listed = host._shown(binds, ["/usr/share", "/usr/lib/python3/dist-packages"])
    assert "/usr/share" not in shown and "/usr" in listed and "/usr/bin" in shown
    assert not any(path.startswith("/usr/lib/python3/dist-packages") for path in shown)


def test_a_package_below_tmp_is_not_offered_where_tmp_is_the_programs_own(monkeypatch):
    """In the namespace tiers /tmp is the program's folder; what lies there on the host cannot be seen."""
    places = {"inside": "/tmp/project/inside/__init__.py", "outside": "/opt/outside/__init__.py"}
    monkeypatch.setattr(host, "interpreter", lambda tier: os.path.realpath(sys.executable))
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=places[name]))
    for tier in ("bubblewrap", "namespaces"):
        assert host.package_folders(tier, [*places]) == {"outside": "/opt/outside"}


def test_a_package_that_is_allowed_can_be_imported_and_no_other():
    try:
        tier = choose_tier()
    except SandboxError as error:
        pytest.skip(str(error))
    if not host.package_folders(tier, ["numpy"]):
        pytest.skip("no numpy that the sandbox's interpreter can use")
    job = (
        "import numpy as np\nprint(np.arange(4).sum())",
        StdioTests(style="stdio", cases=[StdioCase(input="", output="6")]),
    )
    with CodeVerifier(1, tier=tier) as allowed, CodeVerifier(1, tier=tier, allowed=Allowed((), "")) as bare:
        assert allowed.verify([job])[0].passed
        assert not bare.verify([job])[0].passed
        assert not bare.verify([("print(math.floor(6.5))", job[1])])[0].passed  # no prelude either
        assert allowed.verify([("print(math.floor(6.5))", job[1])])[0].passed


def test_messages_about_tiers(monkeypatch):
    with pytest.raises(SandboxError, match="no tier 'docker'; there are bubblewrap, namespaces, landlock, none"):
        choose_tier("docker")
    monkeypatch.setattr(tiers, "tier_fault", lambda tier: "bwrap is missing" if tier == "bubblewrap" else None)
    with pytest.raises(
        SandboxError, match="(?s)does not offer tier 'bubblewrap': bwrap is missing.*offers namespaces, landlock"
    ):
        choose_tier("bubblewrap")
    assert choose_tier() == "namespaces"
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    assert "SYS_ADMIN" in host.explained("PermissionError: [Errno 1] mount: Operation not permitted")
