"""The seven kinds of flaw in plans of the generated programs.

A maker yields every flawed version of the true reasoning. Definitions: groups/kinds.yaml. Source: ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from tracelift_lib.groups.kinds import kinds_of, with_change
from tracelift_lib.groups.truth import true_shares
from tracelift_lib.problems import tinycode
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinycode import NAMED, OPPOSITE, Action, Branch, Reasoning, derive_reasoning, plan_of

SLIPS = (-10, -2, -1, 1, 2, 10)
LOWERED = {kind.name: kind.hurts[0] for kind in kinds_of("code").values()}


def wrong_algorithm_choice(branches: list[Branch]) -> Iterator[Reasoning]:
    """One action is taken for another operation; the hidden numbers still fit the example."""
    for i, j, action in _places(branches):
        slope = branches[i].following is not None and action.hidden and action.op == "*"
        if action.op != "sum" and not slope:
            for op in NAMED:
                if op != action.op:
                    yield _with_action(branches, i, j, op=op)


def misread_specification(branches: list[Branch]) -> Iterator[Reasoning]:
    """One fact of the problem is read as another: a number, a number of an example, or a condition."""
    for i, j, action in _places(branches):
        if action.number is not None and not action.hidden:
            for number in _near(action.number):
                yield _with_action(branches, i, j, number=number)
    for i, branch in enumerate(branches):
        x, y = branch.example
        for example in [(n, y) for n in _near(x)] + [(x, n) for n in _near(y)]:
            yield _with_branch(branches, i, example=example)
        for when in _other_conditions(branch.when):
            yield _with_branch(branches, i, when=when)


def wrong_constant(branches: list[Branch]) -> Iterator[Reasoning]:
    """One result is off by one, two or ten, and so is the number that it leads to."""
    truth = derive_reasoning(branches)
    for i, part in enumerate(truth):
        for j in range(len(part.steps)):
            for slip in SLIPS:
                yield [*truth[:i], tinycode.solve_branch(branches[i], (j, slip)), *truth[i + 1 :]]


def missing_step(branches: list[Branch]) -> Iterator[Reasoning]:
    """One action is forgotten with its effect: one whose number is told, or all that happens to the other numbers."""
    for i, j, action in _places(branches):
        if not action.hidden:
            actions = branches[i].actions
            yield _with_branch(branches, i, actions=[*actions[:j], *actions[j + 1 :]])
    if len(branches) > 1:
        yield derive_reasoning(branches[:1])


def wrong_order(branches: list[Branch]) -> Iterator[Reasoning]:
    """The numbers are right, but two neighbouring actions of the plan change places, or the actions of two branches."""
    truth = derive_reasoning(branches)
    for i, part in enumerate(truth):
        for j, (first, second) in enumerate(zip(part.moves, part.moves[1:])):
            yield with_change(truth, i, moves=[*part.moves[:j], second, first, *part.moves[j + 2 :]])
    if len(truth) > 1:
        first, second = truth
        yield [first.model_copy(update={"moves": second.moves}), second.model_copy(update={"moves": first.moves})]


def unsupported_leap(branches: list[Branch]) -> Iterator[Reasoning]:
    """One calculation is left out, but its result is used: the plan is right, its support has a hole."""
    truth = derive_reasoning(branches)
    for i, part in enumerate(truth):
        for j in range(len(part.steps)):
            yield with_change(truth, i, steps=[*part.steps[:j], *part.steps[j + 1 :]])


def leaked_code(branches: list[Branch]) -> Iterator[Reasoning]:
    """The reasoning is the true one; `flawed_traces` puts the program itself, the executor's part, below it."""
    yield derive_reasoning(branches)


MAKERS = {kind: globals()[kind] for kind in kinds_of("code")}


def flawed_traces(problem: Problem, kind: str) -> list[str]:
    """Every trace of a `kind` of flaw for this problem.

    A flaw must show: the kind's dimension falls, and the program answers a test otherwise unless the kind keeps it.
    """
    branches = tinycode.true_branches(problem)
    inputs = [int(case["input"]) for case in problem.metadata["tests"]["cases"]]
    plan = plan_of(derive_reasoning(branches))
    code = tinycode.write_program(plan) if kind == "leaked_code" else None
    found = []
    for reasoning in MAKERS[kind](branches):
        trace = tinycode.write_trace(reasoning, code)
        keeps = all(tinycode.run_plan(plan_of(reasoning), n) == tinycode.run_plan(plan, n) for n in inputs)
        shows = keeps == kinds_of("code")[kind].keeps_answer and true_shares(problem, trace)[LOWERED[kind]] < 1
        if shows and all(part.plausible() for part in reasoning):
            found.append(trace)
    return found


def _places(branches: list[Branch]) -> Iterator[tuple[int, int, Action]]:
    for i, branch in enumerate(branches):
        for j, action in enumerate(branch.actions):
            yield i, j, action


def _with_action(branches: list[Branch], i: int, j: int, **change: object) -> Reasoning:
    """What follows if action j of branch i is changed."""
    return _with_branch(branches, i, actions=with_change(branches[i].actions, j, **change))


def _with_branch(branches: list[Branch], i: int, **change: object) -> Reasoning:
    """What follows if branch i is changed."""
    return derive_reasoning(with_change(branches, i, **change))


def _near(number: int) -> list[int]:
    return [n for n in range(max(1, number - 3), number + 4) if n != number]


def _other_conditions(when: str) -> list[str]:
    word, _, limit = when.partition(" ")
    if word not in OPPOSITE:
        return []
    return [f"{OPPOSITE[word]} {limit}".strip(), *(f"{word} {n}" for n in (_near(int(limit)) if limit else []))]
