"""Programs that attack the sandbox or the verdict, as a table for test_sandbox.py.

Each says what it attacks and how it must end. A program that looks for a way out prints what it got, one word a hole,
and "contained" if nothing: it must be marked as passed. OUTSIDE is a folder of the host that every user may write, with
a file `public` (readable and writable by all) and a file `private` (0600); PARENT is the process that verifies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tracelift_lib.problems.code_tests import AssertTests, StdioCase, StdioTests
from tracelift_lib.sandbox.running import Outcome

PASS, WRONG, ERROR = Outcome.PASS, Outcome.WRONG, Outcome.ERROR
TIMEOUT, MEMORY, UNSUPPORTED = Outcome.TIMEOUT, Outcome.MEMORY, Outcome.UNSUPPORTED
EXPECTED = "expected-7f3a9c1d"  # never inside the program's process


@dataclass(frozen=True)
class Attack:
    name: str
    target: str  # the property under attack
    program: str
    outcomes: tuple[Outcome, ...]
    tests: StdioTests | AssertTests = StdioTests(style="stdio", cases=[StdioCase(input="", output="contained")])
    waits: bool = False  # ends at the wall limit: give it a short one


# Prints the holes that actions find, or "contained".
LOOK = """
import os, sys
found = []
def look(name, action):
    try:
        result = action()
    except Exception:
        return
    if result is not None and result is not False:
        found.append(name)
"""
SAY = "\nprint(*found or ['contained'])\n"


def looks(name: str, target: str, body: str) -> Attack:
    """An attack that reports what it got."""
    return Attack(name, target, LOOK + body + SAY, (PASS,))


def lies(
    name: str, target: str, program: str, *outcomes: Outcome, code: str = f"assert solve(1) == {EXPECTED!r}", **more
) -> Attack:
    """An attack on the verdict of test code."""
    tests = AssertTests(style="asserts", code=[code], entry_point="solve")
    return Attack(name, target, program, outcomes or (WRONG, ERROR), tests, **more)


RESOURCES = [
    Attack(
        "fork_bomb",
        "processes",
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        (TIMEOUT, MEMORY),
    ),
    Attack(
        "fork_bomb_that_waits",
        "processes",
        """
import os, time
try:
    for _ in range(10_000):
        if os.fork() == 0:
            time.sleep(1000)
except OSError:
    pass
print("contained")
""",
        (PASS,),
    ),
    Attack(
        "thread_bomb",
        "threads",
        """
import threading, time
try:
    for _ in range(10_000):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
except RuntimeError:
    print("contained")
""",
        (PASS,),
    ),
    Attack(
        "thread_that_never_ends",
        "threads",
        """
import threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print("contained")
""",
        (TIMEOUT,),
        waits=True,
    ),
    Attack("memory_list", "memory", "x = []\nwhile True:\n    x.append(bytearray(1 << 24))", (MEMORY,)),
    Attack("memory_one_block", "memory", "x = bytearray(1 << 36)", (MEMORY,)),
    Attack(
        "memory_in_children",
        "memory of all processes together",
        """
import os, time
for _ in range(12):
    if os.fork() == 0:
        x = b"x" * (200 << 20)
        time.sleep(1000)
time.sleep(1000)
""",
        (MEMORY, TIMEOUT),
        waits=True,
    ),
    Attack("memory_string_growth", "memory", "x = 'x'\nwhile True:\n    x += x", (MEMORY,)),
    Attack("memory_mmap", "memory", "import mmap\nx = mmap.mmap(-1, 1 << 33)\nprint('contained')", (ERROR, MEMORY)),
    looks("memory_file", "memory outside the limit", "look('memfd', lambda: os.memfd_create('x'))"),
    Attack(
        "disk_one_file",
        "file size",
        """
try:
    with open("big", "wb") as file:
        while True:
            file.write(bytes(1 << 20))
except OSError:
    print("contained")
""",
        (PASS,),
    ),
    Attack(
        "disk_many_files",
        "disk space",
        """
try:
    for n in range(10_000):
        with open(f"f{n}", "wb") as file:
            file.write(bytes(4 << 20))
except OSError:
    print("contained")
