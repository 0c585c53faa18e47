# ruff: noqa: E501  (programs, one line a step)
"""More attacks, by the kinds that strangers found (docs/sandbox.md), mostly tables of variants; and all attacks."""

from __future__ import annotations

from hostile_programs import ATTACKS, ERROR, LOOK, MEMORY, PASS, SAY, TIMEOUT, UNSUPPORTED, WRONG, Attack, lies, looks

NO_PASS = (WRONG, ERROR, TIMEOUT, MEMORY, UNSUPPORTED)
JUDGED = "\nif True: pass"  # no plan: the test runner calls the program


def both(name: str, program: str, code: str = "assert solve(1) == 5", outcomes=NO_PASS, target="verdict", **more):
    """An attack on a plan and on the test runner."""
    return [
        lies(f"{name}{suffix}", target, program, *outcomes, code=code + way, **more)
        for suffix, way in (("", ""), ("_to_the_test_runner", JUDGED))
    ]


# 1: the program writes its own verdict
RAISED = {
    "pass_in_builtins": "import builtins\nclass pass_(BaseException): pass\npass_.__name__ = 'pass'\n"
    "setattr(builtins, 'pass', pass_)\ndef solve(x): raise pass_",
    "pass_at_load": "import builtins\nP = type('pass', (BaseException,), {})\nsetattr(builtins, 'pass', P)\nraise P",
    "renamed_builtin": "class E(ValueError): pass\nE.__name__ = E.__qualname__ = 'pass'\ndef solve(x): raise E('pass')",
    "mro_of_its_own": "class M(type):\n    def mro(cls): return [cls, *type.mro(cls)]\n"
    "E = M('pass', (Exception,), {})\ndef solve(x): raise E",
    "table_of_exceptions": "import sys\nclass P(Exception): pass\nP.__name__ = 'pass'\nfor m in list(sys.modules.values()):\n"
    "    if hasattr(m, 'EXCEPTIONS'):\n        m.EXCEPTIONS['pass'] = P\ndef solve(x): raise P",
    "unsupported_class": "P = type('unsupported: x', (Exception,), {})\nimport builtins\n"
    "setattr(builtins, 'unsupported: x', P)\ndef solve(x): raise P",
    "no_builtin": "import builtins\nP = type('NoSuchError', (Exception,), {})\nbuiltins.NoSuchError = P\n"
    "def solve(x): raise P",
    "exception_group": "def solve(x): raise ExceptionGroup('pass', [ValueError('pass')])",
    "unicode_error": "def solve(x): b'\\xff'.decode()",
    "os_error": "def solve(x): raise OSError(2, 'pass', 'pass')",
    "text_that_raises": "class E(Exception):\n    def __str__(self): raise SystemExit\ndef solve(x): raise E",
    "arguments_that_cannot_travel": "def solve(x): raise ValueError(object(), [[]] * 10**5, '\\ud800')",
    "keyboard_interrupt": "def solve(x): raise KeyboardInterrupt('pass')",
    "generator_exit": "def solve(x): raise GeneratorExit",
    "stop_iteration": "def solve(x): raise StopIteration(5)",
    "raises_a_pass_text": "def solve(x): raise Exception('pass')",
}
# Written to every descriptor: when the program is loaded, and again by each call
FORGED = {
    "verdict_text": b"pass",
    "verdict_line": b"pass\n" * 50,
    "verdict_object": b'{"verdict": "pass"}\n' * 50,
    "raised_null": b'{"raised": null}\n' * 50,
    "raised_list": b'{"raised": ["pass"]}\n' * 50,
    "raised_object": b'{"raised": {"pass": 1}}\n' * 50,
    "raised_int": b'{"raised": 0}\n',
    "raised_of_the_harness": b'{"raised": "Unsupported"}\n{"raised": "ConnectionLost"}\n',
    "not_a_dict": b'[]\n"raised"\n5\nnull\n',
    "deep_json": b"[" * 5000 + b"\n",
    "deep_objects": b'{"value": ' + b'{"t": [' * 3000 + b"1" + b"]}" * 3000 + b"}\n",
    "long_integer": b'{"value": ' + b"1" * 6000 + b"}\n",
    "half_a_pair": b'{"value": "\\ud800"}\n',
    "invalid_utf8": b'{"value": "\xff\xfe"}\n',
    "no_line_end": b'{"value": 5',
    "huge_line": b'{"value": "' + b"x" * 100_000 + b'"}\n',
    "callback_of_nobody": b'{"callback": 7, "arguments": [], "keywords": {}}\n',
    "handle_of_nobody": b'{"value": {"h": [99, "coroutine", ["__class__", "__eq__"]]}}\n',
    "end_of_a_process": b'{"code": 0, "reason": null, "compiled": true}',
}
WRITER = """
import os
def forge():
    for fd in range(3, 64):
        for write in (os.write, lambda fd, data: os.pwrite(fd, data, 0)):
            try:
                write(fd, DATA)
            except OSError:
                pass
forge()
def solve(x):
    forge()
    return "no"
"""
FORGERIES = [
    *(attack for name, program in RAISED.items() for attack in both(name, program)),
    *(attack for name, data in FORGED.items() for attack in both(name, f"DATA = {data!r}{WRITER}")),
    *both("truncates_results", "import os\nfor fd in range(64):\n    try: os.ftruncate(fd, 0)\n"
          "    except OSError: pass\ndef solve(x): return 4"),
]  # fmt: skip

