"""The program that runs inside the sandbox: a warm interpreter that forks one process for each test.

It is started once (host.py), isolates itself as its tier says, loads common modules, and then only forks: programs,
inputs and test code come as file descriptors that it passes on unread, so its memory, which every fork inherits, never
holds anything of one problem. What a fork may do is limited before a line of the program is compiled.
Linux only, standard library only.
"""

from __future__ import annotations

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
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

from tracelift_lib.sandbox.program import (
    COMPILED,
    open_streams,
    prepare,
    rehearse,
    run_program,
    run_program_when_it_comes,
    run_test,
)
from tracelift_lib.sandbox.usage import MAX_FILES, Meter, Usage, is_full, remove

# What programs often import. Each page of this process costs every test: it is mapped in the fork and unmapped at its
# end. So large modules that few programs want (dataclasses, traceback, subprocess, ast) are not here.
PRELOAD = (
    "abc array bisect cmath collections contextlib copy datetime decimal enum fractions functools "
    "heapq itertools math numbers operator queue random re statistics string textwrap typing"
).split()
TICK = 0.02  # seconds between two looks at a running program
SPARE_PROCESSES = 8  # the worker itself, the test runner, ...
NEIGHBOURS = 2000  # processes of the same user that other tests and the user start
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


READ_RIGHTS, LIST_RIGHT = 0b1101, 0b1000  # execute, read a file, read a folder; the last alone


def landlock_version() -> int:
    """Of the running kernel; 0 if it has no Landlock."""
    return max(0, libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def landlock_rules(rules: list[tuple[str, int | None]]) -> int:
    """A descriptor of rules: what may be done below each path (None: everything); no TCP, and no signal to processes
    outside."""
    version = landlock_version()
    rights = (1 << (16 if version >= 5 else 15)) - 1  # all that the kernel's version knows
    attributes = struct.pack("QQQ", rights, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    made = check(libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "Landlock")
    for path, allowed in [*rules, ("/dev/null", 0b110), ("/dev/zero", 0b110), ("/dev/urandom", 0b100)]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path) and allowed is not None:
            allowed &= 0b111  # a file has no list
        rule = struct.pack("<Qi", rights if allowed is None else allowed, place)
        check(libc.syscall(LANDLOCK_ADD, made, 1, rule, 0), f"Landlock for {path}")
        os.close(place)
    return made


def restrict_files(rules: int) -> None:
    """For the calling process and all that it starts."""
    check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "Landlock")
    os.close(rules)


# --- isolation of the worker -----------------------------------------------------------------------


def isolate(setting: dict) -> None:
    """Enter the tier. Afterwards forks can be given process namespaces of their own, in the first two tiers."""
    tier, root = setting["tier"], os.geteuid() == 0
    if tier == "namespaces":
        if not root:
            own_user_namespace(0)
        enter_namespaces(setting["binds"], setting["links"], setting["hidden"])
    if tier in ("bubblewrap", "namespaces"):
        if root:
            drop_user(setting["uid"])
        own_user_namespace(CLONE_NEWNS)
    else:
        enter_guard()
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    check(libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "not dumpable")  # no ptrace, no /proc/N/mem of the worker


def enter_guard() -> None:
    """Go on in a child. Where there is no process namespace to end with the worker, this process waits for it, and ends
    what it leaves; and the worker ends what there is when this process goes."""
    check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "subreaper")
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    child = fork(0)
    if child == 0:
        os.close(proc)
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0), "parent death signal")
        return
    os.close(0)  # the worker's caller sees it go
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end_children(Meter(proc, {}), set())
    os._exit(code & 255)


def end_children(meter: Meter, spared: set[int]) -> None:
    """Kill all below the calling process, but those `spared`, until nothing of it is there."""
    while left := meter.processes(os.getpid()).keys() - {os.getpid(), *spared}:
        for pid in left:
            with suppress(ProcessLookupError, ChildProcessError):  # gone, or not yet handed on to this process
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)


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