""",
        (PASS, ERROR),
    ),
    Attack(
        "disk_sparse_file",
        "file size",
        """
try:
    open("sparse", "wb").truncate(1 << 40)
    print("breach")
except OSError:
    print("contained")
""",
        (PASS,),
    ),
    Attack(
        "inode_bomb",
        "number of files",
        """
import os
try:
    for n in range(20_000):
        os.mkdir(f"d{n}")
except OSError:
    pass
print("contained")
""",
        (PASS, ERROR, TIMEOUT),
    ),
    Attack(
        "deep_folders",
        "clean-up",
        """
import os
try:
    for n in range(2000):
        os.mkdir("d"); os.chdir("d")
except OSError:
    pass
print("contained")
""",
        (PASS, ERROR, TIMEOUT),
    ),
    Attack(
        "unreadable_folder",
        "clean-up",
        """
import os
os.mkdir("a"); open("a/b", "w").close(); os.umask(0o777); os.mkdir("a/c"); os.chmod("a", 0)
print("contained")
""",
        (PASS, ERROR),
    ),
    Attack("endless_output", "output size", "while True:\n    print('x' * 100_000)", (ERROR,)),
    Attack(
        "endless_output_caught",
        "output size",
        """
while True:
    try:
        print("x" * 100_000)
    except OSError:
        pass
""",
        (TIMEOUT,),
    ),
    Attack(
        "endless_errors",
        "error output size",
        """
import sys
while True:
    try:
        sys.stderr.write("x" * 100_000)
    except OSError:
        pass
""",
        (TIMEOUT,),
    ),
    Attack("endless_loop", "CPU time", "while True: pass", (TIMEOUT,)),
    Attack("endless_loop_in_c", "CPU time inside one C call", "sum(range(10**12))", (TIMEOUT,)),
    Attack(
        "endless_loop_in_children",
        "CPU time of all processes together",
        """
import os, time
for _ in range(4):
    if os.fork() == 0:
        while True: pass
time.sleep(1000)
""",
        (TIMEOUT,),
    ),
    Attack(
        "catches_everything",
        "CPU time",
        """
while True:
    try:
        while True: pass
    except BaseException:
        pass
""",
        (TIMEOUT,),
    ),
    Attack(
        "catastrophic_regex", "CPU time inside one C call", "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')", (TIMEOUT,)
    ),
    Attack(
        "raises_its_limits",
        "limits",
        """
import resource
for which in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
    try:
        resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print("breach")
    except (ValueError, OSError):
        pass
print("contained")
""",
        (PASS,),
    ),
    Attack("sleep", "wall time", "import time\ntime.sleep(1000)\nprint('contained')", (TIMEOUT,), waits=True),
    Attack("reads_terminal", "wall time", "print('contained', input())", (ERROR,)),
    Attack(
        "deadlock",
        "wall time",
        "import threading\nx = threading.Lock()\nx.acquire()\nx.acquire()",
        (TIMEOUT,),
        waits=True,
    ),
    Attack("giant_integer", "CPU time", "print(len(str(9 ** 9 ** 9)))", (TIMEOUT, MEMORY, ERROR)),
    Attack("recursion", "stack", "def f(n): return f(n + 1)\nf(0)", (ERROR,)),
    Attack(
        "recursion_without_limit",
        "stack",
        """
import sys
sys.setrecursionlimit(10**9)
def f(n): return f(n + 1)
f(0)
""",
        (ERROR, MEMORY, TIMEOUT),
    ),
    Attack("recursion_in_compiler", "stack of the compiler", "x = " + "(" * 5000 + ")" * 5000, (ERROR,)),
    Attack("compiler_bomb", "memory of the compiler", "x = (" + "-" * 100_000 + "1)", (ERROR, MEMORY, TIMEOUT)),
    Attack("constant_folding", "memory of the compiler", "x = 'a' * (1 << 20) * (1 << 20)", (MEMORY, ERROR)),
]

SIGNALS = [
    Attack(
        "ignores_sigterm",
        "ending it",
        """
import signal
for n in range(1, signal.NSIG):
    try:
        signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True: pass
