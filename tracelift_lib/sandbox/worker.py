"""The program that runs inside the sandbox: a warm interpreter that forks one process for each test.

It is started once (host.py), isolates itself as its tier says, loads common modules, and then only forks: programs,
inputs and test code come as file descriptors that it passes on unread, so its memory, which every fork inherits, never
holds anything of one problem. What a fork may do is limited before a line of the program is compiled.
Linux only, standard library only.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time
import types
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

from tracelift_lib.sandbox.calls import Channel, RpcServer, test_runner

# What programs often import. Each page of this process costs every test: it is mapped in the fork and unmapped at its
# end. So large modules that few programs want (dataclasses, traceback, subprocess, ast) are not here.
PRELOAD = (
    "abc array bisect cmath collections contextlib copy datetime decimal enum fractions functools "
    "heapq itertools math numbers operator queue random re statistics string textwrap typing"
).split()
STARTED, COMPILED = 1, 2
OUT_OF_MEMORY = 107  # exit code of a program that a MemoryError ended
TICK = 0.02  # seconds between two looks at a running program
MAX_FILES = 1000  # in the folder of a test
SPARE_PROCESSES = 8  # the worker itself, the test runner, ...
# Numbers of system calls that the C library has no function for
CLONE, PIVOT_ROOT = (220, 41) if os.uname().machine == "aarch64" else (56, 155)
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 1024, 4096, 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
libc = ctypes.PyDLL(None, use_errno=True)  # CDLL would give up the interpreter's lock, which costs a fork time


def check(result: int, what: str) -> int:
    """The result of a C function; OSError with `what` and the error's text if it is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


# --- Landlock: the file system where there are no namespaces ---------------------------------------


READ_RIGHTS = 0b1101  # execute, read a file, read a folder


def landlock_version() -> int:
    """Of the running kernel; 0 if it has no Landlock."""
    return max(0, libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def restrict_files(readable: list[str], writable: str) -> None:
    """The calling process may read `readable`, read and write `writable`; no TCP, no signal to processes outside it."""
    version = landlock_version()
    rights = (1 << (16 if version >= 5 else 15)) - 1  # all that the kernel's version knows
    attributes = struct.pack("QQQ", rights, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = check(libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "Landlock")
    for path, allowed in [*((path, READ_RIGHTS) for path in readable), (writable, rights), ("/dev/null", 0b110)]:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        check(libc.syscall(LANDLOCK_ADD, rules, 1, struct.pack("<Qi", allowed, folder), 0), f"Landlock for {path}")
        os.close(folder)
    check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)


# --- isolation of the worker -----------------------------------------------------------------------


def isolate(setting: dict) -> None:
    """Enter the tier. Afterwards forks can be given process namespaces of their own, in the first two tiers."""
    tier, root = setting["tier"], os.geteuid() == 0
    if tier == "namespaces":
        if not root:
            own_user_namespace(0)
        enter_namespaces(setting["binds"], setting["links"])
    if tier in ("bubblewrap", "namespaces"):
        if root:
            drop_user(setting["uid"])
        own_user_namespace(CLONE_NEWNS)
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "not dumpable")  # no ptrace, no /proc/N/mem of the worker


