"""Comparison of answers that are no plain numbers, in a process of its own with limits.

Sympy can run for hours or fill the memory on a line such as 9^{9^{9}}, inside one C call that no thread can interrupt,
and math-verify's own time-outs need signals, which work on the main thread only. So a child process compares: it sets
itself limits of CPU time, wall time and memory for each call, and the kernel ends it when they are reached.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

# An honest comparison takes 5 to 300 ms. CPU time decides, so that a busy machine changes no verdict.
CPU_SECONDS, WALL_SECONDS, MEMORY_BYTES = 2.0, 120.0, 2 << 30
LIMIT_SIGNALS = (-signal.SIGPROF, -signal.SIGALRM, -signal.SIGSEGV)  # its own limits, or the C stack overflowed
_worker: subprocess.Popen | None = None
_lock = threading.Lock()


def is_valid(expected: str) -> bool:
    """Whether the expected answer can be read (`answers.valid`) within the limits; from any thread."""
    return _ask(expected) is True


def all_same(expected: str, stated: tuple[str, ...]) -> bool:
    """Whether each of the `stated` answers equals `expected` (`answers.same`); from any thread.

    All of them together have one limit of time. Too long is False and not an error: the text is the model's,
    and it must not choose to have no verdict.

    Raises:
        RuntimeError: the process that compares cannot be started or was ended from outside.
    """
    return _ask(expected, stated) is True


@lru_cache(maxsize=4096)
def _ask(expected: str, stated: tuple[str, ...] | None = None) -> bool | None:
    """The worker's verdict; None if it reached a limit. Calls wait for each other: there is one worker."""
    global _worker
    with _lock:
        if _worker is None or _worker.poll() is not None:
            _worker = _start()
        try:
            _worker.stdin.write(json.dumps([expected, stated]) + "\n")
            _worker.stdin.flush()
            reply = _worker.stdout.readline()
        except BrokenPipeError:
            reply = ""
        except BaseException:  # Ctrl-C while it compares: the next call must not read this one's reply
            _worker.kill()
            _worker = None
            raise
        if reply:
            return json.loads(reply)
        code = _worker.wait()
        _worker = None
    if code in LIMIT_SIGNALS:
        return None
    raise RuntimeError(f"the process that compares answers ended with code {code} (a negative code is a signal)")


def _start() -> subprocess.Popen:
    # A session of its own: Ctrl-C in a notebook must not reach it. It ends when its input does, so it outlives this
    # process by one call at most.
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    worker = subprocess.Popen(
        [sys.executable, "-m", "tracelift_lib.verifier.compare"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if worker.stdout.readline() != "ready\n":
        worker.kill()
        raise RuntimeError(
            f"the process that compares answers did not start (exit code {worker.wait()}); to see why: "
            f"{sys.executable} -m tracelift_lib.verifier.compare < /dev/null"
        )
    return worker


def _forget() -> None:
    """In a forked child: the worker, and perhaps a held lock, belong to the parent."""
    global _worker, _lock
    _worker, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


@atexit.register
def _stop() -> None:
    if _worker is not None and _worker.poll() is None:
        _worker.kill()
        _worker.wait()


def _serve() -> None:
    """The worker: a line of JSON [expected, stated or null] in, true or false out."""
    import resource

    import math_verify  # noqa: F401  before the first limit: it takes a second

    from tracelift_lib.verifier.answers import same, valid

    def verdict(expected: str, stated: list[str] | None) -> bool:
        try:
            return valid(expected) if stated is None else all(same(expected, s) for s in stated)
        except (Exception, MemoryError, RecursionError):  # sympy raises nearly anything on odd input
            return False

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no reply
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        # The default action of both signals is to end the process, even in the middle of a C call.
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        reply = verdict(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
