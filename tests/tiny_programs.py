"""Generated programs made by hand, and readers of them that share nothing with the library: a problem's words are read
by their own rules, a program is run by Python."""

from __future__ import annotations

import operator
import re

from common import NUMBER_WORDS

from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinycode import (
    Action,
    Branch,
    derive_reasoning,
    plan_of,
    run_plan,
    write_program,
    write_trace,
)


def run(program: str, text: str) -> str:
    """What Python prints for `program` with `text` on stdin."""
    printed: list[str] = []
    console = {"input": lambda: text.strip(), "print": lambda value: printed.append(str(value))}
    exec(compile(program, "program", "exec"), console)
    return "".join(f"{line}\n" for line in printed)


def outputs(p: Problem, program: str) -> list[str]:
    return [run(program, case["input"]) for case in p.metadata["tests"]["cases"]]


def expected(p: Problem) -> list[str]:
    return [case["output"] for case in p.metadata["tests"]["cases"]]


WORDS = [  # (pattern, operation) of an action in the words of a problem; group 1 is its number, or that it is kept back
    (r"(?:adds|increases it by) (.+)", "+"),
    (r"(?:subtracts|lowers it by) (.+)", "-"),
    (r"multiplies by (.+)", "*"),
    (r"takes it (.+) times", "*"),
    (r"sums all numbers from one to it", "sum"),
]


def understand_action(text: str) -> tuple[str, int | None]:
    """(operation, number); None for a number that is kept back (and for a sum)."""
    ((op, word),) = ((op, m[1] if m.groups() else "") for rule, op in WORDS if (m := re.fullmatch(rule, text)))
    assert op == "sum" or word in NUMBER_WORDS or word in ("a fixed number", "a secret number"), text
    return op, NUMBER_WORDS.get(word)


def understand(text: str) -> tuple[list[tuple[str, list[tuple[str, int | None]]]], dict[int, int]]:
    """([(condition, actions)], {input: output}) of a problem, read from its words alone."""
    branches, examples = [], {}
    for sentence in re.findall(r"[^.]+\.", text):
        sentence = sentence.strip(" .")
        pair = re.fullmatch(r"(?:For|From|So) (\w+) (?:it prints|it makes|becomes) (\w+)", sentence)
        rule = re.fullmatch(r"(?:It|If n is (.+), it|(Otherwise) it) (.+)", sentence)
        if pair:
            examples[NUMBER_WORDS[pair[1]]] = NUMBER_WORDS[pair[2]]
        elif rule and not re.search("days ago|users", sentence):
            actions = [understand_action(part) for part in rule[3].split(", then ")]
            branches.append((rule[1] or (rule[2] or "").lower(), actions))
    return branches, examples


ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


# --- hand-made problems -----------------------------------------------------------------------
HIDDEN_PLUS_4 = Action(op="+", number=4, hidden=True)


def program(*branches: Branch, inputs=(1, 5, 6, 7, 8, 9)) -> Problem:
    truth = derive_reasoning(list(branches))
    plan = plan_of(truth)
    cases = [{"input": f"{n}\n", "output": f"{run_plan(plan, n)}\n"} for n in inputs]
    return Problem(
        problem_id="hand",
        source="tiny_code",
        domain="code",
        task_type="t",
        problem="by hand",
        reference_solution=write_trace(truth),
        answer=write_program(plan),
        metadata={
            "branches": [b.model_dump() for b in branches],
            "steps": [s.model_dump() for part in truth for s in part.steps],
            "tests": {"style": "stdio", "cases": cases},
        },
    )


LINE = program(
    Branch(  # three times n, plus a hidden 4, times 2: 20 for 2
        when="", actions=[Action(op="*", number=3), HIDDEN_PLUS_4, Action(op="*", number=2)], example=(2, 20)
    )
)
LINE_TRACE = "- times 3: 2*3=6\n- undo times 2: 20/2=10\n- so plus: 10-6=4\nPlan: times 3, plus 4, times 2"
LINE_PROGRAM = "n = int(input())\nn *= 3\nn += 4\nn *= 2\nprint(n)"