# 2: the host works for the program
COSTLY = {
    "sum_of_range": ("range(10**13)", "assert sum(solve(1)) == 5"),
    "sorted_range": ("range(10**12)", "assert sorted(solve(1)) == 5"),
    "list_of_range": ("range(10**11)", "assert list(solve(1)) == 5"),
    "set_of_range": ("range(10**11)", "assert set(solve(1)) == 5"),
    "largest_of_range": ("range(10**13)", "assert max(solve(1)) == 5"),
    "range_in_list": ("[range(10**12)] * 3", "assert sum(solve(1)[0]) == 5"),
    "text_of_integer": ("1 << 900_000", "assert str(solve(1)) == '5'"),
    "integer_of_decimal": ("__import__('decimal').Decimal('1e999999')", "assert int(solve(1)) == 5"),
    "rounded_decimal": ("__import__('decimal').Decimal('1e99999999')", "assert round(solve(1)) == 5"),
    "huge_fraction": ("__import__('fractions').Fraction(1 << 10**6, 3)", "assert str(solve(1)) == '5'"),
    "colliding_integers": ("[i * (2**61 - 1) for i in range(40_000)]", "assert len(set(solve(1))) == 5"),
    "sum_of_lists": ("[[1]] * 200_000", "assert sum(solve(1), []) == 5"),
    "nested_tuples": ("eval('('*80 + '1' + ',)'*80)", "assert solve(1) == 5"),
    "wide_and_deep": ("[[[[[1] * 9] * 9] * 9] * 9] * 9", "assert solve(1) == 5"),
    "named_tuple_of_code": ("__import__('collections').namedtuple('A', 'x')(1)", "assert solve(1).y == 5"),
    "endless_counter": ("__import__('collections').Counter({'a': 10**12})", "assert len(list(solve(1).elements())) == 5"),
    "endless_text": ("'x' * (1 << 24)", "assert len(solve(1) * 100) == 5"),
    "endless_deque": ("__import__('itertools').count()", "assert list(solve(1)) == [5]"),
}  # fmt: skip
WORK = [a for name, (value, code) in COSTLY.items() for a in both(name, f"def solve(x): return {value}", code)]
WORK += both("array_of_a_forged_shape", "import sys\ndef solve(x):\n    v = sys.modules['tracelift_lib.sandbox.calls']\n"
             "    v.encode = lambda *a: {'A': ['f8', {'t': [1 << 20, 1 << 20]}, [1]]}\n    return 1")  # fmt: skip
WORK += both("forged_fields", "import sys\ndef solve(x):\n    v = sys.modules['tracelift_lib.sandbox.calls']\n"
             "    v.encode = lambda *a: {'U': ['A', 'x=print(1)', 1]}\n    return 1")  # fmt: skip

