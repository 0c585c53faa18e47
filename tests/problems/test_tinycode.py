"""The generated programs: their texts, their ground truth, and how traces are read."""

import itertools
import random
import re
from collections import Counter

import pytest
from common import NUMBER_WORDS
from hypothesis import given
from hypothesis import strategies as st
from tiny_programs import (
    ARITHMETIC,
    HIDDEN_PLUS_4,
    LINE,
    LINE_PROGRAM,
    LINE_TRACE,
    expected,
    outputs,
    program,
    run,
    understand,
)

from tracelift_lib.groups.truth import is_faithful
from tracelift_lib.models.base import answer_text
from tracelift_lib.problems import tinycode
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.tinycode import (
    Action,
    Branch,
    generate_problem,
    generate_splits,
    has_code,
    read_plan,
    run_plan,
    signature,
    write_program,
)
from tracelift_lib.problems.tinyworld import read_calculations, true_steps
from tracelift_lib.runs.presets import load_preset

SIZES = {"train": 120, "rl": 40, "test": 60, "long": 30}
LENGTHS = {"train": [2, 3, 3], "rl": [2, 3], "test": [1, 2, 3], "long": [4]}
MAX_NUMBER, MAX_VALUE = 9, 20


@pytest.fixture(scope="module")
def splits():
    return generate_splits(SIZES, LENGTHS, MAX_NUMBER, MAX_VALUE, seed=7)


@pytest.fixture(scope="module")
def problems(splits):
    return [p for members in splits.values() for p in members]


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


def test_reference_trace_makes_the_true_steps(problems):
    for p in problems:
        assert is_faithful(p, p.reference_solution)
        assert [tuple(c) for c in read_calculations(p.reference_solution)] == [
            (s.before, s.op, s.operand, s.after) for s in true_steps(p)
        ]


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
