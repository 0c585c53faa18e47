"""A reference trace for a program: what it does, step by step in plain words, read off its syntax tree.

MBPP and contest problems come with programs but no reasoning. The plan that a program follows can be stated exactly:
one line for each statement, nested lines for what is repeated or done on a condition, and no code. Source: ours; the
paper has an LLM write its code traces.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tracelift_lib.problems.code_sets import CALL_LINE
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.records import data_file

FEW_STATEMENTS = 6  # programs of at most so many have their nested expressions taken apart into steps
WORDLESS = (ast.ClassDef, ast.Try, ast.With, ast.AsyncFunctionDef, ast.Match, ast.Global, ast.Nonlocal)
# What is evaluated only sometimes, or several times, or later: it is not taken apart.
LAZY = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda, ast.IfExp, ast.BoolOp)


# Phrases, most with places for what they speak of.
WORDS = data_file(Path(__file__).with_name("plan_words.yaml"), dict[str, dict[str, str]])


class Unsupported(ValueError):
    """The program uses something that this module cannot put in words; the message says what."""


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


# --- Python in plain words -----------------------------------------------------------------------


def say(node: ast.expr | ast.stmt) -> str:
    """An expression, or a statement that no others belong to, in words; raises Unsupported for what has none."""
    if type(node) not in SPEECH:
        raise Unsupported(f"holds a {type(node).__name__}")
    return SPEECH[type(node)](node)


def _inner(node: ast.expr) -> str:
    """In brackets where two readings would be possible."""
    compound = isinstance(node, (ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Lambda))
    return f"({say(node)})" if compound else say(node)


def in_words(parts: list[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _alone(node: ast.Expr) -> str:
    """What is called for its effect; the words of some calls are an order already, such as "Append x to y"."""
    text = say(node.value)
    return text if text[:1].isupper() else f"Carry out {text}"


def _binary(node: ast.BinOp) -> str:
    left, right = _inner(node.left), _inner(node.right)
    if isinstance(node.op, ast.Mod):
        text = isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
        return f"{left} filled in with {right}" if text else f"the remainder of {left} divided by {right}"
    return f"{left} {WORDS['binary'][type(node.op).__name__]} {right}"


def _compare(node: ast.Compare) -> str:
    parts = [f"{WORDS['compare'][type(op).__name__]} {_inner(right)}" for op, right in zip(node.ops, node.comparators)]
    return f"{_inner(node.left)} {' and '.join(parts)}"


def _subscript(node: ast.Subscript) -> str:
    value, index = say(node.value), node.slice
    if isinstance(index, ast.Slice):
        if index.step is not None and index.lower is None and index.upper is None and say(index.step) == "minus 1":
            return f"{value} in reverse"
        start = f" from position {say(index.lower)}" if index.lower else ""
        end = f" up to but not position {say(index.upper)}" if index.upper else ""
        step = f" in steps of {say(index.step)}" if index.step else ""
        return f"the part of {value}{start or (' from the start' if end else '')}{end}{step}"
    return f"element {_inner(index)} of {value}"


def _call(node: ast.Call) -> str:
    given = [_inner(a) for a in node.args]
    named = [f"{k.arg} {say(k.value)}" for k in node.keywords]
    is_method = isinstance(node.func, ast.Attribute)
    name = ast.unparse(node.func) if is_method or isinstance(node.func, ast.Name) else ""
    if name == "print":
        return f"Print {in_words(given + named) or 'an empty line'}"
    template = WORDS["functions"].get(name if len(given) == 1 else f"{name}/{len(given)}")
    if template and not named:
        return template.format(*given)
    if is_method:
        return _method(node.func, given + named)
    if template and len(given) == 1:  # such as sorted(x, key=...)
        return f"{template.format(*given)} (with {in_words(named)})"
    return f"the result of {say(node.func)}" + (f" for {in_words(given + named)}" if given + named else "")


def _method(function: ast.Attribute, arguments: list[str]) -> str:
    receiver, name = _inner(function.value), function.attr
    template = WORDS["methods"].get(name, "")
    if template.count("{") == len(arguments) + 1:
        return template.format(receiver, *arguments)
    if name in WORDS["methods_with"] and arguments:
        return WORDS["methods_with"][name].format(receiver, in_words(arguments))
    return f"the result of {name} on {receiver}{f' with {in_words(arguments)}' if arguments else ''}"


def _comprehension(what: str, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> str:
    item = f"{say(node.key)} with {say(node.value)}" if isinstance(node, ast.DictComp) else _inner(node.elt)
    loops = [
        f"for each {say(g.target)} in {say(g.iter)}" + "".join(f" for which {say(c)}" for c in g.ifs)
        for g in node.generators
    ]
    return f"{what} {item} {', and '.join(loops)}"


def _sequence(node: ast.List | ast.Tuple | ast.Set) -> str:
    name = type(node).__name__.lower()
    if not node.elts:
        return f"an empty {name}"
    elements = in_words([_inner(e) for e in node.elts])
    is_target = isinstance(node, ast.Tuple) and not isinstance(node.ctx, ast.Load)
    return elements if is_target else f"the {name} of {elements}"


def _dictionary(node: ast.Dict) -> str:
    pairs = [f"{say(k)} to {say(v)}" for k, v in zip(node.keys, node.values) if k]
    return f"a dictionary of {in_words(pairs)}" if node.keys else "an empty dictionary"


SPEECH = {
    ast.Name: lambda n: n.id,
    ast.Constant: lambda n: WORDS["constants"].get(repr(n.value), repr(n.value)),
    ast.BinOp: _binary,
    ast.Compare: _compare,
    ast.Subscript: _subscript,
    ast.Call: _call,
    ast.UnaryOp: lambda n: f"{WORDS['unary'][type(n.op).__name__]} {_inner(n.operand)}",
    ast.BoolOp: lambda n: (" and " if isinstance(n.op, ast.And) else " or ").join(_inner(v) for v in n.values),
    ast.Attribute: lambda n: f"{n.attr} of {say(n.value)}",
    ast.List: _sequence,
    ast.Tuple: _sequence,
    ast.Set: _sequence,
    ast.Dict: _dictionary,
    ast.ListComp: lambda n: _comprehension("the list of", n),
    ast.SetComp: lambda n: _comprehension("the distinct", n),
    ast.GeneratorExp: lambda n: _comprehension("", n).strip(),
    ast.DictComp: lambda n: _comprehension("a dictionary of", n),
    ast.IfExp: lambda n: f"{_inner(n.body)} if {say(n.test)}, otherwise {_inner(n.orelse)}",
    ast.Lambda: lambda n: f"the rule that takes {in_words([a.arg for a in n.args.args])} to {_inner(n.body)}",
    ast.Starred: lambda n: f"the elements of {say(n.value)}",
    ast.Assign: lambda n: f"Set {' and '.join(map(say, n.targets))} to {say(n.value)}",
    ast.AugAssign: lambda n: WORDS["update"][type(n.op).__name__].format(say(n.target), say(n.value)),
    ast.Return: lambda n: f"Give back {say(n.value)}" if n.value else "Stop here",
    ast.Break: lambda n: "Stop the loop",
    ast.Continue: lambda n: "Go on with the next one",
    ast.Expr: _alone,
}
