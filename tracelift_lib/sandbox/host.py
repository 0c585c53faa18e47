"""Where model-written programs run: tiers of isolation and the warm worker in them (docs/method.md section 4).

- bubblewrap: files of /usr and the interpreter only, read-only, and a memory folder for the test; process, network and
  other namespaces of its own. Needs `bwrap`.
- namespaces: the same, made by the worker itself. Needs user namespaces, or root with the right to make namespaces.
- landlock: the same files by Landlock, a folder on disk for the test; processes of the host are visible in number but
  cannot be signalled or read. Root drops to a fresh user. Needs Linux 6.2, without root 6.12.
- none: limits and the filter of system calls, but all files that the user may reach. Only if asked for by name.

In every tier a test is a process of its own with limits, no capabilities, an empty environment and a filter of system
calls (no sockets, ptrace, namespaces, mounts ...). In the first two it is also the first process of a process namespace
of its own, which ends with it. Linux only, on x86-64 or arm64.
"""

from __future__ import annotations

import fcntl
import glob
import importlib.util
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tracelift_lib.sandbox.control_groups import ControlGroup, make_control_group
from tracelift_lib.sandbox.system_calls import system_call_filter
from tracelift_lib.sandbox.usage import remove

Tier = Literal["bubblewrap", "namespaces", "landlock", "none"]
NAMESPACE_TIERS: tuple[Tier, ...] = ("bubblewrap", "namespaces")
SAFE_TIERS: tuple[Tier, ...] = (*NAMESPACE_TIERS, "landlock")
SLACK_SECONDS = 60.0  # beyond the wall limits of a test: then the worker itself hangs
# The library folders of the root, which are links into /usr on most systems.
ROOT_FOLDERS = ("/bin", "/lib", "/lib32", "/lib64", "/sbin")


# Read inside besides the interpreter's own folders; of these what a system keeps for other programs is hidden.
HIDDEN_NAMES = ("site-packages", "dist-packages")
HIDDEN = ("/usr/share", "/usr/local", "/usr/src", "/usr/include", "/usr/games")
SHOWN_IN_HIDDEN = ("/usr/share/zoneinfo",)
PACKAGES = ("numpy",)
# What the harnesses of public sets of problems import before a program (LiveCodeBench, MBPP, HumanEval's prompts), in
# our choice: models often leave these imports out. Nothing in it hides a builtin.
PRELUDE = """
from typing import *
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque, namedtuple
from functools import cache, cmp_to_key, lru_cache, partial, reduce
from heapq import heapify, heappop, heappush, heappushpop, heapreplace, nlargest, nsmallest
from itertools import accumulate, chain, combinations, combinations_with_replacement, count, cycle, groupby
from itertools import islice, permutations, product, repeat, zip_longest
from bisect import bisect_left, bisect_right, insort
from math import ceil, comb, factorial, floor, gcd, inf, isqrt, lcm, log, pi, sqrt
from copy import deepcopy
import bisect, collections, copy, datetime, functools, heapq, io, itertools, json, math, operator, os, random, re
import statistics, string, sys
"""


class SandboxError(RuntimeError):
    """The sandbox is unavailable or does not work; never the fault of a program in it."""


@dataclass(frozen=True)
class Limits:
    """What one test may use, all its processes together. CPU time decides, so that a busy machine changes no verdict;
    the wall limit is for programs that wait. `memory_mb` is also each process's address space."""

    cpu_s: float = 2.0
    wall_s: float = 20.0
    memory_mb: int = 1024
    disk_mb: int = 64
    file_mb: int = 16  # one file, and standard output
    processes: int = 32


@dataclass(frozen=True)
class Allowed:
    """What programs and test code find besides Python itself.

    packages: of the environment of this process, where they are installed and the sandbox's interpreter is the same.
    prelude: Python that runs before each program; what it binds is also there for test code.
    """

    packages: tuple[str, ...] = PACKAGES
    prelude: str = PRELUDE


@dataclass(frozen=True)
class ProcessEnd:
    """How a program's process ended: `code` as in subprocess, `reason` the limit that ended it, if any; left: whether a
    folder of it could not be removed from inside."""

    code: int
    reason: Literal["cpu", "wall", "memory", "processes", "disk"] | None
    compiled: bool
    left: bool = False


