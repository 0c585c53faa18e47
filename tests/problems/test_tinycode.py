"""The generated programs: their texts, their ground truth, how traces are read, and the seven kinds of flaw."""

import itertools
import operator
import random
import re
from collections import Counter

import pytest
from common import CODE, NUMBER_WORDS
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.groups.flaws.tiny_code import flawed_traces
from tracelift_lib.groups.group_maker import build_group
from tracelift_lib.groups.tiny_groups import kinds, perturb
from tracelift_lib.groups.truth import is_faithful, true_rubric
from tracelift_lib.models.base import answer_text
from tracelift_lib.planner.warm_start import habitual_trace
from tracelift_lib.problems import tinycode
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinycode import (
    Action,
    Branch,
    derive_reasoning,
    generate_problem,
    generate_splits,
    has_code,
    plan_of,
    read_plan,
    run_plan,
    signature,
    write_program,
    write_trace,
)
from tracelift_lib.problems.tinyworld import read_calculations, true_steps
from tracelift_lib.runs.presets import load_preset

SIZES = {"train": 120, "rl": 40, "test": 60, "long": 30}
LENGTHS = {"train": [2, 3, 3], "rl": [2, 3], "test": [1, 2, 3], "long": [4]}
MAX_NUMBER, MAX_VALUE = 9, 20
KINDS = (
    "wrong_algorithm_choice",
    "misread_specification",
    "wrong_constant",
    "missing_step",
    "wrong_order",
    "unsupported_leap",
    "leaked_code",
)
UNDERSTANDING, PLAN, COHERENCE, SUPPORT, LEAKAGE = CODE


@pytest.fixture(scope="module")
def splits():
    return generate_splits(SIZES, LENGTHS, MAX_NUMBER, MAX_VALUE, seed=7)


@pytest.fixture(scope="module")
def problems(splits):
    return [p for members in splits.values() for p in members]


# --- independent readers: the text by its words, the program by running it ---------------------


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


def follow(branches, n: int) -> int:
    """What the told program prints for n, with every number known."""
    for condition, actions in branches:
        word, _, limit = condition.partition(" ")
        chosen = {
            "": True,
            "otherwise": True,
            "even": n % 2 == 0,
            "odd": n % 2 == 1,
            "above": n > NUMBER_WORDS.get(limit, 0),
            "below": n < NUMBER_WORDS.get(limit, 0),
        }
        if chosen[word]:
            for op, number in actions:
                n = max(n, 0) * (max(n, 0) + 1) // 2 if op == "sum" else ARITHMETIC[op](n, number)
            return n
    return n


def solutions(branches, examples) -> list:
    """Every way to fill in the numbers that are kept back (each in 1..40) so that all examples come out right."""
    filled = [[]]
    for condition, actions in branches:
        free = [i for i, (op, number) in enumerate(actions) if number is None and op != "sum"]
        ways = []
        for numbers in itertools.product(range(1, 41), repeat=len(free)):
            full = [(op, numbers[free.index(i)] if i in free else n) for i, (op, n) in enumerate(actions)]
            ways.append((condition, full))
        filled = [[*before, way] for before in filled for way in ways if _fits(branches, [*before, way], examples)]
    return filled


def _fits(told, filled, examples) -> bool:
    """Whether the examples that the filled branches decide come out right."""
    for x, y in examples.items():
        place = next(i for i, b in enumerate(told) if follow([(b[0], [("*", 0), ("+", 1)]), ("", [("*", 0)])], x) == 1)
        if place < len(filled) and follow([("", filled[place][1])], x) != y:
            return False
    return True


# --- the generator ----------------------------------------------------------------------------


def test_every_split_has_its_size_and_its_lengths_in_turn(splits):
    for split, size in SIZES.items():
        assert len(splits[split]) == size
        assert [len(read_calculations(p.reference_solution)) for p in splits[split]] == [
            LENGTHS[split][i % len(LENGTHS[split])] for i in range(size)
        ]


