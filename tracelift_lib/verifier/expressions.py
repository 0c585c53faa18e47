"""Equality of expressions, relations and matrices: math-verify reads LaTeX, sympy compares exactly.

Only the process with limits imports this file (compare.py): sympy takes a second to load, and may not come to an end.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.logic import And
from math_verify import LatexExtractionConfig, parse
from sympy.core.relational import Relational

DIGITS = 40  # to which two constants must agree if neither equality nor inequality can be proved
# Its list of units drops letters ("12m" would be 12), and ours are left out before.
READING = LatexExtractionConfig(
    normalization_config=NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True)
)
# Direction in which a relation may be multiplied by a negative number, and as which of two it is compared.
TURNED = {sympy.StrictGreaterThan: sympy.StrictLessThan, sympy.GreaterThan: sympy.LessThan}


@lru_cache(maxsize=256)
def parsed(text: str) -> Any:
    """`text` (LaTeX) as a sympy object; None if math-verify cannot read it or it has no finite value."""
    # Its own time-outs need signals, which work on the main thread only. Its other way to read text calls eval.
    text = re.sub(r"(?<![\\a-zA-Z])i(?![a-zA-Z])", r"\\imath ", text)  # it takes i for a variable in 5i, not in 5 i
    found = parse(rf"\boxed{{{text}}}", [READING], fallback_mode="no_fallback", parsing_timeout=None)
    if not found or isinstance(found[0], str):
        return None
    value = found[0]
    # One letter is one variable, whatever math-verify assumes of it in this expression.
    names = {s: sympy.I if s.name == "imath" else sympy.Symbol(s.name, real=True) for s in value.free_symbols}
    value = value.subs(names) if isinstance(value, sympy.MatrixBase) else value.xreplace(names)
    if value.has(sympy.nan, sympy.zoo):
        return None
    return None if isinstance(value, sympy.Expr) and value.doit().has(sympy.nan, sympy.zoo) else value


def equal(a: Any, b: Any) -> bool:
    """Whether two sympy objects are equal; symmetric."""
    if a == b:
        return True
    if isinstance(a, (Relational, And)) and isinstance(b, (Relational, And)):
        return _same_relations(_relations(a), _relations(b))
    if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
        return a.shape == b.shape and all(_zero(x - y) for x, y in zip(a, b))
    if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
        return _zero(a - b)
    return False


def _relations(value: Any) -> list[Relational]:
    return list(value.args) if isinstance(value, And) else [value]


def _same_relations(left: list[Relational], right: list[Relational]) -> bool:
    if len(left) != len(right):
        return False
    rest = list(right)
    for relation in left:
        match = next((other for other in rest if _same_relation(relation, other)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_relation(a: Relational, b: Relational) -> bool:
    """Equal up to a factor: any but 0 for = and \\ne, a positive one for < and \\le once both point the same way."""
    (kind, left), (other_kind, right) = _one_sided(a), _one_sided(b)
    if kind is not other_kind:
        return False
    if _zero(left) or _zero(right):  # 0 = 0 holds always
        return _zero(left) and _zero(right)
    factor = sympy.simplify(left / right)
    if factor.free_symbols:
        return False
    return bool(factor.is_positive) if kind in (sympy.StrictLessThan, sympy.LessThan) else bool(factor.is_nonzero)


def _one_sided(relation: Relational) -> tuple[type, sympy.Expr]:
    """(kind, side) of the same relation in the form `side kind 0`, with < and \\le only."""
    kind = type(relation)
    difference = (relation.lhs - relation.rhs).doit()
    return (TURNED[kind], -difference) if kind in TURNED else (kind, difference)


def _zero(difference: sympy.Expr) -> bool:
    """Whether an expression is 0: exactly for rationals, else by proof, else to DIGITS digits of its largest term."""
    difference = difference.doit()
    if difference.is_Rational:
        return difference == 0
    if difference.free_symbols:
        return sympy.simplify(difference) == 0 or difference.equals(0) is True
    proved = difference.equals(0)
    if proved is not None:
        return proved
    scale = max((abs(term.evalf(DIGITS)) for term in sympy.Add.make_args(difference)), default=sympy.S.One)
    return bool(abs(difference.evalf(2 * DIGITS)) < scale * sympy.Float(10) ** -DIGITS)
