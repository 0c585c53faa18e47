"""The tiny world, code family: small stdin-to-stdout programs whose every constant must be worked out.

A program reads a whole number n, changes it in a few actions (all numbers the same way, or two kinds of numbers in
two ways) and prints it. The problem tells the actions in words but keeps some of their numbers back; what the program
prints for an example gives them away. A trace follows the example from both ends to the missing number, one
calculation on each line, and then states the plan. Only a trace that works the numbers out leads to a program that
passes.

As in the math family every true step is known: which calculations, which plan, which program. Flawed traces are made
from the same record (groups/flaws/tiny_code.py). Source: ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import partial, reduce
from itertools import accumulate
from typing import Literal

from pydantic import BaseModel

from tracelift_lib.problems import tinyworld
from tracelift_lib.problems.problem import Frozen, Problem
from tracelift_lib.problems.tinyworld import NUMBER_WORDS, Step, apply

Op = Literal["+", "-", "*", "sum"]
Move = tuple[str, int | None]  # an action as a plan states it, such as ("*", 3); ("sum", None) has no number
Plan = list[tuple[str, list[Move]]]  # (which numbers, what happens to them) of each branch
# How the problem tells an action: with its number, and with the number kept back.
TOLD: dict[str, list[str]] = {
    "+": ["adds {n}", "increases it by {n}"],
    "-": ["subtracts {n}", "lowers it by {n}"],
    "*": ["multiplies by {n}", "takes it {n} times"],
    "sum": ["sums all numbers from one to it"],
}
HIDDEN = ["a fixed number", "a secret number"]
NAMED = {"+": "plus", "-": "minus", "*": "times"}  # as a trace names it
OPERATIONS = {name: op for op, name in NAMED.items()}
OPENINGS = ["A program reads n.", "Write a program that reads n.", "The program gets a number n."]
EXAMPLES = ["For {x} it prints {y}.", "From {x} it makes {y}.", "So {x} becomes {y}."]
DISTRACTORS = ["It was written {n} days ago.", "It has {n} users."]
CONDITIONS = {"even": "n % 2 == 0", "odd": "n % 2 == 1", "above": "n > {limit}", "below": "n < {limit}"}
OPPOSITE = {"even": "odd", "odd": "even", "above": "below", "below": "above"}
LARGEST_TOLD = len(NUMBER_WORDS) - 1  # the text names numbers in words
LARGEST_INPUT, CASES = 20, 6  # of the tests
DRAWS = 10_000  # tries for one problem
PLAN_LINE = re.compile(r"^(?:Plan|If (even|odd|(?:above|below) \d{1,9})|(Else)): (.+)$", re.MULTILINE)
PLAN_MOVE = re.compile(r"(plus|minus|times) (\d{1,9})|sum", re.ASCII)
CODE = re.compile(
    r"```|\b(?:print|input|int|range|sum)\s*\(|\bn\s*[-+*/%]?=(?!=)|^\s*(?:def|class|import|from|return|while|for)\b",
    re.MULTILINE,
)


class Action(Frozen):
    """One action of the program; `hidden`: the problem keeps its number back."""

    op: Op
    number: int | None = None
    hidden: bool = False


class Branch(Frozen):
    """What happens to the numbers that `when` names, and the example (input, output) that gives hidden numbers away.

    `when` is empty (all numbers), `even`, `odd`, `above 5`, `below 5` or `else`. `following` is the output for the
    input after the example's, told if the factor is hidden too: the difference of the two outputs is the factor.
    """

    when: str
    actions: list[Action]
    example: tuple[int, int]
    following: int | None = None


class Part(BaseModel):
    """What a trace says of one branch, right or wrong: the calculations, and the actions that follow from them."""

    when: str
    slip: tuple[int, int] = (-1, 0)
    steps: list[Step] = []
    moves: list[Move]

    def calculate(self, event: str, before: int, op: str, operand: int) -> int:
        """Note a calculation and return its result; a division by zero, which is never plausible, gives zero."""
        error = self.slip[1] if len(self.steps) == self.slip[0] else 0
        after = (0 if op == "/" and operand == 0 else apply(op, before, operand)) + error
        self.steps.append(Step(before=before, op=op, operand=operand, after=after, event=event))
        return after

    def plausible(self) -> bool:
        """Whole results and numbers above zero."""
        whole = all(s.after > 0 and (s.op != "/" or s.operand and s.before % s.operand == 0) for s in self.steps)
        return whole and all(number is None or number > 0 for _, number in self.moves)

    def lines(self) -> list[str]:
        """As a trace writes it: a line for each calculation, then the plan."""
        label = {"": "Plan", "else": "Else"}.get(self.when, f"If {self.when}")
        return [*(step.line() for step in self.steps), f"{label}: {', '.join(map(_name, self.moves))}"]


Reasoning = list[Part]  # of all branches


def write_trace(reasoning: Reasoning, code: str | None = None) -> str:
    """The trace that says `reasoning`, and at its end `code` if there is any."""
    return "\n".join([*(line for part in reasoning for line in part.lines()), *([code] if code else [])])


def plan_of(reasoning: Reasoning) -> Plan:
    """The plan that `reasoning` states, without its calculations."""
    return [(part.when, part.moves) for part in reasoning]


def _name(move: Move) -> str:
    op, number = move
    return "sum" if op == "sum" else f"{NAMED[op]} {number}"


# --- from the branches to the reasoning ------------------------------------------------------


def derive_reasoning(branches: list[Branch]) -> Reasoning:
    """The calculations that find every hidden number, and the actions that follow from them."""
    return [solve_branch(branch) for branch in branches]


def solve_branch(branch: Branch, slip: tuple[int, int] = (-1, 0)) -> Part:
    """Find the hidden numbers of one branch, then write its actions; `slip` (index, error) falsifies a calculation.

    From the example's input on, from its output back, and what must stand between the two.
    """
    part = Part(when=branch.when, slip=slip, moves=[(a.op, None if a.hidden else a.number) for a in branch.actions])
    moves, note = part.moves, part.calculate
    front, back = branch.example
    hidden = [i for i, a in enumerate(branch.actions) if a.hidden]
    if branch.following is not None:
        factor = next(i for i in hidden if moves[i][0] == "*")
        moves[factor] = ("*", note("times", branch.following, "-", back))
        hidden.remove(factor)
    if not hidden:
        return part
    (gap,) = hidden
    for move in moves[:gap]:
        front = _forward(move, front, note)
    for op, number in reversed(moves[gap + 1 :]):
        back = note(f"undo {_name((op, number))}", back, {"+": "-", "-": "+", "*": "/"}[op], number)
    op = moves[gap][0]
    pair = (front, "-", back) if op == "-" else (back, "-" if op == "+" else "/", front)
    moves[gap] = (op, note(f"so {NAMED[op]}", *pair))
    return part


def _forward(move: Move, value: int, note: Callable[[str, int, str, int], int]) -> int:
    op, number = move
    if op != "sum":
        return note(_name(move), value, op, number)
    total = 1
    for i in range(2, value + 1):
        total = note("sum", total, "+", i)
    return total


def run_plan(plan: Plan, n: int) -> int:
    """What a program that follows `plan` prints for the input n; a number that no branch names stays as it is."""
    for when, moves in plan:
        if branch_applies(when, n):
            return reduce(act, moves, n)
    return n


def act(n: int, move: Move) -> int:
    """What an action makes of the number n."""
    op, number = move
    return sum(range(n + 1)) if op == "sum" else apply(op, n, number)


def branch_applies(when: str, n: int) -> bool:
    """Whether a branch is for the number n."""
    word, _, limit = when.partition(" ")
    if word in ("even", "odd"):
        return n % 2 == (word == "odd")
    return n > int(limit) if word == "above" else n < int(limit) if word == "below" else True


def write_program(plan: Plan) -> str:
    """The Python program that follows `plan`."""
    lines = ["n = int(input())"]
    for when, moves in plan:
        word, _, limit = when.partition(" ")
        if word:
            lines.append("else:" if word == "else" else f"if {CONDITIONS[word].format(limit=limit)}:")
        indent = "    " if word else ""
        lines += [indent + ("n = sum(range(n + 1))" if op == "sum" else f"n {op}= {number}") for op, number in moves]
    return "\n".join([*lines, "print(n)"])


# --- reading traces ---------------------------------------------------------------------------


def true_branches(problem: Problem) -> list[Branch]:
    """The ground truth of a problem of this family; raises KeyError for any other problem."""
    return [Branch.model_validate(branch) for branch in problem.metadata["branches"]]


def read_plan(trace: str) -> Plan:
    """The plan lines of `trace`, in order. A line with anything but actions in it is no plan line."""
    plan: Plan = []
    for condition, otherwise, text in PLAN_LINE.findall(trace):
        moves = [PLAN_MOVE.fullmatch(part.strip()) for part in text.rstrip(". ").split(",")]
        if all(moves):
            when = condition or otherwise.lower()
            plan.append((when, [(OPERATIONS[m[1]], int(m[2])) if m[1] else ("sum", None) for m in moves]))
    return plan


def has_code(trace: str) -> bool:
    """True if `trace` holds Python code."""
    return CODE.search(trace) is not None


def bare_plan(problem: Problem) -> str:
    """The true plan without the calculations that lead to it."""
    return write_trace([part.model_copy(update={"steps": []}) for part in derive_reasoning(true_branches(problem))])


# --- the generator ----------------------------------------------------------------------------


def generate_problem(rng: random.Random, n_steps: int, max_number: int, max_value: int, problem_id: str) -> Problem:
    """One program whose trace has `n_steps` calculations.

    Added and subtracted numbers are at most `max_number`, all values of a trace in 1..`max_value` (both at most
    LARGEST_TOLD).

    Raises:
        ValueError: the bounds leave no room for a program.
    """
    drawn = (_draw(rng, n_steps, max_number, max_value) for _ in range(DRAWS))
    branches = next(filter(None, drawn), None)
    if branches is None:
        raise ValueError(
            f"no program of {n_steps} steps found with numbers to {max_number} and values to {max_value}: raise "
            "problems.max_value or lower problems.steps"
        )
    truth = derive_reasoning(branches)
    plan = plan_of(truth)
    cases = [{"input": f"{n}\n", "output": f"{run_plan(plan, n)}\n"} for n in _inputs(rng, branches)]
    return Problem(
        problem_id=problem_id,
        source="tiny_code",
        domain="code",
        task_type="program_from_examples",
        problem=_tell(rng, branches, max_number),
        reference_solution=write_trace(truth),
        answer=write_program(plan),
        metadata={
            "branches": [branch.model_dump() for branch in branches],
            "steps": [step.model_dump() for part in truth for step in part.steps],
            "tests": {"style": "stdio", "cases": cases},
        },
    )


def _draw(rng: random.Random, n_steps: int, max_number: int, max_value: int) -> list[Branch] | None:
    """Branches of a random shape, or None if the numbers drawn do not fit."""
    shape = rng.choice(["line", "line", "branches", "slope", "sum"])
    if shape == "branches" and n_steps > 1:
        first = rng.randint(1, n_steps - 1)
        word = rng.choice(list(CONDITIONS))
        when = word if word in ("even", "odd") else f"{word} {rng.randint(4, max(4, max_number))}"
        lengths = {when: first, "else": n_steps - first}
        found = [_draw_branch(rng, w, when, "line", n, max_number, max_value) for w, n in lengths.items()]
        return found if all(found) and found[0].actions != found[1].actions else None
    branch = _draw_branch(rng, "", "", shape, n_steps, max_number, max_value)
    return [branch] if branch else None


def _draw_branch(
    rng: random.Random, when: str, condition: str, shape: str, n_steps: int, max_number: int, max_value: int
) -> Branch | None:
    """One branch whose example fits `when` and takes `n_steps` calculations."""
    x = rng.randint(2, 4) if shape == "sum" else rng.randint(1, min(max_number, max_value, LARGEST_TOLD - 1))
    n_actions = n_steps - {"sum": x - 1, "slope": 1}.get(shape, 0)
    if n_actions < (2 if shape == "slope" else 1) or branch_applies(condition, x) != (when != "else"):
        return None
    actions = _draw_actions(rng, n_actions, max_number)
    hidden = {rng.randrange(n_actions)}
    if shape == "slope":
        factors = [i for i, a in enumerate(actions) if a.op == "*"]
        hidden = {i for i, a in enumerate(actions) if a.op != "*"}
        if len(factors) != 1 or len(hidden) < 1:
            return None
        hidden = {factors[0], rng.choice(sorted(hidden))}
    actions = [a.model_copy(update={"hidden": i in hidden}) for i, a in enumerate(actions)]
    if shape == "sum":
        actions = [Action(op="sum"), *actions]
    moves = [(a.op, a.number) for a in actions]
    inputs = [x, x + 1] if shape == "slope" else [x]
    values = {n: list(accumulate(moves, act, initial=n)) for n in inputs}
    if not all(0 < value <= max_value for n in inputs for value in values[n][1:]):
        return None
    following = values[x + 1][-1] if shape == "slope" else None
    return Branch(when=when, actions=actions, example=(x, values[x][-1]), following=following)


def _draw_actions(rng: random.Random, n: int, max_number: int) -> list[Action]:
    """Sums and products in turn, so that no two neighbours may change places."""
    product = rng.random() < 0.5
    actions = []
    for i in range(n):
        if product == (i % 2 == 0):
            actions.append(Action(op="*", number=rng.randint(2, 5)))
        else:
            actions.append(Action(op=rng.choice("++-"), number=rng.randint(1, max_number)))
    return actions


def _inputs(rng: random.Random, branches: list[Branch]) -> list[int]:
    """CASES inputs that no example shows, the same number for each branch, the limit among them."""
    shown = {x for branch in branches for x, _ in _examples(branch)}
    free = [n for n in range(LARGEST_INPUT + 1) if n not in shown]
    chosen: list[int] = []
    for branch in branches:
        mine = [n for n in free if branch_applies(branches[0].when, n) == (branch.when != "else")]
        limit = [n for n in mine if branches[0].when.endswith(f" {n}")]
        share = min(CASES // len(branches), len(mine)) - len(limit)
        chosen += limit + rng.sample([n for n in mine if n not in limit], share)
    return chosen


def _tell(rng: random.Random, branches: list[Branch], max_number: int) -> str:
    """The task in one of several surface forms, each branch with its example, with or without a distractor."""
    sentences = [rng.choice(OPENINGS)]
    for branch in branches:
        word, _, limit = branch.when.partition(" ")
        condition = f"If n is {word}{f' {NUMBER_WORDS[int(limit)]}' if limit else ''}, it "
        start = {"": "It ", "else": "Otherwise it "}.get(word, condition)
        sentences.append(start + ", then ".join(_tell_action(rng, a) for a in branch.actions) + ".")
        form = rng.choice(EXAMPLES)
        sentences += [form.format(x=NUMBER_WORDS[x], y=NUMBER_WORDS[y]) for x, y in _examples(branch)]
    if rng.random() < 0.25:
        extra = rng.choice(DISTRACTORS).format(n=NUMBER_WORDS[rng.randint(2, max_number)])
        sentences.insert(rng.choice([1, len(sentences)]), extra)
    return " ".join(sentences)


def _examples(branch: Branch) -> Iterator[tuple[int, int]]:
    yield branch.example
    if branch.following is not None:
        yield branch.example[0] + 1, branch.following


def _tell_action(rng: random.Random, action: Action) -> str:
    number = rng.choice(HIDDEN) if action.hidden else NUMBER_WORDS[action.number] if action.number else ""
    if action.op == "*" and action.hidden:  # "takes it a fixed number times" is no English
        return f"multiplies by {number}"
    return rng.choice(TOLD[action.op]).format(n=number)


def signature(problem: Problem) -> str:
    """What makes two problems the same, whatever their words: conditions, actions and examples."""
    return str(problem.metadata["branches"])


# `tinyworld.generate_splits` for this family.
generate_splits = partial(tinyworld.generate_splits, generate=generate_problem, sign=signature)