def test_the_words_have_one_solution_and_it_is_the_tested_one(problems):
    """Solved by trying all numbers: the examples must leave one program only, and its outputs are the tests'."""
    for p in problems:
        found = solutions(*understand(p.problem))
        assert len(found) == 1, p.problem
        cases = p.metadata["tests"]["cases"]
        assert [str(follow(found[0], int(c["input"]))) + "\n" for c in cases] == expected(p), p.problem


def test_reference_program_passes_its_tests_when_python_runs_it(problems):
    for p in problems:
        assert outputs(p, p.answer) == expected(p)
        assert answer_text(p) == p.answer


def test_cases_are_new_inputs_on_both_sides_of_a_condition(problems):
    for p in problems:
        branches, examples = understand(p.problem)
        inputs = [int(case["input"]) for case in p.metadata["tests"]["cases"]]
        assert p.metadata["tests"]["style"] == "stdio"
        assert 5 <= len(set(inputs)) == len(inputs) <= 8 and not set(inputs) & set(examples)
        if len(branches) == 2:
            first = [n for n in inputs if follow([(branches[0][0], [("*", 0)]), ("", [("*", 0), ("+", 1)])], n) == 0]
            assert min(len(first), len(inputs) - len(first)) >= 2


def test_a_limit_is_itself_tested_unless_it_is_an_example(problems):
    for p in problems:
        branches, examples = understand(p.problem)
        word, _, limit = branches[0][0].partition(" ")
        if word in ("above", "below") and NUMBER_WORDS[limit] not in examples:
            assert f"{NUMBER_WORDS[limit]}\n" in [case["input"] for case in p.metadata["tests"]["cases"]]


def test_no_two_problems_of_any_splits_are_the_same(problems):
    """Sameness is read from the words, so a fault in `signature` cannot hide it."""
    told = Counter(
        str((branches, sorted(examples.items())))
        for branches, examples in map(understand, (p.problem for p in problems))
    )
    assert max(told.values()) == 1
    assert len({p.problem_id for p in problems}) == len(problems)


def test_same_seed_same_problems_other_seed_others(splits):
    assert generate_splits(SIZES, LENGTHS, MAX_NUMBER, MAX_VALUE, seed=7) == splits
    other = generate_splits(SIZES, LENGTHS, MAX_NUMBER, MAX_VALUE, seed=8)
    assert sum(a.problem == b.problem for a, b in zip(splits["train"], other["train"])) < SIZES["train"] / 4


def test_all_shapes_and_forms_occur():
    sample = generate_splits({"a": 300}, {"a": [3]}, MAX_NUMBER, MAX_VALUE, seed=0)["a"]
    read = [understand(p.problem) for p in sample]
    words = Counter(branches[0][0].split(" ")[0] for branches, _ in read)
    assert set(words) == {"", "even", "odd", "above", "below"}
    assert {op for branches, _ in read for _, actions in branches for op, _ in actions} == {"+", "-", "*", "sum"}
    assert {len(branches[0][1]) for branches, _ in read if len(branches) == 1} == {2, 3}
    slopes = [1 for branches, examples in read if len(branches) == 1 and len(examples) == 2]
    distractors = sum(bool(re.search("days ago|users", p.problem)) for p in sample)
    assert 20 < len(slopes) < 200 and 20 < distractors < 150


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(2, 20), st.integers(10, 20))
def test_bounds_hold_for_any_setting(seed, n_steps, max_number, max_value):
    p = generate_problem(random.Random(seed), n_steps, max_number, max_value, "x")
    steps = true_steps(p)
    assert len(steps) == n_steps
    assert all(1 <= s.after <= max_value for s in steps)
    assert outputs(p, p.answer) == expected(p) and is_faithful(p, p.reference_solution)
    for _, actions in understand(p.problem)[0]:
        assert all(number is None or number <= max(max_number, 5) for _, number in actions)


