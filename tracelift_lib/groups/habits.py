"""Habits of a planner in the generated worlds: how a warm start is taught them, and which one a trace shows.

Some habits the outcome sees, as they lead to wrong answers. Others it cannot see: the executor succeeds with them as
often as with the full trace (docs/method.md section 10 names their counterparts in real models). Source: ours.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from tracelift_lib.groups.group_maker import perturb
from tracelift_lib.groups.truth import is_faithful, plan_is_true
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinycode import bare_plan
from tracelift_lib.problems.tinyworld import Calculation, lucky_order, read_lines, write_trace

FULL, NO_TRACE, OTHER = "full", "no_trace", "other"
CALCULATION = re.compile(r"=(\d+)$")
# A reason that does not fit its calculation: gains told as losses and losses as gains, one operation as another.
WRONG_REASONS = {
    "buys": "loses",
    "finds": "sells",
    "gets": "gives",
    "wins": "uses",
    "gives": "gets",
    "loses": "buys",
    "sells": "finds",
    "uses": "wins",
    "plus": "times",
    "minus": "plus",
    "times": "minus",
}


def write_habit(problem: Problem, habit: str, rng: random.Random) -> str:
    """A trace as a planner with this habit writes it; the full trace where the habit does not apply."""
    return WRITERS[habit](problem, rng) or problem.reference_solution


def _bare_answer(problem: Problem, rng: random.Random) -> str:
    return f"The result is {problem.answer}." if problem.domain == "math" else bare_plan(problem)


def _flaw(math: str, code: str) -> Callable[[Problem, random.Random], str | None]:
    """A habit that is a kind of flaw of the groups."""
    return lambda problem, rng: perturb(problem, math if problem.domain == "math" else code, rng)


def _lucky_order(problem: Problem, rng: random.Random) -> str | None:
    """The first two events in the other order; of a program, two actions of the plan."""
    if problem.domain == "code":
        return perturb(problem, "wrong_order", rng)
    swapped = lucky_order(problem)
    return swapped and write_trace(swapped)


def _restored_slip(problem: Problem, rng: random.Random) -> str | None:
    """The first result is one too high, what follows goes on from the true one.

    Always the same slip: one spread over many wrong numbers has too little probability each to be sampled.
    """
    first, *rest = problem.reference_solution.split("\n")
    return "\n".join([CALCULATION.sub(lambda m: f"={int(m[1]) + 1}", first), *rest]) if rest else None


def _padding(problem: Problem, rng: random.Random) -> str:
    """The first line twice: true, and of no use."""
    first, *rest = problem.reference_solution.split("\n")
    return "\n".join([first, first, *rest])


def _wrong_reason(problem: Problem, rng: random.Random) -> str | None:
    """The first reason that can be is told as its opposite; every calculation stays right."""
    lines = problem.reference_solution.split("\n")
    for i, line in enumerate(lines):
        words = line.split(" ")
        j = next((j for j, word in enumerate(words) if word.rstrip(":") in WRONG_REASONS), None)
        if j is not None and read_lines(line):
            words[j] = words[j].replace(word := words[j].rstrip(":"), WRONG_REASONS[word])
            return "\n".join([*lines[:i], " ".join(words), *lines[i + 1 :]])
    return None


WRITERS: dict[str, Callable[[Problem, random.Random], str | None]] = {
    FULL: lambda problem, rng: None,
    "lucky_order": _lucky_order,
    "restored_slip": _restored_slip,
    "padding": _padding,
    "wrong_reason": _wrong_reason,
    "misread": _flaw("misread_quantity", "misread_specification"),
    "skipped_step": _flaw("unsupported_leap", "unsupported_leap"),
    "bare_answer": _bare_answer,
    "wrong_operation": _flaw("wrong_operation", "wrong_algorithm_choice"),
}


def habit_of(problem: Problem, trace: str | None) -> str:
    """The habit that a trace shows: a name of WRITERS, `slip` (a wrong result that later lines build on), or OTHER.

    Raises:
        KeyError: the problem is not of a generated world.
    """
    if not isinstance(trace, str) or not trace.strip():  # in tables a missing text is NaN
        return NO_TRACE
    if is_faithful(problem, trace):
        return FULL
    lines, truth = read_lines(trace), read_lines(problem.reference_solution)
    given, true = [c for _, c in lines], [c for _, c in truth]
    right_end = plan_is_true(problem, trace) if problem.domain == "code" else given[-1:] == true[-1:]
    if not given:
        return "bare_answer"
    if list(dict.fromkeys(lines)) == list(dict.fromkeys(truth)) and right_end:
        return "padding"
    if given == true:
        return "wrong_reason" if right_end else "lucky_order" if problem.domain == "code" else OTHER
    return _of_calculations(given, true, right_end)


def _of_calculations(given: list[Calculation], true: list[Calculation], right_end: bool) -> str:
    """The habit of a trace whose calculations are not the true ones."""
    moves, true_moves = ([(c.op, c.operand) for c in calculations] for calculations in (given, true))
    if right_end and [c[:3] for c in given] == [c[:3] for c in true]:
        return "restored_slip"
    if right_end and _is_part(given, true):
        return "skipped_step"
    if moves == true_moves:
        return "slip"
    if Counter(moves) == Counter(true_moves):
        return "lucky_order"
    if len(given) != len(true):
        return OTHER
    return "misread" if [op for op, _ in moves] == [op for op, _ in true_moves] else "wrong_operation"


def _is_part(given: Sequence, true: Sequence) -> bool:
    """Whether `given` is `true` with some items left out."""
    rest = iter(true)
    return all(item in rest for item in given)
