"""Exact makers of the seven math kinds for natural-language traces, such as GSM8K's solutions.

Each maker proposes edits of one place; `calculations.recompute` carries the consequences through the trace and
refuses where they are uncertain. Definitions: groups/kinds.yaml. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from tracelift_lib.groups.flaws.calculations import Edit, Trace, evaluate, read_trace, recompute, rewrite
from tracelift_lib.groups.kinds import Flaw, kinds_of
from tracelift_lib.problems.problem import Problem
from tracelift_lib.verifier.answers import expected_number

WRONG = {"+": "-", "-": "+", "*": "+", "/": "*"}
SLIPS = (-100, -10, -2, -1, 1, 2, 10, 100)
MISREADINGS = (-10, -5, -2, -1, 1, 2, 5, 10)


def wrong_operation(trace: Trace) -> Iterator[Edit]:
    """The operation of one calculation of two whole numbers is another one, in the text too."""
    for k, c in enumerate(trace.calculations):
        whole = all(trace.value(i).denominator == 1 and not trace.numbers[i].percent for i in c.operands)
        if c.binary and whole:
            first, op, second = c.left
            if op.what == "/" and 1 in map(trace.value, c.operands):
                continue
            changed = op._replace(what=WRONG[op.what])
            yield Edit(k, left={k: (first, changed, second)}, replace=[(op.start, op.end, changed.what)])


def arithmetic_slip(trace: Trace) -> Iterator[Edit]:
    """One result is off by one, two, ten or a hundred, and by a third of it at most."""
    for k, c in enumerate(trace.calculations):
        result = trace.value(c.result)
        for slip in SLIPS:
            if abs(slip) <= max(1, result / 3) and (abs(slip) < 100 or result % 10 == 0):
                yield Edit(k, values={c.result: result + slip})


def misread_quantity(trace: Trace) -> Iterator[Edit]:
    """Quantities that the problem names once and the trace never takes from a calculation or writes as a word."""
    for value in sorted({v for v in trace.given if trace.given.count(v) == 1 and v.denominator == 1 and v > 1}):
        uses = [i for i, n in enumerate(trace.numbers) if n.value == value and i not in trace.results]
        place = next((k for k, c in enumerate(trace.calculations) if set(uses) & set(c.operands)), None)
        if place is not None and not any(i in trace.quotes for i in uses):
            for other in _misreadings(value):
                if other not in trace.given:
                    yield Edit(place, values=dict.fromkeys(uses, other))


def _misreadings(value: Fraction) -> list[Fraction]:
    """Numbers that a hasty reader may take `value` for: a near one, or the digits turned round."""
    near = [value + step for step in MISREADINGS if abs(step) <= max(2, value / 2)]
    digits = str(value)
    turned = [Fraction(digits[::-1])] if len(digits) == 2 and digits[1] != "0" and digits != digits[::-1] else []
    return [n for n in near + turned if n > 1]


def lost_event(trace: Trace) -> Iterator[Edit]:
    """A whole step (its line goes, later lines use the value before it) or one term of a longer sum."""
    for k, c in enumerate(trace.calculations):
        before = _before(trace, k)
        if before is not None and _stands_alone(trace, k) and _used_later(trace, k):
            yield Edit(k, downstream={k: trace.value(before)}, drop={c.line})
        if not c.binary and {t.what for t in c.left if t.kind != "number"} <= {"+", "-"}:
            for position in range(2, len(c.left), 2):
                yield from _lost_term(trace, k, position)


def _lost_term(trace: Trace, k: int, position: int) -> Iterator[Edit]:
    c = trace.calculations[k]
    value = trace.value(c.left[position].what)
    mentions = [i for i in trace.on_line(c.line) if trace.value(i) == value]
    if len(mentions) == 1:
        rest = (*c.left[: position - 1], *c.left[position + 1 :])
        end = c.left[position + 1].start if position + 1 < len(c.left) else c.equals
        yield Edit(k, left={k: rest}, replace=[(c.left[position - 1].start, end, "")])


def swapped_events(trace: Trace) -> Iterator[Edit]:
    """(a op b) op' c becomes (a op' c) op b; the two lines change places."""
    for k, (c, d) in enumerate(zip(trace.calculations, trace.calculations[1:])):
        neighbours = d.line == c.line + 1 and _stands_alone(trace, k) and _stands_alone(trace, k + 1)
        if not (c.binary and d.binary and neighbours):
            continue
        (a, b), (r, e) = c.operands, d.operands
        linked = [i for i, of in trace.quotes.items() if k in of] == [r] and trace.source(r) == k
        unclear = trace.source(e) is not None or trace.numbers[b].percent
        if not linked or unclear or [trace.value(i) for i in trace.on_line(c.line)].count(trace.value(a)) != 1:
            continue
        start = trace.value(a)
        first = evaluate(d.left, trace.numbers, {r: start})
        second = None if first is None else evaluate(c.left, trace.numbers, {a: first})
        if second is not None:
            values = {r: start, d.result: first, a: first, c.result: second}
            yield Edit(k, values=values, downstream={k + 1: second}, swap=(c.line, d.line))


def stale_value(trace: Trace) -> Iterator[Edit]:
    """One calculation takes, for an earlier result, the value from which that result was computed."""
    for k, c in enumerate(trace.calculations):
        for i in c.operands:
            source = trace.source(i)
            before = None if source is None else _before(trace, source)
            if before is not None and trace.value(before) not in {trace.value(j) for j in c.operands if j != i}:
                same = [j for j in trace.on_line(c.line) if j not in trace.results and trace.source(j) == source]
                yield Edit(k, values=dict.fromkeys(same, trace.value(before)))


def unsupported_leap(trace: Trace) -> Iterator[Edit]:
    """The line of one calculation whose result is used later is left out."""
    for k, c in enumerate(trace.calculations):
        if _stands_alone(trace, k) and _used_later(trace, k):
            yield Edit(k, drop={c.line})


MAKERS = {kind: globals()[kind] for kind in kinds_of("math")}


def flawed_texts(problem: Problem, kind: str) -> list[Flaw]:
    """Every flawed version of the reference trace with this kind of flaw.

    Severity is the share of the trace's calculations that are wrong, lost or unsupported after the damage, in (0, 1].
    A trace whose last calculation does not give the problem's answer has no version.
    """
    trace = read_trace(problem.reference_solution, problem.problem)
    if not trace.calculations or trace.value(trace.calculations[-1].result) != expected_number(problem.answer):
        return []
    answer, last = len(trace.calculations) - 1, trace.calculations[-1]
    versions = {}
    for edit in MAKERS[kind](trace):
        values = recompute(trace, edit)
        if values is None or last.line in edit.drop:
            continue
        kept = edit.downstream.get(answer, values[last.result]) == trace.value(last.result)
        if kept == kinds_of("math")[kind].keeps_answer:
            hurt = {k for k, c in enumerate(trace.calculations) if values[c.result] != trace.value(c.result)}
            text = rewrite(trace, edit, values)
            versions[text] = Flaw(text, len(hurt | {edit.place}) / len(trace.calculations))
    return list(versions.values())


def _before(trace: Trace, k: int) -> int | None:
    """The operand that holds the quantity before step k: one that an earlier step gave, or what is added to."""
    c = trace.calculations[k]
    if not c.binary:
        return None
    linked = [i for i in c.operands if trace.source(i) is not None]
    if len(linked) == 1:
        return linked[0]
    return c.operands[0] if not linked and c.left[1].what in "+-" else None


def _stands_alone(trace: Trace, k: int) -> bool:
    line = trace.calculations[k].line
    return line not in trace.unread and sum(c.line == line for c in trace.calculations) == 1


def _used_later(trace: Trace, k: int) -> bool:
    c = trace.calculations[k]
    return any(trace.source(i) == k for d in trace.calculations[k + 1 :] if d.line > c.line for i in d.operands)
