"""The fourteen kinds of flaw, seven a domain: what each is and which rubric dimensions it hurts.

method.md section 8: of the paper's names only `wrong_algorithm_choice` is available to us, so these fourteen and their
definitions are ours. Every maker (exact, from text or by an LLM), the LLM's instructions, the data card and the
programmatic rubric read this one registry.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Domain = Literal["math", "code"]


class Kind(NamedTuple):
    """One kind of flaw.

    `hurts` names the rubric dimensions it should lower, the one hurt most first. `keeps_answer`: the trace still leads
    to the right answer or program, only its support or its form is damaged.
    """

    name: str
    domain: Domain
    definition: str
    hurts: tuple[str, ...]
    example: str
    keeps_answer: bool = False


KINDS: dict[tuple[str, str], Kind] = {
    (kind.domain, kind.name): kind
    for kind in (
        Kind(
            "wrong_operation",
            "math",
            "One step combines the right quantities by the wrong operation; what follows builds on it.",
            ("solution_strategy", "answer_support"),
            "For 3 boxes of 12 eggs: '3 + 12 = 15 eggs' where 3 * 12 = 36 is meant.",
        ),
        Kind(
            "arithmetic_slip",
            "math",
            "One calculation is set up rightly but its result is a little off; what follows uses the wrong result.",
            ("calculation_correctness", "answer_support"),
            "'3 * 12 = 34 eggs, and 34 - 6 = 28 are left.'",
        ),
        Kind(
            "misread_quantity",
            "math",
            "One quantity of the problem is taken for another number, wherever the trace uses it.",
            ("problem_understanding", "answer_support"),
            "The problem says 12 eggs a box, the trace counts with 21: '3 * 21 = 63 eggs'.",
        ),
        Kind(
            "lost_event",
            "math",
            "One thing that the problem tells (an event, a part of a sum) is forgotten together with its effect.",
            ("problem_understanding", "solution_strategy", "answer_support"),
            "Six eggs break, but the trace goes on with all 36.",
        ),
        Kind(
            "swapped_events",
            "math",
            "Two neighbouring steps whose order matters are taken in the wrong order.",
            ("solution_strategy", "step_coherence", "answer_support"),
            "First a discount of 5 dollars and then a third off, where the problem takes the third off first.",
        ),
        Kind(
            "stale_value",
            "math",
            "One step goes on from a value before the newest one, as if the step between had not happened.",
            ("step_coherence", "answer_support"),
            "'36 - 6 = 30 eggs are left. Half of them: 36 / 2 = 18.'",
        ),
        Kind(
            "unsupported_leap",
            "math",
            "One calculation is left out while its result is used: the answer is right, its support has a hole.",
            ("answer_support", "step_coherence"),
            "'So 30 / 2 = 15 eggs', where nothing has said how the 30 came about.",
            keeps_answer=True,
        ),
        Kind(
            "wrong_algorithm_choice",
            "code",
            "One step uses a method that cannot give what the task asks (smallest for largest, product for sum).",
            ("plan_quality", "action_support"),
            "To find the longest word: 'Give back the smallest of the words by length'.",
        ),
        Kind(
            "misread_specification",
            "code",
            "One condition, bound or input of the task is taken for another (strict for inclusive, even for odd).",
            ("task_understanding", "action_support"),
            "The task asks for the even numbers, the plan keeps those whose remainder by 2 differs from 0.",
        ),
        Kind(
            "wrong_constant",
            "code",
            "One number that the program needs (a start value, a bound, an index, a factor) is wrong.",
            ("action_support", "plan_quality"),
            "A product starts at 0 instead of 1.",
        ),
        Kind(
            "missing_step",
            "code",
            "One necessary step of the plan is left out.",
            ("plan_quality", "step_coherence", "action_support"),
            "The loop compares with the best value so far but never says to update it.",
        ),
        Kind(
            "wrong_order",
            "code",
            "Two steps that depend on each other are taken in the wrong order.",
            ("step_coherence", "plan_quality", "action_support"),
            "The counter is increased before its old value is stored.",
        ),
        Kind(
            "unsupported_leap",
            "code",
            "One step is replaced by the claim that its result is there: the plan says what, but no longer how.",
            ("action_support", "plan_quality"),
            "'The total is then what the task asks for', with no word about how to add it up.",
            keeps_answer=True,
        ),
        Kind(
            "leaked_code",
            "code",
            "The finished program is pasted into the trace, which is to hold reasoning only.",
            ("non_leakage",),
            "After the plan: 'The program is def add(a, b): return a + b'.",
            keeps_answer=True,
        ),
    )
}


def kinds_of(domain: str) -> dict[str, Kind]:
    """The seven kinds of a domain, by name."""
    return {name: kind for (of, name), kind in KINDS.items() if of == domain}


class Flaw(NamedTuple):
    """A flawed trace, how much of it the flaw spoils, in (0, 1], and for code the program that follows from it."""

    text: str
    severity: float
    program: str | None = None
