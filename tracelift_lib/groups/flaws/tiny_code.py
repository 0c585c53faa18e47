"""The seven kinds of flaw in plans of the generated programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinycode import (
    NAMED,
    OPPOSITE,
    Action,
    Branch,
    Reasoning,
    derive_reasoning,
    plan_of,
    rubric_shares,
    run_plan,
    solve_branch,
    true_branches,
    write_program,
    write_trace,
)

# --- the seven code kinds ---------------------------------------------------------------------


Maker = Callable[[list[Branch]], Iterator[Reasoning]]  # every flawed version of the true reasoning


def _with_action(branches: list[Branch], i: int, j: int, action: Action | None) -> list[Branch]:
    """`branches` with action j of branch i replaced, or left out (None)."""
    actions = [*branches[i].actions[:j], *([action] if action else []), *branches[i].actions[j + 1 :]]
    return _with_branch(branches, i, actions=actions)


def _with_branch(branches: list[Branch], i: int, **change: object) -> list[Branch]:
    return [*branches[:i], branches[i].model_copy(update=change), *branches[i + 1 :]]


def _places(branches: list[Branch]) -> Iterator[tuple[int, int, Action]]:
    for i, branch in enumerate(branches):
        for j, action in enumerate(branch.actions):
            yield i, j, action


def wrong_algorithm_choice(branches: list[Branch]) -> Iterator[Reasoning]:
    """One action is taken for another operation; the hidden numbers still fit the example."""
    for i, j, action in _places(branches):
        slope = branches[i].following is not None and action.hidden and action.op == "*"
        if action.op != "sum" and not slope:
            for op in NAMED:
                if op != action.op:
                    yield derive_reasoning(_with_action(branches, i, j, action.model_copy(update={"op": op})))


def misread_specification(branches: list[Branch]) -> Iterator[Reasoning]:
    """One fact of the problem is read as another: a number, a number of an example, or a condition."""
    for i, j, action in _places(branches):
        if action.number is not None and not action.hidden:
            for number in _near(action.number):
                yield derive_reasoning(_with_action(branches, i, j, action.model_copy(update={"number": number})))
    for i, branch in enumerate(branches):
        x, y = branch.example
        readings = [(n, y) for n in _near(x)] + [(x, n) for n in _near(y)]
        for example in readings:
            yield derive_reasoning(_with_branch(branches, i, example=example))
        for when in _other_conditions(branch.when):
            yield derive_reasoning(_with_branch(branches, i, when=when))


def _near(number: int) -> list[int]:
    return [n for n in range(max(1, number - 3), number + 4) if n != number]


def _other_conditions(when: str) -> list[str]:
    word, _, limit = when.partition(" ")
    if word not in OPPOSITE:
        return []
    return [f"{OPPOSITE[word]} {limit}".strip(), *(f"{word} {n}" for n in (_near(int(limit)) if limit else []))]


def wrong_constant(branches: list[Branch]) -> Iterator[Reasoning]:
    """One result is off by one, two or ten, and so is the number that it leads to."""
    truth = derive_reasoning(branches)
    for i, part in enumerate(truth):
        for j in range(len(part.steps)):
            for error in (-10, -2, -1, 1, 2, 10):
                yield [*truth[:i], solve_branch(branches[i], (j, error)), *truth[i + 1 :]]


def missing_step(branches: list[Branch]) -> Iterator[Reasoning]:
    """One action is forgotten with its effect: one whose number is told, or all that happens to the other numbers."""
    for i, j, action in _places(branches):
        if not action.hidden:
            yield derive_reasoning(_with_action(branches, i, j, None))
    if len(branches) > 1:
        yield derive_reasoning(branches[:1])


def wrong_order(branches: list[Branch]) -> Iterator[Reasoning]:
    """The numbers are right, but two neighbouring actions of the plan change places, or the actions of two branches."""
    truth = derive_reasoning(branches)
    for i, part in enumerate(truth):
        for j in range(len(part.moves) - 1):
            moves = [*part.moves[:j], part.moves[j + 1], part.moves[j], *part.moves[j + 2 :]]
            yield [*truth[:i], replace(part, moves=moves), *truth[i + 1 :]]
    if len(truth) > 1:
        first, second = truth
        yield [replace(first, moves=second.moves), replace(second, moves=first.moves)]


def unsupported_leap(branches: list[Branch]) -> Iterator[Reasoning]:
    """One calculation is left out, but its result is used: the plan is right, its support has a hole."""
    truth = derive_reasoning(branches)
    for i, part in enumerate(truth):
        for j in range(len(part.steps)):
            yield [*truth[:i], replace(part, steps=[*part.steps[:j], *part.steps[j + 1 :]]), *truth[i + 1 :]]


def leaked_code(branches: list[Branch]) -> Iterator[Reasoning]:
    """The trace is the true one but ends with the program itself, which is the executor's part."""
    yield derive_reasoning(branches)


# Each kind with the dimension (a place in `rubric_shares`) that it always lowers.
KINDS: dict[str, tuple[Maker, int]] = {
    maker.__name__: (maker, place)
    for maker, place in (
        (wrong_algorithm_choice, 1),
        (misread_specification, 0),
        (wrong_constant, 3),
        (missing_step, 1),
        (wrong_order, 1),
        (unsupported_leap, 2),
        (leaked_code, 4),
    )
}
KEEPS_PROGRAM = {"unsupported_leap", "leaked_code"}


def flawed_traces(problem: Problem, kind: str) -> list[str]:
    """Every trace of a `kind` of flaw for this problem.

    A flaw must show: the kind's dimension falls, and the program answers a test otherwise unless the kind keeps it.
    """
    branches = true_branches(problem)
    inputs = [int(case["input"]) for case in problem.metadata["tests"]["cases"]]
    plan = plan_of(derive_reasoning(branches))
    outputs = [run_plan(plan, n) for n in inputs]
    code = write_program(plan) if kind == "leaked_code" else None
    maker, place = KINDS[kind]
    found = []
    for reasoning in maker(branches):
        trace = write_trace(reasoning, code)
        keeps = [run_plan(plan_of(reasoning), n) for n in inputs] == outputs
        shows = keeps == (kind in KEEPS_PROGRAM) and rubric_shares(problem, trace)[place] < 1
        if shows and all(part.plausible() for part in reasoning):
            found.append(trace)
    return found
