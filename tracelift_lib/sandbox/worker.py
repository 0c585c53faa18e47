"""The program that runs inside the sandbox: a warm interpreter that forks one process for each test.

It is started once (sandbox.py), isolates itself as its tier says, loads common modules, and then only forks: programs,
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
import importlib
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
from typing import NamedTuple

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
SPARE_PROCESSES = 8  # the worker itself, the judge, ...
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_NEWCGROUP, CLONE_PARENT = 0x2000000, 0x8000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MS_NOATIME = 1024
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, PR_SET_CHILD_SUBREAPER = 1, 4, 22, 38, 36
libc = ctypes.CDLL(None, use_errno=True)
held = ctypes.PyDLL(None, use_errno=True)  # the same, without giving up the interpreter's lock


def check(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


# --- system calls that no program needs ----------------------------------------------------------

# Network, other processes' memory, namespaces and mounts, kernel keys and System V objects (they would outlive a test),
# anonymous memory files (they count as nobody's memory), and interfaces known for kernel bugs. x86-64, then arm64.


DENIED = {
    "socket": (41, 198),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "ptrace": (101, 117),
    "personality": (135, 92),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "acct": (163, 89),
    "swapon": (167, 224),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "quotactl": (179, 60),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "perf_event_open": (298, 241),
    "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "finit_module": (313, 273),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "syslog": (103, 116),
    "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "pidfd_getfd": (438, 438),
    "mount_setattr": (442, 442),
}
# Landlock does not cover the rights, times and attributes of files, nor the priorities of processes: denied where a
# test has the user's own identity. (arm64 has no old forms: -1 is no system call.)
OWNERS = {
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
}
# As root a test has a user of its own, but any user may set attributes of a file that all may write.
ATTRIBUTES = {name: numbers for name, numbers in OWNERS.items() if "xattr" in name}
# Column above, audit number, clone, unshare
MACHINES = {"x86_64": (0, 0xC000003E, 56, 272), "aarch64": (1, 0xC00000B7, 220, 97)}
MACHINE = os.uname().machine
CLONE3, PRLIMIT = 435, (302, 261)
NEW_NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP
)


def system_call_filter(denied: dict[str, tuple[int, int]] = DENIED, siblings: bool = True) -> bytes:
    """A classic BPF program for seccomp, for the worker and all its children.

    siblings: whether a process may start one that is its parent's. The process that makes the forks does; a program
        could so start one that is not below it, but the first process of a namespace may not.

    EPERM for `denied` and for new namespaces by clone or unshare, but for those that the worker makes: of processes by
    clone, of mounts by unshare. They need a capability, as mount does, and a test has none. (A second filter for each
    test would cost a tenth of its time.) clone3 gets ENOSYS: glibc falls back to clone, whose flags a filter can read.
    prlimit is for the caller itself only. A call by another ABI (32 bit) ends the process.
    """
    column, audit, clone, unshare = MACHINES[MACHINE]
    load, equal, at_least, any_bit, ret = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, eperm, enosys = 0x80000000, 0x7FFF0000, 0x50000 | 1, 0x50000 | 38
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (ret, 0, 0, kill), (load, 0, 0, 0)]
    if column == 0:
        code += [(at_least, 0, 1, 0x40000000), (ret, 0, 0, kill)]
    for numbers in denied.values():
        if numbers[column] >= 0:
            code += [(equal, 0, 1, numbers[column]), (ret, 0, 0, eperm)]
    code += [(equal, 0, 1, CLONE3), (ret, 0, 0, enosys)]
    code += [(equal, 0, 4, PRLIMIT[column]), (load, 0, 0, 16), (equal, 1, 0, 0), (ret, 0, 0, eperm), (ret, 0, 0, allow)]
    of_clone = NEW_NAMESPACES & ~CLONE_NEWPID | (0 if siblings else CLONE_PARENT)
    for number, flags in ((clone, of_clone), (unshare, NEW_NAMESPACES & ~CLONE_NEWNS)):
        code += [
            (equal, 0, 4, number),
            (load, 0, 0, 16),
            (any_bit, 0, 1, flags),
            (ret, 0, 0, eperm),
            (ret, 0, 0, allow),
        ]
    return b"".join(struct.pack("HBBI", *line) for line in [*code, (ret, 0, 0, allow)])


def apply_system_call_filter(denied: dict[str, tuple[int, int]], siblings: bool) -> None:
    lines = ctypes.create_string_buffer(system_call_filter(denied, siblings))
    program = struct.pack("HxxxxxxQ", (len(lines) - 1) // 8, ctypes.addressof(lines))
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no new privileges")
    check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


# --- Landlock: the file system where there are no namespaces ---------------------------------------


LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_RIGHTS = 0b1101  # execute, read a file, read a folder
FILE_RIGHTS = {3: (1 << 15) - 1, 5: (1 << 16) - 1}  # all that the kernel's version knows


def landlock_version() -> int:
    return max(0, libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def landlock(readable: list[str], writable: str) -> int:
    """A rule set: read `readable`, read and write `writable`, no TCP, no signal to processes outside it."""
    version = landlock_version()
    rights = FILE_RIGHTS[5 if version >= 5 else 3]
    attributes = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    attributes = attributes[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = check(libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0), "Landlock")
    for path, allowed in [*((path, READ_RIGHTS) for path in readable), (writable, rights), ("/dev/null", 0b110)]:
        if not os.path.isdir(path):
            allowed &= 0b111
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        check(libc.syscall(LANDLOCK_ADD, rules, 1, struct.pack("<Qi", allowed, folder), 0), f"Landlock for {path}")
        os.close(folder)
    return rules


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
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    check(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")  # or /proc/self would belong to root


def enter_namespaces(binds: list[str], links: list[list[str]]) -> None:
    """What bubblewrap does, for machines without it: new namespaces, and a root folder that holds only `binds`."""
    check(libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "namespaces")
    parent = os.fork()
    if parent:  # stays outside to be waited for; it holds no end of the control socket
        os.close(0)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1]) & 255)
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
            mount("none", inside, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | locked_flags(path))
    for target, path in links:
        os.symlink(target, base + path)
    for name in ("tmp", "proc", "old"):
        os.mkdir(f"{base}/{name}", 0o755)
    mount("proc", base + "/proc", "proc", MS_NOSUID | MS_NODEV)
    check(libc.syscall({"x86_64": 155, "aarch64": 41}[MACHINE], base.encode(), f"{base}/old".encode()), "pivot_root")
    os.chdir("/")
    check(libc.umount2(b"/old", MNT_DETACH), "unmount the old root")
    os.rmdir("/old")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def locked_flags(path: str) -> int:
    """Mount flags that a user namespace must keep when it mounts again."""
    have = os.statvfs(path).f_flag
    return sum(
        flag
        for name, flag in (
            (os.ST_NODEV, MS_NODEV),
            (os.ST_NOEXEC, 8),
            (os.ST_NOATIME, 1024),
            (os.ST_NODIRATIME, 2048),
            (os.ST_RELATIME, 1 << 21),
        )
        if have & name
    )


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    check(libc.mount(source.encode(), target.encode(), kind and kind.encode(), flags, data.encode()), f"mount {target}")


def fork(flags: int) -> int:
    """A bare fork, with the child in new namespaces if `flags` say so.

    os.fork would tidy up in the child what this process, with its one thread, has never made untidy, and that is half
    of a short test's time. (unshare and os.fork would need a second fork for a process namespace.) `random` is not
    seeded anew: a program meets the same numbers each time.
    """
    return check(held.syscall(MACHINES[MACHINE][2], flags | signal.SIGCHLD, 0, 0, 0, 0), "fork")


# --- the fork server ---------------------------------------------------------------------------------


class Spare(NamedTuple):
    """A confined process that waits for its program. It is made before that is here, so holds nothing of it."""

    connection: socket.socket
    limits: dict


class Server:
    """Takes requests from socket 0, one at a time; only a judge runs beside a test."""

    def __init__(self, setting: dict):
        self.setting = setting
        self.namespaces = setting["tier"] in ("bubblewrap", "namespaces")
        self.control = socket.socket(fileno=os.dup(0))
        quiet = os.open("/dev/null", os.O_RDWR)
        os.dup2(quiet, 0)
        os.dup2(quiet, 1)
        os.close(quiet)
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.judge: int | None = None
        self.spare: Spare | None = None
        self.progress = mmap.mmap(-1, mmap.PAGESIZE)  # shared with each fork until that comes to the program
        self.runs = 0
        self.clean: tuple | None = None  # a memory folder that no test has touched: its size, and when it was made
        self.own_pages = int(self.read("self/statm").split()[1])  # every fork shares them
        if self.namespaces:
            mount("tmpfs", "/proc", "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")
        beside = {} if self.namespaces else ATTRIBUTES if os.geteuid() == 0 else OWNERS
        apply_system_call_filter(DENIED | beside, siblings=self.namespaces)
        self.forks: socket.socket | None = None
        self.reply: dict = {}  # to the last run

    def serve(self) -> None:
        if self.namespaces:
            self.start_forks()
        self.control.send(b'{"ready": true}')
        os.dup2(0, 2)  # what went wrong before this is in the caller's message
        while True:
            data, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 64)
            if not data:
                return
            request = json.loads(data)
            try:
                reply = getattr(self, "do_" + request.pop("do"))(fds=fds, **request)
            except OSError as error:
                reply = {"fault": f"{type(error).__name__}: {error}"}
            finally:
                for fd in fds:
                    os.close(fd)
            self.control.send(json.dumps(reply).encode())

    # Requests

    def do_run(self, limits: dict, fds: list[int], again: bool = False) -> dict:
        """Run a program. fds: its text; then standard input, output and error, or calls and a file for
        their results, or a socket for calls. again: it is the program of the request before."""
        if again and not self.reply["compiled"]:
            return self.reply
        folder = self.make_folder(limits)
        self.progress[0] = 0
        try:
            child = self.start_prepared(limits, fds) if self.namespaces else self.start(limits, fds, folder)
            reply = self.watch(child, limits, folder)
        finally:
            self.remove_folder(folder)
        if self.progress[0] == 0:
            return {"fault": f"a process ended (code {reply['code']}) before it came to the program"}
        self.reply = reply | {"compiled": self.progress[0] == COMPILED}
        return self.reply

    def start(self, limits: dict, fds: list[int], folder: str) -> int:
        return self.fork(lambda: run_program(fds, self.progress), limits, folder, set(fds))

    def start_prepared(self, limits: dict, fds: list[int]) -> int:
        """Give the program to a process that waits for one, and have the next made meanwhile."""
        if self.spare and self.spare.limits != limits:
            self.spare.connection.close()  # its sign to end
            os.waitpid(self.spare_pid(), 0)
            self.spare = None
        spare = self.spare or self.prepare(limits)
        child = self.spare_pid()
        try:
            socket.send_fds(spare.connection, [b"run"], fds)
        except OSError:
            pass  # it has ended: no progress
        spare.connection.close()
        self.spare = self.prepare(limits)
        return child

    def prepare(self, limits: dict) -> Spare:
        """Order a process; `spare_pid` gets its number when it is there."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(self.forks, [json.dumps(limits).encode()], [theirs.fileno()])
        return Spare(ours, limits)

    def spare_pid(self) -> int:
        pid = int.from_bytes(self.forks.recv(8), "big")
        if pid == 0:
            raise OSError("the process that forks has ended")
        return pid

    def do_judge(self, limits: dict, fds: list[int]) -> dict:
        """Start the judge beside the tests that follow. fds: tests, verdicts, and a socket a test."""
        folder = "/tmp" if self.namespaces else f"{self.setting['scratch']}/judge"
        os.makedirs(folder, exist_ok=True)
        self.judge = self.fork(lambda: test_runner(fds[0], fds[1], fds[2:]), limits, folder, set(fds), own_view=True)
        return {}

    def do_end_judge(self, limits: dict, fds: list[int]) -> dict:
        """Wait for the judge. Its connections are closed by now, so it only has to finish a comparison."""
        child, self.judge = self.judge, None
        return self.watch(child, limits, None)

    # The process that makes the forks

    def start_forks(self) -> None:
        self.forks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        if fork(0):
            theirs.close()
            return
        try:
            check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
            if os.getppid() == parent:
                close_all_but({theirs.fileno()})
                os.dup2(0, 2)
                self.make_forks(theirs)
        finally:
            os._exit(1)

    def make_forks(self, requests: socket.socket) -> None:
        """For each request, limits and a connection, a child of this process's parent that waits on the connection."""
        last, limits = b"", []
        while True:
            data, fds, _, _ = socket.recv_fds(requests, 4096, 1)
            if not data:
                return
            if data != last:
                last, limits = data, resource_limits(json.loads(data), self.setting)
            child = fork(CLONE_NEWPID | CLONE_PARENT)
            if child == 0:
                self.confine(limits, set(fds), -1)
                wait_for_program(fds[0], self.progress)
            os.close(fds[0])
            requests.send(child.to_bytes(8, "big"))

    # A process and its end

    def fork(self, body, limits: dict, folder: str, keep: set[int], own_view: bool = False) -> int:
        """Fork; the child gives up all rights, keeps only the descriptors in `keep`, and runs `body`."""
        rules = -1 if self.namespaces or self.setting["tier"] == "none" else landlock(self.setting["binds"], folder)
        child = fork(CLONE_NEWPID if self.namespaces else 0)
        if child:
            if rules >= 0:
                os.close(rules)
            return child
        try:
            if self.namespaces and own_view:
                check(libc.unshare(CLONE_NEWNS), "mount namespace")
                mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")
            os.chdir(folder)
            self.confine(resource_limits(limits, self.setting), keep, rules)
            if own_view:
                self.progress.close()
            body()
        finally:
            os._exit(1)

    def confine(self, limits: list, keep: set[int], rules: int) -> None:
        """Everything that makes the calling process harmless; there is no way back."""
        os.setsid()
        close_all_but(keep | {rules} - {-1})
        if not self.namespaces and os.geteuid() == 0:
            drop_user(self.setting["uid"])
        check(libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
        for which, values in limits:
            resource.setrlimit(which, values)
        # Version 3 of the capability sets: none effective, permitted or inheritable
        check(libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)), "drop capabilities")
        if rules >= 0:
            check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "Landlock")
            os.close(rules)

    def watch(self, child: int, limits: dict, folder: str | None) -> dict:
        """Wait for the end of `child` and of all it left behind; end it at a limit.

        "reason" is None, or the limit: cpu, wall, memory, disk. CPU time and memory count for all its processes.
        """
        reason, deadline = None, time.monotonic() + limits["wall_s"]
        pidfd = os.pidfd_open(child)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self.control, select.POLLRDHUP)
        try:
            while reason is None:
                events = dict(poll.poll(TICK * 1000))
                if self.control.fileno() in events:  # the parent has gone
                    self.end_all(child)
                    os._exit(0)
                if events:
                    break
                reason = self.limit_reached(child, limits, folder, deadline)
        finally:
            os.close(pidfd)
        if reason is not None:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        if not self.namespaces:
            self.end_all(child)
        code = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        if reason is None and code in (-signal.SIGXCPU, -signal.SIGKILL) and cpu >= limits["cpu_s"]:
            reason = "cpu"
        return {"code": code, "reason": reason, "cpu_s": cpu}

    def limit_reached(self, child: int, limits: dict, folder: str | None, deadline: float) -> str | None:
        cpu = memory = 0.0
        for pid in self.descendants(child):
            try:
                fields = self.read(f"{pid}/stat").rpartition(b")")[2].split()
            except OSError:  # it has ended meanwhile
                continue
            cpu += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
            memory += max(0, int(fields[21]) - self.own_pages) * resource.getpagesize()
        if cpu >= limits["cpu_s"]:
            return "cpu"
        if memory > limits["memory_mb"] << 20:
            return "memory"
        if folder and not self.namespaces and is_full(folder, limits["disk_mb"] << 20):
            return "disk"
        return "wall" if time.monotonic() > deadline else None

    def descendants(self, ancestor: int) -> list[int]:
        """`ancestor` and all below it. Who loses its parent goes to the next subreaper or to the namespace's first
        process, so nothing leaves the tree."""
        children: dict[int, list[int]] = {}
        for name in os.listdir(self.proc):
            if name.isdigit():
                try:
                    parent = int(self.read(f"{name}/stat").rpartition(b")")[2].split()[1])
                except OSError:
                    continue
                children.setdefault(parent, []).append(int(name))
        found = [ancestor]
        for pid in found:
            found += children.get(pid, [])
        return found

    def read(self, name: str) -> bytes:
        fd = os.open(name, os.O_RDONLY, dir_fd=self.proc)
        try:
            return os.read(fd, 4096)
        finally:
            os.close(fd)

    def end_all(self, child: int) -> None:
        """Kill what a test has left, until nothing of it is there. Namespaces do it by themselves."""
        if self.namespaces:
            os.kill(child, signal.SIGKILL)
            return
        while True:
            left = [pid for pid in self.descendants(os.getpid())[1:] if pid != self.judge]
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)
                except (ProcessLookupError, ChildProcessError):  # gone, or not yet handed on to this process
                    pass
            if not left:
                return

    # The only folder that a test can write

    def make_folder(self, limits: dict) -> str:
        if self.namespaces:
            if not self.clean or self.clean[0] != limits["disk_mb"]:
                if self.clean:
                    check(libc.umount2(b"/tmp", MNT_DETACH), "unmount")
                mount(
                    "tmpfs",
                    "/tmp",
                    "tmpfs",
                    MS_NOSUID | MS_NODEV | MS_NOATIME,
                    f"mode=777,nr_inodes={MAX_FILES},size={limits['disk_mb']}m",
                )
                self.clean = limits["disk_mb"], changed("/tmp")
            return "/tmp"
        self.runs += 1
        folder = f"{self.setting['scratch']}/{self.runs}"
        os.mkdir(folder, 0o700)
        if os.geteuid() == 0:
            os.chown(folder, self.setting["uid"], self.setting["uid"])
        return folder

    def remove_folder(self, folder: str) -> None:
        if self.namespaces:
            if self.clean[1] != changed("/tmp"):
                check(libc.umount2(folder.encode(), MNT_DETACH), "unmount")
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
    last = 2
    for fd in sorted(keep):
        os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, 1 << 16)


