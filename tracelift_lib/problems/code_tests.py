"""Tests of a program: standard input and output, or assertions."""

from __future__ import annotations

import ast
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator

from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Frozen
from tracelift_lib.problems.records import reading


class StdioCase(Frozen):
    """One run: what the program reads, and what it must print."""

    input: str
    output: str


class StdioTests(Frozen):
    """A program from standard input to standard output.

    tolerance: by how much a printed number may differ from the expected one, absolutely or relatively; 0: not at all,
        but 0.5 is 0.50; None: tokens are compared as texts.
    """

    style: Literal["stdio"]
    cases: Annotated[list[StdioCase], Field(min_length=1)]
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class AssertTests(Frozen):
    """Functions with test code.

    code: one text for each test; it passes if it ends without an exception. If a text defines `check` and there is an
        `entry_point`, `check` is called with it (HumanEval).
    setup: runs before each test in the test runner, never in the program's process.
    entry_point: the function under test.
    from_program: other names that the test code takes from the program, such as a class. A name that neither the test
        nor its setup binds and that stands nowhere but in arguments of the function under test need not be listed; if
        the test does not read the function under test, nor need the one unbound name that it is about. A test that
        reads any other unbound name has no verdict (`unsupported`): a program could bind it to suit itself. Builtins,
        standard modules and the prelude (sandbox/host.py) are always there.
    preamble: runs before the program, in its process: what the problem itself has shown (imports, helpers).
    """

    style: Literal["asserts"]
    code: Annotated[list[str], Field(min_length=1)]
    setup: str = ""
    entry_point: str | None = None
    from_program: list[str] = []
    preamble: str = ""

    @field_validator("code", "setup", "preamble")
    @classmethod
    def _is_python(cls, value: list[str] | str) -> list[str] | str:
        for text in [value] if isinstance(value, str) else value:
            try:
                ast.parse(text)
            except SyntaxError as error:
                raise ValueError(f"not Python: {error.msg} (line {error.lineno})") from None
            except (ValueError, RecursionError, MemoryError) as error:
                raise ValueError(f"no Python that can be read: {type(error).__name__} {error}") from None
        return value


Tests = Annotated[StdioTests | AssertTests, Field(discriminator="style")]
_TESTS = TypeAdapter(Tests)


def read_tests(metadata: dict[str, Any], where: str) -> StdioTests | AssertTests:
    """The tests of a problem, from `Problem.metadata`; `where` names the problem in messages.

    Raises:
        InputError: there are none, or they are not laid out as StdioTests or AssertTests.
    """
    if "tests" not in metadata:
        raise InputError(f"{where}: metadata has no 'tests', so a program for it cannot be verified")
    with reading(f"{where}: metadata 'tests'", "StdioTests or AssertTests"):
        return _TESTS.validate_python(metadata["tests"])
