"""Calculations in a natural-language math trace: found, linked to each other, and recomputed after a change.

A GSM8K solution states its calculations in prose: "7 stickers/page * 6 pages = 42 stickers". `read_trace` finds each
`a op b ... = c` whose two sides are equal, and links every other number to the calculation that it quotes, for
`recompute.py`. Source: ours.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
TOKEN = re.compile(
    rf"(?P<number>{NUMBER})|(?P<word>/?[^\W\d_]{{2,}}(?:[/'-][^\W\d_]+)*)|(?P<op>[-+*/×÷−–]|(?<=[\d\s)%])[xX](?=[\s\d($.]))"
    r"|(?P<paren>[()])|(?P<eq>=)|(?P<currency>[$€£])|(?P<percent>%)|(?P<other>\S)"
)
OPERATORS = {"−": "-", "–": "-", "×": "*", "x": "*", "X": "*", "÷": "/"}
WORD_VALUES = {
    word: Fraction(value)
    for value, words in enumerate(
        (
            "zero",
            "one once a an",
            "two twice double doubled pair",
            "three thrice triple tripled",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve dozen",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
            "twenty",
        )
    )
    for word in words.split()
} | {
    word: Fraction(10 * n) for n, word in enumerate("thirty forty fifty sixty seventy eighty ninety hundred".split(), 3)
}
WORD_VALUES |= {
    "half": Fraction(2),
    "third": Fraction(3),
    "thirds": Fraction(3),
    "quarter": Fraction(4),
    "quarters": Fraction(4),
    "fourth": Fraction(4),
    "fourths": Fraction(4),
    "fifth": Fraction(5),
    "fifths": Fraction(5),
}
MAX_UNIT_WORDS = 3


class Number(NamedTuple):
    """A number in a text: where its digits stand, its value (of "20%" the value is 20) and its line."""

    start: int
    end: int
    value: Fraction
    line: int
    percent: bool


class Token(NamedTuple):
    """One part of a calculation's left side: `number` (index into the trace's numbers), `op` or `paren`."""

    kind: str
    what: int | str
    start: int
    end: int


class Calculation(NamedTuple):
    """`left` = number `result`; `equals` is where the sign stands."""

    left: tuple[Token, ...]
    result: int
    line: int
    equals: int

    @property
    def operands(self) -> list[int]:
        return [t.what for t in self.left if t.kind == "number"]

    @property
    def ops(self) -> list[Token]:
        return [t for t in self.left if t.kind == "op"]

    @property
    def binary(self) -> bool:
        return len(self.left) == 3


@dataclass(frozen=True)
class Trace:
    """A text with its numbers, its calculations, the links between them and the lines with an `=` that was not read.

    `quotes`: for a number that is no result, the calculations whose result it may quote, newest last.
    """

    text: str
    numbers: list[Number]
    calculations: list[Calculation]
    quotes: dict[int, list[int]]
    unread: set[int]
    given: tuple[Fraction, ...]

    @functools.cached_property
    def largest(self) -> Fraction:
        """The largest number of problem and trace."""
        return max([*self.given, *(n.value for n in self.numbers)])

    def value(self, number: int) -> Fraction:
        return self.numbers[number].value

    def source(self, number: int) -> int | None:
        """The calculation whose result this number quotes, if that is certain."""
        candidates = self.quotes.get(number, [])
        return candidates[-1] if candidates and self.value(number) not in self.given else None

    def on_line(self, line: int) -> list[int]:
        return [i for i, n in enumerate(self.numbers) if n.line == line]


# --- reading ----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)  # a problem is read once for each of its traces
def quantities(text: str) -> tuple[Fraction, ...]:
    """Every quantity that a text names, in digits or in words."""
    return (*(_fraction(m["number"]) for m in TOKEN.finditer(text) if m["number"]), *word_values(text))


def word_values(text: str) -> list[Fraction]:
    """The values of the number words of a text."""
    words = (w for m in TOKEN.finditer(text) if m["word"] for w in re.split(r"[/'-]", m["word"].lower()))
    return [WORD_VALUES[w] for w in words if w in WORD_VALUES]


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


@functools.lru_cache(maxsize=8)  # seven makers read the same trace
def read_trace(text: str, problem: str) -> Trace:
    """The calculations of `text`, a solution of `problem`."""
    numbers: list[Number] = []
    calculations: list[Calculation] = []
    unread: set[int] = set()
    offset = 0
    for line, row in enumerate(text.split("\n")):
        tokens = []
        for match in TOKEN.finditer(row):
            start, end = match.start() + offset, match.end() + offset
            what: int | str = match[0]
            if match["number"]:
                what = len(numbers)
                percent = row[match.end() :].startswith("%")
                numbers.append(Number(start, end, _fraction(match[0]), line, percent))
            tokens.append(Token(match.lastgroup, what, start, end))
        for i, token in enumerate(tokens):
            if token.kind == "eq":
                calculation = _calculation(tokens, i, numbers, line)
                if calculation is None:
                    unread.add(line)
                else:
                    calculations.append(calculation)
        offset += len(row) + 1
    given = quantities(problem)
    return Trace(text, numbers, calculations, _quotes(numbers, calculations), unread, given)


def _calculation(tokens: list[Token], equals: int, numbers: list[Number], line: int) -> Calculation | None:
    """The calculation around the `=` at index `equals`, if both sides are complete and equal."""
    right = [t for t in tokens[equals + 1 : equals + 5] if t.kind != "currency"]
    if not right or right[0].kind != "number":
        return None
    if len(right) > 1 and (right[1].kind in ("number", "paren") or right[1].kind == "op" and _goes_on(right[2:])):
        return None
    left = _left_side(tokens, equals)
    if left is None or evaluate(left, {i: n.value for i, n in enumerate(numbers)}, numbers) != _value(
        right[0], numbers
    ):
        return None
    return Calculation(tuple(left), right[0].what, line, tokens[equals].start)


def _value(token: Token, numbers: list[Number]) -> Fraction:
    number = numbers[token.what]
    return number.value / 100 if number.percent else number.value


def _goes_on(rest: list[Token]) -> bool:
    return bool(rest) and rest[0].kind in ("number", "paren", "currency")


def _left_side(tokens: list[Token], equals: int) -> list[Token] | None:
    """The expression that ends before `=`, read backwards; words between a number and an operator are its unit."""
    left: list[Token] = []
    depth, complete, i = 0, None, equals - 1
    while i >= 0:
        i = _skip_units(tokens, i)
        token = tokens[i] if i >= 0 else None
        if token is None or token.kind not in ("number", "paren") or token.what == "(":
            return None  # an operator or `=` with nothing readable before it
        left.append(token)
        i -= 1
        if token.what == ")":
            depth += 1
            continue
        while i >= 0 and (tokens[i].kind == "currency" or depth and tokens[i].what == "("):
            if tokens[i].what == "(":
                left.append(tokens[i])
                depth -= 1
            i -= 1
        complete = depth == 0
        if i < 0 or tokens[i].kind != "op":
            break
        left.append(_plain(tokens[i]))
        i -= 1
    return left[::-1] if complete and any(t.kind == "op" for t in left) else None


def _plain(token: Token) -> Token:
    return token._replace(what=OPERATORS.get(token.what, token.what))


def _skip_units(tokens: list[Token], i: int) -> int:
    """Index of the token before up to three unit words and a percent sign."""
    for _ in range(MAX_UNIT_WORDS):
        if i >= 0 and tokens[i].kind == "word":
            i -= 1
    return i - 1 if i >= 0 and tokens[i].kind == "percent" else i


def evaluate(
    left: list[Token] | tuple[Token, ...], values: dict[int, Fraction], numbers: list[Number]
) -> Fraction | None:
    """The value of an expression; None if it is malformed or divides by zero."""
    parts = [
        (values[t.what] / 100 if numbers[t.what].percent else values[t.what]) if t.kind == "number" else t.what
        for t in left
    ]
    try:
        value, rest = _sum(parts)
    except (ZeroDivisionError, IndexError, TypeError):
        return None
    return value if not rest and isinstance(value, Fraction) else None


def _sum(parts: list) -> tuple[Fraction, list]:
    value, parts = _product(parts)
    while parts and parts[0] in ("+", "-"):
        term, rest = _product(parts[1:])
        value, parts = (value + term if parts[0] == "+" else value - term), rest
    return value, parts


def _product(parts: list) -> tuple[Fraction, list]:
    value, parts = _factor(parts)
    while parts and parts[0] in ("*", "/"):
        factor, rest = _factor(parts[1:])
        value, parts = (value * factor if parts[0] == "*" else value / factor), rest
    return value, parts


def _factor(parts: list) -> tuple[Fraction, list]:
    if parts[0] == "(":
        value, rest = _sum(parts[1:])
        if rest[0] != ")":
            raise TypeError("unbalanced")
        return value, rest[1:]
    return parts[0], parts[1:]


def _quotes(numbers: list[Number], calculations: list[Calculation]) -> dict[int, list[int]]:
    """For each number that is no result: the earlier calculations with this result; failing that, one on the same
    line that it announces ("the rest is 40 because 100 - 60 = 40")."""
    results = {c.result for c in calculations}
    quotes = {}
    for i, number in enumerate(numbers):
        if i in results:
            continue
        same = [k for k, c in enumerate(calculations) if numbers[c.result].value == number.value]
        before = [k for k in same if calculations[k].result < i]
        announced = [k for k in same if calculations[k].line == number.line and i not in calculations[k].operands]
        if before or announced:
            quotes[i] = before or announced[:1]
    return quotes