def filter_system_calls(rules: bytes) -> None:
    """For the calling process and all that it starts; there is no way back."""
    lines = ctypes.create_string_buffer(rules)
    program = struct.pack("HxxxxxxQ", len(rules) // 8, ctypes.addressof(lines))
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def own_user_namespace(more: int) -> None:
    """A user namespace in which this process has all capabilities and only its own user exists."""
    uid, gid = os.geteuid(), os.getegid()
    check(libc.unshare(CLONE_NEWUSER | more), "user namespace")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def drop_user(uid: int) -> None:
    """From root to a user that owns nothing."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")  # or /proc/self would belong to root


def enter_namespaces(binds: list[str], links: list[list[str]]) -> None:
    """What bubblewrap does, for machines without it: new namespaces, and a root folder that holds only `binds`."""
    child = fork(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    if child:  # this process stays outside to be waited for; it holds no end of the control socket
        os.close(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    base = "/tmp"
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for path in [*binds, "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"]:
        inside = base + path
        os.makedirs(inside if os.path.isdir(path) else os.path.dirname(inside), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(inside, os.O_CREAT | os.O_WRONLY))
        mount(path, inside, None, MS_BIND | MS_REC)
        if not path.startswith("/dev/"):
            locked = os.statvfs(path).f_flag & (MS_NODEV | MS_NOEXEC)  # a user namespace must keep them
            mount("none", inside, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | locked)
    for target, path in links:
        os.symlink(target, base + path)
    for name in ("tmp", "proc"):
        os.mkdir(f"{base}/{name}", 0o755)
    mount("proc", base + "/proc", "proc", MS_NOSUID | MS_NODEV)
    os.chdir(base)
    check(libc.syscall(PIVOT_ROOT, b".", b"."), "pivot_root")
    # The old root now lies over the new one
    check(libc.umount2(b".", MNT_DETACH), "unmount the old root")
    os.chdir("/")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2); OSError names the target."""
    check(libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, data.encode()), f"mount {target}")


def fork(flags: int) -> int:
    """A bare fork, with the child in new namespaces if `flags` say so.

    os.fork would tidy up in the child what this process, with its one thread, has never made untidy, and that is half
    of a short test's time. (unshare and os.fork would need a second fork for a process namespace.) `random` is not
    seeded anew: a program meets the same numbers each time.
    """
    return check(libc.syscall(CLONE, flags | signal.SIGCHLD, 0, 0, 0, 0), "fork")


# --- the server of tests -------------------------------------------------------------------------------


