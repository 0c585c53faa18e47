"""A change in a math trace, carried through the calculations that follow, as a person would go on after a slip.

The links between numbers come from `calculations.read_trace`. Where a link is uncertain, `recompute` gives up instead
of guessing. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from tracelift_lib.groups.flaws.calculations import Calculation, Token, Trace, evaluate, word_values

# Numbers that a solver brings along: units of time and measure, hundredths, halves.
COMMON = {Fraction(n) for n in (1, 2, 3, 4, 7, 10, 12, 24, 30, 31, 52, 60, 100, 365, 1000)}
# Of these, the ones that may mean a unit even where an earlier result has the same value.
UNITS = {Fraction(n) for n in (7, 12, 24, 52, 60, 100, 365, 1000)}
GROWTH = 20  # a result this many times above every number of problem and trace is not plausible


@dataclass
class Edit:
    """One change at calculation `place`, to be carried through the trace.

    values: numbers that are set.  left: changed left sides.  downstream: what later text takes a calculation's result
    for, where that is not the result it states.  drop: lines left out.  swap: two lines that change places.
    replace: (start, end, text) changes of the wording.
    """

    place: int
    values: dict[int, Fraction] = field(default_factory=dict)
    left: dict[int, tuple[Token, ...]] = field(default_factory=dict)
    downstream: dict[int, Fraction] = field(default_factory=dict)
    drop: set[int] = field(default_factory=set)
    swap: tuple[int, int] | None = None
    replace: list[tuple[int, int, str]] = field(default_factory=list)


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