@given(st.integers(0, 10**6), st.integers(1, 2), st.integers(5, 12))
def test_no_result_passes_the_bound_when_it_is_below_the_largest_number(seed, n_steps, max_value):
    """A number of up to 20 that is kept back is a result too: of 13 - 5, say, where values end at 5."""
    p = generate_problem(random.Random(seed), n_steps, 20, max_value, "x")
    assert all(1 <= s.after <= max_value for s in true_steps(p))


def test_values_that_have_no_word_are_refused():
    assert load_preset("check_code", overrides={"problems.max_value": 20}).problems.max_value == 20
    with pytest.raises(InputError, match="max_value of tiny_code"):
        load_preset("check_code", overrides={"problems.max_value": 21})


def test_a_world_that_is_too_small_is_refused(monkeypatch):
    """No value but 1 leaves no program that changes anything for two steps; the message names what to change."""
    monkeypatch.setattr(tinycode, "DRAWS", 200)
    with pytest.raises(ValueError, match="problems.max_value"):
        generate_problem(random.Random(0), 2, 9, 1, "x")


def test_signature_ignores_words_but_not_facts():
    a = program(Branch(when="", actions=[Action(op="*", number=3), HIDDEN_PLUS_4], example=(2, 10)))
    same = a.model_copy(update={"problem": "other words", "problem_id": "other"})
    others = [
        program(Branch(when="", actions=[Action(op="*", number=3), HIDDEN_PLUS_4], example=(3, 13))),
        program(
            Branch(when="", actions=[Action(op="*", number=3, hidden=True), Action(op="+", number=4)], example=(2, 10))
        ),
        program(Branch(when="", actions=[HIDDEN_PLUS_4, Action(op="*", number=3)], example=(2, 18))),
        program(Branch(when="even", actions=[Action(op="*", number=3), HIDDEN_PLUS_4], example=(2, 10))),
    ]
    assert signature(a) == signature(same) and signature(a) not in [signature(other) for other in others]


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


def test_one_line_program_by_hand():
    assert (LINE.reference_solution, LINE.answer) == (LINE_TRACE, LINE_PROGRAM)
    assert run(LINE_PROGRAM, "5\n") == "38\n"  # (15 + 4) * 2


@pytest.mark.parametrize(
    "branches, trace, source",
    [
        # The factor is the difference of two outputs: 17 - 14 = 3 for 5 and 4; then 14 - 12 = 2.
        (
            [
                Branch(
                    when="",
                    actions=[Action(op="*", number=3, hidden=True), Action(op="+", number=2, hidden=True)],
                    example=(4, 14),
                    following=17,
                )
            ],
            "- times: 17-14=3\n- times 3: 4*3=12\n- so plus: 14-12=2\nPlan: times 3, plus 2",
            "n = int(input())\nn *= 3\nn += 2\nprint(n)",
        ),
        # The other order: (n - 1) * 4 is 12 for 4 and 16 for 5; back from 12 to 3, and 4 - 3 = 1.
        (
            [
                Branch(
                    when="",
                    actions=[Action(op="-", number=1, hidden=True), Action(op="*", number=4, hidden=True)],
                    example=(4, 12),
                    following=16,
                )
            ],
            "- times: 16-12=4\n- undo times 4: 12/4=3\n- so minus: 4-3=1\nPlan: minus 1, times 4",
            "n = int(input())\nn -= 1\nn *= 4\nprint(n)",
        ),
        # Sum to 3 is 6; 18 / 6 = 3.
        (
            [Branch(when="", actions=[Action(op="sum"), Action(op="*", number=3, hidden=True)], example=(3, 18))],
            "- sum: 1+2=3\n- sum: 3+3=6\n- so times: 18/6=3\nPlan: sum, times 3",
            "n = int(input())\nn = sum(range(n + 1))\nn *= 3\nprint(n)",
        ),
        (
            [
                Branch(when="above 5", actions=[Action(op="-", number=4, hidden=True)], example=(7, 3)),
                Branch(
                    when="else",
                    actions=[Action(op="*", number=2, hidden=True), Action(op="+", number=1)],
                    example=(3, 7),
                ),
            ],
            "- so minus: 7-3=4\nIf above 5: minus 4\n- undo plus 1: 7-1=6\n- so times: 6/3=2\nElse: times 2, plus 1",
            "n = int(input())\nif n > 5:\n    n -= 4\nelse:\n    n *= 2\n    n += 1\nprint(n)",
        ),
    ],
)
def test_other_shapes_by_hand(branches, trace, source):
    p = program(*branches)
    assert (p.reference_solution, p.answer) == (trace, source)
    assert outputs(p, source) == expected(p)
    for b in branches:
        assert run(source, f"{b.example[0]}\n") == f"{b.example[1]}\n"
        assert b.following is None or run(source, f"{b.example[0] + 1}\n") == f"{b.following}\n"


