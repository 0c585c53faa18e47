"""Calculations in a natural-language math trace, found and linked to each other.

A GSM8K solution states its calculations in prose: "7 stickers/page * 6 pages = 42 stickers". `read_trace` finds each
`a op b ... = c` whose two sides are equal, and links every other number to the calculation that it quotes, for
`recompute.py`. Source: ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import CodeType
from typing import NamedTuple

from tracelift_lib.problems.records import data_file
from tracelift_lib.problems.tinyworld import NUMBER_WORDS

NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
TOKEN = re.compile(
    rf"(?P<number>{NUMBER})|(?P<word>/?[^\W\d_]{{2,}}(?:[/'-][^\W\d_]+)*)"
    r"|(?P<op>[-+*/×÷−–]|(?<=[^\S\n]|[\d)%])[xX](?=[^\S\n]|[\d($.]))"
    r"|(?P<paren>[()])|(?P<eq>=)|(?P<currency>[$€£])|(?P<percent>%)|(?P<other>\n|\S)"
)
OPERATORS = {"−": "-", "–": "-", "×": "*", "x": "*", "X": "*", "÷": "/"}
_OTHER_WORDS = data_file(Path(__file__).with_name("number_words.yaml"), dict[str, int])
WORD_VALUES = {word: Fraction(value) for value, word in enumerate(NUMBER_WORDS)}
WORD_VALUES |= {word: Fraction(value) for word, value in _OTHER_WORDS.items()}
MAX_UNIT_WORDS = 3


class Number(NamedTuple):
    """A number in a text: where its digits stand, its value (of "20%" the value is 20) and its line."""

    start: int
    end: int
    value: Fraction
    line: int
    percent: bool


class Token(NamedTuple):
    """One part of a text: of a `number` its index among the trace's numbers, of anything else its characters."""

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
        """The numbers on the left, by their index."""
        return [t.what for t in self.left if t.kind == "number"]

    @property
    def binary(self) -> bool:
        """Whether the left side is `a op b`."""
        return len(self.left) == 3


@dataclass(frozen=True)
class Trace:
    """A text with its numbers, its calculations and the lines with an `=` that was not read.

    `given`: the quantities that the problem names.
    """

    text: str
    numbers: list[Number]
    calculations: list[Calculation]
    unread: set[int]
    given: tuple[Fraction, ...]

    @functools.cached_property
    def largest(self) -> Fraction:
        """The largest number of problem and trace."""
        return max([*self.given, *(n.value for n in self.numbers)])

    @functools.cached_property
    def results(self) -> set[int]:
        """The numbers that are a calculation's result."""
        return {c.result for c in self.calculations}

    @functools.cached_property
    def quotes(self) -> dict[int, list[int]]:
        """For each number that is no result the calculations whose result it may quote: earlier ones, newest last;
        failing that, one on the same line that it announces ("the rest is 40 because 100 - 60 = 40")."""
        quotes = {}
        for i in [i for i in range(len(self.numbers)) if i not in self.results]:
            same = [k for k, c in enumerate(self.calculations) if self.value(c.result) == self.value(i)]
            before = [k for k in same if self.calculations[k].result < i]
            if found := before or [k for k in same if self._announces(i, self.calculations[k])][:1]:
                quotes[i] = found
        return quotes

    def _announces(self, number: int, c: Calculation) -> bool:
        return c.line == self.numbers[number].line and number not in c.operands

    def value(self, number: int) -> Fraction:
        """The value of a number as the text states it."""
        return self.numbers[number].value

    def source(self, number: int) -> int | None:
        """The calculation whose result this number quotes, if that is certain."""
        candidates = self.quotes.get(number, [])
        return candidates[-1] if candidates and self.value(number) not in self.given else None

    def on_line(self, line: int) -> list[int]:
        """The numbers of a line."""
        return [i for i, n in enumerate(self.numbers) if n.line == line]


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
    tokens: list[Token] = []
    numbers: list[Number] = []
    for match in TOKEN.finditer(text):
        what: int | str = OPERATORS.get(match[0], match[0])
        if match["number"]:
            what, line = len(numbers), text.count("\n", 0, match.start())
            numbers.append(Number(*match.span(), _fraction(match[0]), line, text.startswith("%", match.end())))
        tokens.append(Token(match.lastgroup, what, *match.span()))
    calculations: list[Calculation] = []
    unread: set[int] = set()
    for i, token in enumerate(tokens):
        if token.kind == "eq":
            line = text.count("\n", 0, token.start)
            left, result = _left_side(tokens[:i]), _right_side(tokens[i + 1 : i + 5])
            if left and result and evaluate(left, numbers) == evaluate([result], numbers):
                calculations.append(Calculation(left, result.what, line, token.start))
            else:
                unread.add(line)
    return Trace(text, numbers, calculations, unread, quantities(problem))


def _right_side(tokens: list[Token]) -> Token | None:
    """The number after an `=`; None if there is none or the calculation goes on after it."""
    right = [t for t in tokens if t.kind != "currency"]
    kinds = " ".join(t.kind for t in right)
    return right[0] if re.match(r"number(?! (?:op )?(?:number|paren))", kinds) else None


def _left_side(tokens: list[Token]) -> tuple[Token, ...] | None:
    """The expression that ends `tokens`, read backwards; words between a number and an operator are its unit."""
    left: list[Token] = []
    depth = 0
    while True:
        _drop_unit(tokens)
        if not tokens or tokens[-1].kind not in ("number", "paren") or tokens[-1].what == "(":
            return None  # an operator or `=` with nothing readable before it
        left.append(tokens.pop())
        if left[-1].what == ")":
            depth += 1
            continue
        while tokens and (tokens[-1].kind == "currency" or depth and tokens[-1].what == "("):
            if (token := tokens.pop()).kind == "paren":
                left.append(token)
                depth -= 1
        if not tokens or tokens[-1].kind != "op":
            return tuple(left[::-1]) if depth == 0 and any(t.kind == "op" for t in left) else None
        left.append(tokens.pop())


def _drop_unit(tokens: list[Token]) -> None:
    """Takes up to three unit words and a percent sign off the end."""
    for kind in ["word"] * MAX_UNIT_WORDS + ["percent"]:
        if tokens and tokens[-1].kind == kind:
            tokens.pop()


def evaluate(left: Sequence[Token], numbers: Sequence[Number], values: Mapping[int, Fraction] = {}) -> Fraction | None:
    """The value of an expression, its numbers taken from `values` where they are there; None if it has none."""
    amounts = {}
    for place, token in enumerate(left):
        if token.kind == "number":
            number = numbers[token.what]
            value = values.get(token.what, number.value)
            amounts[f"n{place}"] = value / 100 if number.percent else value
    try:  # n0*(n3+n5): the reader lets nothing but numbers, operators and brackets through
        formula = _formula("".join(f"n{i}" if t.kind == "number" else t.what for i, t in enumerate(left)))
        return eval(formula, {"__builtins__": {}}, amounts)
    except (ZeroDivisionError, SyntaxError, RecursionError):  # the latter two: hundreds of brackets, thousands of terms
        return None


@functools.lru_cache(maxsize=1024)  # most calculations have one of a few forms
def _formula(expression: str) -> CodeType:
    return compile(expression, "calculation", "eval")
