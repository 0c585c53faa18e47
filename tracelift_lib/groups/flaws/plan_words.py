"""Python in plain words, for `plans.py`: "the remainder of n divided by 2", "Increase total by the length of words"."""

from __future__ import annotations

import ast

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
UPDATE = {op: f"Set {{0}} to {{0}} {words} {{1}}" for op, words in BINARY.items()} | {
    ast.Add: "Increase {0} by {1}",
    ast.Sub: "Decrease {0} by {1}",
    ast.Mult: "Multiply {0} by {1}",
    ast.Div: "Divide {0} by {1}",
    ast.FloorDiv: "Divide {0}, without remainder, by {1}",
    ast.Mod: "Replace {0} by its remainder when divided by {1}",
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
CONSTANTS = {"None": "nothing", "True": "true", "False": "false", "''": "the empty text"}
FUNCTIONS = {  # of one argument, or of as many as the name says
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
    "input/0": "the next line of the input",
    "range/2": "the numbers from {} up to but not {}",
    "map/2": "{} applied to each of {}",
    "filter/2": "those for which {} holds among {}",
    "zip/2": "{} and {} side by side",
    "isinstance/2": "whether {} is of type {}",
    "pow/2": "{} to the power of {}",
    "max/2": "the larger of {} and {}",
    "min/2": "the smaller of {} and {}",
    "round/2": "{} rounded to {} decimals",
    "re.findall/2": "all matches of {} in {}",
    "re.search/2": "the first match of {} anywhere in {}",
    "re.match/2": "the match of {} at the start of {}",
    "re.split/2": "the parts between matches of {} in {}",
    "divmod/2": "quotient and remainder of {} by {}",
    "range/3": "the numbers from {} up to but not {} in steps of {}",
    "re.sub/3": "{2} with all matches of {0} replaced by {1}",
    "max/3": "the largest of {}, {} and {}",
    "min/3": "the smallest of {}, {} and {}",
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
METHODS_WITH = {  # receiver, and all arguments in a row
    "sort": "Sort {0} with {1}",
    "pop": "what is taken off {0} at {1}",
    "split": "the parts of {0} between {1}",
}


class Unsupported(ValueError):
    """The program uses something that this module cannot put in words; the message says what."""


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
    return f"{left} {BINARY[type(node.op)]} {right}"


def _compare(node: ast.Compare) -> str:
    parts = [f"{COMPARE[type(op)]} {_inner(right)}" for op, right in zip(node.ops, node.comparators)]
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
    if not given + named and name in ("list", "dict", "set", "tuple", "str"):
        return f"an empty {name}"
    template = FUNCTIONS.get(name if len(given) == 1 else f"{name}/{len(given)}")
    if template and not named:
        return template.format(*given)
    if is_method:
        return _method(node.func, given + named)
    if template and len(given) == 1:  # such as sorted(x, key=...)
        return f"{template.format(*given)} (with {in_words(named)})"
    return f"the result of {say(node.func)}" + (f" for {in_words(given + named)}" if given + named else "")


def _method(function: ast.Attribute, arguments: list[str]) -> str:
    receiver, name = _inner(function.value), function.attr
    template = METHODS.get(name, "")
    if template.count("{") == len(arguments) + 1:
        return template.format(receiver, *arguments)
    if name in METHODS_WITH and arguments:
        return METHODS_WITH[name].format(receiver, in_words(arguments))
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
    ast.Constant: lambda n: CONSTANTS.get(repr(n.value), repr(n.value)),
    ast.BinOp: _binary,
    ast.Compare: _compare,
    ast.Subscript: _subscript,
    ast.Call: _call,
    ast.UnaryOp: lambda n: f"{UNARY[type(n.op)]} {_inner(n.operand)}",
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
    ast.AugAssign: lambda n: UPDATE[type(n.op)].format(say(n.target), say(n.value)),
    ast.Return: lambda n: f"Give back {say(n.value)}" if n.value else "Stop here",
    ast.Break: lambda n: "Stop the loop",
    ast.Continue: lambda n: "Go on with the next one",
    ast.Expr: _alone,
}
