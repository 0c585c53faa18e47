"""Exact makers of the seven code kinds, for plans that `plans.py` reads off a program.

A flaw is put into the program's syntax tree and the plan is written anew, so trace and flaw agree to the word and
the flawed program is at hand: groups/group_maker.py runs it to make sure that the flaw shows. Definitions:
groups/kinds.yaml. Source: ours.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracelift_lib.groups.flaws.plans import Unsupported, blocks, in_words, parse_program, say, write_plan
from tracelift_lib.groups.kinds import Flaw, changed_share, kinds_of
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.records import data_file

# A node, one of its fields, and what the field is to hold. A maker yields all changes at one node of a tree.
Change = tuple[ast.AST, str, Any]
MOVABLE = (ast.Assign, ast.AugAssign, ast.Expr, ast.For, ast.While, ast.If)


# What a flawed program has in place of a name or an operator.
OTHER = data_file(Path(__file__).with_name("replacements.yaml"), dict[str, dict[str, str]])


def wrong_algorithm_choice(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    """A function, a method or an arithmetic operator is another one."""
    if isinstance(node, ast.Call):
        yield from _renamed(
            node, OTHER["functions"] | (OTHER["methods"] if isinstance(node.func, ast.Attribute) else {})
        )
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and _is_arithmetic(node):
        yield from ((node, "op", other) for other in _others(node.op, OTHER["operators"]))


def misread_specification(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    """A comparison or a test is another one, or one input is taken for another of the same sort."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from (
            (node, "ops", [other]) for other in _others(node.ops[0], OTHER["comparisons"], OTHER["other_comparisons"])
        )
    elif isinstance(node, ast.Call):
        yield from _renamed(node, OTHER["tests"])
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        inputs = _inputs_around(tree, node)
        if node.id in inputs:
            alike = {name for name in inputs if _is_container(tree, name) == _is_container(tree, node.id)}
            yield from ((node, "id", other) for other in sorted(alike - {node.id}))


