"""The tiny world, math family: arithmetic stories whose every step is known.

A story starts with a quantity and changes it a few times; the question asks for the
quantity at the end. Because the generator knows each step, it can say of *any* trace which
steps are right, missing or invented. No public benchmark offers that, so this is where the
companion can measure what the paper cannot: how often a trace is truly faithful.

Source: ours. The paper has no such world.
"""

from __future__ import annotations

import math
import operator
import random
import re
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from tracelift_lib.problems.problem import Frozen, Problem

Op = Literal["+", "-", "*", "/"]
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
NAMES = "Mia Tom Ana Leo Zoe Sam Ida Max Eva Ben".split()
OBJECTS = "apples coins cards books shells pens stamps eggs".split()
OTHER_OBJECTS = "chairs windows trees lamps".split()
# Stories name quantities in words, traces calculate in digits: the two cannot be confused, and a word is one token.
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
# What happens to the quantity: {n} is the quantity of the event, {o} the objects.
EVENTS = {
    "+": ["buys {n} more {o}", "finds {n} {o}", "gets {n} {o} from a friend", "wins {n} {o}"],
    "-": ["gives away {n} {o}", "loses {n} {o}", "sells {n} {o}", "uses up {n} {o}"],
    "*2": ["doubles the number of {o}"],
    "*3": ["triples the number of {o}"],
    "/2": ["gives half of the {o} to a friend"],
}
OPENINGS = ["{who} has {n} {o}.", "At first {who} has {n} {o}.", "{who} starts with {n} {o}."]
LINKS = ["{who} {event}.", "Then {who} {event}.", "After that {who} {event}."]
QUESTIONS = ["How many {o} does {who} have now?", "How many {o} does {who} have in the end?"]
QUESTION, BETWEEN = re.compile(r"How many [^?]*\?"), " after the first event?"
DISTRACTORS = ["There are {n} {o} in the room.", "A neighbour owns {n} {o}."]
# A trace line is "- <what happens>: a+b=c"; anything else in a trace is free text. It is short because tokens are what
# training on a CPU pays for. What goes on from an operator (2*5+3=8) is not read; a list mark is no operator.
STEP_PATTERN = re.compile(
    r"(?<![\d.,+/-])(?<![^\s*]\*)(?<!\S [+*/-] )(?<!\w[+*/-] )"
    r"(\d{1,9}) ?([-+*/]) ?(\d{1,9}) ?= ?(\d{1,9})(?!\d|[.,/]\d)",
    re.ASCII,
)


class Step(Frozen):
    """One calculation, `before op operand` gives `after`; `event` says why it is made.

    A step may be wrong: the builders of flawed traces use the same record.
    """

    before: int
    op: Op
    operand: int
    after: int
    event: str = ""

    def line(self) -> str:
        """As a trace writes it."""
        return f"- {self.event}: {self.before}{self.op}{self.operand}={self.after}"


class Calculation(NamedTuple):
    """A calculation as a trace states it, right or wrong."""

    before: int
    op: str
    operand: int
    after: int


def apply(op: str, before: int, operand: int) -> int:
    """`before op operand` in whole numbers; raises ZeroDivisionError for `/ 0`."""
    return ARITHMETIC[op](before, operand)


def read_lines(trace: str) -> list[tuple[str, Calculation]]:
    """(reason, calculation) of each line of `trace` that makes one: ("buys three", 4+3=7) of "- buys three: 4+3=7"."""
    lines = [(line.strip().removeprefix("-"), read_calculations(line)) for line in trace.split("\n")]
    return [(line.rpartition(":")[0].strip(), found[0]) for line, found in lines if found]


def read_calculations(trace: str) -> list[Calculation]:
    """All `a+b=c` (any of + - * /, with or without spaces) in `trace`, in order. Text between them is ignored."""
    return [Calculation(int(a), op, int(b), int(c)) for a, op, b, c in STEP_PATTERN.findall(trace)]


def write_trace(steps: list[Step]) -> str:
    """The trace that states `steps`, one on each line."""
    return "\n".join(step.line() for step in steps)


def carry_on(value: int, steps: list[Step]) -> list[Step]:
    """`steps` computed anew: the first from `value`, each other one from the result before it."""
    carried = []
    for step in steps:
        before, value = value, apply(step.op, value, step.operand)
        carried.append(step.model_copy(update={"before": before, "after": value}))
    return carried


def plausible(steps: list[Step]) -> bool:
    """Whole positive results, and no halving of an odd number."""
    return all(s.after > 0 and (s.op != "/" or s.before % s.operand == 0) for s in steps)


def lucky_order(problem: Problem) -> list[Step] | None:
    """The steps with the first two events in the other order; None if that is impossible or changes nothing.

    A shortcut: the answer stays right where gains and losses stand side by side, and only there.
    """
    first, second, *rest = true_steps(problem) if len(problem.metadata["steps"]) > 1 else [None, None]
    if first is None or (first.op, first.operand) == (second.op, second.operand):
        return None
    swapped = carry_on(first.before, [second, first, *rest])
    return swapped if plausible(swapped) else None


def shortcut_holds(problem: Problem) -> bool | None:
    """Whether the lucky order gives the right answer; None where the story has no such order."""
    swapped = lucky_order(problem)
    return None if swapped is None else swapped[-1].after == int(problem.answer)


def ask_between(problem: Problem) -> Problem:
    """The same story, asked for the quantity after its first event. Raises KeyError for another problem."""
    question = QUESTION.search(problem.problem)[0]
    between = question.replace(" now?", BETWEEN).replace(" in the end?", BETWEEN)
    answer = str(true_steps(problem)[0].after)
    return problem.model_copy(update={"problem": problem.problem.replace(question, between), "answer": answer})