""",
        (TIMEOUT,),
    ),
    Attack(
        "stops_itself",
        "wall time",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
        (TIMEOUT,),
        waits=True,
    ),
    Attack("kills_itself", "verdict", "import os, signal\nprint('contained', flush=True)\nos.abort()", (ERROR,)),
    Attack(
        "kills_all",
        "other processes",
        """
import os, signal
for pid in (-1, 1, os.getppid()):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
print("contained")
""",
        (PASS, ERROR),
    ),
    looks("kills_parent", "other processes", "look('signal', lambda: os.kill(PARENT, 0) or True)"),
    Attack(
        "kills_group",
        "other processes",
        """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
print("contained")
""",
        (PASS,),
    ),
    Attack(
        "double_fork",
        "nothing left running",
        """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.wait()
print("contained")
""",
        (PASS,),
    ),
    looks(
        "sibling_process",
        "nothing left running",
        """
import ctypes, platform, time
CLONE_PARENT, SIGCHLD = 0x8000, 17
def start():
    number = 56 if platform.machine() == "x86_64" else 220
    process = ctypes.CDLL(None).syscall(number, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0)
    if process == 0:
        time.sleep(1000)  # a child of this program's parent, whose time and memory count for nobody
    return process > 0
look("has_a_sibling", start)
""",
    ),
    Attack(
        "setsid_daemon",
        "nothing left running",
        """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setpgid(0, 0)
        for fd in range(3): os.close(fd)
        time.sleep(1000)
    os._exit(0)
os.wait()
print("contained")
""",
        (PASS,),
    ),
    Attack(
        "fork_chain",
        "nothing left running",
        """
import os
print("contained", flush=True)
while True:  # a process that ends as soon as its child is there: never the same to kill
    try:
        if os.fork(): os._exit(0)
    except OSError:
        os._exit(0)
""",
        (PASS, TIMEOUT, ERROR),
    ),
    Attack(
        "starts_a_shell",
        "nothing left running",
        """
import subprocess
subprocess.Popen(["/bin/sh", "-c", "trap '' TERM INT HUP; sleep 1000 & sleep 1000"])
print("contained")
""",
        (PASS,),
    ),
    Attack(
        "child_prints_later",
        "standard output",
        """
import os, time
print("contained", flush=True)
if os.fork() == 0:
    time.sleep(5)
    print("too late", flush=True)
os._exit(0)
""",
        (PASS,),
    ),
]

HOST = [
    looks(
        "reads_home",
        "files of the host",
        """
def walk_but_interpreter(place):
    for root, folders, files in os.walk(place):
        folders[:] = [f for f in folders if os.path.join(root, f) != sys.prefix]
        yield root, folders, files
for place in ("/root", "/home", "/etc", "/var", "/srv", "/opt", "/mnt"):
    look(place, lambda: [f for root, _, files in walk_but_interpreter(place) for f in files] or None)
look("shadow", lambda: open("/etc/shadow").read())
look("passwd", lambda: open("/etc/passwd").read())
""",
    ),
    looks("reads_private_file", "files of the host", "look('private', lambda: open('OUTSIDE/private').read())"),
    looks("reads_public_file", "files of the host", "look('public', lambda: open('OUTSIDE/public').read())"),
    looks("lists_outside", "files of the host", "look('list', lambda: os.listdir('OUTSIDE'))"),
    looks(
        "environment",
        "environment of the parent",
        """
look("own", lambda: dict(os.environ) or None)
look("parent", lambda: open("/proc/PARENT/environ", "rb").read() or None)
look("above", lambda: open(f"/proc/{os.getppid()}/environ", "rb").read() or None)
look("c", lambda: __import__("ctypes").CDLL(None).getenv(b"PATH") or None)
""",
    ),
    looks(
        "proc_of_others",
        "processes of the host",
        """
look("processes", lambda: [p for p in os.listdir("/proc") if p.isdigit()] or None)
look("memory", lambda: open("/proc/PARENT/mem", "rb"))
look("maps", lambda: open("/proc/PARENT/maps").read())
look("descriptors", lambda: os.listdir("/proc/PARENT/fd"))
look("own memory", lambda: open("/proc/self/mem", "r+b"))
look("core pattern", lambda: open("/proc/sys/kernel/core_pattern", "w"))
look("oom", lambda: open("/proc/self/oom_score_adj", "w").write("-1000"))
""",
    ),
    looks(
        "writes_outside",
        "files of the host",
        """