class Server:
    """Takes requests from socket 0, one at a time."""

    def __init__(self, setting: dict):
        self.setting, self.limits = setting, setting["limits"]
        self.namespaces = setting["tier"] in ("bubblewrap", "namespaces")
        self.control = socket.socket(fileno=os.dup(0))
        os.dup2(1, 0)  # /dev/null, readable too
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.runner: int | None = None
        self.progress = mmap.mmap(-1, mmap.PAGESIZE)  # shared with each fork until that comes to the program
        self.own_pages = int(self.read("self/statm").split()[1])  # every fork shares them
        if self.namespaces:
            mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")
        filter_system_calls(setting["filter"])
        self.spare: tuple[int, socket.socket] | None = None  # a process and the way to it
        self.clean: tuple | None = None  # a memory folder that no test has touched: when it was made
        self.reply: dict = {}  # to the last run

    def serve(self) -> None:
        """Answer {"ready": true}, then each request with how its process ended, or with {"fault": what broke}."""
        self.control.send(b'{"ready": true}')
        os.dup2(0, 2)  # what went wrong before this is in the caller's message
        while True:
            data, fds, _, _ = socket.recv_fds(self.control, 4096, 4)
            if not data:
                return
            try:
                reply = self.run(fds, **json.loads(data))
            except OSError as error:
                reply = {"fault": f"{type(error).__name__}: {error}"}
            for fd in fds:
                os.close(fd)
            self.control.send(json.dumps(reply).encode())

    def run(self, fds: list[int], test_code: bool, again: bool) -> dict:
        """Run a program. fds: as for `host.Worker.run`; test_code: they are for the test runner too.
        again: it is the program of the request before."""
        if again and not self.reply["compiled"]:
            return self.reply
        self.progress[0] = 0
        if test_code:
            text, test, verdict = fds
            ours, theirs = socket.socketpair()
            with ours, theirs:
                self.runner = self.start(run_test, [test, verdict, ours.fileno()])
                program = self.start_program([text, theirs.fileno()])
        else:
            program = self.start_program(fds)
        reply = self.watch(program)
        if self.runner:  # the program has ended, so it only has to finish a comparison
            runner, self.runner = self.runner, None
            self.watch(runner)
        self.remove_folders()
        if self.progress[0] == 0:
            return {"fault": f"a process ended (code {reply['code']}) before it came to the program"}
        self.reply = reply | {"compiled": self.progress[0] == COMPILED}
        return self.reply

    # A process and its end

    def start_program(self, fds: list[int]) -> int:
        """Start the program: where there are namespaces, in a process that was made for it during the last test."""
        if not self.namespaces:  # Landlock's rules name the folder of this one test
            return self.start(run_program, fds)
        self.make_folder()
        child, connection = self.spare or self.start_spare()
        with connection, suppress(OSError):  # it has ended: no progress
            socket.send_fds(connection, [b"run"], fds)
        self.spare = self.start_spare()
        return child

    def start_spare(self) -> tuple[int, socket.socket]:
        """A process that waits for its program. It is made before that is here, so holds nothing of it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            return self.start(run_program_when_it_comes, [theirs.fileno()]), ours

    def start(self, body: Callable[[list[int], mmap.mmap], None], fds: list[int]) -> int:
        """Fork; the child gives up all rights, for good, and runs `body` in an empty folder, the only one that it can
        write. Of the descriptors it keeps 0 to 2 and `fds`."""
        folder = self.make_folder()
        apart = self.namespaces and body is run_test  # its own view of /tmp
        child = fork(CLONE_NEWPID * self.namespaces | CLONE_NEWNS * apart)
        if child:
            return child
        try:
            if apart:
                mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")
            os.chdir(folder)
            os.setsid()
            for lower, upper in pairwise([2, *sorted(fds), 1 << 16]):
                os.closerange(lower + 1, upper)
            if self.setting["tier"] == "landlock":
                restrict_files(self.setting["binds"], folder)
            if not self.namespaces and os.geteuid() == 0:
                drop_user(self.setting["uid"])
            check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
            set_limits(self.limits, self.setting["other_processes"])
            # Version 3 of the capability sets: none effective, permitted or inheritable
            check(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)), "drop capabilities")
            body(fds, self.progress)
        finally:
            os._exit(1)

    def watch(self, child: int) -> dict:
        """Wait for the end of `child` and of all it left behind; end it at a limit.

        "reason" is None, or the limit: cpu, wall, memory, disk. CPU time and memory count for all its processes.
        """
        reason, deadline = None, time.monotonic() + self.limits["wall_s"]
        with open(os.pidfd_open(child), "rb", buffering=0) as ended:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            poll.register(self.control, select.POLLRDHUP)
            while reason is None:
                events = dict(poll.poll(TICK * 1000))
                if self.control.fileno() in events:  # the caller has gone
                    os.kill(child, signal.SIGKILL)
                    self.end_all()
                    os._exit(0)
                if events:
                    break
                reason = self.limit_reached(child, deadline)
        if reason is not None:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        self.end_all()
        code = os.waitstatus_to_exitcode(status)
        out_of_time = usage.ru_utime + usage.ru_stime >= self.limits["cpu_s"]
        if reason is None and code in (-signal.SIGXCPU, -signal.SIGKILL) and out_of_time:
            reason = "cpu"
        return {"code": code, "reason": reason}

    def limit_reached(self, child: int, deadline: float) -> str | None:
        """The limit that `child` and all below it have reached together, if any: "cpu", "memory", "disk" or "wall"."""
        cpu = memory = 0.0
        for fields in self.processes(child).values():
            cpu += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            memory += max(0, int(fields[21]) - self.own_pages) * resource.getpagesize()
        if cpu >= self.limits["cpu_s"]:
            return "cpu"
        if memory > self.limits["memory_mb"] << 20:
            return "memory"
        if not self.namespaces and is_full(self.setting["scratch"], self.limits["disk_mb"] << 20):
            return "disk"
        return "wall" if time.monotonic() > deadline else None

    def processes(self, ancestor: int) -> dict[int, list[bytes]]:
        """`ancestor` and all below it, with the fields of /proc/N/stat from "state" on. Who loses its parent goes to
        the next subreaper or to the namespace's first process, so nothing leaves the tree."""
        fields = {}
        for name in os.listdir(self.proc):
            if name.isdigit():
                with suppress(OSError):  # it has ended meanwhile
                    fields[int(name)] = self.read(f"{name}/stat").rpartition(b")")[2].split()
        found = [ancestor]
        for parent in found:  # grows
            found += [pid for pid, stat in fields.items() if int(stat[1]) == parent]
        return {pid: fields[pid] for pid in found if pid in fields}

    def read(self, name: str) -> bytes:
        """A file of /proc, which tests do not see where there are namespaces."""
        with open(name, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=self.proc)) as file:
            return file.read()

    def end_all(self) -> None:
        """Kill what a test has left, until nothing of it is there. Namespaces do it by themselves."""
        while not self.namespaces:
            left = self.processes(os.getpid()).keys() - {os.getpid(), self.runner}
            if not left:
                return
            for pid in left:
                with suppress(ProcessLookupError, ChildProcessError):  # gone, or not yet handed on to this process
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)

    # The only folder that a test can write

    def make_folder(self) -> str:
        """An empty folder: in memory where there are namespaces, else on disk."""
        if self.namespaces:
            if self.clean is None:
                size = f"mode=777,nr_inodes={MAX_FILES},size={self.limits['disk_mb']}m"
                mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOATIME, size)
                self.clean = changed("/tmp")
            return "/tmp"
        folder = f"{self.setting['scratch']}/{len(os.listdir(self.setting['scratch']))}"
        os.mkdir(folder, 0o700)
        if os.geteuid() == 0:
            os.chown(folder, self.setting["uid"], self.setting["uid"])
        return folder

    def remove_folders(self) -> None:
        """Remove what a test has left; a memory folder that is untouched serves the next test too."""
        if self.namespaces and self.clean != changed("/tmp"):
            check(libc.umount2(b"/tmp", MNT_DETACH), "unmount")
            self.clean = None
        for folder in () if self.namespaces else os.scandir(self.setting["scratch"]):
            try:
                os.rmdir(folder)
            except OSError:  # not empty; rm, since shutil.rmtree fails on very deep folders
                import subprocess  # large, and only here

                subprocess.run(["chmod", "-R", "u+rwx", folder], stderr=subprocess.DEVNULL, env={"PATH": os.defpath})
                subprocess.run(["rm", "-rf", "--", folder], check=True, env={"PATH": os.defpath})


