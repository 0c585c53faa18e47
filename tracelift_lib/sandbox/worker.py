"""The program that runs inside the sandbox: a warm interpreter that forks one process for each test.

It is started once (host.py), isolates itself as its tier says, loads common modules, and then only forks: programs,
inputs and test code come as file descriptors that it passes on unread, so its memory, which every fork inherits, never
holds anything of one problem. What a fork may do is limited before a line of the program is compiled.

Where tests have namespaces, a second process makes the forks, as children of the first. After a fork, who writes to a
page copies it first; the first process writes to hundreds for each test, the second to a few dozen.
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

from tracelift_lib.sandbox.calls import RpcServer, test_runner

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
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_PARENT = 0x20000, 0x4000000, 0x8000000, 0x8000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NEW_NAMESPACES = 0x7E020000  # CLONE_NEWCGROUP and all of the above but the parent
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 1024, 4096, 16384, 1 << 18, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
libc = ctypes.CDLL(None, use_errno=True)
held = ctypes.PyDLL(None, use_errno=True)  # the same, without giving up the interpreter's lock


def check(result: int, what: str) -> int:
    """The result of a C function; OSError with `what` and the error's text if it is negative."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


# --- system calls that no program needs ----------------------------------------------------------

COLUMN = int(os.uname().machine == "aarch64")  # of the tables: x86-64, arm64
AUDIT, CLONE, UNSHARE, PRLIMIT = ((0xC000003E, 56, 272, 302), (0xC00000B7, 220, 97, 261))[COLUMN]
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
DENIED = {
    **{"socket": (41, 198)},
    # Objects of System V and queues: they would outlive a test
    **{"shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "mq_open": (240, 180)},
    **{"semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192)},
    **{"msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187)},
    # Other processes and their memory
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272)},
    # Namespaces, files that are not in them, kernel keys, memory files (they count as nobody's memory)
    **{"pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268), "sethostname": (170, 161)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "memfd_create": (319, 279)},
    # The whole machine
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "syslog": (103, 116), "swapon": (167, 224)},
    **{"acct": (163, 89), "quotactl": (179, 60)},
    # Interfaces known for kernel bugs
    **{"personality": (135, 92), "perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282)},
}
# From Linux 5.1 on numbers are the same everywhere. Of these calls only the following are allowed: not io_uring, mounts
# by descriptors, memfd_secret, pidfd_getfd ..., nor what later kernels bring.
FIRST_NEW = 424
ALLOWED_NEW = {
    **{"close_range": 436, "openat2": 437, "faccessat2": 439, "epoll_pwait2": 441, "futex_waitv": 449},
    **{"pidfd_send_signal": 424, "pidfd_open": 434},
    **{"create_ruleset": LANDLOCK_CREATE, "add_rule": LANDLOCK_ADD, "restrict_self": LANDLOCK_RESTRICT},
}
# As root a test has a user of its own, but any user may set attributes of a file that all may write.
ATTRIBUTES = {
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7)},
    **{"removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16)},
}
# Landlock does not cover the rights, times and attributes of files, nor the priorities of processes: denied where a
# test has the user's own identity. (arm64 has no old forms: -1 is no system call.)
OWNERS = ATTRIBUTES | {
    **{"chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53)},
    **{"chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54)},
    **{"utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88)},
    **{"setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122)},
    **{"sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
}


def system_call_filter(denied: dict[str, tuple[int, int]] = DENIED, siblings: bool = True) -> bytes:
    """A classic BPF program for seccomp, for the worker and all its children.

    siblings: whether a process may start one that is its parent's. The process that makes the forks does; a program
        could so start one that is not below it, but the first process of a namespace may not.

    EPERM for `denied` and for new namespaces by clone or unshare, but for those that the worker makes: of processes by
    clone, of mounts by unshare. They need a capability, as mount does, and a test has none. (A second filter for each
    test would cost a tenth of its time.) ENOSYS, as from an older kernel, for new calls: so glibc falls back from
    clone3 to clone, whose flags a filter can read. prlimit is for the caller itself only. A call by another ABI (32
    bit) ends the process.
    """
    load, equal, at_least, any_bit, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, eperm, enosys = 0x80000000, 0x7FFF0000, 0x50000 | 1, 0x50000 | 38
    code = [(load, 0, 0, 4), (equal, 1, 0, AUDIT), (ret, 0, 0, kill)]
    code += [(load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (ret, 0, 0, kill)]
    code += [(at_least, 0, 2 * len(ALLOWED_NEW) + 1, FIRST_NEW)]
    for number in ALLOWED_NEW.values():
        code += [(equal, 0, 1, number), (ret, 0, 0, allow)]
    code += [(ret, 0, 0, enosys)]
    for numbers in denied.values():
        if numbers[COLUMN] >= 0:
            code += [(equal, 0, 1, numbers[COLUMN]), (ret, 0, 0, eperm)]
    of_clone = NEW_NAMESPACES & ~CLONE_NEWPID | (0 if siblings else CLONE_PARENT)
    for number, bits in ((CLONE, of_clone), (UNSHARE, NEW_NAMESPACES & ~CLONE_NEWNS), (PRLIMIT, 0xFFFFFFFF)):
        code += [(equal, 0, 4, number), (load, 0, 0, 16), (any_bit, 0, 1, bits), (ret, 0, 0, eperm), (ret, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *line) for line in [*code, (ret, 0, 0, allow)])


def apply_system_call_filter(denied: dict[str, tuple[int, int]], siblings: bool) -> None:
    """For the calling process and all that it starts; there is no way back."""
    lines = ctypes.create_string_buffer(system_call_filter(denied, siblings))
    program = struct.pack("HxxxxxxQ", (len(lines) - 1) // 8, ctypes.addressof(lines))
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


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
    check(libc.syscall(DENIED["pivot_root"][COLUMN], b".", b"."), "pivot_root")
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
    return check(held.syscall(CLONE, flags | signal.SIGCHLD, 0, 0, 0, 0), "fork")


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
        self.clean: tuple | None = None  # a memory folder that no test has touched: when it was made
        self.own_pages = int(self.read("self/statm").split()[1])  # every fork shares them
        if self.namespaces:
            mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")
        beside = {} if self.namespaces else ATTRIBUTES if os.geteuid() == 0 else OWNERS
        apply_system_call_filter(DENIED | beside, siblings=self.namespaces)
        self.reply: dict = {}  # to the last run

    def serve(self) -> None:
        """Answer {"ready": true}, then each request with how its process ended, or with {"fault": what broke}."""
        if self.namespaces:
            self.start_forks()
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
            finally:
                for fd in fds:
                    os.close(fd)
            self.control.send(json.dumps(reply).encode())

    def run(self, fds: list[int], test_code: bool, again: bool) -> dict:
        """Run a program. fds: as for `host.Worker.run`; test_code: the second is a test for the test runner.
        again: it is the program of the request before."""
        if again and not self.reply["compiled"]:
            return self.reply
        folder = self.make_folder()
        self.progress[0] = 0
        try:
            child = self.start_both(fds, folder) if test_code else self.start(fds, folder)
            reply = self.watch(child, folder)
        finally:
            self.remove_folder(folder)
        if self.runner:  # the program has ended, so it only has to finish a comparison
            child, self.runner = self.runner, None
            self.watch(child, None)
        if self.progress[0] == 0:
            return {"fault": f"a process ended (code {reply['code']}) before it came to the program"}
        self.reply = reply | {"compiled": self.progress[0] == COMPILED}
        return self.reply

    def start_both(self, fds: list[int], folder: str) -> int:
        """Start the test runner and the program, which it calls; gives the program."""
        text, test, verdict = fds
        ours, theirs = socket.socketpair()

        def run_test() -> None:
            self.progress.close()
            test_runner(test, verdict, ours.fileno())

        own_folder = "/tmp" if self.namespaces else f"{self.setting['scratch']}/test_runner"
        os.makedirs(own_folder, exist_ok=True)
        with ours, theirs:
            self.runner = self.fork(run_test, own_folder, {test, verdict, ours.fileno()})
            return self.start([text, theirs.fileno()], folder)

    def start(self, fds: list[int], folder: str) -> int:
        """Start the program: where there are namespaces, in the process that was made for it during the last test."""
        if not self.namespaces:  # Landlock's rules name the folder of this one test
            return self.fork(lambda: run_program(fds, self.progress), folder, set(fds))
        child = int.from_bytes(self.forks.recv(8), "big")
        if child == 0:
            raise OSError("the process that makes the forks has ended")
        with self.spare, suppress(OSError):  # it has ended: no progress
            socket.send_fds(self.spare, [b"run"], fds)
        self.order_spare()
        return child

    # The process that makes the forks

    def start_forks(self) -> None:
        """Start it, and order a first process from it."""
        self.forks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if fork(0) == 0:
                try:
                    close_all_but({theirs.fileno()})
                    os.dup2(0, 2)
                    self.make_forks(theirs)
                finally:
                    os._exit(1)
        self.order_spare()

    def order_spare(self) -> None:
        """Order a confined process that waits for its program. It is made before that is here, so holds nothing of it;
        its number comes from `self.forks` when it is there."""
        self.spare, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self.forks, [b"fork"], [theirs.fileno()])

    def make_forks(self, orders: socket.socket) -> None:
        """For each order, which brings a connection, a child of this process's parent that waits on it."""
        while True:
            order, fds, _, _ = socket.recv_fds(orders, 16, 1)
            if not order:
                return
            child = fork(CLONE_NEWPID | CLONE_PARENT)
            if child == 0:
                self.confine(set(fds), "/tmp")
                wait_for_program(fds[0], self.progress)
            os.close(fds[0])
            orders.send(child.to_bytes(8, "big"))

    # A process and its end

    def fork(self, body: Callable[[], None], folder: str, keep: set[int]) -> int:
        """Fork; the child gives up all rights, keeps only the descriptors in `keep`, and runs `body`. With namespaces
        (so it is the test runner) it has an empty folder of its own for the program's."""
        child = fork(CLONE_NEWPID if self.namespaces else 0)
        if child:
            return child
        try:
            if self.namespaces:
                check(libc.unshare(CLONE_NEWNS), "mount namespace")
                mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")
            os.chdir(folder)
            self.confine(keep, folder)
            body()
        finally:
            os._exit(1)

    def confine(self, keep: set[int], folder: str) -> None:
        """Everything that makes the calling process harmless; there is no way back."""
        os.setsid()
        close_all_but(keep)
        if self.setting["tier"] == "landlock":
            restrict_files(self.setting["binds"], folder)
        if not self.namespaces and os.geteuid() == 0:
            drop_user(self.setting["uid"])
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
        set_limits(self.limits, self.setting["other_processes"])
        # Version 3 of the capability sets: none effective, permitted or inheritable
        check(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)), "drop capabilities")

    def watch(self, child: int, folder: str | None) -> dict:
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
                reason = self.limit_reached(child, folder, deadline)
        if reason is not None:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        self.end_all()
        code = os.waitstatus_to_exitcode(status)
        out_of_time = usage.ru_utime + usage.ru_stime >= self.limits["cpu_s"]
        if reason is None and code in (-signal.SIGXCPU, -signal.SIGKILL) and out_of_time:
            reason = "cpu"
        return {"code": code, "reason": reason}

    def limit_reached(self, child: int, folder: str | None, deadline: float) -> str | None:
        """The limit that `child` and all below it have reached together, if any: "cpu", "memory", "disk" or "wall"."""
        cpu = memory = 0.0
        for fields in self.processes(child).values():
            cpu += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            memory += max(0, int(fields[21]) - self.own_pages) * resource.getpagesize()
        if cpu >= self.limits["cpu_s"]:
            return "cpu"
        if memory > self.limits["memory_mb"] << 20:
            return "memory"
        if folder and not self.namespaces and is_full(folder, self.limits["disk_mb"] << 20):
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
        fd = os.open(name, os.O_RDONLY, dir_fd=self.proc)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)

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
            if not self.clean:
                size = f"mode=777,nr_inodes={MAX_FILES},size={self.limits['disk_mb']}m"
                mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOATIME, size)
                self.clean = changed("/tmp")
            return "/tmp"
        folder = f"{self.setting['scratch']}/program"
        os.mkdir(folder, 0o700)
        if os.geteuid() == 0:
            os.chown(folder, self.setting["uid"], self.setting["uid"])
        return folder

    def remove_folder(self, folder: str) -> None:
        """Remove what a test has left in it; a memory folder that is untouched serves the next test too."""
        if self.namespaces:
            if self.clean != changed("/tmp"):
                check(libc.umount2(b"/tmp", MNT_DETACH), "unmount")
                self.clean = None
            return
        try:
            os.rmdir(folder)
        except OSError:  # not empty; rm, since shutil.rmtree fails on very deep folders
            import subprocess  # large, and only here

            subprocess.run(["chmod", "-R", "u+rwx", folder], stderr=subprocess.DEVNULL, env={"PATH": os.defpath})
            subprocess.run(["rm", "-rf", "--", folder], check=True, env={"PATH": os.defpath})


def close_all_but(keep: set[int]) -> None:
    """Close all descriptors but 0 to 2 and `keep`."""
    for lower, upper in pairwise([2, *sorted(keep), 1 << 16]):
        os.closerange(lower + 1, upper)


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


def wait_for_program(connection: int, progress: mmap.mmap) -> None:
    """`run_program` when its descriptors come; never returns."""
    with socket.socket(fileno=connection) as waiting:
        _, fds, _, _ = socket.recv_fds(waiting, 16, 8)
    if not fds:
        os._exit(0)
    os.chdir("/tmp")  # the folder may be another than when this process was made
    run_program(fds, progress)


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
    calls = json.loads(read_all(fds[1])) if len(fds) == 3 else None
    channel = None
    if len(fds) == 4:
        for number, fd in enumerate(fds[1:]):
            os.dup2(fd, number)
    else:
        channel = fds.pop()
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
    server = RpcServer(module.__dict__, failure)
    if calls:
        server.answer_all(*calls, channel)
    else:
        server.serve(socket.socket(fileno=channel))
    os._exit(0)


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