def changed(folder: str) -> tuple[int, int]:
    """When a folder was last changed, its rights and times included: no program can set this time."""
    status = os.stat(folder)
    return status.st_ino, status.st_ctime_ns


def is_full(folder: str, size: int) -> bool:
    """Whether a folder holds more than `size` bytes or MAX_FILES files, as a memory folder would not take more."""
    total, queue = 0, [folder]
    for place in queue:
        try:
            for entry in os.scandir(place):
                total += entry.stat(follow_symlinks=False).st_blocks * 512 + size // MAX_FILES
                if total > size:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    queue.append(entry.path)
        except OSError:
            continue
    return False


def resource_limits(limits: dict, setting: dict) -> list[tuple[int, tuple[int, int]]]:
    """Arguments for setrlimit."""
    processes = limits["processes"] + SPARE_PROCESSES + setting["other_processes"]
    memory, file = limits["memory_mb"] << 20, limits["file_mb"] << 20
    seconds = int(limits["cpu_s"]) + 1  # the last resort: `watch` is more exact, and counts all processes
    found = []
    for name, soft, hard in (
        ("AS", memory, memory),
        ("FSIZE", file, file),
        ("CPU", seconds, seconds + 1),
        ("CORE", 0, 0),
        ("NOFILE", 64, 64),
        ("NPROC", processes, processes),
        ("MEMLOCK", 0, 0),
        ("MSGQUEUE", 0, 0),
        ("STACK", 8 << 20, 64 << 20),
    ):
        which = getattr(resource, f"RLIMIT_{name}", None)
        if which is not None:
            ceiling = resource.getrlimit(which)[1]
            if ceiling != resource.RLIM_INFINITY:
                soft, hard = min(soft, ceiling), min(hard, ceiling)
            found.append((which, (soft, hard)))
    return found


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
    names: dict = {}
    exec(compile(REHEARSAL, "<rehearsal>", "exec", dont_inherit=True), names)
    json.loads(json.dumps(["", RpcServer(names, None).answer("call", "solve", [[1, 2, 3], {"d": [["a", 1.5]]}], {})]))