for place in ("OUTSIDE", "/", "/usr", "/etc", "/var/tmp", "/dev", "/proc", "/root", os.path.dirname(os.__file__)):
    look(place, lambda: open(place + "/written-by-test", "w"))
look("public", lambda: open("OUTSIDE/public", "a").write("x"))
look("interpreter", lambda: open(os.__file__, "a"))
look("truncate", lambda: os.truncate("OUTSIDE/public", 0) or True)
look("mode", lambda: os.chmod("OUTSIDE/public", 0) or True)
look("times", lambda: os.utime("OUTSIDE/public", (0, 0)) or True)
look("attribute", lambda: os.setxattr("OUTSIDE/public", "user.x", b"x") or True)
look("delete", lambda: os.unlink("OUTSIDE/public") or True)
look("rename", lambda: os.rename("OUTSIDE/public", "OUTSIDE/other") or True)
""",
    ),
    looks(
        "symlinks",
        "files of the host",
        """
os.symlink("OUTSIDE", "way"); os.symlink("OUTSIDE/public", "file"); os.symlink("/etc/shadow", "shadow")
look("through folder", lambda: open("way/written-by-test", "w"))
look("through file", lambda: open("file", "a"))
look("read", lambda: open("shadow").read())
os.symlink("/proc/self/root", "root")
look("root", lambda: open("root" + "OUTSIDE/public").read())
""",
    ),
    looks(
        "hard_links",
        "files of the host",
        """
look("public", lambda: os.link("OUTSIDE/public", "here") or True)
look("private", lambda: os.link("OUTSIDE/private", "here2") or True)
look("interpreter", lambda: os.link(os.__file__, "here3") or open("here3", "a"))
""",
    ),
    looks(
        "leaves_working_folder",
        "files of the host",
        """
look("up", lambda: open("../written-by-test", "w") if os.path.realpath("..") != "/tmp" else None)
look("descriptor", lambda: [fd for fd in range(3, 64) if os.path.exists(f"/dev/fd/{fd}")] or None)
def walk():
    for fd in range(3, 64):
        try:
            os.fstat(fd)
        except OSError:
            continue
        return fd
look("open descriptors", walk)
""",
    ),
    looks(
        "devices",
        "devices",
        """
look("mknod", lambda: os.mknod("disk", 0o60600, os.makedev(254, 0)) or True)
for device in ("/dev/vda", "/dev/sda", "/dev/mem", "/dev/kmsg", "/dev/tty", "/dev/fuse", "/dev/kvm", "/dev/ptmx"):
    look(device, lambda: open(device, "r+b"))
""",
    ),
    looks(
        "becomes_root",
        "rights",
        """
look("uid", lambda: os.setuid(0) or True)
look("group", lambda: os.setgroups([0]) or True)
look("chroot", lambda: os.chroot(".") or True)
look("effective", lambda: os.geteuid() == 0)
look("nice", lambda: os.nice(-5))
look("set-uid file", lambda: (open("s", "w").close(), os.chmod("s", 0o4755), None)[2])
for name in ("su", "mount", "sudo", "passwd"):
    path = f"/usr/bin/{name}"
    look(name, lambda: __import__("subprocess").run([path], stdin=-3, stdout=-3, stderr=-3, timeout=3).returncode == 0
         if name == "sudo" else None)
""",
    ),
    looks(
        "next_test_leaves",
        "state between tests",
        """
look("cwd", lambda: os.listdir(".") or None)
for name in ("left", "/tmp/left", "/dev/shm/left"):
    look(name, lambda: open(name).read())
for name in ("left", "/tmp/left", "/dev/shm/left"):
    try:
        open(name, "w").write("x")
    except OSError:
        pass
look("module", lambda: getattr(sys, "left_by_a_test", None))
sys.left_by_a_test = True
""",
    ),
]

NETWORK = [
    looks(
        "tcp",
        "network",
        """