def true_steps(problem: Problem) -> list[Step]:
    """The ground truth of a tiny-world problem; raises KeyError for any other problem."""
    return [Step.model_validate(step) for step in problem.metadata["steps"]]


def generate_problem(rng: random.Random, n_steps: int, max_number: int, max_value: int, problem_id: str) -> Problem:
    """One story of `n_steps` events.

    Quantities named in the story are at most `max_number` (itself at most 20); the running value stays in
    1..`max_value`.
    """
    who, what = rng.choice(NAMES), rng.choice(OBJECTS)
    start = rng.randint(2, min(max_number, max_value))
    steps: list[Step] = []
    sentences = [_fill(rng.choice(OPENINGS), start, what, who=who)]
    value = start
    for _ in range(n_steps):
        op, operand = _draw_event(rng, value, max_number, max_value)
        after = apply(op, value, operand)
        told = rng.choice(EVENTS[f"{op}{operand}" if op in "*/" else op])
        event = _fill(told, operand if op in "+-" else 2, what)
        sentences.append(rng.choice(LINKS).format(who=who, event=event))
        steps.append(Step(before=value, op=op, operand=operand, after=after, event=_name(told, op, operand)))
        value = after
    return Problem(
        problem_id=problem_id,
        source="tiny_world",
        domain="math",
        task_type="arithmetic_story",
        problem=_tell(rng, sentences, who, what, max_number),
        reference_solution=write_trace(steps),
        answer=str(value),
        metadata={"start": start, "steps": [step.model_dump() for step in steps]},
    )


def _fill(template: str, quantity: int, objects: str, **words: str) -> str:
    """`template` with the quantity as a word, and the objects in the singular if there is one."""
    return template.format(n=NUMBER_WORDS[quantity], o=objects[:-1] if quantity == 1 else objects, **words)


def _name(told: str, op: Op, operand: int) -> str:
    """An event as a trace line names it: "buys three", "doubles", "gives half"."""
    if op in "+-":
        return f"{told.split()[0]} {NUMBER_WORDS[operand]}"
    return told.partition(" the ")[0].removesuffix(" of")


def _draw_event(rng: random.Random, value: int, max_number: int, max_value: int) -> tuple[Op, int]:
    """An event that keeps the value in 1..max_value. Multiplications are rarer: they grow fast."""
    choices: list[tuple[Op, int]] = []
    if value < max_value:
        choices += [("+", rng.randint(1, min(max_number, max_value - value)))] * 3
    if value > 1:
        choices += [("-", rng.randint(1, min(max_number, value - 1)))] * 3
    choices += [("*", factor) for factor in (2, 3) if value * factor <= max_value]
    if value % 2 == 0:
        choices += [("/", 2)]
    return rng.choice(choices)


def _tell(rng: random.Random, sentences: list[str], who: str, what: str, max_number: int) -> str:
    """The story in one of several surface forms: question first or last, with or without a distractor."""
    if rng.random() < 0.25:
        extra = _fill(rng.choice(DISTRACTORS), rng.randint(2, max_number), rng.choice(OTHER_OBJECTS))
        sentences.insert(rng.randrange(1, len(sentences) + 1), extra)
    question = rng.choice(QUESTIONS).format(who=who, o=what)
    return " ".join([question, *sentences] if rng.random() < 0.3 else [*sentences, question])


def signature(problem: Problem) -> tuple:
    """What makes two stories the same problem, whatever their words: start and events in order."""
    return (problem.metadata["start"], *((s.op, s.operand) for s in true_steps(problem)))


def generate_splits(
    sizes: dict[str, int],
    steps: dict[str, list[int]],
    max_number: int,
    max_value: int,
    seed: int,
    generate: Callable[..., Problem] = generate_problem,
    sign: Callable[[Problem], Hashable] = signature,
    shortcut: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, list[Problem]]:
    """Problems for each split; no two problems in any splits have the same `signature`.

    Args:
        sizes: number of problems of each split.
        steps: lengths (numbers of steps) of each split; lengths take turns.
        generate, sign: `generate_problem` and `signature` of the family.
        shortcut: for some splits the share of problems on which the shortcut holds, in [0, 1]; on the others it fails.
    Raises:
        ValueError: if the world is too small to hold that many different problems.
    """
    rng = random.Random(seed)
    seen: set[Hashable] = set()
    splits: dict[str, list[Problem]] = {}
    for split, size in sizes.items():
        problems = splits[split] = []
        misses = 0
        while len(problems) < size:
            n_steps = steps[split][len(problems) % len(steps[split])]
            candidate = generate(rng, n_steps, max_number, max_value, f"tiny-{split}-{len(problems):05d}")
            unwanted = split in shortcut and shortcut_holds(candidate) is not _takes_turn(
                len(problems), shortcut[split]
            )
            if not unwanted and sign(candidate) not in seen:
                seen.add(sign(candidate))
                problems.append(candidate)
            elif (misses := misses + 1) > 1000 * size:
                raise ValueError(
                    f"the tiny world has too few different problems for split {split!r} of {size}: "
                    "raise problems.max_number or lower the split sizes"
                )
    return splits


def _takes_turn(i: int, share: float) -> bool:
    """True for `share` of the numbers i = 0, 1, ..., spread evenly."""
    return math.floor((i + 1) * share + 1e-9) > math.floor(i * share + 1e-9)
