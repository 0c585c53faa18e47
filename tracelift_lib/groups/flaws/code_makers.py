"""Exact makers of the seven code kinds, for plans that `plans.py` reads off a program.

A flaw is put into the program's syntax tree and the plan is written anew, so trace and flaw agree to the word and
the flawed program is at hand: `behaviour.py` runs it to make sure that the flaw shows. Definitions: kinds.py.
Source: ours.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator

from tracelift_lib.groups.flaws.plan_words import Unsupported, in_words, say
from tracelift_lib.groups.flaws.plans import parse_program, reference_plan, write_plan
from tracelift_lib.groups.kinds import Flaw
from tracelift_lib.problems.problem import Problem

Change = Callable[[ast.AST], None]  # in place, on the node of a fresh copy
OTHER_FUNCTION = {
    "max": "min",
    "min": "max",
    "any": "all",
    "all": "any",
    "sum": "max",
    "sorted": "list",
    "set": "list",
    "combinations": "permutations",
    "permutations": "combinations",
    "floor": "ceil",
    "ceil": "floor",
    "len": "sum",
    "nlargest": "nsmallest",
    "nsmallest": "nlargest",
    "findall": "split",
    "match": "search",
    "search": "match",
    "union": "intersection",
    "intersection": "union",
    "difference": "union",
    "sort": "reverse",
    "lower": "upper",
    "upper": "lower",
    "swapcase": "upper",
    "capitalize": "upper",
    "count": "index",
    "filter": "map",
    "append": "remove",
    "zip_longest": "zip",
    "sin": "cos",
    "cos": "sin",
    "sqrt": "exp",
    "reversed": "sorted",
    "bin": "oct",
}
OTHER_METHOD_ONLY = {"index": "count", "lstrip": "rstrip", "rstrip": "lstrip"}
OTHER_TEST = {
    "isupper": "islower",
    "islower": "isupper",
    "isdigit": "isalpha",
    "isalpha": "isdigit",
    "startswith": "endswith",
    "endswith": "startswith",
    "keys": "values",
    "values": "keys",
}
OTHER_OPERATOR = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
OTHER_COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (),
    ast.IsNot: (),
}


def wrong_algorithm_choice(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    if isinstance(node, ast.Call):
        yield from _rename(node, OTHER_FUNCTION | (OTHER_METHOD_ONLY if isinstance(node.func, ast.Attribute) else {}))
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OTHER_OPERATOR and _is_arithmetic(node):
        yield lambda copied: setattr(copied, "op", OTHER_OPERATOR[type(copied.op)]())


def misread_specification(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for other in OTHER_COMPARISONS[type(node.ops[0])]:
            yield lambda copied, other=other: setattr(copied, "ops", [other()])
    elif isinstance(node, ast.Call):
        yield from _rename(node, OTHER_TEST)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        inputs = _inputs_around(tree, node)
        if node.id in inputs:
            alike = {name for name in inputs if _is_container(tree, name) == _is_container(tree, node.id)}
            for other in sorted(alike - {node.id}):
                yield lambda copied, other=other: setattr(copied, "id", other)


def wrong_constant(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        # 1 does not become 0 in arithmetic: "n plus 0" would be no plan that anybody writes
        steps = (1, -1) if node.value > 1 or node.value == 1 and not _is_operand(tree, node) else (1,)
        for step in steps:
            yield lambda copied, step=step: setattr(copied, "value", copied.value + step)


def missing_step(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    for name, block in _blocks(node):
        for i, statement in enumerate(block):
            if len(block) > 1 and _movable(statement):
                yield lambda copied, name=name, i=i: getattr(copied, name).pop(i)


def wrong_order(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    for name, block in _blocks(node):
        for i, (first, second) in enumerate(zip(block, block[1:])):
            if _movable(first) and _movable(second) and _depend(first, second):
                yield lambda copied, name=name, i=i: _exchange(getattr(copied, name), i)


def unsupported_leap(node: ast.AST, tree: ast.Module) -> Iterator[Change]:
    for name, block in _blocks(node):
        for i, statement in enumerate(block):
            claim = _claim(statement)
            if claim:
                yield lambda copied, name=name, i=i, claim=claim: setattr(getattr(copied, name)[i], "claim", claim)


TREE_MAKERS: dict[str, Callable[[ast.AST, ast.Module], Iterator[Change]]] = {
    maker.__name__: maker
    for maker in (
        wrong_algorithm_choice,
        misread_specification,
        wrong_constant,
        missing_step,
        wrong_order,
        unsupported_leap,
    )
}


def flawed_plans(problem: Problem, kind: str) -> list[Flaw]:
    """Every flawed version of the reference plan with this kind of flaw.

    Severity is the share of the plan's steps from the damaged one on: what is built on the flaw, in (0, 1].
    `program` is the flawed program, None for kinds that leave the program right. A program that cannot be put in words
    has no version.
    """
    try:
        tree = parse_program(problem.reference_solution)
        reference = reference_plan(problem)
    except Unsupported:
        return []
    if kind == "leaked_code":
        return [Flaw(f"{reference}\nSo the finished program is:\n{problem.reference_solution}", 1.0)]
    flaws = {}
    for copied in _changed(tree, TREE_MAKERS[kind]):
        text = _written(problem, copied)
        if text is not None and text != reference:
            program = None if kind == "unsupported_leap" else ast.unparse(copied)
            flaws[text] = Flaw(text, _severity(reference, text), program)
    return list(flaws.values())


def _changed(tree: ast.Module, maker: Callable[[ast.AST, ast.Module], Iterator[Change]]) -> Iterator[ast.Module]:
    """A changed copy of the tree for every change that the maker proposes at any node."""
    for position, node in enumerate(ast.walk(tree)):
        for change in maker(node, tree):
            copied = copy.deepcopy(tree)
            change(next(n for i, n in enumerate(ast.walk(copied)) if i == position))
            yield copied


def _written(problem: Problem, tree: ast.Module) -> str | None:
    try:
        return write_plan(problem, tree)
    except Unsupported:
        return None


def _severity(reference: str, text: str) -> float:
    before, after = reference.split("\n"), text.split("\n")
    same = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b), len(after))
    return max(1, len(before) - same) / (len(before) - 1)  # the goal line is no step


def _rename(node: ast.Call, others: dict[str, str]) -> Iterator[Change]:
    field = "id" if isinstance(node.func, ast.Name) else "attr" if isinstance(node.func, ast.Attribute) else None
    if field and getattr(node.func, field) in others:
        yield lambda copied: setattr(copied.func, field, others[getattr(copied.func, field)])


def _is_arithmetic(node: ast.BinOp | ast.AugAssign) -> bool:
    """No text, list or tuple among the operands, as far as the syntax shows."""
    kinds = (
        ast.List,
        ast.ListComp,
        ast.Tuple,
        ast.JoinedStr,
        ast.Dict,
        ast.Subscript if isinstance(node.op, ast.Add) else ast.List,
    )
    return not any(
        isinstance(n, kinds) or isinstance(n, ast.Constant) and isinstance(n.value, str) for n in ast.walk(node)
    )


def _inputs_around(tree: ast.Module, node: ast.Name) -> set[str]:
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and any(n is node for n in ast.walk(f))]
    return {a.arg for a in functions[-1].args.args} if functions else set()


def _is_operand(tree: ast.Module, node: ast.AST) -> bool:
    parents = (p for p in ast.walk(tree) if isinstance(p, (ast.BinOp, ast.UnaryOp, ast.AugAssign)))
    return any(child is node for parent in parents for child in ast.iter_child_nodes(parent))


def _is_container(tree: ast.Module, name: str) -> bool:
    """Whether the program indexes the input, goes through it, or calls something on it."""
    for node in ast.walk(tree):
        inside = [getattr(node, field, None) for field in ("value", "iter")]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id != "range":
            inside += node.args
        if isinstance(node, (ast.Subscript, ast.For, ast.comprehension, ast.Attribute, ast.Call)):
            if any(isinstance(part, ast.Name) and part.id == name for part in inside):
                return True
    return False


def _blocks(node: ast.AST) -> Iterator[tuple[str, list[ast.stmt]]]:
    for name in ("body", "orelse"):
        block = getattr(node, name, None)
        if isinstance(block, list):
            yield name, block


def _movable(statement: ast.stmt) -> bool:
    return isinstance(statement, (ast.Assign, ast.AugAssign, ast.Expr, ast.For, ast.While, ast.If))


def _depend(first: ast.stmt, second: ast.stmt) -> bool:
    """Whether one writes what the other reads or writes."""
    w1, w2 = _writes(first), _writes(second)
    return bool(w1 & (_reads(second) | w2) or w2 & _reads(first))


def _reads(statement: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _writes(statement: ast.stmt) -> set[str]:
    """Names set, and receivers of methods that stand alone, such as `x.append(1)`, or of `x[i] = 1`."""
    names = {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(statement):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            names.add(node.value.id)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.func, ast.Attribute)
        ):
            names |= {n.id for n in ast.walk(node.value.func.value) if isinstance(n, ast.Name)}
    return names


def _exchange(block: list[ast.stmt], i: int) -> None:
    block[i], block[i + 1] = block[i + 1], block[i]


def _claim(statement: ast.stmt) -> str | None:
    """What remains of a step whose how is left out; None for steps with nothing to leave out."""
    if isinstance(statement, ast.Return):
        trivial = statement.value is None or isinstance(statement.value, (ast.Name, ast.Constant, ast.UnaryOp))
        return None if trivial else "Give back what the task asks for."
    if isinstance(statement, ast.Assign) and not isinstance(statement.value, (ast.Name, ast.Constant, ast.List)):
        return f"Set {in_words([say(t) for t in statement.targets])} to the right value."
    if isinstance(statement, (ast.For, ast.While)):
        target = getattr(statement, "target", ast.Pass())
        names = sorted(_writes(statement) - {n.id for n in ast.walk(target) if isinstance(n, ast.Name)})
        hold = "hold" if len(names) > 1 else "holds"
        return f"After this, {in_words(names)} {hold} what is needed." if names else None
    return None