class Worker:
    """One warm interpreter inside a tier. Not thread-safe: one caller at a time."""

    def __init__(self, tier: Tier, limits: Limits, allowed: Allowed | None = None):
        """Start it; `limits` are those of each test.

        Raises:
            SandboxError: it does not start; says why.
        """
        self.tier, self.limits, self.allowed = tier, limits, allowed or Allowed()
        self.uid = 0x20000000 + random.SystemRandom().randrange(0x20000000)  # nobody's: limits count by user
        self.scratch = ""
        if tier not in NAMESPACE_TIERS:
            self.scratch = tempfile.mkdtemp(prefix="tracelift-sandbox-")
            os.chmod(self.scratch, 0o711)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(2 * limits.wall_s + SLACK_SECONDS)  # a program, then the test runner
        self.group = make_control_group(str(self.uid))
        with theirs, tempfile.TemporaryFile() as errors, ExitStack() as stack:
            groups = {name: stack.enter_context(open(path, "rb")) for name, path in self.group.files.items()}
            numbers = {name: file.fileno() for name, file in groups.items()}
            self.process = subprocess.Popen(
                self.group.command(self._command(numbers)),
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=list(numbers.values()),
                env={},
                cwd="/",
                start_new_session=True,
            )
            theirs.close()
            own_user = self.uid if tier not in NAMESPACE_TIERS and os.geteuid() == 0 else None
            ends = self.process, self.control, self.scratch, self.group, own_user
            self._finalizer = weakref.finalize(self, _end, *ends)
            _live.add(self)
            try:
                self._receive()
            except OSError as error:
                self.close()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines() or [str(error)]
                raise SandboxError(f"tier {tier} does not start: {explained(lines[-1])}") from None

    def _command(self, groups: dict[str, int]) -> list[str]:
        setting = {
            "tier": self.tier,
            "limits": asdict(self.limits),
            "uid": self.uid,
            "scratch": self.scratch,
            "filter": system_call_filter(namespaces=self.tier in NAMESPACE_TIERS),
            "binds": _binds(self.tier, self.allowed.packages),
            "links": _links(),
            "hidden": _hidden(),
            "packages": package_folders(self.tier, self.allowed.packages),
            "prelude": self.allowed.prelude,
            "groups": groups,
            "other_processes": None if os.geteuid() == 0 or self.tier in NAMESPACE_TIERS else _own_threads(),
        }
        if self.tier == "landlock":
            setting["shown"], setting["listed"] = _shown(setting["binds"], setting["hidden"])
        sources = {"tracelift_lib": "", "tracelift_lib.sandbox": ""}
        for name in (
            "values",
            "calls",
            "usage",
            "program",
            "worker",
        ):  # sent along, so that the worker needs no file of this folder
            sources[f"tracelift_lib.sandbox.{name}"] = Path(__file__).with_name(f"{name}.py").read_text()
        boot = (
            "import sys, types\n"
            f"for name, source in {sources!r}.items():\n"
            "    module = sys.modules[name] = types.ModuleType(name)\n"
            "    exec(compile(source, name, 'exec'), module.__dict__)\n"
            f"module.main({setting!r})\n"
        )
        python = [interpreter(self.tier), "-I", "-S", "-c", boot]
        return [*bubblewrap_command(self.allowed.packages), *python] if self.tier == "bubblewrap" else python

    def run(self, tests: Sequence[Sequence[int]], test_code: bool = False) -> Iterator[ProcessEnd]:
        """Run one program on each of at most MAX_WAITING tests, which the worker gets at once, so that it need not wait
        for its caller between them. A program that does not compile is tried once.

        Args:
            tests: file descriptors of the program's text, then standard input, output and error; or calls and a file
                for their results (assert_plans.Plan).
            test_code: they are the program's text, then a test and a file for its verdict (calls.test_runner).

        Raises:
            SandboxError: the worker broke. It is closed then.
        """
        try:
            for number, fds in enumerate(tests):
                request = json.dumps({"test_code": test_code, "again": number > 0}).encode()
                socket.send_fds(self.control, [request], list(fds))
            for _ in tests:
                end = ProcessEnd(**self._receive())
                if end.left:  # this process has rights that the worker has given up
                    self._remove_left()
                yield end
        except OSError as error:
            self.close()
            raise SandboxError(f"the sandbox worker (tier {self.tier}) broke: {error}") from error
        except BaseException:  # Ctrl-C: the next call must not read this one's reply
            self.close()
            raise

    def _receive(self) -> dict:
        data = self.control.recv(1 << 16)
        reply = json.loads(data) if data else {"fault": "it has ended"}
        if "fault" in reply:
            raise OSError(reply["fault"])
        return reply

    def _remove_left(self) -> None:
        for folder in os.scandir(self.scratch):
            with suppress(OSError):  # closing tries again
                remove(folder.path)

    def close(self) -> None:
        """End the worker and everything in it."""
        self._finalizer()