def enter_namespaces(binds: list[str], links: list[list[str]], hidden: list[str]) -> None:
    """What bubblewrap does, for machines without it: new namespaces, and a root folder that holds only `binds`."""
    child = fork(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
    if child:  # this process stays outside to be waited for; it holds no end of the control socket
        os.close(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    base = "/tmp"
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for path in binds:
        os.makedirs(base + path, exist_ok=True)
        mount(path, base + path, None, MS_BIND | MS_REC)
        for place in hidden_below(path, hidden):
            mount("tmpfs", base + place, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for path in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
        os.makedirs(base + "/dev", exist_ok=True)
        os.close(os.open(base + path, os.O_CREAT | os.O_WRONLY))
        mount(path, base + path, None, MS_BIND)
    for place in mounts_below(base):
        if place != base and not place.startswith(f"{base}/dev/"):
            locked = os.statvfs(place).f_flag & (MS_NODEV | MS_NOEXEC)  # a user namespace must keep them
            mount("none", place, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | locked)
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


def hidden_below(path: str, hidden: list[str]) -> list[str]:
    """Of the hidden folders those below a path."""
    return [place for place in hidden if place.startswith(f"{path}/")]


def mounts_below(base: str) -> list[str]:
    """Where something is mounted, from `base` down: a folder that is bound brings its own mounts along."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        places = [line.split(" ")[4].encode().decode("unicode_escape") for line in file]
    return [place for place in places if place == base or place.startswith(f"{base}/")]


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
        self.readable = None if self.namespaces else self.rules_for_reading()
        self.progress = mmap.mmap(-1, mmap.PAGESIZE)  # shared with each fork until that comes to the program
        self.meter = Meter(self.proc, setting["groups"])
        if self.namespaces:
            mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")
        filter_system_calls(setting["filter"])
        self.spare: tuple[int, socket.socket] | None = None  # a process and the way to it
        self.folders, self.folder = 0, ""  # how many were made, the last one
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
            reply["reason"] = self.watch(runner)["reason"] or reply["reason"]
        reply["left"] = self.remove_folders()
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
            if self.setting["tier"] == "landlock":
                restrict_files(landlock_rules([*((p, READ_RIGHTS) for p in self.setting["binds"]), (folder, None)]))
                check(libc.syscall(LANDLOCK_RESTRICT, self.readable, 0), "Landlock")
            if not self.namespaces and os.geteuid() == 0:
                drop_user(self.setting["uid"])
            for lower, upper in pairwise([2, *sorted(fds), 1 << 16]):
                os.closerange(lower + 1, upper)
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
        reason, deadline, usage = None, time.monotonic() + self.limits["wall_s"], self.meter.start()
        with open(os.pidfd_open(child), "rb", buffering=0) as ended:
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            poll.register(self.control, select.POLLRDHUP)
            while reason is None:
                events = dict(poll.poll(TICK * 1000))
                if self.control.fileno() in events:  # the caller has gone
                    os.kill(child, signal.SIGKILL)
                    self.end()
                if events:
                    break
                reason = self.limit_reached(usage, child, deadline)
        if reason is not None:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        self.end_all()
        code = os.waitstatus_to_exitcode(status)
        out_of_time = usage.ru_utime + usage.ru_stime >= self.limits["cpu_s"]
        if reason is None and code in (-signal.SIGXCPU, -signal.SIGKILL) and out_of_time:
            reason = "cpu"
        return {"code": code, "reason": reason}

    def limit_reached(self, usage: Usage, child: int, deadline: float) -> str | None:
        """The limit that `child` and all below it have reached together, if any: cpu, memory, processes, disk, wall."""
        reason = self.meter.exceeded(usage, child, self.limits)
        if reason is None and not self.namespaces:
            size = self.limits["disk_mb"] << 20
            if is_full(self.folder, size) or self.meter.unlinked(child) > size:
                return "disk"
        return reason or ("wall" if time.monotonic() > deadline else None)

    def end(self, *_: object) -> None:
        """End with everything."""
        self.runner = None
        self.end_all()
        os._exit(0)

    def end_all(self) -> None:
        """Kill what a test has left. Namespaces do it by themselves."""
        if not self.namespaces:
            end_children(self.meter, {self.runner or 0})

    # The only folder that a test can write

    def make_folder(self) -> str:
        """An empty folder: in memory where there are namespaces, else on disk."""
        if self.namespaces:
            if self.clean is None:
                size = f"mode=777,nr_inodes={MAX_FILES},size={self.limits['disk_mb']}m"
                mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOATIME, size)
                self.clean = changed("/tmp")
            return "/tmp"
        self.folders += 1
        self.folder = folder = f"{self.setting['scratch']}/{self.folders}"
        os.mkdir(folder, 0o700)
        if os.geteuid() == 0:
            os.chown(folder, self.setting["uid"], self.setting["uid"])
        return folder

    def remove_folders(self) -> bool:
        """Remove what a test has left; a memory folder that is untouched serves the next test too. Whether something
        could not be removed, which then is up to the caller."""
        if self.namespaces and self.clean != changed("/tmp"):
            check(libc.umount2(b"/tmp", MNT_DETACH), "unmount")
            self.clean = None
        for folder in () if self.namespaces else os.scandir(self.setting["scratch"]):
            with suppress(OSError):
                remove(folder.path)
        return not self.namespaces and bool(os.listdir(self.setting["scratch"]))

    def rules_for_reading(self) -> int | None:
        """Landlock's rules for all tests: what may be read, and the folder for their folders. (A test gets a second set
        for its own folder alone.)"""
        if self.setting["tier"] != "landlock":
            return None
        shown = [(path, READ_RIGHTS) for path in self.setting["shown"]]
        listed = [(path, LIST_RIGHT) for path in self.setting["listed"]]
        return landlock_rules([*shown, *listed, (self.setting["scratch"], None)])


def changed(folder: str) -> tuple:
    """All that a test can change of an empty folder. The time of its last change alone would not do: kernels before
    Linux 6.13 count it in steps of 4 ms."""
    status = os.stat(folder)
    return (*status[:10], status.st_mtime_ns, status.st_ctime_ns, *os.listdir(folder), *os.listxattr(folder))


def set_limits(limits: dict, other_processes: int | None) -> None:
    """The kernel's limits for the calling process, as far as its own allow."""
    seconds = int(limits["cpu_s"]) + 1  # the last resort: `Server.watch` is more exact, and counts all processes
    memory, file = limits["memory_mb"] << 20, limits["file_mb"] << 20
    processes = limits["processes"] + SPARE_PROCESSES
    if other_processes is not None:  # of the user's own: what others start meanwhile must not count; `Meter` does
        processes += other_processes + NEIGHBOURS
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


def main(setting: dict) -> None:
    """Isolate this process, load and rehearse what tests need, then serve until the caller closes the socket."""
    os.umask(0o022)
    os.environ.clear()  # the interpreter itself sets LC_CTYPE
    for name in PRELOAD:
        __import__(name)
    prepare(setting)
    isolate(setting)
    server = Server(setting)
    open_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not server.namespaces:
        signal.signal(signal.SIGHUP, server.end)  # the guard has gone
    for _ in range(20):
        rehearse()
    gc.collect()
    gc.freeze()  # forks then copy fewer pages
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    server.serve()
    server.end_all()
