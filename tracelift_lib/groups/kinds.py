"""The one registry of the fourteen kinds of flaw, seven for each domain: what each is, and what it hurts.

docs/method.md section 8: of the paper's names only `wrong_algorithm_choice` is available to us, so these fourteen and
their definitions are ours. Every maker (exact, from text or by an LLM), the LLM's instructions, the data card and the
programmatic rubric read this registry; its order is the order in which kinds are drawn.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
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


class Flaw(NamedTuple):
    """A flawed trace, how much of it the flaw spoils, in (0, 1], and for code the program that follows from it."""

    text: str
    severity: float
    program: str | None = None


_REGISTRY: dict[Domain, dict[str, tuple]] = {  # name: (definition, hurts, example, keeps_answer)
    "math": {
        "wrong_operation": (
            "One step combines the right quantities by the wrong operation; what follows builds on it.",
            ("solution_strategy", "answer_support"),
            "For 3 boxes of 12 eggs: '3 + 12 = 15 eggs' where 3 * 12 = 36 is meant.",
        ),
        "arithmetic_slip": (
            "One calculation is set up rightly but its result is a little off; what follows uses the wrong result.",
            ("calculation_correctness", "answer_support"),
            "'3 * 12 = 34 eggs, and 34 - 6 = 28 are left.'",
        ),
        "misread_quantity": (
            "One quantity of the problem is taken for another number, wherever the trace uses it.",
            ("problem_understanding", "answer_support"),
            "The problem says 12 eggs a box, the trace counts with 21: '3 * 21 = 63 eggs'.",
        ),
        "lost_event": (
            "One thing that the problem tells (an event, a part of a sum) is forgotten together with its effect.",
            ("problem_understanding", "solution_strategy", "answer_support"),
            "Six eggs break, but the trace goes on with all 36.",
        ),
        "swapped_events": (
            "Two neighbouring steps whose order matters are taken in the wrong order.",
            ("solution_strategy", "step_coherence", "answer_support"),
            "First a discount of 5 dollars and then a third off, where the problem takes the third off first.",
        ),
        "stale_value": (
            "One step goes on from a value before the newest one, as if the step between had not happened.",
            ("step_coherence", "answer_support"),
            "'36 - 6 = 30 eggs are left. Half of them: 36 / 2 = 18.'",
        ),
        "unsupported_leap": (
            "One calculation is left out while its result is used: the answer is right, its support has a hole.",
            ("answer_support", "step_coherence"),
            "'So 30 / 2 = 15 eggs', where nothing has said how the 30 came about.",
            True,  # keeps the answer
        ),
    },
    "code": {
        "wrong_algorithm_choice": (
            "One step uses a method that cannot give what the task asks (smallest for largest, product for sum).",
            ("plan_quality", "action_support"),
            "To find the longest word: 'Give back the smallest of the words by length'.",
        ),
        "misread_specification": (
            "One condition, bound or input of the task is taken for another (strict for inclusive, even for odd).",
            ("task_understanding", "action_support"),
            "The task asks for the even numbers, the plan keeps those whose remainder by 2 differs from 0.",
        ),
        "wrong_constant": (
            "One number that the program needs (a start value, a bound, an index, a factor) is wrong.",
            ("action_support", "plan_quality"),
            "A product starts at 0 instead of 1.",
        ),
        "missing_step": (
            "One necessary step of the plan is left out.",
            ("plan_quality", "step_coherence", "action_support"),
            "The loop compares with the best value so far but never says to update it.",
        ),
        "wrong_order": (
            "Two steps that depend on each other are taken in the wrong order.",
            ("step_coherence", "plan_quality", "action_support"),
            "The counter is increased before its old value is stored.",
        ),
        "unsupported_leap": (
            "One step is replaced by the claim that its result is there: the plan says what, but no longer how.",
            ("action_support", "plan_quality"),
            "'The total is then what the task asks for', with no word about how to add it up.",
            True,  # keeps the answer
        ),
        "leaked_code": (
            "The finished program is pasted into the trace, which is to hold reasoning only.",
            ("non_leakage",),
            "After the plan: 'The program is def add(a, b): return a + b'.",
            True,  # keeps the answer
        ),
    },
}
KINDS = {
    (domain, name): Kind(name, domain, *kind) for domain, kinds in _REGISTRY.items() for name, kind in kinds.items()
}


def kinds_of(domain: str) -> dict[str, Kind]:
    """The seven kinds of a domain by name, in the registry's order."""
    return {name: kind for (of, name), kind in KINDS.items() if of == domain}


def makers_in(module: str, domain: Domain) -> dict[str, Callable]:
    """The makers of `module`, in the registry's order: its public functions so far, each named after the kind it makes.

    Raises:
        ImportError: a kind of the domain has no maker, or a public function is named after no kind.
    """
    functions = inspect.getmembers(sys.modules[module], inspect.isfunction)
    makers = {name: f for name, f in functions if f.__module__ == module and not name.startswith("_")}
    if makers.keys() != kinds_of(domain).keys():
        unmatched = ", ".join(sorted(makers.keys() ^ kinds_of(domain).keys()))
        raise ImportError(
            f"{module}: each kind of {domain} in groups/kinds.py needs one maker of its name: {unmatched}"
        )
    return {name: makers[name] for name in kinds_of(domain)}


def changed_share(before: str, after: str, heading: int = 0) -> float:
    """The share of the lines of `before`, without the first `heading`, from the first changed one on, in (0, 1]."""
    old, new = before.split("\n"), after.split("\n")
    same = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    return max(1, len(old) - same) / (len(old) - heading)