def changed(folder: str) -> tuple[int, int]:
    """When a folder was last changed, its rights and times included: no program can set this time."""
    status = os.stat(folder)
    return status.st_ino, status.st_ctime_ns


def is_full(folder: str, size: int) -> bool:
    """Whether a folder holds more than `size` bytes or MAX_FILES files, as a memory folder would not take more."""
    total, queue = 0, [folder]
    for place in queue:
        with suppress(OSError):
            for entry in os.scandir(place):
                total += entry.stat(follow_symlinks=False).st_blocks * 512 + size // MAX_FILES
                if total > size:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    queue.append(entry.path)
    return False


def set_limits(limits: dict, other_processes: int) -> None:
    """The kernel's limits for the calling process, as far as its own allow."""
    seconds = int(limits["cpu_s"]) + 1  # the last resort: `Server.watch` is more exact, and counts all processes
    memory, file = limits["memory_mb"] << 20, limits["file_mb"] << 20
    processes = limits["processes"] + SPARE_PROCESSES + other_processes
    wanted = {
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (file, file),
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_NPROC: (processes, processes),
        resource.RLIMIT_STACK: (8 << 20, 64 << 20),
        **dict.fromkeys((resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE), (0, 0)),
    }
    for which, values in wanted.items():
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            values = tuple(min(value, ceiling) for value in values)
        resource.setrlimit(which, values)


