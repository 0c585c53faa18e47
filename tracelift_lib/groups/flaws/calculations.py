"""Calculations in a natural-language math trace, found and linked to each other.

A GSM8K solution states its calculations in prose: "7 stickers/page * 6 pages = 42 stickers". `read_trace` finds each
`a op b ... = c` whose two sides are equal, and links every other number to the calculation that it quotes. `recompute`
carries a change through the calculations that follow, as a person would go on after a slip; where a link is uncertain
it gives up instead of guessing. Source: ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import CodeType
from typing import NamedTuple

import regex

from tracelift_lib.problems.records import data_file
from tracelift_lib.problems.tinyworld import NUMBER_WORDS

NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
TOKEN = re.compile(
    rf"(?P<number>{NUMBER})|(?P<word>/?[^\W\d_]{{2,}}(?:[/'-][^\W\d_]+)*)"
    r"|(?P<op>[-+*/×÷−–]|(?<=[^\S\n]|[\d)%])[xX](?=[^\S\n]|[\d($.]))"
    r"|(?P<bracket>[()])|(?P<equals>=)|(?P<currency>[$€£])|(?P<percent>%)|(?P<text>\n|\S)"
)
# The grammar of a calculation, over the first letters of its tokens' kinds, with brackets as they are: sums of terms,
# each a number or a sum in brackets with a currency before it, and a percent sign and three words of unit after it.
LEFT_SIDE = regex.compile(r"(?<![co])(?<sum>(?<term>c*(?:n|\((?&sum)\))p?w{0,3})(?:o(?&term))*)(?=e)")
RIGHT_SIDE = re.compile(r"c*n(?!c*(?:oc*)?[n()])")  # a number from which no calculation goes on
OPERATORS = {"−": "-", "–": "-", "×": "*", "x": "*", "X": "*", "÷": "/"}
_OTHER_WORDS = data_file(Path(__file__).with_name("number_words.yaml"), dict[str, int])
WORD_VALUES = {word: Fraction(value) for value, word in enumerate(NUMBER_WORDS)}
WORD_VALUES |= {word: Fraction(value) for word, value in _OTHER_WORDS.items()}

# Numbers that a solver brings along: units of time and measure, hundredths, halves.
COMMON = {Fraction(n) for n in (1, 2, 3, 4, 7, 10, 12, 24, 30, 31, 52, 60, 100, 365, 1000)}
# Of these, the ones that may mean a unit even where an earlier result has the same value.
UNITS = {Fraction(n) for n in (7, 12, 24, 52, 60, 100, 365, 1000)}
GROWTH = 20  # a result this many times above every number of problem and trace is not plausible


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
            here = [k for k in same if self.calculations[k].line == self.numbers[i].line]
            if found := before or [k for k in here if i not in self.calculations[k].operands][:1]:
                quotes[i] = found
        return quotes

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
    kinds = "".join(t.what if t.kind == "bracket" else t.kind[0] for t in tokens)
    left_sides = {found.end(): tokens[slice(*found.span())] for found in LEFT_SIDE.finditer(kinds)}
    calculations: list[Calculation] = []
    unread: set[int] = set()
    for i in [i for i, kind in enumerate(kinds) if kind == "e"]:
        line = text.count("\n", 0, tokens[i].start)
        left = tuple(t for t in left_sides.get(i, []) if t.kind in ("number", "op", "bracket"))
        right = RIGHT_SIDE.match(kinds, i + 1, i + 5)
        result = tokens[right.end() - 1] if right else None
        readable = result and any(t.kind == "op" for t in left)
        if readable and evaluate(left, numbers) == evaluate([result], numbers):
            calculations.append(Calculation(left, result.what, line, tokens[i].start))
        else:
            unread.add(line)
    return Trace(text, numbers, calculations, unread, quantities(problem))


def evaluate(left: Sequence[Token], numbers: Sequence[Number], values: Mapping[int, Fraction] = {}) -> Fraction | None:
    """The value of an expression, its numbers taken from `values` where they are there; None if it has none."""
    amounts = {}
    for number in [t.what for t in left if t.kind == "number"]:
        value = values.get(number, numbers[number].value)
        amounts[f"n{number}"] = value / 100 if numbers[number].percent else value
    try:  # n0*(n3+n5): the reader lets nothing but numbers, operators and brackets through
        formula = _formula("".join(f"n{t.what}" if t.kind == "number" else t.what for t in left))
        return eval(formula, {"__builtins__": {}}, amounts)
    except (ZeroDivisionError, SyntaxError, RecursionError):  # the latter two: hundreds of brackets, thousands of terms
        return None


@functools.lru_cache(maxsize=1024)  # most calculations have one of a few forms
def _formula(expression: str) -> CodeType:
    return compile(expression, "calculation", "eval")


# --- a change and what follows from it -----------------------------------------------------------


class Edit(NamedTuple):
    """One change at calculation `place`, to be carried through the trace.

    values: numbers that are set.  left: changed left sides.  downstream: what later text takes a calculation's result
    for, where that is not the result it states.  drop: lines left out.  swap: two lines that change places.
    replace: (start, end, text) changes of the wording.
    """

    place: int
    values: dict[int, Fraction] = {}
    left: dict[int, tuple[Token, ...]] = {}
    downstream: dict[int, Fraction] = {}
    drop: set[int] = set()
    swap: tuple[int, int] | None = None
    replace: list[tuple[int, int, str]] = []


def recompute(trace: Trace, edit: Edit) -> dict[int, Fraction] | None:
    """The value of every number after `edit`; None if a link is uncertain or a result is not plausible."""
    values = {i: edit.values.get(i, n.value) for i, n in enumerate(trace.numbers)}
    news: dict[int, Fraction] = {}  # what each calculation's result is quoted as from here on
    for k, c in enumerate(trace.calculations):
        quoted = _quoted(trace, c.operands, edit, news)
        if quoted is None:
            return None
        values |= quoted
        result = edit.values.get(c.result)
        if result is None:
            result = evaluate(edit.left.get(k, c.left), trace.numbers, values)
            if result is not None and trace.numbers[c.result].percent:
                result *= 100
        if result is None or not _plausible(trace, c, result):
            return None
        values[c.result] = result
        news[k] = edit.downstream.get(k, result)
    quoted = _quoted(trace, values.keys() - trace.results, edit, news)
    return values | quoted if quoted is not None and _certain(trace, edit, news) else None


def _quoted(trace: Trace, numbers: Iterable[int], edit: Edit, news: dict[int, Fraction]) -> dict[int, Fraction] | None:
    """The new values of numbers that are neither results nor set; None if one could be two things that now differ."""
    quoted = {}
    for i in set(numbers) - edit.values.keys():
        old = trace.value(i)
        options = {news.get(k, old) for k in trace.quotes.get(i, [])}
        if not options or old in trace.given or old in UNITS:
            options.add(old)
        if len(options) > 1:
            return None
        quoted[i] = options.pop()
    return quoted


def _plausible(trace: Trace, c: Calculation, result: Fraction) -> bool:
    """Above zero, whole where it was whole, else at most two decimals, and not out of all proportion."""
    whole = trace.value(c.result).denominator == 1
    return 0 < result <= GROWTH * trace.largest and (result if whole else result * 100).denominator == 1


def _certain(trace: Trace, edit: Edit, news: dict[int, Fraction]) -> bool:
    """Whether nothing after the first change could depend on it without our knowing."""
    start = min([trace.numbers[i].start for i in edit.values] + [trace.calculations[edit.place].equals])
    first = trace.text.count("\n", 0, start)
    changed = {trace.value(c.result) for k, c in enumerate(trace.calculations) if news[k] != trace.value(c.result)}
    if not changed:
        return True
    if any(line >= first for line in trace.unread) or changed & set(word_values(trace.text[start:])):
        return False
    return all(_explained(trace, i) for i, n in enumerate(trace.numbers) if n.start > start)


def _explained(trace: Trace, i: int) -> bool:
    """A result, a quotation of one, a quantity of the problem (also as a percentage), or common knowledge."""
    value = trace.value(i)
    if i in trace.results or trace.quotes.get(i) or value in COMMON:
        return True
    return any(v in trace.given for v in (value, value * 100, value / 100, 100 - value))


def rewrite(trace: Trace, edit: Edit, values: dict[int, Fraction]) -> str:
    """The text with `values` and the edit's own changes put in."""
    changes = list(edit.replace)
    for i, number in enumerate(trace.numbers):
        covered = any(start <= number.start < end for start, end, _ in edit.replace)
        if values[i] != number.value and not covered:
            changes.append((number.start, number.end, write_number(values[i], trace.text[number.start : number.end])))
    text = trace.text
    for start, end, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    lines = text.split("\n")
    if edit.swap:
        i, j = edit.swap
        lines[i], lines[j] = lines[j], lines[i]
    return "\n".join(line for i, line in enumerate(lines) if i not in edit.drop)


def write_number(value: Fraction, like: str) -> str:
    """`value` as digits, written like the number it replaces: its decimals, and its commas or room for them."""
    decimals = len(like.partition(".")[2])
    while (value * 10**decimals).denominator != 1:
        decimals += 1
    comma = "," if "," in like or len(like.partition(".")[0]) < 4 else ""
    return f"{value.numerator / value.denominator:{comma}.{decimals}f}"