@pytest.mark.parametrize(
    "when, yes, no",
    [
        ("", [0, 7], []),
        ("else", [0, 7], []),
        ("even", [0, 8], [1, 9]),
        ("odd", [1, 9], [0, 8]),
        ("above 5", [6, 20], [0, 5]),
        ("below 5", [0, 4], [5, 20]),
    ],
)
def test_conditions(when, yes, no):
    """The interpreter and the written program agree with the words, at the limit too."""
    plan = [(when, [("+", 100)])] if when != "else" else [("even", [("+", 100)]), ("else", [("+", 100)])]
    for n in yes + no:
        assert run_plan(plan, n) == (n + 100 if n in yes else n)
        assert run(write_program(plan), f"{n}\n") == f"{run_plan(plan, n)}\n"


# --- reading traces, and faithfulness ---------------------------------------------------------


@pytest.mark.parametrize(
    "text, plan",
    [
        ("", []),
        ("Plan: times 3", [("", [("*", 3)])]),
        ("Plan: sum, minus 12, plus 4", [("", [("sum", None), ("-", 12), ("+", 4)])]),
        ("so it goes\nPlan: times 3.\nthat is all", [("", [("*", 3)])]),
        ("If even: times 3\nElse: plus 4", [("even", [("*", 3)]), ("else", [("+", 4)])]),
        ("If below 7: times 3, plus 1", [("below 7", [("*", 3), ("+", 1)])]),
        ("If below: times 3", []),
        ("If blue: times 3", []),
        ("- times 3: 2*3=6", []),
        ("Plan: times", []),
        ("Plan: times three", []),
        ("Plan: times 3 plus 4", []),
        ("Plan: times 3, and so on", []),
        ("Plan: n *= 3", []),
        ("My Plan: times 3", []),
    ],
)
def test_reading_plans_out_of_free_text(text, plan):
    assert read_plan(text) == plan


@pytest.mark.parametrize(
    "text, found",
    [
        (LINE_TRACE, False),
        ("If even: times 3\nElse: plus 4", False),
        ("- for 4: 4+1=5", False),
        ("It will print the sum of the input", False),
        ("", False),
        (LINE_PROGRAM, True),
        ("print(n)", True),
        ("x = int(input())", True),
        ("so n *= 3", True),
        ("n = 4", True),
        ("```\nanything", True),
        ("def f(n):", True),
        ("    for i in x:", True),
        ("import os", True),
    ],
)
def test_code_is_seen(text, found):
    assert has_code(text) is found