# --- in the process of a test -------------------------------------------------------------------------


REHEARSAL = """
def solve(items: list[int], text: str = "x") -> list:
    found = [str(item) for item in items if item % 2 == 0]
    return sorted(found, key=len) or {text: (1.5, None)}
solve([1, 2])
"""


def rehearse() -> None:
    """Do what a test does, with a program of our own: afterwards the interpreter has specialised its code for it."""
    names = {}
    exec(compile(REHEARSAL, "<rehearsal>", "exec", dont_inherit=True), names)
    json.loads(json.dumps(["", RpcServer(names, None).reply("call", "solve", [[1, 2, 3], {"d": [["a", 1.5]]}], {})]))


def run_program(fds: list[int], progress: mmap.mmap) -> None:
    """Compile the program, say so through `progress`, unmap that, run the program; never returns. fds: its text, then
    standard input, output and error, or calls and a file for their results, or a socket for calls."""
    progress[0] = STARTED
    preamble, text = json.loads(read_all(fds[0]))
    channel, planned = None, len(fds) == 3
    if len(fds) == 4:
        for number, fd in enumerate(fds[1:]):
            os.dup2(fd, number)
    else:
        channel, fds = Channel(fds[1], fds[-1]), fds[:1]
    for fd in fds:
        os.close(fd)
    module = types.ModuleType("__main__" if channel is None else "program")
    sys.modules[module.__name__] = module
    sys.argv = ["program.py"]
    failure = None
    try:
        code = compile(text, "<program>", "exec", dont_inherit=True)
        progress[0] = COMPILED
        progress.close()
        exec(compile(preamble, "<preamble>", "exec", dont_inherit=True), module.__dict__)
        exec(code, module.__dict__)
    except BaseException as error:
        failure = error
    if channel is None:
        finish(failure)
    RpcServer(module.__dict__, failure).serve(channel, until_one_raises=planned)
    os._exit(0)


def run_program_when_it_comes(fds: list[int], progress: mmap.mmap) -> None:
    """`run_program` when its descriptors come over a socket."""
    with socket.socket(fileno=fds[0]) as waiting:
        _, fds, _, _ = socket.recv_fds(waiting, 16, 4)
    os.chdir("/tmp")  # the folder may be another than when this process was made
    run_program(fds, progress)


def run_test(fds: list[int], progress: mmap.mmap) -> None:
    """The test runner, with the descriptors that it takes."""
    progress.close()
    test_runner(*fds)


def finish(failure: BaseException | None) -> None:
    """End as the interpreter would: threads, atexit, flush, exit code."""
    code = 0
    if isinstance(failure, SystemExit):
        code = failure.code if isinstance(failure.code, int) else int(failure.code is not None)
    elif failure is not None:
        code = OUT_OF_MEMORY if isinstance(failure, MemoryError) else 1
        sys.__excepthook__(type(failure), failure, failure.__traceback__)
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        code = code or 1
    os._exit(code & 255)


def open_streams() -> None:
    """For all tests to come: they get other files under the same numbers, else nothing can be read or seen."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def read_all(fd: int) -> bytes:
    """All of a memory file, whatever its offset: several tests share it."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def main(setting: dict) -> None:
    """Isolate this process, load and rehearse what tests need, then serve until the caller closes the socket."""
    os.umask(0o022)
    os.environ.clear()  # the interpreter itself sets LC_CTYPE
    for name in PRELOAD:
        __import__(name)
    isolate(setting)
    server = Server(setting)
    open_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for _ in range(20):
        rehearse()
    gc.collect()
    gc.freeze()  # forks then copy fewer pages
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    server.serve()
    server.end_all()