_live: weakref.WeakSet[Worker] = weakref.WeakSet()


def _end(
    process: subprocess.Popen, control: socket.socket, scratch: str, group: ControlGroup, own_user: int | None
) -> None:
    control.close()  # it ends by itself when its caller is gone, and takes all its processes with it
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    process.kill()  # nothing if it has ended
    process.wait()
    if own_user is not None:
        _end_all_of(own_user)
    group.remove()
    if scratch:
        with suppress(OSError):
            remove(scratch)


def _end_all_of(user: int) -> None:
    """Kill every process of a worker's own user: they may be left where the worker was killed."""
    kill = f"import os, signal; os.setgroups([]); os.setresuid({user}, {user}, {user}); os.kill(-1, signal.SIGKILL)"
    uids = (entry.stat().st_uid for entry in os.scandir("/proc") if entry.name.isdigit())
    with suppress(OSError):  # a process has ended meanwhile: look again
        if any(uid == user for uid in uids):
            subprocess.run([sys.executable, "-I", "-S", "-c", kill], stderr=subprocess.DEVNULL)


def _forget() -> None:
    """In a forked child: the workers belong to the parent, and must see it go when it goes."""
    for worker in list(_live):
        worker._finalizer.detach()
        worker.control.close()


os.register_at_fork(after_in_child=_forget)


def _own_threads() -> int:
    """Threads of this user: without namespaces the kernel's limit of processes counts them too."""
    total = 0
    for entry in os.scandir("/proc"):
        with suppress(OSError):  # it has ended meanwhile
            if entry.name.isdigit() and entry.stat().st_uid == os.getuid():
                total += len(os.listdir(f"/proc/{entry.name}/task"))
    return total


def explained(message: str) -> str:
    """An error of the worker's start, with its usual cause."""
    if "Operation not permitted" in message and os.geteuid() == 0:
        return (
            f"{message} (root here lacks capabilities, as in most containers: SYS_ADMIN for namespaces, SETUID and "
            "SETGID to drop its rights; run as a plain user, or give the container these)"
        )
    return message


# --- what the inside sees ------------------------------------------------------------------------


def interpreter(tier: Tier) -> str:
    """The interpreter behind a virtual environment: the sandbox has no site-packages.

    Without namespaces root's dropped user cannot enter root's home: the system's own interpreter then has to do.
    """
    ours, system = os.path.realpath(sys.executable), "/usr/bin/python3"
    if tier in ("landlock", "none") and os.geteuid() == 0 and os.path.exists(system):
        if not _open_to_all(Path(ours)):
            return os.path.realpath(system)
    return ours


def package_folders(tier: Tier, names: Sequence[str]) -> dict[str, str]:
    """Where each of the packages is that this environment has and the tier's interpreter can use."""
    if interpreter(tier) != os.path.realpath(sys.executable):
        return {}
    found = {}
    for name in names:
        spec = importlib.util.find_spec(name)
        folder = spec and spec.origin and os.path.dirname(os.path.realpath(spec.origin))
        if not folder or (tier in NAMESPACE_TIERS and Path(folder).is_relative_to("/tmp")):  # the program's own there
            continue
        if tier in NAMESPACE_TIERS or os.geteuid() != 0 or _open_to_all(Path(folder, ".")):
            found[name] = folder
    return found