import socket
look("connect", lambda: socket.create_connection(("127.0.0.1", 22), timeout=1))
look("outside", lambda: socket.create_connection(("1.1.1.1", 53), timeout=1))
look("listen", lambda: socket.create_server(("127.0.0.1", 0)))
look("ipv6", lambda: socket.socket(socket.AF_INET6))
""",
    ),
    looks(
        "udp",
        "network",
        """
import socket
look("send", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 53)))
""",
    ),
    looks(
        "unix_socket",
        "network",
        """
import socket
for place in ("/run/docker.sock", "/var/run/docker.sock", "/run/dbus/system_bus_socket", "\\0abstract"):
    look(place, lambda: socket.socket(socket.AF_UNIX).connect(place) or True)
look("listen", lambda: socket.socket(socket.AF_UNIX).bind("\\0x") or True)
look("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
look("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
look("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
""",
    ),
    looks(
        "dns",
        "network",
        """
import socket, urllib.request
look("name", lambda: socket.getaddrinfo("example.com", 80))
look("http", lambda: urllib.request.urlopen("http://example.com", timeout=1))
""",
    ),
]

KERNEL = [
    looks(
        "raw_system_calls",
        "system calls",
        """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
arm = platform.machine() == "aarch64"
def call(name, x86, arm64, *arguments):
    look(name, lambda: libc.syscall(arm64 if arm else x86, *arguments) >= 0)
call("socket", 41, 198, 2, 1, 0)
call("ptrace", 101, 117, 0, 0, 0, 0)
call("unshare user", 272, 97, 0x10000000)
call("mount", 165, 40, b"x", b"/tmp", b"tmpfs", 0, None)
call("keyctl", 250, 219, 0, -3, 1)
call("io_uring", 425, 425, 1, bytes(120))
call("bpf", 321, 280, 0, bytes(128), 128)
call("userfaultfd", 323, 282, 0)
call("shmget", 29, 194, 1234, 4096, 0o1666)
call("clone3", 435, 435, bytes(88), 88)
call("setns", 308, 268, 0, 0)
call("process_vm_readv", 310, 270, PARENT, None, 0, None, 0, 0)
call("pidfd_getfd", 438, 438, 0, 0, 0)
call("mseal, newer than the list", 462, 462, 0, 0, 0)
""",
    ),
    looks(
        "namespaces_by_clone",
        "system calls",
        """
import ctypes, platform
libc = ctypes.CDLL(None)
def clone(flags):
    pid = libc.syscall(220 if platform.machine() == "aarch64" else 56, flags | 17, 0, 0, 0, 0)
    if pid == 0: os._exit(0)
    return pid > 0
for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000):
    look(hex(flag), lambda: clone(flag))
""",
    ),
    Attack(
        "32_bit_calls",
        "system calls of another ABI",
        """
import ctypes, mmap, platform
if platform.machine() == "x86_64":  # int 0x80 with number 20 (getpid)
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex("b814000000cd80c3"))
    call = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    print("breach", call())
else:
    raise SystemExit(1)
""",
        (ERROR,),
    ),
    Attack("null_pointer", "crash", "import ctypes\nctypes.string_at(0)", (ERROR,)),
    Attack(
        "writes_random_memory",
        "crash",
        "import ctypes\nctypes.memset(id(int), 255, 4096)\nprint(1 + 1)",
        (ERROR, TIMEOUT),
    ),
    looks(
        "limits_of_the_worker",
        "the worker",
        """
import resource
others = {1, os.getppid(), PARENT} - {0, os.getpid()}
look("limits", lambda: [resource.prlimit(pid, resource.RLIMIT_CPU) for pid in others] if others else None)
look("limit", lambda: [resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)) for pid in others] if others else None)
look("priority", lambda: [os.setpriority(os.PRIO_PROCESS, pid, 19) for pid in others] if others else None)
look("cores", lambda: [os.sched_setaffinity(pid, {0}) for pid in others] if others else None)
""",
    ),
    looks(
        "seccomp_and_capabilities",
        "rights",
        """
