"""A reference trace for a program: what it does, step by step in plain words, read off its syntax tree.

MBPP and contest problems come with programs but no reasoning. The plan that a program follows can be stated exactly:
one line a statement, nested lines for what is repeated or done on a condition, and no code. Source: ours; the
paper has an LLM write its code traces.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tracelift_lib.groups.flaws.plan_words import BINARY, Unsupported, in_words, say
from tracelift_lib.problems.code_sets import CALL_LINE
from tracelift_lib.problems.problem import Problem

FEW_STATEMENTS = 6  # programs shorter than this have their nested expressions taken apart into steps
UPDATE = {
    ast.Add: "Increase {0} by {1}",
    ast.Sub: "Decrease {0} by {1}",
    ast.Mult: "Multiply {0} by {1}",
    ast.Div: "Divide {0} by {1}",
    ast.FloorDiv: "Divide {0}, without remainder, by {1}",
    ast.Mod: "Replace {0} by its remainder when divided by {1}",
}


def statement(problem: Problem) -> str:
    """The task's own words, without the line that shows a call."""
    return problem.problem.partition(CALL_LINE)[0]


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
        if isinstance(
            node, (ast.ClassDef, ast.Try, ast.With, ast.AsyncFunctionDef, ast.Match, ast.Global, ast.Nonlocal)
        ):
            raise Unsupported(f"holds a {type(node).__name__}")
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                kept = [s for s in block if not _is_silent(s)]
                setattr(node, name, kept or ([ast.Pass()] if block and name == "body" else []))
    if sum(isinstance(n, ast.stmt) for n in ast.walk(tree)) <= FEW_STATEMENTS:
        _take_apart(tree)
    return ast.fix_missing_locations(tree)


def _is_silent(statement: ast.stmt) -> bool:
    """Docstrings: they do nothing. (Imports stay, so that the tree still runs; the plan does not mention them.)"""
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


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
        lazy = isinstance(
            node, (ast.Lambda, ast.IfExp, ast.BoolOp, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
        )
        if not lazy:
            self.generic_visit(node)
        heavy = isinstance(node, (ast.Call, ast.ListComp, ast.SetComp, ast.DictComp)) and not _is_plain_call(node)
        if node is self.top or not heavy:
            return node
        name = next(self.names)
        self.steps.append(ast.Assign([ast.Name(name, ast.Store())], node))
        return ast.Name(name, ast.Load())


def _is_plain_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("len", "range", "int", "str")
    )


def reference_plan(problem: Problem) -> str:
    """The reference trace of a code problem, from its reference program.

    Raises:
        Unsupported: see `parse_program`.
    """
    return write_plan(problem, parse_program(problem.reference_solution))


def write_plan(problem: Problem, tree: ast.Module) -> str:
    """The plan in words that a program follows: a goal, then "- " lines, two more spaces a level."""
    return "\n".join([goal(problem), *_block(tree.body, 0)])


def goal(problem: Problem) -> str:
    """What the task wants, in its own words, as the first line of the plan."""
    words = " ".join(statement(problem).split())
    wanted = re.match(r"Write an? (?:python )?(?:function|program) (?:to|that|for) (.+?) ?\.?$", words, re.IGNORECASE)
    if wanted:
        return f"The goal is to {wanted[1]}."
    if problem.task_type == "stdio":  # contest tasks are long stories: the plan does not repeat them
        return "We read the input, work the result out and print it."
    return f"The task: {words}"


def _block(body: list[ast.stmt], depth: int) -> list[str]:
    return [line for statement in body for line in _statement(statement, depth)]


def _statement(node: ast.stmt, depth: int) -> list[str]:
    """The lines of one statement; a `claim` (set by a maker) stands in for the whole of it."""
    claim = getattr(node, "claim", None)
    pad = "  " * depth + "- "
    if claim:
        return [pad + claim]
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.Pass)):
        return []
    if isinstance(node, ast.FunctionDef):
        inputs = [a.arg for a in node.args.args]
        return [f"{pad}For {node.name} we are given {in_words(inputs) or 'nothing'}.", *_block(node.body, depth + 1)]
    if isinstance(node, (ast.For, ast.While)):
        head = (
            f"For each {say(node.target)} in {say(node.iter)}"
            if isinstance(node, ast.For)
            else f"As long as {say(node.test)}"
        )
        after = [f"{pad}If the loop was not stopped:", *_block(node.orelse, depth + 1)] if node.orelse else []
        return [f"{pad}{head}, repeat:", *_block(node.body, depth + 1), *after]
    if isinstance(node, ast.If):
        if _is_main_guard(node):
            return _block(node.body, depth)
        return _condition(node, depth, "If")
    return [f"{pad}{_simple(node)}."]


def _is_main_guard(node: ast.If) -> bool:
    return (
        isinstance(node.test, ast.Compare) and isinstance(node.test.left, ast.Name) and node.test.left.id == "__name__"
    )


def _condition(node: ast.If, depth: int, word: str) -> list[str]:
    pad = "  " * depth + "- "
    lines = [f"{pad}{word} {say(node.test)}:", *_block(node.body, depth + 1)]
    if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If) and not getattr(node.orelse[0], "claim", None):
        return lines + _condition(node.orelse[0], depth, "Otherwise, if")
    return [*lines, f"{pad}Otherwise:", *_block(node.orelse, depth + 1)] if node.orelse else lines


def _simple(node: ast.stmt) -> str:
    if isinstance(node, ast.Assign):
        return f"Set {' and '.join(say(t) for t in node.targets)} to {say(node.value)}"
    if isinstance(node, ast.AugAssign):
        return UPDATE.get(type(node.op), "Set {0} to {0} " + BINARY.get(type(node.op), "") + " {1}").format(
            say(node.target), say(node.value)
        )
    if isinstance(node, ast.Return):
        return f"Give back {say(node.value)}" if node.value else "Stop here"
    if isinstance(node, ast.Break):
        return "Stop the loop"
    if isinstance(node, ast.Continue):
        return "Go on with the next one"
    if isinstance(node, ast.Expr):
        text = say(node.value)
        return text if text[:1].isupper() else f"Carry out {text}"
    raise Unsupported(f"holds a {type(node).__name__}")
