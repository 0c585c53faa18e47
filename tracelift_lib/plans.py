"""A reference trace for a program: what it does, step by step in plain words, read off its syntax tree.

MBPP and contest problems come with programs but no reasoning. The plan that a program follows can be stated exactly:
one line a statement, nested lines for what is repeated or done on a condition, and no code. Source: ours; the
paper has an LLM write its code traces.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tracelift_lib.problems import Problem

FEW_STATEMENTS = 6  # programs shorter than this have their nested expressions taken apart into steps

BINARY = {
    ast.Add: "plus",
    ast.Sub: "minus",
    ast.Mult: "times",
    ast.Div: "divided by",
    ast.Pow: "to the power of",
    ast.FloorDiv: "divided, without remainder, by",
    ast.BitAnd: "bitwise-and",
    ast.BitOr: "bitwise-or",
    ast.BitXor: "bitwise-xor",
    ast.LShift: "shifted left by",
    ast.RShift: "shifted right by",
    ast.MatMult: "matrix-times",
}
UNARY = {ast.USub: "minus", ast.UAdd: "plus", ast.Not: "not", ast.Invert: "the bit complement of"}
COMPARE = {
    ast.Eq: "equals",
    ast.NotEq: "differs from",
    ast.Lt: "is less than",
    ast.LtE: "is at most",
    ast.Gt: "is greater than",
    ast.GtE: "is at least",
    ast.In: "is in",
    ast.NotIn: "is not in",
    ast.Is: "is",
    ast.IsNot: "is not",
}
UPDATE = {
    ast.Add: "Increase {0} by {1}",
    ast.Sub: "Decrease {0} by {1}",
    ast.Mult: "Multiply {0} by {1}",
    ast.Div: "Divide {0} by {1}",
    ast.FloorDiv: "Divide {0}, without remainder, by {1}",
    ast.Mod: "Replace {0} by its remainder when divided by {1}",
}
FUNCTIONS = {  # of one argument
    "len": "the length of {}",
    "sum": "the sum of {}",
    "max": "the largest of {}",
    "min": "the smallest of {}",
    "sorted": "{} in sorted order",
    "set": "the distinct elements of {}",
    "list": "{} as a list",
    "tuple": "{} as a tuple",
    "int": "{} as a whole number",
    "float": "{} as a real number",
    "str": "{} as text",
    "abs": "the absolute value of {}",
    "any": "whether any of {} holds",
    "all": "whether all of {} hold",
    "reversed": "{} in reverse",
    "enumerate": "{} with positions",
    "range": "the numbers from 0 up to but not {}",
    "ord": "the character code of {}",
    "chr": "the character with code {}",
    "bin": "{} in binary",
    "math.sqrt": "the square root of {}",
    "sqrt": "the square root of {}",
    "math.floor": "{} rounded down",
    "math.ceil": "{} rounded up",
    "round": "{} rounded",
    "Counter": "how often each element occurs in {}",
    "collections.Counter": "how often each element occurs in {}",
    "dict": "{} as a dictionary",
    "type": "the type of {}",
    "bool": "whether {} is true",
    "input": "the next line of the input, asked for by {}",
}
FUNCTIONS_2 = {  # of two
    "range": "the numbers from {} up to but not {}",
    "map": "{} applied to each of {}",
    "filter": "those for which {} holds among {}",
    "zip": "{} and {} side by side",
    "isinstance": "whether {} is of type {}",
    "pow": "{} to the power of {}",
    "max": "the larger of {} and {}",
    "min": "the smaller of {} and {}",
    "round": "{} rounded to {} decimals",
    "re.findall": "all matches of {} in {}",
    "re.search": "the first match of {} anywhere in {}",
    "re.match": "the match of {} at the start of {}",
    "re.split": "the parts between matches of {} in {}",
    "divmod": "quotient and remainder of {} by {}",
}
FUNCTIONS_3 = {  # of three
    "range": "the numbers from {} up to but not {} in steps of {}",
    "re.sub": "{2} with all matches of {0} replaced by {1}",
    "max": "the largest of {}, {} and {}",
    "min": "the smallest of {}, {} and {}",
}
METHODS = {  # receiver first
    "append": "Append {1} to {0}",
    "sort": "Sort {0}",
    "add": "Add {1} to {0}",
    "remove": "Remove {1} from {0}",
    "extend": "Extend {0} by {1}",
    "reverse": "Reverse {0}",
    "pop": "the last element taken off {0}",
    "upper": "{0} in upper case",
    "lower": "{0} in lower case",
    "swapcase": "{0} with upper and lower case swapped",
    "strip": "{0} without surrounding space",
    "split": "the words of {0}",
    "join": "the elements of {1} joined by {0}",
    "replace": "{0} with {1} replaced by {2}",
    "count": "how often {1} occurs in {0}",
    "items": "the key-value pairs of {0}",
    "keys": "the keys of {0}",
    "values": "the values of {0}",
    "index": "the position of {1} in {0}",
    "isdigit": "whether {0} is all digits",
    "isalpha": "whether {0} is all letters",
    "isupper": "whether {0} is in upper case",
    "islower": "whether {0} is in lower case",
    "startswith": "whether {0} starts with {1}",
    "endswith": "whether {0} ends with {1}",
    "union": "the union of {0} and {1}",
    "intersection": "what {0} and {1} have in common",
    "difference": "what is in {0} but not in {1}",
}


CALL_LINE = "\nThe function is called like this: "  # the task does not name the function; this line shows a call


class Unsupported(ValueError):
    """The program uses something that this module cannot put in words; the message says what."""


def statement(problem: Problem) -> str:
    """The task's own words, without the line that shows a call."""
    return problem.problem.partition(CALL_LINE)[0]


