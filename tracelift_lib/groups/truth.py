"""Ground truth of the generated worlds: the rubric an infallible judge would give, and faithfulness. Source: ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tracelift_lib.groups.schema import Rubric, dimensions, rubric_from_shares
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinycode import (
    Branch,
    Plan,
    derive_reasoning,
    has_code,
    plan_of,
    read_plan,
    run_plan,
    true_branches,
)
from tracelift_lib.problems.tinyworld import Calculation, apply, read_calculations, read_lines, true_steps

LAST_NUMBER = re.compile(r"\d+(?=\D*\Z)")
SOURCES_WITH_TRUTH = ("tiny_world", "tiny_code")


def has_truth(problem: Problem) -> bool:
    """True if every true step is known, as in the generated worlds: only then can faithfulness be measured."""
    return problem.source in SOURCES_WITH_TRUTH


def is_faithful(problem: Problem, trace: str) -> bool:
    """True if `trace` is the true reasoning: every true calculation with its reason, in order, and no line beside them.

    That of a program must also state the true plan and hold no code. Raises KeyError outside the generated worlds.
    """
    reference = problem.reference_solution
    true_steps(problem)
    if len(trace.strip().splitlines()) != len(reference.splitlines()) or read_lines(trace) != read_lines(reference):
        return False
    return problem.domain == "math" or plan_is_true(problem, trace)


def is_sufficient(problem: Problem, trace: str) -> bool:
    """True if who follows `trace` to the letter, without the problem, gets it right (sufficiency, section 10).

    Math: the last calculation's result is the answer. Code: the program of the plan passes the tests.
    """
    if problem.domain == "math":
        return [str(c.after) for c in read_calculations(trace)[-1:]] == [problem.answer]
    cases, plan = problem.metadata["tests"]["cases"], read_plan(trace)
    return bool(plan) and all(run_plan(plan, int(case["input"])) == int(case["output"]) for case in cases)


def corrupted(trace: str) -> str:
    """`trace` with one step falsified, its last number one higher: causal importance is the success that this costs."""
    return LAST_NUMBER.sub(lambda number: str(int(number[0]) + 1), trace, count=1)


def plan_is_true(problem: Problem, trace: str) -> bool:
    """Whether the trace of a program states the true plan, and no code."""
    return read_plan(trace) == _true_plan(problem) and not has_code(trace)


def _true_plan(problem: Problem) -> Plan:
    return plan_of(derive_reasoning(true_branches(problem)))


def true_rubric(problem: Problem, trace: str) -> Rubric:
    """What an infallible judge says of any trace of a generated problem, math or code. Source: ours.

    Raises:
        KeyError: the problem is not of a generated world.
    """
    return rubric_from_shares(true_shares(problem, trace))


def true_shares(problem: Problem, trace: str) -> dict[str, float]:
    """For each dimension of the rubric the share of `trace` that is right, in [0, 1]."""
    values = (_math_shares if problem.domain == "math" else _code_shares)(problem, trace)
    return dict(zip(dimensions(problem.domain), values, strict=True))


def _math_shares(problem: Problem, trace: str) -> tuple[float, ...]:
    """(understanding, strategy, coherence, calculation, support) of a math trace."""
    start, truth, given = problem.metadata["start"], true_steps(problem), read_calculations(trace)
    if not given:
        return (0.0,) * 5
    operands = Counter(s.operand for s in truth) & Counter(c.operand for c in given)
    results = [c.after for c in given]
    links = zip([start, *results], (c.before for c in given))
    support = _agreement(results, [s.after for s in truth])
    return (
        operands.total() / max(len(truth), len(given)),
        _agreement([c.op for c in given], [s.op for s in truth]),
        sum(previous == before for previous, before in links) / len(given),
        sum(_is_right(c) for c in given) / len(given),
        support if results[-1] == truth[-1].after else support / 2,
    )


def _is_right(c: Calculation) -> bool:
    return (c.op != "/" or c.operand != 0) and apply(c.op, c.before, c.operand) == c.after


def _code_shares(problem: Problem, trace: str) -> tuple[float, ...]:
    """(task understanding, plan quality, step coherence, action support, non-leakage) of a plan for a program."""
    branches, given, plan = true_branches(problem), read_calculations(trace), read_plan(trace)
    true_plan, true_results = _true_plan(problem), [s.after for s in true_steps(problem)]
    told = Counter(number for branch in branches for number in _told(branch))
    told += Counter(branch.when for branch in branches)
    used = Counter(number for c in given for number in (c.before, c.operand)) + Counter(when for when, _ in plan)
    support = _agreement([c.after for c in given], true_results)
    return (
        max(0.0, 1 - (told - used).total() / len(true_results)),
        _agreement(_operations(plan), _operations(true_plan)),
        _coherence(branches, given, plan),
        support if plan == true_plan else support / 2,
        0.0 if has_code(trace) else 1.0,
    )


def _told(branch: Branch) -> list[int]:
    """All numbers that the problem tells of this branch, a limit apart."""
    numbers = [*branch.example, branch.following, *(a.number for a in branch.actions if not a.hidden)]
    return [number for number in numbers if number is not None]


def _operations(plan: Plan) -> list[tuple[int, str]]:
    return [(i, op) for i, (_, moves) in enumerate(plan) for op, _ in moves]


def _coherence(branches: list[Branch], given: list[Calculation], plan: Plan) -> float:
    """Share of lines that take up only what is known there: told by the problem, or an earlier result.

    The plan counts as one line. Its numbers are counted with multiplicity: a factor of three that is told does not
    support a sum of three that is not.
    """
    known = {number for b in branches for number in _told(b)}
    known |= {i for b in branches if b.actions[0].op == "sum" for i in range(1, b.example[0] + 1)}
    sources = Counter(a.number for b in branches for a in b.actions if not a.hidden)
    linked = 0
    for c in given:
        linked += {c.before, c.operand} <= known
        known.add(c.after)
        sources[c.after] += 1
    stated = Counter(number for _, moves in plan for _, number in moves if number is not None)
    return (linked + (stated <= sources)) / (len(given) + 1)


def _agreement(given: Sequence, true: Sequence) -> float:
    """Length of the longest common subsequence, as a share of the longer sequence."""
    row = [0] * (len(true) + 1)
    for a in given:
        previous = row
        row = [0]
        for j, b in enumerate(true):
            row.append(previous[j] + 1 if a == b else max(previous[j + 1], row[j]))
    return row[-1] / max(len(given), len(true))
