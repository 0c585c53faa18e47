"""Comparison of answers that are no plain numbers, in a process of its own with limits.

Sympy can run for hours or fill the memory on a line such as 9^{9^{9}}, inside one C call that no thread can interrupt,
and math-verify's own time-outs need signals, which work on the main thread only. So a child process compares: it sets
itself limits of CPU time, wall time and memory for each call, and the kernel ends it when they are reached.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache

from tracelift_lib.problems.files import PROJECT

# An honest comparison takes 5 to 300 ms. CPU time decides, so that a busy machine changes no verdict.
CPU_SECONDS, WALL_SECONDS, MEMORY_BYTES = 2.0, 120.0, 2 << 30
LIMIT_SIGNALS = (-signal.SIGPROF, -signal.SIGALRM, -signal.SIGSEGV)  # its own limits, or the C stack overflowed
_worker: subprocess.Popen | None = None
_lock = threading.Lock()


@lru_cache(maxsize=4096)
def all_same(expected: str, stated: tuple[str, ...]) -> bool:
    """Whether each of the `stated` answers equals `expected` (`answers.same`); from any thread, one call at a time.

    All of them together have one limit of time. Too long is False and not an error: the text is the model's,
    and it must not choose to have no verdict. An answer that cannot be read is not even equal to itself.

    Raises:
        RuntimeError: the process that compares cannot be started or was ended from outside.
    """
    global _worker
    with _lock:
        if _worker is None or _worker.poll() is not None:
            _worker = _start()
        try:
            print(json.dumps([expected, stated]), file=_worker.stdin, flush=True)
            reply = _worker.stdout.readline()
        except BrokenPipeError:
            reply = ""
        except BaseException:  # Ctrl-C while it compares: the next call must not read this one's reply
            _worker.kill()
            _worker.wait()
            raise
        if reply:
            return json.loads(reply)
        code = _worker.wait()
    if code in LIMIT_SIGNALS:
        return False
    raise RuntimeError(
        f"the process that compares answers ended with code {code} (a negative code is a signal); to see whether it "
        f"starts: {sys.executable} -m {__name__} < /dev/null"
    )


def _start() -> subprocess.Popen:
    # A session of its own: Ctrl-C in a notebook must not reach it. It ends when its input does, so it outlives this
    # process by one call at most.
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def _forget() -> None:
    """In a forked child: the worker, and perhaps a held lock, belong to the parent."""
    global _worker, _lock
    _worker, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def _serve() -> None:
    """The worker: a line of JSON [expected, stated] in, true or false out."""
    import resource

    import math_verify  # noqa: F401  before the first limit: it takes a second

    from tracelift_lib.verifier.answers import same

    for limit, size in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses to limit address space; time is limited anywhere
            resource.setrlimit(limit, (size, size))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no reply
    for line in sys.stdin:
        # The default action of both signals is to end the process, even in the middle of a C call.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        expected, stated = json.loads(line)
        try:
            verdict = all(same(expected, answer) for answer in stated)
        except Exception:  # sympy raises nearly anything on odd input
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