def run_program(fds: list[int], progress: mmap.mmap) -> None:
    """Compile the program, say so through `progress`, unmap that, run the program; never returns."""
    progress[0] = STARTED
    text = read_all(fds[0])
    calls = json.loads(read_all(fds[1])) if len(fds) == 3 else None
    channel = os.dup(fds[-1]) if len(fds) < 4 else -1
    for number, fd in enumerate(fds[1:] if len(fds) == 4 else ()):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    preamble, text = json.loads(text)
    code, failure = None, None
    try:
        code = compile(text, "<program>", "exec", dont_inherit=True)
        progress[0] = COMPILED
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        failure = error
    progress.close()
    module = types.ModuleType("__main__" if channel < 0 else "program")
    sys.modules[module.__name__] = module
    sys.argv = ["program.py"]
    try:
        if preamble:
            exec(compile(preamble, "<preamble>", "exec", dont_inherit=True), module.__dict__)
        if failure is None:
            exec(code, module.__dict__)
    except BaseException as error:
        failure = error
    if channel < 0:
        finish(failure)
    servant = RpcServer(module.__dict__, failure)
    if calls:
        servant.answer_all(*calls, channel)
    else:
        servant.serve(socket.socket(fileno=channel))
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
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


def read_all(fd: int) -> bytes:
    """All of a memory file, whatever its offset: several tests share it."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def main(setting: dict) -> None:
    if sys.platform != "linux":
        raise OSError("the sandbox needs Linux")
    os.umask(0o022)
    os.environ.clear()  # the interpreter itself sets LC_CTYPE
    for name in PRELOAD:
        importlib.import_module(name)
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
    if not server.namespaces:
        server.end_all(0)