def test_reference_trace_is_faithful_and_has_full_marks(problems):
    for p in problems:
        assert is_faithful(p, p.reference_solution)
        assert [tuple(c) for c in read_calculations(p.reference_solution)] == [
            (s.before, s.op, s.operand, s.after) for s in true_steps(p)
        ]
        rubric = true_rubric(p, p.reference_solution)
        assert rubric.labels == dict.fromkeys(CODE, 4) and rubric.total == 1.0


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 9))
def test_any_one_changed_digit_of_a_calculation_or_the_plan_is_unfaithful(problems, pick, place, shift):
    """Labels (before the colon) are free text, a limit in a plan's label is not."""
    p = problems[pick % len(problems)]
    text = p.reference_solution
    digits = [m.start() for m in re.finditer(r"\d(?=[^:\n]*$)|(?<=above )\d|(?<=below )\d", text, re.MULTILINE)]
    at = digits[place % len(digits)]
    changed = text[:at] + str((int(text[at]) + shift) % 10) + text[at + 1 :]
    assert is_faithful(p, text) and not is_faithful(p, changed)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_dropped_doubled_or_invented_line_is_unfaithful(problems, pick, first, second):
    p = problems[pick % len(problems)]
    rows = p.reference_solution.split("\n")
    i, j = first % len(rows), second % (len(rows) + 1)
    assert not is_faithful(p, "\n".join(rows[:i] + rows[i + 1 :]))
    assert not is_faithful(p, "\n".join(rows[:j] + [rows[i]] + rows[j:]))
    for extra in ("- so: 1+1=2", "Plan: plus 1", "print(n)"):
        assert not is_faithful(p, "\n".join(rows[:j] + [extra] + rows[j:]))


def test_only_problems_of_this_family_have_a_truth():
    p = LINE.model_copy(update={"metadata": {}})
    with pytest.raises(KeyError):
        is_faithful(p, LINE_TRACE)


def test_faithfulness_and_habits_go_by_the_domain():
    rng = random.Random(0)
    assert is_faithful(LINE, LINE_TRACE) and not is_faithful(LINE, LINE_TRACE + "\nprint(n)")
    assert habitual_trace(LINE, "full", rng) == LINE_TRACE
    assert habitual_trace(LINE, "bare_answer", rng) == "Plan: times 3, plus 4, times 2"
    assert habitual_trace(LINE, "skipped_step", rng) in flawed_traces(LINE, "unsupported_leap")
    assert habitual_trace(LINE, "wrong_operation", rng) in flawed_traces(LINE, "wrong_algorithm_choice")


# --- the seven kinds --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flawed(problems):
    """Every kind on every problem, three draws each: (problem, kind, trace)."""
    found = []
    for p in problems:
        for kind in KINDS:
            traces = flawed_traces(p, kind)
            found += [(p, kind, random.Random(draw).choice(traces)) for draw in range(3 if traces else 0)]
    return found


def of_kind(flawed, kind):
    chosen = [(p, trace) for p, k, trace in flawed if k == kind]
    assert len(chosen) > 100, f"{kind} hardly ever fits"
    return chosen


def calculations(trace):
    return [tuple(c) for c in read_calculations(trace)]


def wrong(trace):
    """Places where a calculation is wrong in itself."""
    return [i for i, (a, op, b, c) in enumerate(calculations(trace)) if ARITHMETIC[op](a, b) != c]


def moves(trace):
    return [m for _, branch in read_plan(trace) for m in branch]


def conditions(trace):
    return [when for when, _ in read_plan(trace)]


def test_there_are_exactly_our_seven_kinds():
    assert kinds("code") == KINDS
    assert len(kinds("math")) == 7 and set(kinds("math")) & set(KINDS) == {"unsupported_leap"}


def test_a_flawed_trace_leads_to_failure_unless_its_kind_keeps_the_program(flawed):
    """Python runs the program that the flawed trace plans."""
    for p, kind, trace in flawed:
        assert trace != p.reference_solution and not is_faithful(p, trace)
        kept = outputs(p, write_program(read_plan(trace))) == expected(p)
        assert kept == (kind in ("unsupported_leap", "leaked_code")), f"{kind}: {trace}"


