"""In the process of a test: compile the program, run it, answer calls into it, end as the interpreter would.

What an interpreter of its own would give a program and a fork of a warm one does not is made up for here: `exit`, the
prelude, /dev/stdin, source text for `inspect`, room for recursion, files flushed at the end. Standard library only.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import io
import json
import mmap
import os
import socket
import sys
import threading
import types
from importlib._bootstrap_external import spec_from_file_location
from typing import Any

from tracelift_lib.sandbox.calls import Channel, RpcServer, test_runner

STARTED, COMPILED = 1, 2
OUT_OF_MEMORY = 107  # exit code of a program that a MemoryError ended
FRAMES = 30  # of this project, below a program's own
FILE = "program.py"
PRELUDE: dict[str, Any] = {}  # names that programs and test code have without an import

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


# --- what every program finds --------------------------------------------------------------------


class Source:
    """The loader of a program's module: `inspect` and tracebacks ask it for the text."""

    def __init__(self, text: str):
        self.text = text

    def get_source(self, _: str) -> str:
        return self.text


class Packages:
    """Finds the packages that the setting allows, each in its folder."""

    def __init__(self, folders: dict[str, str]):
        self.folders = folders

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        folder = self.folders.get(name) if path is None else None
        return folder and spec_from_file_location(name, f"{folder}/__init__.py", submodule_search_locations=[folder])


def prepare(setting: dict) -> None:
    """For all tests to come: names, packages and limits of the interpreter."""
    import _sitebuiltins  # which the module `site` would import, if it were not left out

    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, ""))
    builtins.open = io.open = open_file
    exec(compile(setting["prelude"], "<prelude>", "exec", dont_inherit=True), PRELUDE)
    PRELUDE.pop("__builtins__", None)
    sys.meta_path.append(Packages(setting["packages"]))
    sys.setrecursionlimit(1000 + FRAMES)
    sys.set_int_max_str_digits(0)  # the limit of CPU time does
    sys.argv = [FILE]


_open = io.open


def open_file(file: Any, *arguments: Any, **keywords: Any) -> Any:
    """`open`; there is no /proc for the links of /dev/stdin and the like."""
    if isinstance(file, (str, os.PathLike)):
        file = STREAMS.get(os.fspath(file), file)
    return _open(file, *arguments, **keywords)


STREAMS = {f"/dev/{name}": number for number, name in enumerate(("stdin", "stdout", "stderr"))}
STREAMS |= {f"/{folder}/fd/{number}": number for number in range(3) for folder in ("dev", "proc/self")}


def open_streams() -> None:
    """For all tests to come: they get other files under the same numbers, else nothing can be read or seen."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def read_all(fd: int) -> bytes:
    """All of a memory file, whatever its offset: several tests share it."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


# --- running it ----------------------------------------------------------------------------------


def run_program(fds: list[int], progress: mmap.mmap) -> None:
    """Compile the program, say so through `progress`, unmap that, run the program; never returns. fds: its text, then
    standard input, output and error, or calls and a file for their results, or a socket for calls."""
    progress[0] = STARTED
    preamble, text, own_names = json.loads(read_all(fds[0]))
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
    module.__dict__.update(PRELUDE, __file__=FILE, __loader__=Source(text))
    for name in own_names:  # the program has to define what it is asked for
        module.__dict__.pop(name, None)
    failure = None
    try:
        code = compile(text, FILE, "exec", dont_inherit=True)
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
    test_runner(*fds, PRELUDE)


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
        for thing in gc.get_objects():  # files that nobody has closed; those of the worker are frozen, so not here
            if issubclass(type(thing), (io.TextIOWrapper, io.BufferedWriter)) and not thing.closed:
                thing.flush()
    except BaseException:
        code = code or 1
    os._exit(code & 255)
