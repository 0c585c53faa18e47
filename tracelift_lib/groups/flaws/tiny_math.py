"""The seven kinds of flaw in traces of the generated arithmetic stories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinyworld import NUMBER_WORDS, Step, apply, true_steps, write_trace

# --- the seven math kinds ---------------------------------------------------------------------


Maker = Callable[[list[Step]], list[list[Step]]]  # every flawed version of the reference's steps


def _recompute(steps: list[Step], first: int) -> list[Step]:
    """`steps` with everything from index `first` on recomputed from the result before it."""
    fixed = list(steps[:first])
    for step in steps[first:]:
        before = fixed[-1].after if fixed else step.before
        fixed.append(step.model_copy(update={"before": before, "after": apply(step.op, before, step.operand)}))
    return fixed


def _replace(steps: list[Step], i: int, **change: Any) -> list[Step]:
    """`steps` with step i changed, its result computed unless given, and later steps recomputed."""
    step = steps[i].model_copy(update=change)
    if "after" not in change:
        step = step.model_copy(update={"after": apply(step.op, step.before, step.operand)})
    return _recompute([*steps[:i], step, *steps[i + 1 :]], i + 1)


def wrong_operation(steps: list[Step]) -> list[list[Step]]:
    """One event is turned into the opposite calculation: gains are subtracted, doubling is halving."""
    opposite = {"+": "-", "-": "+", "*": "+", "/": "-"}
    return [_replace(steps, i, op=opposite[step.op]) for i, step in enumerate(steps)]


def arithmetic_slip(steps: list[Step]) -> list[list[Step]]:
    """One result is off by one, two or ten."""
    errors = (-10, -2, -1, 1, 2, 10)
    return [_replace(steps, i, after=step.after + error) for i, step in enumerate(steps) for error in errors]


def misread_quantity(steps: list[Step]) -> list[list[Step]]:
    """One event is read with another number than the story has."""
    flawed = []
    for i, step in enumerate(steps):
        if step.op in "+-":
            for operand in range(max(1, step.operand - 3), min(step.operand + 4, len(NUMBER_WORDS))):
                event = step.event.replace(NUMBER_WORDS[step.operand], NUMBER_WORDS[operand])
                flawed.append(_replace(steps, i, operand=operand, event=event))
    return flawed


def lost_event(steps: list[Step]) -> list[list[Step]]:
    """One event is forgotten together with its effect."""
    if len(steps) < 2:
        return []
    flawed = []
    for i in range(len(steps)):
        rest = [*steps[:i], *steps[i + 1 :]]
        if i == 0:  # the new first step starts where the story starts
            rest[0] = rest[0].model_copy(
                update={"before": steps[0].before, "after": apply(rest[0].op, steps[0].before, rest[0].operand)}
            )
        flawed.append(_recompute(rest, max(i, 1)))
    return flawed


def swapped_events(steps: list[Step]) -> list[list[Step]]:
    """Two neighbouring events are taken in the wrong order."""
    flawed = []
    for i in range(len(steps) - 1):
        first = steps[i + 1].model_copy(update={"before": steps[i].before})
        flawed.append(
            _recompute(
                [
                    *steps[:i],
                    first.model_copy(update={"after": apply(first.op, first.before, first.operand)}),
                    steps[i],
                    *steps[i + 2 :],
                ],
                i + 1,
            )
        )
    return flawed


def stale_value(steps: list[Step]) -> list[list[Step]]:
    """One step goes on from the value before the previous step, as if that had not happened."""
    return [_replace(steps, i, before=steps[i - 1].before) for i in range(1, len(steps))]


def unsupported_leap(steps: list[Step]) -> list[list[Step]]:
    """One calculation is left out, but its result is used: the answer is right, its support has a hole."""
    return [[*steps[:i], *steps[i + 1 :]] for i in range(len(steps) - 1)]


MATH_KINDS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        wrong_operation,
        arithmetic_slip,
        misread_quantity,
        lost_event,
        swapped_events,
        stale_value,
        unsupported_leap,
    )
}
KEEPS_ANSWER = {"unsupported_leap"}


def _flawed_traces(problem: Problem, kind: str) -> list[str]:
    """Every math trace with a `kind` of flaw.

    A flaw must show: results stay whole and positive, and the final value changes unless the kind keeps it.
    """
    truth = true_steps(problem)
    return [
        write_trace(steps)
        for steps in MATH_KINDS[kind](truth)
        if _plausible(steps) and (kind in KEEPS_ANSWER or steps[-1].after != truth[-1].after)
    ]


def _plausible(steps: list[Step]) -> bool:
    """Whole positive results, and no halving of an odd number."""
    return all(s.after > 0 and (s.op != "/" or s.before % s.operand == 0) for s in steps)