import ctypes
libc = ctypes.CDLL(None)
look("dumpable", lambda: libc.prctl(38, 0, 0, 0, 0) == 0)
look("filters off", lambda: libc.prctl(22, 0, 0, 0, 0) == 0)
look("keeps capabilities", lambda: libc.prctl(47, 2, 21, 0, 0) == 0)
""",
    ),
]

# The pattern of the expected value, not itself: hunting for it must not find the hunter.
HUNT = r"""
import gc, re
def hunt(things):
    for thing in things:
        try:
            match = re.search(r"expected-[0-9a-f]{8}", thing.decode("latin1") if type(thing) is bytes else repr(thing))
        except Exception:
            continue
        if match:
            return match[0]
"""
PRINTED = StdioTests(style="stdio", cases=[StdioCase(input="x", output=EXPECTED)])
VERDICT = [
    Attack("expected_in_memory", "expected outputs", HUNT + "print(hunt(gc.get_objects()))", (WRONG,), PRINTED),
    Attack(
        "expected_in_raw_memory",
        "expected outputs",
        HUNT
        + """
import ctypes
starts = sorted({id(thing) >> 20 << 20 for thing in gc.get_objects()})
for start in starts[1:-1]:
    print(hunt([ctypes.string_at(start, 1 << 20)]), flush=True)
""",
        (WRONG, ERROR),
        PRINTED,
    ),
    lies("expected_by_gc", "expected outputs", HUNT + "def solve(x): return hunt(gc.get_objects())"),
    lies(
        "expected_by_frames",
        "expected outputs",
        HUNT
        + """
import sys
def solve(x):
    things, frame = [], sys._getframe()
    while frame:
        things += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    return hunt(things)
""",
    ),
    lies(
        "expected_in_files",
        "expected outputs",
        HUNT
        + """
import os
def solve(x):
    for place in (".", "/tmp", "/dev/shm", "/proc/self/fd"):
        for root, _, files in os.walk(place):
            for name in files:
                try:
                    text = open(os.path.join(root, name)).read(10**6)
                except OSError:
                    continue
                if hunt([text]):
                    return hunt([text])
""",
    ),
    lies(
        "expected_in_descriptors",
        "expected outputs",
        HUNT
        + """
import os
def solve(x):
    for fd in range(64):
        try:
            text = os.pread(fd, 10**6, 0).decode(errors="replace")
        except OSError:
            continue
        if hunt([text]):
            return hunt([text])
""",
    ),
    lies(
        "eq_lies",
        "comparison",
        "class Yes:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef solve(x): return Yes()",
    ),
    lies(
        "str_subclass_lies",
        "comparison",
        "class Yes(str):\n    def __eq__(self, other): return True\n"
        "    def __ne__(self, other): return False\n    __hash__ = str.__hash__\ndef solve(x): return Yes('no')",
    ),
    lies(
        "nested_eq_lies",
        "comparison",
        "class Yes(int):\n    def __eq__(self, other): return True\n"
        "    __hash__ = int.__hash__\ndef solve(x): return [Yes(1), {'a': Yes(2)}]",
        code="assert solve(1) == [5, {'a': 6}]",
    ),
    lies(
        "class_lies",
        "comparison",
        "class Yes:\n    __class__ = str\n    def __eq__(self, other): return True\ndef solve(x): return Yes()",
        code=f"r = solve(1)\nassert isinstance(r, str) and r == {EXPECTED!r}",
    ),
    lies(
        "metaclass_lies",
        "comparison",
        """
class Meta(type):
    def __instancecheck__(cls, x): return True
    def __eq__(cls, x): return True
    __hash__ = type.__hash__
class Yes(metaclass=Meta): pass
def solve(x): return Yes
""",
    ),
    lies(
        "numbers_lie",
        "comparison",
        "class Near(float):\n    def __sub__(self, x): return 0.0\n    __rsub__ = __sub__\n"
        "    def __abs__(self): return 0.0\n    def __lt__(self, x): return True\ndef solve(x): return Near(7)",
        code="assert abs(solve(1) - 3.5) < 1e-6",
    ),
    lies(
        "length_lies",
        "comparison",
        "class Long(list):\n    def __len__(self): return 5\ndef solve(x): return Long()",
        code="assert len(solve(1)) == 5",
    ),
    lies(
        "patched_builtins",
        "comparison",
        """
