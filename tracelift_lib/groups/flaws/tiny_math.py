"""The seven kinds of flaw in traces of the generated arithmetic stories.

A maker yields every flawed version of the reference's steps. Definitions: groups/kinds.yaml. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tracelift_lib.groups.kinds import kinds_of, with_change
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinyworld import NUMBER_WORDS, Step, carry_on, plausible, true_steps, write_trace

OPPOSITE = {"+": "-", "-": "+", "*": "+", "/": "-"}
SLIPS = (-10, -2, -1, 1, 2, 10)


def wrong_operation(steps: list[Step]) -> Iterator[list[Step]]:
    """One event is turned into the opposite calculation: gains are subtracted, doubling is halving."""
    for i, step in enumerate(steps):
        yield _with_change(steps, i, op=OPPOSITE[step.op])


def arithmetic_slip(steps: list[Step]) -> Iterator[list[Step]]:
    """One result is off by one, two or ten."""
    for i, step in enumerate(steps):
        for after in (step.after + slip for slip in SLIPS):
            yield [*steps[:i], step.model_copy(update={"after": after}), *carry_on(after, steps[i + 1 :])]


def misread_quantity(steps: list[Step]) -> Iterator[list[Step]]:
    """One event is read with another number than the story has."""
    for i, step in enumerate(steps):
        if step.op in "+-":
            for operand in range(max(1, step.operand - 3), min(step.operand + 4, len(NUMBER_WORDS))):
                event = step.event.replace(NUMBER_WORDS[step.operand], NUMBER_WORDS[operand])
                yield _with_change(steps, i, operand=operand, event=event)


def lost_event(steps: list[Step]) -> Iterator[list[Step]]:
    """One event is forgotten together with its effect."""
    for i, step in enumerate(steps if len(steps) > 1 else []):
        yield [*steps[:i], *carry_on(step.before, steps[i + 1 :])]


def swapped_events(steps: list[Step]) -> Iterator[list[Step]]:
    """Two neighbouring events are taken in the wrong order."""
    for i, (first, second) in enumerate(zip(steps, steps[1:])):
        yield [*steps[:i], *carry_on(first.before, [second, first, *steps[i + 2 :]])]


def stale_value(steps: list[Step]) -> Iterator[list[Step]]:
    """One step goes on from the value before the previous step, as if that had not happened."""
    for i, previous in enumerate(steps[:-1], 1):
        yield [*steps[:i], *carry_on(previous.before, steps[i:])]


def unsupported_leap(steps: list[Step]) -> Iterator[list[Step]]:
    """One calculation is left out, but its result is used: the answer is right, its support has a hole."""
    for i in range(len(steps) - 1):
        yield [*steps[:i], *steps[i + 1 :]]


MAKERS = {kind: globals()[kind] for kind in kinds_of("math")}


def flawed_traces(problem: Problem, kind: str) -> list[str]:
    """Every math trace with a `kind` of flaw.

    A flaw must show: results stay whole and positive, and the final value changes unless the kind keeps it.
    """
    truth = true_steps(problem)
    keeps_answer = kinds_of("math")[kind].keeps_answer
    return [
        write_trace(steps)
        for steps in MAKERS[kind](truth)
        if plausible(steps) and (keeps_answer or steps[-1].after != truth[-1].after)
    ]


def _with_change(steps: list[Step], i: int, **change: Any) -> list[Step]:
    """`steps` with step i changed, and its result and later steps computed anew."""
    return [*steps[:i], *carry_on(steps[i].before, with_change(steps[i:], 0, **change))]