def wrong_constant(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    """A number is larger or smaller by one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        yield node, "value", node.value + 1
        # 1 does not become 0 in arithmetic: "n plus 0" would be no plan that anybody writes
        if node.value > 1 or node.value == 1 and not _is_operand(tree, node):
            yield node, "value", node.value - 1


def missing_step(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    """One statement of a block is left out."""
    for name, block in blocks(node):
        for i, statement in enumerate(block):
            if len(block) > 1 and isinstance(statement, MOVABLE):
                yield node, name, [*block[:i], *block[i + 1 :]]


def wrong_order(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    """Two neighbouring statements of which one depends on the other change places."""
    for name, block in blocks(node):
        for i, (first, second) in enumerate(zip(block, block[1:])):
            if isinstance(first, MOVABLE) and isinstance(second, MOVABLE) and _depend(first, second):
                yield node, name, [*block[:i], second, first, *block[i + 2 :]]


def unsupported_leap(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    """A claim stands in for one statement and all that belongs to it."""
    for _, block in blocks(node):
        for statement in block:
            if claim := _claim(statement):
                yield statement, "claim", claim


def leaked_code(problem: Problem, reference: str) -> Flaw:
    """The one flaw that needs no tree: the finished program below the whole plan."""
    return Flaw(f"{reference}\nSo the finished program is:\n{problem.reference_solution}", 1.0)


MAKERS = {kind: globals()[kind] for kind in kinds_of("code")}


def flawed_plans(problem: Problem, kind: str) -> list[Flaw]:
    """Every flawed version of the reference plan with this kind of flaw.

    Severity is the share of the plan's steps from the damaged one on: what is built on the flaw, in (0, 1].
    `program` is the flawed program, None for kinds that leave the program right. A program that cannot be put in words
    has no version.
    """
    try:
        tree = parse_program(problem.reference_solution)
        reference = write_plan(problem, tree)
    except Unsupported:
        return []
    if kind == "leaked_code":
        return [leaked_code(problem, reference)]
    flaws = {}
    changes = [change for node in ast.walk(tree) for change in MAKERS[kind](node, tree)]
    for node, field, value in changes:  # made one at a time, and taken back
        before = getattr(node, field, None)
        setattr(node, field, value)
        with contextlib.suppress(Unsupported):
            text = write_plan(problem, tree)
            if text != reference:
                program = None if kinds_of("code")[kind].keeps_answer else ast.unparse(tree)
                flaws[text] = Flaw(text, changed_share(reference, text, heading=1), program)
        setattr(node, field, before)
    return list(flaws.values())


def _renamed(call: ast.Call, others: dict[str, str]) -> Iterator[Change]:
    for field in ("id", "attr"):  # of a function's name, of a method's
        if (name := getattr(call.func, field, None)) in others:
            yield call.func, field, others[name]


def _others(op: ast.AST, *tables: dict[str, str]) -> Iterator[ast.AST]:
    """New operators in place of `op`, one from each table that holds it."""
    name = type(op).__name__
    return (getattr(ast, table[name])() for table in tables if name in table)


def _is_arithmetic(node: ast.BinOp | ast.AugAssign) -> bool:
    """No text, list or tuple among the operands, as far as the syntax shows."""
    collections = [ast.List, ast.ListComp, ast.Tuple, ast.JoinedStr, ast.Dict]
    if isinstance(node.op, ast.Add):  # what is added up may be elements that are texts
        collections.append(ast.Subscript)
    return not any(
        isinstance(n, tuple(collections)) or isinstance(n, ast.Constant) and isinstance(n.value, str)
        for n in ast.walk(node)
    )


def _inputs_around(tree: ast.Module, node: ast.Name) -> set[str]:
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and any(n is node for n in ast.walk(f))]
    return {a.arg for a in functions[-1].args.args} if functions else set()


def _is_operand(tree: ast.Module, node: ast.AST) -> bool:
    parents = (p for p in ast.walk(tree) if isinstance(p, (ast.BinOp, ast.UnaryOp, ast.AugAssign)))
    return any(child is node for parent in parents for child in ast.iter_child_nodes(parent))


def _is_container(tree: ast.Module, name: str) -> bool:
    """Whether the program indexes the input, goes through it, or calls something on it."""
    used: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Subscript, ast.Attribute)):
            used.append(node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            used.append(node.iter)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id != "range":
            used += node.args
    return any(isinstance(part, ast.Name) and part.id == name for part in used)


def _depend(first: ast.stmt, second: ast.stmt) -> bool:
    """Whether one writes what the other reads or writes."""
    w1, w2 = _writes(first), _writes(second)
    return bool(w1 & (_names(second, ast.Load) | w2) or w2 & _names(first, ast.Load))


def _names(node: ast.AST, context: type[ast.expr_context] = ast.expr_context) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def _writes(statement: ast.stmt) -> set[str]:
    """Names set, and receivers of methods that stand alone, such as `x.append(1)`, or of `x[i] = 1`."""
    names = _names(statement, ast.Store)
    for node in ast.walk(statement):
        match node:
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store()):
                names.add(name)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=receiver))):
                names |= _names(receiver)
    return names


def _claim(statement: ast.stmt) -> str | None:
    """What remains of a step whose how is left out; None for steps with nothing to leave out."""
    match statement:
        case ast.Return(value=None | ast.Name() | ast.Constant() | ast.UnaryOp()):
            return None
        case ast.Return():
            return "Give back what the task asks for."
        case ast.Assign(value=ast.Name() | ast.Constant() | ast.List()):
            return None
        case ast.Assign():
            return f"Set {in_words([say(t) for t in statement.targets])} to the right value."
        case ast.For() | ast.While():
            names = sorted(_writes(statement) - _names(getattr(statement, "target", ast.Pass())))
            hold = "hold" if len(names) > 1 else "holds"
            return f"After this, {in_words(names)} {hold} what is needed." if names else None
    return None
