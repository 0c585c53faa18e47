"""Test code, read before it runs: simple tests become data, calls with literal arguments and comparisons of results.

Most tests of HumanEval and MBPP are `assert f(2, [3]) == 5`. Such a test needs no judge (calls.py): the calls
are evaluated in the program's process, which sees their arguments only, and the comparisons here, on values of exact
builtin types. Test code that is anything more has no plan. Both ways give the same verdict.
"""

from __future__ import annotations

import ast
import builtins
import json
import operator
import threading
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType
from typing import Any

from tracelift_lib.sandbox.calls import ProtocolError, decode, encode

MAX_RESULTS = 64 << 10  # bytes; larger results go to a judge, whose time is limited
# What an assertion may call besides the function under test: cheap, and without effects.
FUNCTIONS = {
    name: getattr(builtins, name)
    for name in (
        "abs",
        "bool",
        "dict",
        "float",
        "frozenset",
        "int",
        "isinstance",
        "len",
        "list",
        "max",
        "min",
        "round",
        "set",
        "sorted",
        "str",
        "sum",
        "tuple",
        "type",
    )
}
NODES = (
    ast.Expression,
    ast.Constant,
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
    ast.Load,
    ast.UnaryOp,
    ast.USub,
    ast.UAdd,
    ast.Not,
    ast.Compare,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
    ast.Is,
    ast.IsNot,
    ast.In,
    ast.NotIn,
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Name,
    ast.Call,
    ast.Subscript,
)
RESULTS = "_results"
# Constant arithmetic, as in `assert f(3 * 19) == [3, 19]`, is done here, up to these sizes.
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
MAX_NUMBER, MAX_EXPONENT = 1 << 64, 64


class NeedsJudge(Exception):
    """The results are such that only a judge can tell."""


@dataclass(frozen=True)
class Plan:
    """calls: JSON for the worker; checks: for each assertion, how many results it needs, what must be true of them."""

    calls: str
    checks: tuple[tuple[int, CodeType], ...]

    def verdict(self, lines: bytes) -> str | None:
        """As `calls.judge_one`; None if the results end before the assertions do.

        Raises:
            NeedsJudge: a result is no builtin value, or too large.
        """
        if len(lines) > MAX_RESULTS:
            raise NeedsJudge
        replies, results = lines.splitlines(), []
        for needed, check in self.checks:
            while len(results) < needed:
                if len(results) == len(replies):
                    return None
                try:
                    reply = json.loads(replies[len(results)])
                    if "raised" in reply:
                        return str(reply["raised"])
                    results.append(decode(reply["value"], _unknown))
                except (ProtocolError, ValueError, KeyError, TypeError, RecursionError):
                    return "protocol"
            try:
                holds = eval(check, {"__builtins__": FUNCTIONS, RESULTS: results})
            except Exception:  # say, None - 1.5: a wrong value
                return "wrong"
            if not holds:
                return "wrong"
        return "pass"


def _unknown(number: Any) -> None:
    raise NeedsJudge


_parsing = threading.Lock()  # CPython 3.11 parses for one thread at a time: SystemError, "recursion depth mismatch"


def plan(code: str, setup: str, entry_point: str | None) -> Plan | None:
    """The plan of one test; None if it is more than assertions about calls with literal arguments. From any thread."""
    with _parsing:
        try:
            return _plan(code, setup, entry_point)
        except SystemError:  # somebody else parses at the same time: the judge can do every test
            return None