def test_a_flaw_is_plausible(flawed):
    """Nothing negative or uneven, and every line is a calculation, a plan line or leaked code."""
    for p, kind, trace in flawed:
        assert all(c > 0 and (op != "/" or a % b == 0) for a, op, b, c in calculations(trace))
        assert all(number is None or number > 0 for _, number in moves(trace))
        n_code = len(p.answer.split("\n")) if kind == "leaked_code" else 0
        assert len(trace.split("\n")) == len(calculations(trace)) + len(read_plan(trace)) + n_code


def test_wrong_algorithm_choice(flawed):
    """One operation differs; the arithmetic is right and the plan still gives the examples."""
    for p, trace in of_kind(flawed, "wrong_algorithm_choice"):
        truth = moves(p.reference_solution)
        assert sum(a != b for (a, _), (b, _) in zip(moves(trace), truth, strict=True)) == 1
        assert not wrong(trace) and conditions(trace) == conditions(p.reference_solution)
        examples = understand(p.problem)[1]
        told = [b.example for b in tinycode.true_branches(p)]
        assert all(examples[x] == y == run_plan(read_plan(trace), x) for x, y in told), trace


def test_misread_specification(flawed):
    """The operations stay and the arithmetic is right, but a number or a condition is not that of the problem."""
    for p, trace in of_kind(flawed, "misread_specification"):
        truth = p.reference_solution
        assert [op for op, _ in moves(trace)] == [op for op, _ in moves(truth)] and not wrong(trace)
        if conditions(trace) != conditions(truth):
            assert calculations(trace) == calculations(truth) and moves(trace) == moves(truth)
        else:
            assert calculations(trace) != calculations(truth)


def test_wrong_constant(flawed):
    """One result is off by 1, 2 or 10 and is used as it is."""
    for p, trace in of_kind(flawed, "wrong_constant"):
        (place,) = wrong(trace)
        a, op, b, c = calculations(trace)[place]
        assert abs(c - ARITHMETIC[op](a, b)) in (1, 2, 10)
        assert calculations(trace)[:place] == calculations(p.reference_solution)[:place]
        assert [op for op, _ in moves(trace)] == [op for op, _ in moves(p.reference_solution)]


def test_missing_step(flawed):
    """One action is gone from the plan (or all of the other branch), and the rest fits the example."""
    for p, trace in of_kind(flawed, "missing_step"):
        truth, plan = read_plan(p.reference_solution), read_plan(trace)
        operations = [[op for op, _ in branch] for _, branch in truth]
        fewer = [operations[:1]] + [
            [[*ops[:j], *ops[j + 1 :]] if k == i else ops for k, ops in enumerate(operations)]
            for i, chosen in enumerate(operations)
            for j in range(len(chosen))
        ]
        assert [[op for op, _ in branch] for _, branch in plan] in fewer and not wrong(trace)


def test_wrong_order(flawed):
    """The calculations are untouched; the plan has the same actions in another order."""
    for p, trace in of_kind(flawed, "wrong_order"):
        assert calculations(trace) == calculations(p.reference_solution)
        given, truth = moves(trace), moves(p.reference_solution)
        assert Counter(given) == Counter(truth) and given != truth
        assert conditions(trace) == conditions(p.reference_solution)


def test_unsupported_leap_and_leaked_code(flawed):
    """A leap leaves out one calculation; a leak adds the whole program, and nothing else is touched."""
    for p, trace in of_kind(flawed, "unsupported_leap"):
        rows = p.reference_solution.split("\n")
        assert trace in ["\n".join(rows[:i] + rows[i + 1 :]) for i, row in enumerate(rows) if row.startswith("- ")]
    for p, trace in of_kind(flawed, "leaked_code"):
        assert trace == f"{p.reference_solution}\n{p.answer}"


