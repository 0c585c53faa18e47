"""A reference trace for a program: what it does, step by step in plain words, read off its syntax tree.

MBPP and contest problems come with programs but no reasoning. The plan that a program follows can be stated exactly:
one line for each statement, nested lines for what is repeated or done on a condition, and no code. Source: ours; the
paper has an LLM write its code traces.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tracelift_lib.groups.flaws.plan_words import Unsupported, in_words, say
from tracelift_lib.problems.code_sets import CALL_LINE
from tracelift_lib.problems.problem import Problem

FEW_STATEMENTS = 6  # programs of at most so many have their nested expressions taken apart into steps
WORDLESS = (ast.ClassDef, ast.Try, ast.With, ast.AsyncFunctionDef, ast.Match, ast.Global, ast.Nonlocal)
# What is evaluated only sometimes, or several times, or later: it is not taken apart.
LAZY = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.IfExp, ast.BoolOp)


def statement(problem: Problem) -> str:
    """The task's own words, without the line that shows a call."""
    return problem.problem.partition(CALL_LINE)[0]


def blocks(node: ast.AST) -> Iterator[tuple[str, list[ast.stmt]]]:
    """(field, statements) of each list of statements that is a part of `node`."""
    for name in ("body", "orelse"):
        if isinstance(block := getattr(node, name, None), list):
            yield name, block


def parse_program(program: str) -> ast.Module:
    """The syntax tree without docstrings; nested expressions of a short program become steps.

    Raises:
        Unsupported: the program does not parse, or holds a class, a `try` or the like.
    """
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Unsupported(f"does not parse ({error})") from None
    for node in ast.walk(tree):
        if isinstance(node, WORDLESS):
            raise Unsupported(f"holds a {type(node).__name__}")
        for name, block in blocks(node):
            # Docstrings do nothing. (Imports stay, so that the tree still runs; the plan does not mention them.)
            kept = [s for s in block if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            setattr(node, name, kept or ([ast.Pass()] if block and name == "body" else []))
    if sum(isinstance(n, ast.stmt) for n in ast.walk(tree)) <= FEW_STATEMENTS:
        _take_apart(tree)
    return ast.fix_missing_locations(tree)


def _take_apart(tree: ast.Module) -> None:
    """`return len(''.join(x))` becomes `part1 = ''.join(x); return len(part1)`, which does the same."""
    taken = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    names = (name for i in range(1, 1000) if (name := f"part{i}") not in taken)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.If, ast.For, ast.While)):
            body: list[ast.stmt] = []
            for statement in node.body:
                if isinstance(statement, (ast.Return, ast.Assign, ast.AugAssign)) and statement.value is not None:
                    lifter = _Lift(statement.value, names)
                    statement.value = lifter.visit(statement.value)
                    body += lifter.steps
                body.append(statement)
            node.body = body


class _Lift(ast.NodeTransformer):
    """Moves calls and comprehensions below the top of an expression into assignments of their own."""

    def __init__(self, top: ast.expr, names: Iterator[str]):
        self.top, self.names, self.steps = top, names, []

    def visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, LAZY):
            self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id="len" | "range" | "int" | "str")):
                return node  # short in words as it is
            case ast.Call() | ast.ListComp() | ast.SetComp() | ast.DictComp() if node is not self.top:
                name = next(self.names)
                self.steps.append(ast.Assign([ast.Name(name, ast.Store())], node))
                return ast.Name(name, ast.Load())
        return node


def reference_plan(problem: Problem) -> str:
    """The reference trace of a code problem, from its reference program.

    Raises:
        Unsupported: see `parse_program`.
    """
    return write_plan(problem, parse_program(problem.reference_solution))


def write_plan(problem: Problem, tree: ast.Module) -> str:
    """The plan in words that a program follows: a goal, then "- " lines, two more spaces for each level."""
    return "\n".join([goal(problem), *_lines(tree.body)])


def goal(problem: Problem) -> str:
    """What the task wants, in its own words, as the first line of the plan."""
    words = " ".join(statement(problem).split())
    wanted = re.match(r"Write an? (?:python )?(?:function|program) (?:to|that|for) (.+?) ?\.?$", words, re.IGNORECASE)
    if wanted:
        return f"The goal is to {wanted[1]}."
    if problem.task_type == "stdio":  # contest tasks are long stories: the plan does not repeat them
        return "We read the input, work the result out and print it."
    return f"The task: {words}"


def _lines(block: list[ast.stmt]) -> list[str]:
    return [line for statement in block for line in _statement(statement)]


def _step(head: str, block: list[ast.stmt]) -> list[str]:
    """A line, and below it those of the statements that belong to it."""
    return [f"- {head}", *(f"  {line}" for line in _lines(block))]


def _statement(node: ast.stmt, if_word: str = "If") -> list[str]:
    """The lines of one statement; a `claim` (set by a maker) stands in for the whole of it."""
    if claim := getattr(node, "claim", None):
        return [f"- {claim}"]
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Pass():
            return []
        case ast.FunctionDef():
            inputs = in_words([a.arg for a in node.args.args]) or "nothing"
            return _step(f"For {node.name} we are given {inputs}.", node.body)
        case ast.For() | ast.While():
            each = isinstance(node, ast.For)
            head = f"For each {say(node.target)} in {say(node.iter)}" if each else f"As long as {say(node.test)}"
            after = _step("If the loop was not stopped:", node.orelse) if node.orelse else []
            return _step(f"{head}, repeat:", node.body) + after
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))) if if_word == "If":
            return _lines(node.body)
        case ast.If(orelse=orelse):
            lines = _step(f"{if_word} {say(node.test)}:", node.body)
            if len(orelse) == 1 and isinstance(orelse[0], ast.If) and not getattr(orelse[0], "claim", None):
                return lines + _statement(orelse[0], "Otherwise, if")
            return lines + (_step("Otherwise:", orelse) if orelse else [])
    return [f"- {say(node)}."]