def _open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.parents)


def _binds(tier: Tier, packages: Sequence[str] = ()) -> list[str]:
    """Folders that are readable inside."""
    wanted = ["/usr", *(f for f in ROOT_FOLDERS if os.path.isdir(f) and not os.path.islink(f))]
    for folder in (sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.realpath(sys.executable))):
        folder = os.path.realpath(folder)
        if not any(Path(folder).is_relative_to(have) for have in wanted):
            wanted.append(folder)
    for folder in package_folders(tier, packages).values():
        wanted += [folder, *(f for f in [f"{folder}.libs"] if os.path.isdir(f))]
    return wanted + [folder for folder in SHOWN_IN_HIDDEN if os.path.isdir(folder)]


def _hidden() -> list[str]:
    """Folders inside the readable ones that are not."""
    found = [folder for folder in HIDDEN if os.path.isdir(folder)]
    python = [os.path.realpath(f) for f in (sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable)))]
    found = [folder for folder in found if not any(Path(own).is_relative_to(folder) for own in python)]
    for pattern in (f"{p}/lib/python3*/{name}" for p in {"/usr", sys.base_prefix} for name in HIDDEN_NAMES):
        found += [os.path.realpath(folder) for folder in glob.glob(pattern)]
    return sorted({folder for folder in found if not os.path.islink(folder)})


def _shown(binds: Sequence[str], hidden: Sequence[str]) -> tuple[list[str], list[str]]:
    """(what is readable, folders whose names are), for rules that cannot take back what they gave."""
    shown, listed = [], []
    queue = list(binds)
    for path in queue:  # grows
        if path in hidden:
            continue
        if not any(place.startswith(f"{path}/") for place in hidden):
            shown.append(path)
            continue
        listed.append(path)
        queue += [entry.path for entry in os.scandir(path) if not entry.is_symlink()]
    return shown, listed


def _links() -> list[list[str]]:
    return [[os.readlink(f), f] for f in ROOT_FOLDERS if os.path.islink(f)] + [["/tmp", "/dev/shm"]]


def bubblewrap_command(packages: Sequence[str] = ()) -> list[str]:
    """The bwrap command line of the tier, up to the program."""
    # Popen with an empty environment would look for bwrap in the system's folders only
    command = [shutil.which("bwrap") or "bwrap"]
    command += "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup-try".split()
    command += "--clearenv --hostname sandbox --proc /proc --dir /tmp".split()
    if os.geteuid() != 0:  # root drops its rights inside, and can so use an interpreter in root's own home
        command.append("--unshare-user")
    binds, hidden = _binds("bubblewrap", packages), _hidden()
    for folder in ("/dev/null", *binds):
        command += _folders_above(folder)
        if folder != "/dev/null":
            command += ["--ro-bind", folder, folder]
            for place in (place for place in hidden if place.startswith(f"{folder}/")):
                command += ["--tmpfs", place]
    for place in hidden:
        command += ["--remount-ro", place]
    for device in ("null", "zero", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for target, path in _links():
        command += ["--symlink", target, path]
    return [*command, "--remount-ro", "/", "--chdir", "/", "--"]


def _folders_above(folder: str) -> list[str]:
    """Options for bwrap, which else makes them for their owner only."""
    return [word for above in reversed(Path(folder).parents[:-1]) for word in ("--dir", str(above))]


# --- memory files ----------------------------------------------------------------------------------


@contextmanager
def memory_file(content: str | bytes | None = None) -> Iterator[int]:
    """A file in memory: empty and writable, or with `content` and sealed, so that no test can change it."""
    with open(os.memfd_create("tracelift", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b", buffering=0) as file:
        if content is not None:
            file.write(_bytes(content) if isinstance(content, str) else content)
            file.seek(0)
            fcntl.fcntl(file, 1033, 0b1111)  # F_ADD_SEALS, all of them
        yield file.fileno()


def _bytes(text: str) -> bytes:
    """As programs read it. Half a surrogate pair is no character in UTF-8, but may stand in a text."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
