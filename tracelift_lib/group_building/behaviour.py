"""Does a flawed program behave differently from its reference? Both are run on the inputs of the problem's own tests.

Only for reference programs of a curated data set and for single changes of them: the child has limits on time, memory
and files, an empty environment and a folder of its own, but that is no sandbox for code that a model or a stranger
wrote. Outputs are compared with the reference's, in the parent; expected outputs never enter the child. Source: ours.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from tracelift_lib.problems import Problem

CPU_SECONDS = 0.3  # for one program on all inputs; the references take milliseconds
WALL_SECONDS = 10  # for a program that waits
MEMORY = 2**30

# Reads {"programs": [...], "calls": [...]}, writes one list of outcomes a program. Each runs in a fork of its own.
WORKER = r"""
import collections.abc, json, os, re, resource, signal, sys

def show(value):
    if isinstance(value, collections.abc.Iterator):
        value = list(value)
    return re.sub(r"0x[0-9a-f]+", "0x", repr(value))[:2000]

def outcomes(program, calls):
    scope = {"__name__": "program"}
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        exec(program, scope)
    except BaseException as error:
        return ["error " + type(error).__name__] * len(calls)
    found = []
    for call in calls:
        try:
            found.append("value " + show(eval(call, scope)))
        except Exception as error:
            found.append("error " + type(error).__name__)
    return found

def run(program, calls, cpu_s, wall_s, memory):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        signal.alarm(wall_s)
        try:
            os.write(writer, json.dumps(outcomes(program, calls)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else ["error stopped"] * len(calls)

job = json.load(sys.stdin)
json.dump([run(program, job["calls"], *job["limits"]) for program in job["programs"]], sys.stdout)
"""


def calls_in_tests(problem: Problem) -> list[str]:
    """The expressions that the problem's tests evaluate: `f(2)` of `assert f(2) == 4`. Empty for other tests."""
    calls = []
    for test in problem.metadata.get("tests", {}).get("code", []):
        for node in ast.walk(ast.parse(test)):
            if isinstance(node, ast.Assert):
                compared = node.test.left if isinstance(node.test, ast.Compare) else node.test
                calls.append(ast.unparse(compared))
    return calls


def outcomes(problem: Problem, programs: Sequence[str]) -> list[list[str]]:
    """What each program gives for each test call: "value ..." or "error NAME". Shape (programs, calls)."""
    setup = problem.metadata["tests"].get("setup", "")
    limits = [CPU_SECONDS, WALL_SECONDS, MEMORY]
    job = {"programs": [f"{setup}\n{p}" for p in programs], "calls": calls_in_tests(problem), "limits": limits}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", WORKER],
            input=json.dumps(job),
            text=True,
            capture_output=True,
            cwd=folder,
            env={},
            start_new_session=True,
            timeout=60 + WALL_SECONDS * len(programs),
            check=True,
        )
    return json.loads(done.stdout)


def shows(reference: Sequence[str], flawed: Sequence[str], may_stop: bool = False) -> bool:
    """Whether a flaw shows: another value somewhere, or, if it `may_stop`, an error instead of a value."""
    pairs = [(r, f) for r, f in zip(reference, flawed, strict=True) if r.startswith("value ")]
    return any(r != f and (may_stop or f.startswith("value ")) for r, f in pairs)