EXPECTED = {  # of LINE: 2*3=6, 20/2=10, 10-6=4; (3n + 4) * 2. All that some kinds can make of it, by hand.
    # +3: 2+3=5, 10-5=5. -3: below zero. -4: 6-10 below zero; *: 10/6 uneven. Last +2: 20-2=18, -6=12. Last -2: 22, 16.
    "wrong_algorithm_choice": {"plus 3, plus 5, times 2", "times 3, plus 12, plus 2", "times 3, plus 16, minus 2"},
    "missing_step": {"plus 8, times 2", "times 3, plus 14"},
    "wrong_order": {"plus 4, times 3, times 2", "times 3, times 2, plus 4"},
    "unsupported_leap": {"times 3, plus 4, times 2"},
    "leaked_code": {"times 3, plus 4, times 2"},
    # 2*3 off: 4, 5, 7, 8 (16 leaves 10-16). 20/2 off: 8, 9, 11, 12, 20. 10-6 off: 2, 3, 5, 6, 14.
    "wrong_constant": {f"times 3, plus {n}, times 2" for n in (6, 5, 3, 2, 14)},
    # Factor 1, 2, 4 (5, 6: 10 and 12 are too big). Input 1, 3 (4: 12 is too big). Output 18, 22 (the others are odd).
    # Last factor 1: 20, 14; 4: 5-6 too small; 5: 4 too small; 3: uneven.
    "misread_specification": {
        "times 1, plus 8, times 2",
        "times 2, plus 6, times 2",
        "times 4, plus 2, times 2",
        "times 3, plus 7, times 2",
        "times 3, plus 1, times 2",
        "times 3, plus 3, times 2",
        "times 3, plus 5, times 2",
        "times 3, plus 14, times 1",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_flaws_of_one_small_program(kind):
    traces = flawed_traces(LINE, kind)
    assert all(perturb(LINE, kind, random.Random(i)) in traces for i in range(5))
    plans = {line.removeprefix("Plan: ") for trace in traces for line in trace.split("\n") if line.startswith("Plan")}
    assert plans == EXPECTED[kind]


def test_kinds_that_have_no_place_give_none():
    bare = program(Branch(when="", actions=[HIDDEN_PLUS_4], example=(2, 6)))
    for kind in ("missing_step", "wrong_order"):
        assert perturb(bare, kind, random.Random(0)) is None
    same = program(  # both branches add: exchanging two sums is no other order of operations
        Branch(when="even", actions=[HIDDEN_PLUS_4], example=(2, 6)),
        Branch(when="else", actions=[Action(op="+", number=5, hidden=True)], example=(3, 8)),
    )
    assert perturb(same, "wrong_order", random.Random(0)) is None


def test_a_division_by_zero_is_no_flaw_and_no_crash():
    """3 - 3 = 0 before a hidden factor: misreading the input as 3 would divide by zero."""
    p = program(
        Branch(when="", actions=[Action(op="-", number=3), Action(op="*", number=2, hidden=True)], example=(5, 4))
    )
    traces = [trace for kind in KINDS for trace in flawed_traces(p, kind)]
    assert traces and not any("/0" in trace for trace in traces)


KEPT_AND_LOWERED = {
    "wrong_algorithm_choice": ({UNDERSTANDING, COHERENCE, LEAKAGE}, {PLAN, SUPPORT}),
    "misread_specification": ({PLAN, LEAKAGE}, {UNDERSTANDING, SUPPORT}),
    "wrong_constant": ({UNDERSTANDING, PLAN, COHERENCE, LEAKAGE}, {SUPPORT}),
    "missing_step": ({COHERENCE, LEAKAGE}, {PLAN, SUPPORT}),
    "wrong_order": ({UNDERSTANDING, COHERENCE, LEAKAGE}, {PLAN, SUPPORT}),
    "unsupported_leap": ({PLAN, LEAKAGE}, {COHERENCE, SUPPORT}),
    "leaked_code": ({UNDERSTANDING, PLAN, COHERENCE, SUPPORT}, {LEAKAGE}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_hurts_its_own_dimensions(flawed, kind):
    kept, lowered = KEPT_AND_LOWERED[kind]
    for p, trace in of_kind(flawed, kind):
        labels = true_rubric(p, trace).labels
        assert all(labels[name] == 4 for name in kept), trace
        assert all(labels[name] < 4 for name in lowered), trace


# --- the rubric and the groups ----------------------------------------------------------------


@pytest.mark.parametrize(
    "trace, labels, total",
    [
        (LINE_TRACE, (4, 4, 4, 4, 4), 1.0),
        # Nothing but a guess. All four facts (2, 20, 3, 2) unused: 0. Plan 1. Its 4 is from nowhere: 0 of 1 line. 0. 1.
        ("Plan: times 3, plus 4, times 2", (0, 4, 0, 0, 4), 0.2),
        # No plan and no calculation: the empty plan takes up nothing unknown.
        ("It will be fine.", (0, 0, 4, 0, 4), 0.2),
        # Leap over 2*3=6. Facts 2, 3 are missing, of 3 steps: 1/3. 10-6 takes a 6 from nowhere: 20/2 and the plan of 3.
        # Results 10, 4 of 6, 10, 4: 2/3. Mean (1/3 + 1 + 2/3 + 2/3 + 1) / 5 = 11/15, minimum 1/3.
        (LINE_TRACE.replace("- times 3: 2*3=6\n", ""), (1, 4, 3, 3, 4), 0.5333),
        # Slip 20/2=8, then 8-6=2. Results 6, 8, 2 have the 6 in common: 1/3, plan wrong: 1/6. Mean 25/30.
        (
            "- times 3: 2*3=6\n- undo times 2: 20/2=8\n- so plus: 8-6=2\nPlan: times 3, plus 2, times 2",
            (4, 4, 4, 0, 4),
            0.5,
        ),
        # Order. Operations * * + and * + * have two of three in common. Support halved. Mean (1+2/3+1+1/2+1)/5 = 5/6.
        (LINE_TRACE.replace("plus 4, times 2", "times 2, plus 4"), (4, 3, 4, 2, 4), 0.6667),
        # Leak: mean 0.8, minimum 0.
        (f"{LINE_TRACE}\n{LINE_PROGRAM}", (4, 4, 4, 4, 0), 0.4),
        # Two plans: operations 6 against 3 gives 1/2; the second 4 and the second 3 and 2 are from nowhere: 3/4.
        # Support 1/2. Conditions all there. Mean (1 + .5 + .75 + .5 + 1) / 5 = .75.
        (LINE_TRACE + "\nPlan: times 3, plus 4, times 2", (4, 2, 3, 2, 4), 0.625),
    ],
)
def test_rubric_by_hand(trace, labels, total):
    rubric = true_rubric(LINE, trace)
    assert tuple(rubric.labels[name] for name in CODE) == labels
    assert rubric.total == pytest.approx(total, abs=5e-5)


def test_only_the_truth_has_full_marks(flawed):
    assert all(true_rubric(p, trace).total < 1 for p, _, trace in flawed)


@given(st.text(alphabet="Planfevos: tims,\n0123456789-+*/=()", max_size=80))
def test_any_text_has_a_rubric(trace):
    assert 0 <= true_rubric(LINE, trace).total <= 1


def test_a_group_holds_the_reference_and_distinct_flaws(problems):
    for p in problems[:80]:
        g = build_group(p, seed=0)
        assert g.domain == "code" and g.positive_pool[0].rubric.total == 1.0
        traces = [c.reasoning for c in g.negative_bank]
        found = [c.negative_kind for c in g.negative_bank]
        assert len(set(traces)) == len(traces) == len(set(found)) and set(found) <= set(KINDS)
        assert g.as_problem().domain == "code" and g.metadata["tests"] == p.metadata["tests"]
        assert g == build_group(p, seed=0)