import builtins
for name in ("isinstance", "abs", "len", "sorted", "all", "any", "repr", "str", "type"):
    setattr(builtins, name, lambda *a, **k: True)
def solve(x): return True
""",
    ),
    lies(
        "patched_modules",
        "the harness",
        """
import json, sys
json.dumps = lambda *a, **k: '{"value": "expected-' + '"}'
json.loads = lambda *a, **k: ["call", "solve", [], {}]
def solve(x): return 1
""",
    ),
    lies(
        "patched_harness",
        "the harness",
        """
import sys
for name, module in list(sys.modules.items()):
    if "sandbox" in name:
        module.encode = lambda *a: None
        module.decode = lambda *a: None
        module.run_test = lambda *a: "pass"
        module.test_runner = lambda *a: None
        module.Channel.receive = lambda self: ["text", "solve", [], {}]
def solve(x): return None
""",
        waits=True,
    ),
    lies(
        "forged_replies",
        "the harness",
        """
import os, json, socket, stat
def solve(x):
    for fd in range(64):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                for forged in ({"verdict": "pass"}, {"value": {"pass": 1}}, {"raised": "ConnectionLost"}, "pass"):
                    data = json.dumps(forged).encode()
                    os.write(fd, data + b"\\n")
        except OSError:
            pass
    return "no"
""",
    ),
    lies(
        "forged_verdicts",
        "the harness",
        """
import json, os
def solve(x): return "no"
for fd in range(3, 64):
    try:
        os.write(fd, b"".join(json.dumps({"raised": name}).encode() + b"\\n" for name in ("pass", ["pass"], "Outcome")))
    except OSError:
        pass
""",
    ),
    lies(
        "forged_garbage",
        "the harness",
        """
import os, stat
for fd in range(64):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.write(fd, b"\\xff" * 100_000)
    except OSError:
        pass
def solve(x): return "no"
""",
    ),
    lies(
        "forged_handles",
        "the harness",
        "import sys\ndef solve(x):\n    m = sys.modules['tracelift_lib.sandbox.calls']\n"
        "    m.encode = lambda *a: {'h': [10**9]}\n    return object()",
    ),
    lies(
        "raises_from_the_test_runner",
        "the harness",
        "class ConnectionLost(BaseException): pass\ndef solve(x): raise ConnectionLost('pass')",
    ),
    lies("raises_assertion", "verdict", "def solve(x): raise AssertionError"),
    lies("raises_system_exit", "verdict", "import sys\ndef solve(x): sys.exit(0)"),
    lies(
        "raises_to_be_caught",
        "verdict",
        "def solve(x):\n    import os\n    os._exit(0)",
        code="try:\n    solve(1)\nexcept BaseException:\n    pass",
    ),
    lies("exits_at_once", "verdict", "import sys\nsys.exit(0)"),
    lies("exits_at_once_hard", "verdict", "import os\nos._exit(0)"),
    lies("exits_in_call", "verdict", "import os\ndef solve(x): os._exit(0)"),
    lies(
        "exits_in_thread",
        "verdict",
        "import threading, os\nthreading.Thread(target=os._exit, args=(0,)).start()\ndef solve(x): return 1",
    ),
    Attack("exits_early", "verdict", "import sys\nsys.exit(0)\nprint('contained')", (WRONG,)),
    Attack("exits_early_hard", "verdict", "import os\nos._exit(0)", (WRONG,)),
    Attack(
        "atexit_output",
        "verdict",
        "import atexit, os\nprint('contained')\natexit.register(lambda: os._exit(3))",
        (ERROR,),
    ),
    Attack(
        "stdout_forgery",
        "standard output",
        """
import json, os, sys
sys.__stdout__.write(json.dumps({"code": 0, "reason": None, "compiled": True}) + "\\n")
for fd in range(3, 64):
    try:
        os.write(fd, b'{"code": 0, "verdict": "pass"}')
    except OSError:
        pass