def parse_program(program: str) -> ast.Module:
    """The syntax tree without imports and docstrings; nested expressions of a short program become steps.

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


# --- expressions ------------------------------------------------------------------------------


def say(node: ast.expr) -> str:
    """An expression in words; raises Unsupported for what has none."""
    speak = SPEECH.get(type(node))
    if speak is None:
        raise Unsupported(f"holds a {type(node).__name__}")
    return speak(node)


def _inner(node: ast.expr) -> str:
    """In brackets where two readings would be possible."""
    compound = isinstance(node, (ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Lambda))
    return f"({say(node)})" if compound else say(node)


def in_words(parts: list[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _constant(node: ast.Constant) -> str:
    if node.value is None or isinstance(node.value, bool):
        return {None: "nothing", True: "true", False: "false"}[node.value]
    return repr(node.value) if node.value != "" else "the empty text"


def _binary(node: ast.BinOp) -> str:
    left, right = _inner(node.left), _inner(node.right)
    if isinstance(node.op, ast.Mod):
        text = isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
        return f"{left} filled in with {right}" if text else f"the remainder of {left} divided by {right}"
    return f"{left} {BINARY[type(node.op)]} {right}"


def _compare(node: ast.Compare) -> str:
    parts = [_inner(node.left)]
    for op, right in zip(node.ops, node.comparators):
        parts.append(f"{'and ' if len(parts) > 1 else ''}{COMPARE[type(op)]} {_inner(right)}")
    return " ".join(parts)


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
    arguments = [_inner(a) for a in node.args] + [f"{k.arg} {say(k.value)}" for k in node.keywords]
    name = ast.unparse(node.func) if isinstance(node.func, (ast.Name, ast.Attribute)) else ""
    if re.fullmatch(r"[\w.]+", name):
        if not arguments and name in ("list", "dict", "set", "tuple", "str"):
            return f"an empty {name}"
        if name == "input" and not arguments:
            return "the next line of the input"
        if name == "print":
            return f"Print {in_words(arguments) or 'an empty line'}"
        table = {1: FUNCTIONS, 2: FUNCTIONS_2, 3: FUNCTIONS_3}.get(len(arguments), {})
        if name in table and not node.keywords:
            return table[name].format(*arguments)
    if isinstance(node.func, ast.Attribute):
        return _method(node.func, arguments)
    known = FUNCTIONS.get(name)
    if known and node.keywords and len(node.args) == 1:  # such as sorted(x, key=...)
        return f"{known.format(arguments[0])} (with {in_words(arguments[1:])})"
    return f"the result of {say(node.func)}" + (f" for {in_words(arguments)}" if arguments else "")


def _method(function: ast.Attribute, arguments: list[str]) -> str:
    receiver = _inner(function.value)
    template = METHODS.get(function.attr)
    if template and template.count("{") == len(arguments) + 1:
        return template.format(receiver, *arguments)
    if function.attr in ("sort", "pop", "split") and arguments:
        words = {
            "sort": "Sort {0} with {1}",
            "pop": "what is taken off {0} at {1}",
            "split": "the parts of {0} between {1}",
        }
        return words[function.attr].format(receiver, in_words(arguments))
    return f"the result of {function.attr} on {receiver}{f' with {in_words(arguments)}' if arguments else ''}"


def _comprehension(what: str, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> str:
    item = f"{say(node.key)} with {say(node.value)}" if isinstance(node, ast.DictComp) else _inner(node.elt)
    loops = [
        f"for each {say(g.target)} in {say(g.iter)}" + "".join(f" for which {say(c)}" for c in g.ifs)
        for g in node.generators
    ]
    return f"{what} {item} {', and '.join(loops)}"


def _sequence(what: str, empty: str, parts: list[ast.expr]) -> str:
    return f"{what} {in_words([_inner(p) for p in parts])}" if parts else empty


SPEECH = {
    ast.Name: lambda n: n.id,
    ast.Constant: _constant,
    ast.BinOp: _binary,
    ast.Compare: _compare,
    ast.Subscript: _subscript,
    ast.Call: _call,
    ast.UnaryOp: lambda n: f"{UNARY[type(n.op)]} {_inner(n.operand)}",
    ast.BoolOp: lambda n: (" and " if isinstance(n.op, ast.And) else " or ").join(_inner(v) for v in n.values),
    ast.Attribute: lambda n: f"{n.attr} of {say(n.value)}",
    ast.List: lambda n: _sequence("the list of", "an empty list", n.elts),
    ast.Tuple: lambda n: _sequence(
        "the tuple of" if isinstance(n.ctx, ast.Load) else "", "an empty tuple", n.elts
    ).strip(),
    ast.Set: lambda n: _sequence("the set of", "an empty set", n.elts),
    ast.Dict: lambda n: (
        "a dictionary of " + in_words([f"{say(k)} to {say(v)}" for k, v in zip(n.keys, n.values) if k])
        if n.keys
        else "an empty dictionary"
    ),
    ast.ListComp: lambda n: _comprehension("the list of", n),
    ast.SetComp: lambda n: _comprehension("the distinct", n),
    ast.GeneratorExp: lambda n: _comprehension("", n).strip(),
    ast.DictComp: lambda n: _comprehension("a dictionary of", n),
    ast.IfExp: lambda n: f"{_inner(n.body)} if {say(n.test)}, otherwise {_inner(n.orelse)}",
    ast.Lambda: lambda n: f"the rule that takes {in_words([a.arg for a in n.args.args])} to {_inner(n.body)}",
    ast.Starred: lambda n: f"the elements of {say(n.value)}",
}
