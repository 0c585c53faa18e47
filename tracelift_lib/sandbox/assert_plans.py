"""Test code, read before it runs: simple tests become data, calls with literal arguments and comparisons of results.

Most tests of HumanEval and MBPP are `assert f(2, [3]) == 5`. Such a test needs no test runner (calls.py): the calls are
evaluated in the program's process, which sees their arguments only, and the comparisons here, on values of exact
builtin types. Test code that is anything more has no plan. Both ways give the same verdict.
"""

from __future__ import annotations

import ast
import builtins
import json
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

from tracelift_lib.sandbox.calls import names_in
from tracelift_lib.sandbox.values import EXCEPTIONS, JUDGED, ProtocolError, decode, encode

MAX_RESULTS = 64 << 10  # characters; larger results go to the test runner, whose time is limited
# What an assertion may call besides the function under test: cheap, and without effects.
TYPES = (bool, dict, float, frozenset, int, list, set, str, tuple, type)
FUNCTIONS = {thing.__name__: thing for thing in (*TYPES, abs, isinstance, len, max, min, round, sorted, sum)}
NODES = (ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Call, ast.Subscript)
NODES += (ast.List, ast.Tuple, ast.Set, ast.Dict)
NODES += (ast.UnaryOp, ast.USub, ast.UAdd, ast.Not, ast.BinOp, ast.Add, ast.Sub, ast.Compare, ast.cmpop)
RESULTS = "_results"


class NeedsTestRunner(Exception):
    """The test or its results are such that only the test runner can tell."""


@dataclass(frozen=True)
class Plan:
    """calls: requests to the program (calls.RpcServer), a line of JSON each; checks: for each assertion, how many
    results it needs, what must be true of them."""

    calls: str
    checks: tuple[tuple[int, CodeType], ...]

    def verdict(self, lines: str) -> str | None:
        """As `calls.test_runner` writes it; None if the results end before the assertions do.

        Raises:
            NeedsTestRunner: a result is no builtin value, or too large to be compared without limits.
        """
        if len(lines) > MAX_RESULTS:
            raise NeedsTestRunner
        results, end = [], None
        try:
            for line in lines.splitlines():
                reply = json.loads(line, object_hook=_plain)
                if "unsupported" in reply:
                    raise NeedsTestRunner
                if "raised" in reply:
                    end = EXCEPTIONS[reply["raised"]].__name__
                    break
                results.append(decode(reply["value"], _needs_test_runner))
        except RecursionError:
            raise NeedsTestRunner from None
        except (ProtocolError, ValueError, LookupError, TypeError, AttributeError):
            end = "protocol"
        for needed, check in self.checks:
            if needed > len(results):
                return end
            with suppress(Exception):  # say, None - 1.5: a wrong value
                if eval(check, {"__builtins__": FUNCTIONS, RESULTS: results}):
                    continue
            return "wrong"
        return "pass"


def _needs_test_runner(*_: Any) -> Any:
    raise NeedsTestRunner


def _plain(data: dict) -> dict:
    """For JSON: a range or a decimal number is short there, but to handle it may need hours and all memory."""
    return data if JUDGED.isdisjoint(data) else _needs_test_runner()


_parsing = threading.Lock()  # CPython 3.11 parses for one thread at a time: SystemError, "recursion depth mismatch"


def plan(code: str, setup: str, entry_point: str | None) -> Plan | None:
    """The plan of one test; None if it is more than assertions about calls with literal arguments. From any thread."""
    with _parsing, suppress(SystemError):  # somebody else parses at the same time: the test runner can do every test
        return _plan(code, setup, entry_point)
    return None


@lru_cache(maxsize=4096)
def _plan(code: str, setup: str, entry_point: str | None) -> Plan | None:
    try:
        name, statements = _assertions(ast.parse(code), entry_point)
        _, bound = names_in(setup)  # the code binds nothing: `check` and METADATA are no functions
        builder = _Builder(name, FUNCTIONS.keys() - bound - {name})
        checks = [builder.check(statement.test) for statement in statements]
    except (NeedsTestRunner, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    requests = (json.dumps(["call", entry_point, *call]) + "\n" for call in builder.calls)
    return Plan("".join(requests), tuple(checks))


def _assertions(tree: ast.Module, entry_point: str | None) -> tuple[str, list[ast.Assert]]:
    """The name of the function under test, and the assertions about it: at the top, or in `check(candidate)`, if there
    is nothing else but constants."""
    name, body = entry_point, [node for node in tree.body if not _inert(node)]
    if len(body) == 1 and isinstance(body[0], ast.FunctionDef) and body[0].name == "check":
        if ast.unparse(body[0].args) != "candidate" or not entry_point or body[0].decorator_list:
            raise NeedsTestRunner
        name, body = "candidate", [node for node in body[0].body if not _inert(node)]
    if not name or not all(isinstance(node, ast.Assert) for node in body):
        raise NeedsTestRunner
    return name, body


def _inert(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        is_builtin = isinstance(node.value, ast.Name) and hasattr(builtins, node.value.id)
        return is_builtin or isinstance(node.value, ast.Constant)
    metadata = isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["METADATA"]
    return metadata or isinstance(node, ast.Pass)


class _Builder(ast.NodeTransformer):
    """Takes the calls of `name` out of assertions, and puts the results' places in."""

    def __init__(self, name: str, functions: set[str]):
        self.name, self.functions, self.calls = name, functions, []

    def check(self, test: ast.expr) -> tuple[int, CodeType]:
        """How many results the assertion needs, and what must be true of them.

        Raises:
            NeedsTestRunner: it is more than a comparison of results.
        """
        before, chain = len(self.calls), isinstance(test, ast.Compare) and len(test.ops) > 1
        expression = ast.fix_missing_locations(ast.Expression(self.visit(test)))
        for node in ast.walk(expression):
            if not isinstance(node, NODES):
                raise NeedsTestRunner
            if isinstance(node, ast.Name) and node.id != RESULTS and node.id not in self.functions:
                raise NeedsTestRunner
            if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
                raise NeedsTestRunner
        if chain and len(self.calls) - before > 1:  # it may stop before the second call
            raise NeedsTestRunner
        return len(self.calls), compile(expression, "<assert>", "eval")

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not (isinstance(node.func, ast.Name) and node.func.id == self.name):
            return self.generic_visit(node)
        before = len(self.calls)
        try:
            arguments = [self._literal(argument) for argument in node.args]
            keywords = {keyword.arg: self._literal(keyword.value) for keyword in node.keywords}
        except (ValueError, TypeError):
            raise NeedsTestRunner from None
        if None in keywords or len(self.calls) > before:  # **something, or a call inside a call
            raise NeedsTestRunner
        self.calls.append([arguments, keywords])
        return ast.Subscript(ast.Name(RESULTS, ast.Load()), ast.Constant(before), ast.Load())

    def _literal(self, argument: ast.expr) -> Any:
        return encode(ast.literal_eval(self.visit(argument)), _needs_test_runner)