""",
        (WRONG,),
    ),
    lies(
        "stdout_forgery_in_test",
        "standard output",
        "print('{\"verdict\": \"pass\"}')\ndef solve(x):\n    print('pass')\n    return 'pass'",
    ),
    lies("giant_result", "the test runner", "def solve(x): return 'x' * (1 << 26)"),
    lies(
        "giant_integer_result", "the test runner", "def solve(x): return 1 << 10_000_000", code="assert solve(1) == 5"
    ),
    lies(
        "deep_result",
        "the test runner",
        "def solve(x):\n    r = []\n    for _ in range(100_000): r = [r]\n    return r",
    ),
    lies("cyclic_result", "the test runner", "def solve(x):\n    r = []\n    r.append(r)\n    return r"),
    lies(
        "endless_iterator",
        "the test runner",
        "def solve(x):\n    while True: yield 1",
        WRONG,
        ERROR,
        TIMEOUT,
        MEMORY,
        code="assert list(solve(1)) == [1]",
    ),
    lies(
        "endless_range",
        "the test runner",
        "def solve(x): return range(10**12)",
        WRONG,
        ERROR,
        TIMEOUT,
        MEMORY,
        code="assert sum(solve(1)) == 1",
    ),
    lies(
        "hash_collisions",
        "the test runner",
        "def solve(x): return {i * (2**61 - 1): 0 for i in range(1, 50_000)}",
        WRONG,
        ERROR,
        TIMEOUT,
    ),
    lies(
        "changes_its_arguments",
        "comparison",
        "def solve(x):\n    x[:] = [9]\n    return [9]",
        code="x = [1, 2]\nsolve(x)\nassert x == [1, 2]",
    ),
    lies("never_answers", "wall time", "def solve(x):\n    import time\n    time.sleep(1000)", TIMEOUT, waits=True),
    lies("loops_in_call", "CPU time", "def solve(x):\n    while True: pass", TIMEOUT),
    lies("memory_in_call", "memory", "def solve(x): return bytearray(1 << 36)", MEMORY),
    Attack("null_in_output", "text", "print('contained\\0')", (WRONG,)),
    Attack("unicode_output", "text", "print('c\\u043entained \\u202e \\U0001f4a5 \\x1b[2J')", (WRONG,)),
    Attack("broken_utf8_output", "text", "import sys\nsys.stdout.buffer.write(b'\\xff\\xfecontained')", (WRONG,)),
    Attack("surrogate_output", "text", "print('\\ud800')", (ERROR,)),
    Attack("null_in_source", "text", "print('contained')\0", (ERROR,)),
    lies("surrogate_result", "text", "def solve(x): return '\\ud800\\0' + 'x'"),
    lies(
        "pickle_result",
        "pickles",
        """
import os
class Bomb:
    def __reduce__(self): return (os.system, ("touch OUTSIDE/pickled",))
    def __getstate__(self): raise SystemExit
def solve(x): return Bomb()
""",
    ),
    lies(
        "importlib_tricks",
        "the harness",
        """
import importlib, sys
for name in list(sys.modules):
    if "sandbox" in name or name in ("socket", "json", "builtins"):
        try:
            importlib.reload(sys.modules[name])
        except Exception:
            pass
sys.modules.clear()
def solve(x): return 1
""",
    ),
    lies(
        "trace_hook",
        "the harness",
        "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n"
        "sys.excepthook = lambda *a: None\ndef solve(x): return 1",
    ),
    Attack(
        "overwrites_the_worker",
        "the worker",
        """
import sys, gc
for thing in gc.get_objects():
    if type(thing).__name__ == "Server":
        for name in ("watch", "do_run", "control"):
            setattr(thing, name, None)
print("contained")
""",
        (PASS,),
    ),
]

# The same lies where the test has no plan (it is more than an assertion), so that the test runner calls the program
UNPLANNED = [
    replace(
        attack,
        name=f"{attack.name}_to_the_test_runner",
        tests=attack.tests.model_copy(update={"code": [f"{code}\nif True: pass" for code in attack.tests.code]}),
    )
    for attack in VERDICT
    if isinstance(attack.tests, AssertTests)
]

ATTACKS = [*RESOURCES, *SIGNALS, *HOST, *NETWORK, *KERNEL, *VERDICT, *UNPLANNED]