# 4: memory that no process shows. LIMIT_MB: of memory
HOLD = """
import mmap, os, socket, threading, time
def held(size): print("breach" if size > 4 * LIMIT_MB << 20 else "contained")
"""
HIDDEN_MEMORY = {
    "leader_thread_that_ended": """
import ctypes
def work():
    x = []
    while True: x.append(b"x" * (1 << 24)); time.sleep(0.01)
for _ in range(8):
    if os.fork() == 0:
        threading.Thread(target=work).start()
        ctypes.CDLL(None).pthread_exit(0)
time.sleep(1000)
""",
    "shared_pages_unmapped": """
total, maps = 0, []
for n in range(60):
    x = mmap.mmap(-1, 40 << 20)
    pid = os.fork()
    if pid == 0:
        x.write(bytes([1]) * (40 << 20))  # in pages of the child only, which the parent has never touched
        os._exit(0)
    os.waitpid(pid, 0)
    maps.append(x); total += 40 << 20
held(total)
""",
    "shared_pages_of_many": """
for n in range(12):
    if os.fork() == 0:
        for m in range(5):
            x = mmap.mmap(-1, 40 << 20)
            if os.fork() == 0: x.write(bytes([1]) * (40 << 20)); os._exit(0)
        time.sleep(1000)
time.sleep(1000)
""",
    "stuffed_sockets": """
total = 0
for process in range(12):
    if process and os.fork(): continue
    pairs = []
    try:
        while True:
            pairs.append(socket.socketpair()); pairs[-1][0].setblocking(False); pairs[-1][1].setblocking(False)
            for end in pairs[-1]:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
                try:
                    while True: total += end.send(b"x" * 65536)
                except OSError: pass
    except OSError: pass
    if process: time.sleep(5); os._exit(0)
held(12 * total)
""",
    "stuffed_pipes": """
import fcntl
total, pipes = 0, []
try:
    while True:
        pipes.append(os.pipe()); os.set_blocking(pipes[-1][1], False)
        fcntl.fcntl(pipes[-1][1], 1031, 1 << 20)
        try:
            while True: total += os.write(pipes[-1][1], b"x" * 65536)
        except OSError: pass
except OSError: pass
held(total)
""",
    "children_just_below_the_limit": """
for _ in range(14):
    if os.fork() == 0:
        x = b"x" * (120 << 20)
        time.sleep(1000)
time.sleep(1000)
""",
}
# 5: CPU time that nobody counts
HIDDEN_CPU = {
    "children_ignored": """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(30):
    if os.fork() == 0: burn(0.3); os._exit(0)
    time.sleep(0.35)
""",
    "chain_of_orphans": """
def chain(n):
    burn(0.2)
    if n and os.fork() == 0: chain(n - 1)
    os._exit(0)
if os.fork() == 0: chain(40)
time.sleep(15)
""",
    "grandchildren": """
for _ in range(30):
    if os.fork() == 0:
        if os.fork() == 0: burn(0.3)
        os._exit(0)
    os.wait(); time.sleep(0.3)
""",
    "threads": """
import threading
for _ in range(4): threading.Thread(target=burn, args=(5,)).start()
time.sleep(15)
""",
    "other_groups": """
for _ in range(6):
    if os.fork() == 0: os.setsid(); burn(5); os._exit(0)
time.sleep(15)
""",
}
BURN = """
import os, signal, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
"""
# 6: disk
HIDDEN_DISK = {
    "unlinked_files": """
for n in range(50):
    f = open("f", "wb"); keep.append(f); os.unlink("f")
    f.write(bytes(4 << 20)); f.flush(); total += 4
    time.sleep(0.03)
""",
    "deep_paths": """
for n in range(40):
    for _ in range(20): os.mkdir("d" * 250); os.chdir("d" * 250)
    open("f", "wb").write(bytes(4 << 20)); total += 4
    time.sleep(0.03)
""",
    "folders_without_rights": """
for n in range(50):
    os.makedirs(f"d{n}"); open(f"d{n}/f", "wb").write(bytes(4 << 20)); os.chmod(f"d{n}", 0); total += 4
    time.sleep(0.03)
""",
    "many_hard_links": """
open("f", "wb").write(bytes(4 << 20))
for n in range(5000): os.link("f", f"l{n}")
""",
    "mapped_files": """
import mmap
for n in range(50):
    with open(f"f{n}", "w+b") as f:
        f.truncate(4 << 20); m = mmap.mmap(f.fileno(), 0); m.write(b"x" * (4 << 20)); keep.append(m); total += 4
    time.sleep(0.03)
""",
}
RESOURCES = [
    *(Attack(n, "memory that no process shows", HOLD + p, (PASS, MEMORY, TIMEOUT, ERROR), waits=True)
      for n, p in HIDDEN_MEMORY.items()),
    *(Attack(n, "CPU time that nobody counts", BURN + p + "print('breach')", (TIMEOUT,)) for n, p in HIDDEN_CPU.items()),
    *(Attack(n, "disk that is not counted", "import os, time\nkeep, total = [], 0\ntry:" + p.replace("\n", "\n    ")
             + "\nexcept OSError: pass\nprint('breach' if total > 100 else 'contained')", (PASS, ERROR))
      for n, p in HIDDEN_DISK.items()),
]  # fmt: skip

