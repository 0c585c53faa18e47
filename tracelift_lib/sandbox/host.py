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
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tracelift_lib.sandbox.system_calls import system_call_filter

Tier = Literal["bubblewrap", "namespaces", "landlock", "none"]
NAMESPACE_TIERS: tuple[Tier, ...] = ("bubblewrap", "namespaces")
SAFE_TIERS: tuple[Tier, ...] = (*NAMESPACE_TIERS, "landlock")
MAX_WAITING = 16  # tests that wait in the worker's socket
SLACK_SECONDS = 60.0  # beyond the wall limits of a test: then the worker itself hangs
# The library folders of the root, which are links into /usr on most systems.
ROOT_FOLDERS = ("/bin", "/lib", "/lib32", "/lib64", "/sbin")


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
class ProcessEnd:
    """How a program's process ended: `code` as in subprocess, `reason` the limit that ended it, if any."""

    code: int
    reason: Literal["cpu", "wall", "memory", "disk"] | None
    compiled: bool


class Worker:
    """One warm interpreter inside a tier. Not thread-safe: one caller at a time."""

    def __init__(self, tier: Tier, limits: Limits):
        """Start it; `limits` are those of each test.

        Raises:
            SandboxError: it does not start; says why.
        """
        self.tier, self.limits = tier, limits
        self.uid = 0x20000000 + random.SystemRandom().randrange(0x20000000)  # nobody's: limits count by user
        self.scratch = ""
        if tier not in NAMESPACE_TIERS:
            self.scratch = tempfile.mkdtemp(prefix="tracelift-sandbox-")
            os.chmod(self.scratch, 0o711)
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(2 * limits.wall_s + SLACK_SECONDS)  # a program, then the test runner
        with theirs, tempfile.TemporaryFile() as errors:
            streams = {"stdin": theirs, "stdout": subprocess.DEVNULL, "stderr": errors}
            self.process = subprocess.Popen(self._command(), **streams, env={}, cwd="/", start_new_session=True)
            theirs.close()
            self._finalizer = weakref.finalize(self, _end, self.process, self.control, self.scratch)
            _live.add(self)
            try:
                self._receive()
            except OSError as error:
                self.close()
                errors.seek(0)
                lines = errors.read().decode(errors="replace").strip().splitlines() or [str(error)]
                raise SandboxError(f"tier {tier} does not start: {lines[-1]}") from None

    def _command(self) -> list[str]:
        setting = {
            "tier": self.tier,
            "limits": asdict(self.limits),
            "uid": self.uid,
            "scratch": self.scratch,
            "filter": system_call_filter(namespaces=self.tier in NAMESPACE_TIERS),
            "binds": _binds(),
            "links": _links(),
            "other_processes": 0 if os.geteuid() == 0 or self.tier in NAMESPACE_TIERS else _own_threads(),
        }
        sources = {"tracelift_lib": "", "tracelift_lib.sandbox": ""}
        for name in ("calls", "worker"):  # sent along, so that the worker needs no file of this folder
            sources[f"tracelift_lib.sandbox.{name}"] = Path(__file__).with_name(f"{name}.py").read_text()
        boot = (
            "import sys, types\n"
            f"for name, source in {sources!r}.items():\n"
            "    module = sys.modules[name] = types.ModuleType(name)\n"
            "    exec(compile(source, name, 'exec'), module.__dict__)\n"
            f"module.main({setting!r})\n"
        )
        python = [interpreter(self.tier), "-I", "-S", "-c", boot]
        return [*bubblewrap_command(), *python] if self.tier == "bubblewrap" else python

    def run(self, tests: Sequence[Sequence[int]], test_code: bool = False) -> list[ProcessEnd]:
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
            return [ProcessEnd(**self._receive()) for _ in tests]
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

    def close(self) -> None:
        """End the worker and everything in it."""
        self._finalizer()


_live: weakref.WeakSet[Worker] = weakref.WeakSet()


def _end(process: subprocess.Popen, control: socket.socket, scratch: str) -> None:
    control.close()  # it ends by itself when its caller is gone, and takes all its processes with it
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    process.kill()  # nothing if it has ended
    process.wait()
    shutil.rmtree(scratch, ignore_errors=True)  # "" is no folder


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


# --- what the inside sees ------------------------------------------------------------------------


def interpreter(tier: Tier) -> str:
    """The interpreter behind a virtual environment: the sandbox has no site-packages.

    Without namespaces root's dropped user cannot enter root's home: the system's own interpreter then has to do.
    """
    ours, system = os.path.realpath(sys.executable), "/usr/bin/python3"
    if tier in ("landlock", "none") and os.geteuid() == 0 and os.path.exists(system):
        if not all(folder.stat().st_mode & 0o001 for folder in Path(ours).parents):
            return os.path.realpath(system)
    return ours


def _binds() -> list[str]:
    """Folders that are readable inside."""
    wanted = ["/usr", *(f for f in ROOT_FOLDERS if os.path.isdir(f) and not os.path.islink(f))]
    for folder in (sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.realpath(sys.executable))):
        folder = os.path.realpath(folder)
        if not any(Path(folder).is_relative_to(have) for have in wanted):
            wanted.append(folder)
    return wanted


def _links() -> list[list[str]]:
    return [[os.readlink(f), f] for f in ROOT_FOLDERS if os.path.islink(f)] + [["/tmp", "/dev/shm"]]


def bubblewrap_command() -> list[str]:
    """The bwrap command line of the tier, up to the program."""
    # Popen with an empty environment would look for bwrap in the system's folders only
    command = [shutil.which("bwrap") or "bwrap"]
    command += "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup-try".split()
    command += "--clearenv --hostname sandbox --proc /proc --dir /tmp".split()
    if os.geteuid() != 0:  # root drops its rights inside, and can so use an interpreter in root's own home
        command.append("--unshare-user")
    for folder in ("/dev/null", *_binds()):  # or bwrap makes the folders above them for their owner only
        for above in reversed(Path(folder).parents[:-1]):
            command += ["--dir", str(above)]
    for folder in _binds():
        command += ["--ro-bind", folder, folder]
    for device in ("null", "zero", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for target, path in _links():
        command += ["--symlink", target, path]
    return [*command, "--remount-ro", "/", "--chdir", "/", "--"]


# --- memory files ----------------------------------------------------------------------------------


@contextmanager
def memory_file(content: str | bytes | None = None) -> Iterator[int]:
    """A file in memory: empty and writable, or with `content` and sealed, so that no test can change it."""
    with open(os.memfd_create("tracelift", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b", buffering=0) as file:
        if content is not None:
            file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
            file.seek(0)
            fcntl.fcntl(file, 1033, 0b1111)  # F_ADD_SEALS, all of them
        yield file.fileno()