@lru_cache(maxsize=4096)
def foreign_names(code: str, setup: str) -> tuple[str, ...]:
    """Names that the test code or its setup reads and nothing in them binds. From any thread.

    Raises:
        SystemError: other threads kept parsing at the same time.
    """
    for attempt in range(3):
        try:
            with _parsing:
                trees = [ast.parse(setup), ast.parse(code)]
            break
        except SystemError:
            if attempt == 2:
                raise
    read = {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return tuple(sorted(read.difference(*map(bound_names, trees))))


def bound_names(tree: ast.AST) -> set[str]:
    """Names that something in the code binds, in whatever scope."""
    bound = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return bound


@lru_cache(maxsize=4096)
def _plan(code: str, setup: str, entry_point: str | None) -> Plan | None:
    tree = ast.parse(code)
    statements, bound = _statements(tree, entry_point), bound_names(tree)
    name = "candidate" if "check" in bound else entry_point
    if statements is None or not name:
        return None
    hidden = (bound | bound_names(ast.parse(setup))) - {entry_point, name}
    builder = _Builder(name, hidden)
    checks = []
    for statement in statements:
        before = len(builder.calls)
        try:
            expression = ast.Expression(builder.visit(statement.test))
            builder.allow(expression)
            checks.append((len(builder.calls), compile(ast.fix_missing_locations(expression), "<assert>", "eval")))
        except NeedsJudge:
            return None
        if len(builder.calls) - before > 1 and isinstance(statement.test, ast.Compare) and len(statement.test.ops) > 1:
            return None  # a chain may stop before the second call
    return Plan(json.dumps([entry_point, builder.calls]), tuple(checks))


def _statements(tree: ast.Module, entry_point: str | None) -> list[ast.Assert] | None:
    """The assertions at the top, or in `check(candidate)` if there is nothing else but constants."""
    body = [node for node in tree.body if not _inert(node)]
    if len(body) == 1 and isinstance(body[0], ast.FunctionDef) and body[0].name == "check":
        if [a.arg for a in body[0].args.args] != ["candidate"] or not entry_point or body[0].decorator_list:
            return None
        body = [node for node in body[0].body if not _inert(node)]
    return body if all(isinstance(node, ast.Assert) for node in body) else None


def _inert(node: ast.stmt) -> bool:
    constant = isinstance(node, ast.Expr) and (isinstance(node.value, ast.Constant) or _is_builtin(node.value))
    metadata = isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["METADATA"]
    return constant or metadata or isinstance(node, ast.Pass)


def _is_builtin(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and hasattr(builtins, node.id)


class _Builder(ast.NodeTransformer):
    """Takes the calls out of an assertion, and puts the results' places in."""

    def __init__(self, name: str, hidden: set[str]):
        self.name, self.hidden, self.calls = name, hidden, []

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        node = self.generic_visit(node)
        operation, sides = ARITHMETIC.get(type(node.op)), (node.left, node.right)
        if operation is None or not all(isinstance(side, ast.Constant) for side in sides):
            return node
        left, right = (side.value for side in sides)
        texts = type(left) is type(right) is str and isinstance(node.op, ast.Add)
        numbers = all(type(value) in (int, float) and abs(value) <= MAX_NUMBER for value in (left, right))
        if not texts and not (numbers and (not isinstance(node.op, ast.Pow) or abs(right) <= MAX_EXPONENT)):
            return node
        try:
            return ast.Constant(operation(left, right))
        except ArithmeticError:  # the test says what it says when it runs
            return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if not (isinstance(node.func, ast.Name) and node.func.id == self.name):
            return self.generic_visit(node)
        try:
            arguments = [encode(self._literal(a), _never) for a in node.args]
            keywords = {k.arg: encode(self._literal(k.value), _never) for k in node.keywords if k.arg}
        except (ValueError, TypeError, ProtocolError):
            raise NeedsJudge from None
        if len(keywords) < len(node.keywords):  # **something
            raise NeedsJudge
        self.calls.append([arguments, keywords])
        return ast.Subscript(ast.Name(RESULTS, ast.Load()), ast.Constant(len(self.calls) - 1), ast.Load())

    def _literal(self, argument: ast.expr) -> Any:
        try:
            return ast.literal_eval(argument)
        except ValueError:
            before = len(self.calls)
            folded = self.visit(argument)
            if len(self.calls) > before:  # a call inside a call
                raise NeedsJudge from None
            return ast.literal_eval(folded)

    def allow(self, expression: ast.Expression) -> None:
        for node in ast.walk(expression):
            if not isinstance(node, NODES):
                raise NeedsJudge
            if isinstance(node, ast.Name) and node.id != RESULTS:
                if node.id in self.hidden or node.id not in FUNCTIONS:
                    raise NeedsJudge
            if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
                raise NeedsJudge


def _never(value: Any) -> dict:
    raise ProtocolError("no builtin value")