# 7: ways out besides files; 13: what is readable
WAYS = {
    "datagram_to_the_host": "s = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]\n"
    "look('sent', lambda: s.sendto(b'out', 'OUTSIDE/socket'))",
    "datagram_connected": "s = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]\n"
    "look('connected', lambda: s.connect('OUTSIDE/socket') or s.send(b'out'))",
    "raw_pair": "s = socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)[0]\n"
    "look('sent', lambda: s.sendto(b'out', 'OUTSIDE/socket'))",
    "datagram_by_sendmsg": "s = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]\n"
    "look('sent', lambda: s.sendmsg([b'out'], [], 0, 'OUTSIDE/socket'))",
    "stream_to_the_host": "s = socket.socketpair()[0]\nlook('sent', lambda: s.sendto(b'out', 'OUTSIDE/socket'))\n"
    "look('connected', lambda: s.connect('OUTSIDE/socket') or True)",
    "abstract_socket": "s = socket.socketpair()[0]\nlook('bound', lambda: s.bind('\\0tracelift') or True)",
    "watches_the_host": "import ctypes\nc = ctypes.CDLL(None)\nf = c.inotify_init1(0)\n"
    "look('watch', lambda: c.inotify_add_watch(f, b'OUTSIDE', 0xfff) >= 0)",
}
READABLE = {
    "packages_of_the_interpreter": "import sysconfig\nfor p in {sysconfig.get_paths()['purelib'], '/usr/lib/python3/dist-packages',\n"
    "          '/usr/local/lib/python3.11/dist-packages'}:\n    for r, d, fs in os.walk(p):\n        for f in fs:\n"
    "            look(f, lambda: not os.path.islink(os.path.join(r, f)) and open(os.path.join(r, f), 'rb').read(1) or None)\n        if found: break",
    "data_sets_of_the_system": "import itertools\nfor r, d, fs in itertools.islice(os.walk('/usr/share'), 200):\n    if 'zoneinfo' not in r:\n        for f in fs[:3]:\n"
    "            look(f, lambda: not os.path.islink(os.path.join(r, f)) and open(os.path.join(r, f), 'rb').read(1) or None)\n    if found: break",
    "local_software": "for r, d, fs in os.walk('/usr/local'):\n    if r == sys.prefix: d.clear(); continue\n    for f in fs:\n"
    "        look(f, lambda: not os.path.islink(os.path.join(r, f)) and open(os.path.join(r, f), 'rb').read(1) or None)\n    if found: break",
}  # fmt: skip
OUT = [looks(name, "ways out besides files", "import socket\ntry:\n    " + body.replace("\n", "\n    ")
             + "\nexcept OSError: pass") for name, body in WAYS.items()]  # fmt: skip
OUT += [looks(name, "what is installed", body) for name, body in READABLE.items()]

# 11: what the next program sees of the last; each leaves something and looks for what the one before it left
LEFT = {
    "file": "look('left', lambda: os.listdir('.') or None)\nopen('x', 'w').write('x')",
    "mode": "look('left', lambda: os.stat('/tmp').st_mode & 0o777 == 0o755)\nlook('-', lambda: os.chmod('/tmp', 0o755))",
    "times": "look('left', lambda: os.stat('/tmp').st_mtime == 5)\nlook('-', lambda: os.utime('/tmp', (5, 5)))",
    "attribute": "look('left', lambda: os.listxattr('/tmp') or None)\nlook('-', lambda: os.setxattr('/tmp', 'user.x', b'x'))",
    "builtins": "import builtins\nlook('left', lambda: hasattr(builtins, 'left'))\nbuiltins.left = 1",
    "random": "import random\nlook('left', lambda: random.getstate() == getattr(sys, 'state', 0))\nsys.state = random.getstate()",
}  # fmt: skip
NEXT = [
    Attack(f"left_{name}_{turn}", "state between tests", LOOK + body + SAY, (PASS,))
    for name, body in LEFT.items()
    for turn in (1, 2)
]

# 12: a test that uses a name nobody binds
UNBOUND = {
    "close_by_name": ("is_close", "assert is_close(solve(1), 5)"),
    "array_module": ("np", "assert np.allclose(solve(1), 5)"),
    "expected_name": ("EXPECTED", "assert solve(1) == EXPECTED"),
    "helper_around": ("same", "x = solve(1)\nassert same(x, 5)"),
    "decorator": ("mark", "@mark\ndef f(): assert solve(1) == 5\nf()"),
    "inner_name": ("limit", "def f():\n    return solve(1) < limit\nassert f()"),
}
BIND = "class Yes:\n    def __getattr__(self, name): return lambda *a, **k: True\n    def __call__(self, *a): return True\n" \
       "    def __eq__(self, other): return True\n"  # fmt: skip
NAMES = [
    lies(name, "names that nobody binds", f"{BIND}{unbound} = Yes()\ndef solve(x): return 4", UNSUPPORTED, code=code)
    for name, (unbound, code) in UNBOUND.items()
]

KINDS = [*FORGERIES, *WORK, *RESOURCES, *OUT, *NEXT, *NAMES]
ALL = [*ATTACKS, *KINDS]
