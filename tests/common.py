"""Things made by hand for several test files, without the library's own arithmetic."""

from __future__ import annotations

import copy
import re
from pathlib import Path

from tracelift_lib.problems.problem import Problem

PROJECT = Path(__file__).resolve().parent.parent
DATA = PROJECT.parent / "shared" / "data"  # public data; tests that read it skip where it is absent
UPSTREAM = {  # overrides of preset check with which the fixture `trained_home` is made
    "problems.sizes.rl": 4,
    "executor.steps": 150,  # writes a trace about every second time
    "planner_training.max_completion": 64,
}
MATH = ("problem_understanding", "solution_strategy", "step_coherence", "calculation_correctness", "answer_support")
CODE = ("task_understanding", "plan_quality", "step_coherence", "action_support", "non_leakage")


def calculate(a: int, op: str, b: int) -> int:
    """Exact arithmetic for the tests; a division must come out even."""
    if op == "/":
        assert a % b == 0, f"{a}/{b} is not whole"
        return a // b
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def story(start: int, *events: tuple[str, int], problem_id: str = "story-0") -> Problem:
    """A tiny-world problem with these (operation, operand) events, its ground truth filled in by `calculate`."""
    steps, value = [], start
    for op, operand in events:
        after = calculate(value, op, operand)
        event = f"gets {operand}" if op == "+" else f"gives {operand}" if op == "-" else f"times {operand}"
        steps.append({"before": value, "op": op, "operand": operand, "after": after, "event": event})
        value = after
    trace = "\n".join(f"{s['event']}: {s['before']} {s['op']} {s['operand']} = {s['after']}." for s in steps)
    return Problem(
        problem_id=problem_id,
        source="tiny_world",
        domain="math",
        task_type="arithmetic_story",
        problem=f"Mia has {start} coins. (story {problem_id}) How many coins does Mia have now?",
        reference_solution=trace,
        answer=str(value),
        metadata={"start": start, "steps": steps},
    )


NUMBER_WORDS = dict(
    zip(
        (
            "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen twenty"
        ).split(),
        range(1, 21),
    )
)


def quantities(text: str) -> list[int]:
    """The quantities that a story or an event names, in words or in digits, in order."""
    words = re.findall(r"[a-z]+|\d+", text.lower())
    return [int(w) if w.isdigit() else NUMBER_WORDS[w] for w in words if w.isdigit() or w in NUMBER_WORDS]


def lines(*calculations: str) -> str:
    """A trace of lines such as '3 + 2 = 5'."""
    return "\n".join(f"then: {c}." for c in calculations)


def group_record(problem_id: str = "p-1") -> dict:
    """A valid group record, as the released data lays it out, written by hand."""
    good = {name: 4 for name in MATH} | {"total": 1.0}
    bad = {name: 4 for name in MATH} | {"solution_strategy": 2, "answer_support": 0, "total": 0.45}
    return copy.deepcopy(
        {
            "problem_id": problem_id,
            "source": "hand",
            "task_type": "arithmetic_story",
            "problem": "Mia has 3 coins ...",
            "reference_solution": "gets 2: 3 + 2 = 5.",
            "positive_pool": [{"reasoning": "gets 2: 3 + 2 = 5.", "rubric": good}],
            "negative_bank": [
                {
                    "reasoning": "gets 2: 3 - 2 = 1.",
                    "rubric": bad,
                    "negative_kind": "wrong_operation",
                    "rubric_label": "weak",
                    "rubric_score_raw": 4.5,
                    "rubric_reason": "wrong operation",
                },
                {"reasoning": "gets 2: 3 + 2 = 6.", "rubric": dict(bad, total=0.5), "negative_kind": "arithmetic_slip"},
            ],
            "metadata": {"answer": "5"},
        }
    )


def has_path(text: str, path: Path, line: int) -> bool:
    """Whether a message names the file and the line."""
    return re.search(re.escape(f"{path}:{line}") + r"\b", text) is not None
