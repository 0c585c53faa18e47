"""The generated world: its stories, its ground truth, and how traces are read."""

import operator
import random
import re
from collections import Counter

import pytest
from common import lines, quantities, story
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.groups.truth import is_faithful
from tracelift_lib.problems import tinyworld
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.settings import TinyWorld
from tracelift_lib.problems.tinyworld import (
    Step,
    generate_problem,
    generate_splits,
    read_calculations,
    signature,
    true_steps,
    write_trace,
)

SIZES = {"train": 60, "rl": 20, "test": 25, "long": 15}
LENGTHS = {"train": [2, 3, 3, 3], "rl": [2, 3], "test": [1, 2, 3], "long": [4]}
MAX_NUMBER, MAX_VALUE = 9, 18
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@pytest.fixture(scope="module")
def splits():
    return generate_splits(SIZES, LENGTHS, MAX_NUMBER, MAX_VALUE, seed=7)


@pytest.fixture(scope="module")
def problems(splits):
    return [p for members in splits.values() for p in members]


GAINS, LOSSES = ("buys", "finds", "gets", "wins"), ("gives away", "loses", "sells", "uses up")


def single(numbers: list[int]) -> int:
    (number,) = numbers
    return number


def understand(text: str) -> tuple[int, list[tuple[str, int]]]:
    """(start, events) of a story, read from its words alone: what a careful person would do."""
    start, events = None, []
    for sentence in re.findall(r"[^.?]+[.?]", text):
        numbers = quantities(sentence)
        if sentence.strip().endswith("?") or re.match(r"\s*(There are|A neighbour owns)", sentence):
            continue
        if " doubles " in sentence:
            events.append(("*", 2))
        elif " triples " in sentence:
            events.append(("*", 3))
        elif " gives half " in sentence:
            events.append(("/", 2))
        elif any(f" {word} " in sentence for word in GAINS):
            events.append(("+", single(numbers)))
        elif any(f" {word} " in sentence for word in LOSSES):
            events.append(("-", single(numbers)))
        else:
            assert start is None, f"two openings: {text}"
            start = single(numbers)
    return start, events


def solve(start, events):
    value = start
    for op, operand in events:
        value = ARITHMETIC[op](value, operand)
    return value


# --- the generator ----------------------------------------------------------------------------


def test_every_split_has_its_size_and_its_lengths_in_turn(splits):
    for split, size in SIZES.items():
        assert len(splits[split]) == size
        expected = [LENGTHS[split][i % len(LENGTHS[split])] for i in range(size)]
        assert [len(understand(p.problem)[1]) for p in splits[split]] == expected


def test_story_words_lead_to_the_answer_and_to_the_recorded_steps(problems):
    """Read from the text with an independent reader: if words and truth part ways, every label is wrong."""
    for p in problems:
        start, events = understand(p.problem)
        assert (start, events) == (p.metadata["start"], [(s.op, s.operand) for s in true_steps(p)]), p.problem
        assert float(p.answer) == solve(start, events)


def test_no_two_problems_of_any_splits_are_the_same(problems):
    """Sameness is read from the words, so a fault in `signature` cannot hide it."""
    told = Counter((start, *events) for start, events in (understand(p.problem) for p in problems))
    assert max(told.values()) == 1
    assert len({p.problem_id for p in problems}) == len(problems)


def test_signature_ignores_words_but_not_numbers():
    a, b = story(3, ("+", 2), ("*", 2)), story(3, ("+", 2), ("*", 2))
    reworded = b.model_copy(update={"problem": "quite another text", "problem_id": "other"})
    assert signature(a) == signature(reworded)
    others = [
        story(4, ("+", 2), ("*", 2)),
        story(3, ("+", 3), ("*", 2)),
        story(3, ("*", 2), ("+", 2)),
        story(3, ("+", 2)),
    ]
    assert signature(a) not in [signature(other) for other in others]


def test_steps_are_true_linked_and_in_bounds(problems):
    for p in problems:
        value = p.metadata["start"]
        assert 2 <= value <= MAX_NUMBER
        for s in true_steps(p):
            assert s.before == value
            assert s.after == ARITHMETIC[s.op](s.before, s.operand)
            assert 1 <= s.after <= MAX_VALUE
            assert s.operand <= MAX_NUMBER
            value = s.after
        assert p.answer == str(value)
        assert all(1 <= n <= MAX_NUMBER for n in quantities(p.problem))


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 20), st.integers(0, 60))
def test_bounds_hold_for_any_setting(seed, n_steps, max_number, room):
    max_value = max_number + room
    p = generate_problem(random.Random(seed), n_steps, max_number, max_value, "x")
    steps = true_steps(p)
    assert len(steps) == n_steps
    assert all(1 <= s.after <= max_value and 1 <= s.before <= max_value for s in steps)
    assert all(s.operand <= max_number for s in steps if s.op in "+-")
    assert all(s.operand in (2, 3) for s in steps if s.op == "*") and all(s.operand == 2 for s in steps if s.op == "/")


@given(st.integers(0, 10**4))
def test_running_value_is_in_bounds_when_the_bound_is_below_the_largest_number(seed):
    """`max_value` < `max_number`: the start must respect the bound too (or the world be refused)."""
    try:
        p = generate_problem(random.Random(seed), 2, 9, 4, "x")
    except ValueError:
        return
    assert p.metadata["start"] <= 4


def test_all_operations_and_forms_occur():
    """With 400 stories none of the operations, orders of telling and distractors may be missing."""
    sample = generate_splits({"a": 400}, {"a": [3]}, 9, 18, seed=0)["a"]
    operations = Counter((s.op, s.operand if s.op in "*/" else 0) for p in sample for s in true_steps(p))
    assert set(operations) == {("+", 0), ("-", 0), ("*", 2), ("*", 3), ("/", 2)}
    assert any(p.problem.startswith("How many") for p in sample) and any(p.problem.endswith("?") for p in sample)
    with_distractor = sum("There are" in p.problem or "neighbour" in p.problem for p in sample)
    assert 0 < with_distractor < 400


def test_a_world_that_is_too_small_is_refused():
    """With start 2 and values 1..2 only two one-step stories exist: 2-1 and 2/2."""
    both = generate_splits({"a": 1, "b": 1}, {"a": [1], "b": [1]}, max_number=2, max_value=2, seed=0)
    assert {understand(p.problem)[1][0] for members in both.values() for p in members} == {("-", 1), ("/", 2)}
    with pytest.raises(ValueError, match="'b'"):
        generate_splits({"a": 2, "b": 1}, {"a": [1], "b": [1]}, max_number=2, max_value=2, seed=0)


def test_same_seed_same_problems_other_seed_others(splits):
    assert generate_splits(SIZES, LENGTHS, MAX_NUMBER, MAX_VALUE, seed=7) == splits
    other = generate_splits(SIZES, LENGTHS, MAX_NUMBER, MAX_VALUE, seed=8)
    shared = sum(a.problem == b.problem for a, b in zip(splits["train"], other["train"]))
    assert shared < len(splits["train"]) / 4


# --- reading traces, and faithfulness ---------------------------------------------------------


def test_reference_trace_states_exactly_the_true_steps(problems):
    for p in problems:
        read = [tuple(c) for c in read_calculations(p.reference_solution)]
        assert read == [(s.before, s.op, s.operand, s.after) for s in true_steps(p)]
        assert is_faithful(p, p.reference_solution)


def test_a_step_is_written_so_that_it_is_read_back():
    for op in "+-*/":
        step = Step(before=12, op=op, operand=3, after=7, event="buys 3")
        assert [tuple(c) for c in read_calculations(step.line())] == [(12, op, 3, 7)]
        assert "buys 3" in step.line()


fields = st.sampled_from(["before", "op", "operand", "after"])
tampering = st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), fields)


@given(tampering, st.integers(0, 40), st.sampled_from("+-*/"))
def test_any_one_changed_number_or_operation_is_unfaithful(problems, where, number, op):
    pick, place, name = where
    p = problems[pick % len(problems)]
    steps = true_steps(p)
    i = place % len(steps)
    value = op if name == "op" else number
    changed = [*steps[:i], steps[i].model_copy(update={name: value}), *steps[i + 1 :]]
    assert is_faithful(p, write_trace(changed)) == (getattr(steps[i], name) == value)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 9))
def test_any_one_changed_digit_of_a_calculation_is_unfaithful(problems, pick, place, shift):
    """The same on the text: each digit behind the colon belongs to a calculation."""
    p = problems[pick % len(problems)]
    text = p.reference_solution
    digits = [m.start() for m in re.finditer(r"\d(?=[^:\n]*$)", text, re.MULTILINE)]
    at = digits[place % len(digits)]
    changed = text[:at] + str((int(text[at]) + shift) % 10) + text[at + 1 :]
    assert not is_faithful(p, changed)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_dropped_doubled_or_invented_line_is_unfaithful(problems, pick, first, second):
    p = problems[pick % len(problems)]
    rows = p.reference_solution.split("\n")
    i, j = first % len(rows), second % (len(rows) + 1)
    assert not is_faithful(p, "\n".join(rows[:i] + rows[i + 1 :]))
    assert not is_faithful(p, "\n".join(rows[:j] + [rows[i]] + rows[j:]))
    assert not is_faithful(p, "\n".join(rows[:j] + ["so: 1 + 1 = 2."] + rows[j:]))


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_exchanged_lines_are_unfaithful(problems, pick, place):
    p = [p for p in problems if len(true_steps(p)) >= 2][pick % 90]
    rows = p.reference_solution.split("\n")
    i = place % (len(rows) - 1)
    rows[i], rows[i + 1] = rows[i + 1], rows[i]
    steps = true_steps(p)
    first, second = ((s.before, s.op, s.operand) for s in steps[i : i + 2])
    assert is_faithful(p, "\n".join(rows)) == (first == second)


def test_faithfulness_asks_for_the_reasons_too():
    p = story(3, ("+", 2), ("*", 2))
    assert is_faithful(p, "- gets 2: 3 + 2 = 5\n gets  : 5 * 2 = 10".replace("gets  ", "times 2"))
    assert not is_faithful(p, "- loses 2: 3+2=5\n- times 2: 5*2=10")
    assert not is_faithful(p, "3 + 2 = 5\n5 * 2 = 10")
    assert not is_faithful(p, "- gets 2: 3+2=5\n- times 2: 5*2=10\nSo it is 10.")
    assert not is_faithful(p, "The result is 10.")
    assert not is_faithful(p, "")


def test_only_tiny_world_problems_have_a_truth():
    p = Problem(
        problem_id="g", source="gsm8k", domain="math", task_type="t", problem="x", reference_solution="y", answer="1"
    )
    with pytest.raises(KeyError):
        is_faithful(p, "1 + 1 = 2")


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("no numbers at all", []),
        ("5 + 3", []),
        ("5 + 3 = ", []),
        ("= 8", []),
        ("5 plus 3 = 8", []),
        ("buys 3: 5 + 3 = 8.", [(5, "+", 3, 8)]),
        ("buys 3: 5+3=8.", [(5, "+", 3, 8)]),
        ("7 - 7 = 0", [(7, "-", 7, 0)]),
        ("6 / 2 = 3\n3 * 3 = 9", [(6, "/", 2, 3), (3, "*", 3, 9)]),
        ("a wrong one: 2 + 2 = 5!", [(2, "+", 2, 5)]),
        ("we know 1 + 1 = 2 and then 2 * 2 = 4, so 4", [(1, "+", 1, 2), (2, "*", 2, 4)]),
        ("Сначала 5 + 3 = 8 монет, затем 8 - 1 = 7", [(5, "+", 3, 8), (8, "-", 1, 7)]),
        ("先 5 + 3 = 8 个", [(5, "+", 3, 8)]),
        ("\u200f5 + 3 = 8\u200f", [(5, "+", 3, 8)]),
        ("10 / 0 = 0", [(10, "/", 0, 0)]),
        ("1. 5 + 3 = 8\n2) 8 - 1 = 7", [(5, "+", 3, 8), (8, "-", 1, 7)]),
        ("- 5 + 3 = 8\n- 8-1=7", [(5, "+", 3, 8), (8, "-", 1, 7)]),  # marks of a list are no signs
        ("* 5 + 3 = 8\n**8-1=7**", [(5, "+", 3, 8), (8, "-", 1, 7)]),
        ("999999999 + 1 = 5", [(999999999, "+", 1, 5)]),
        ("1234567890 + 1 = 5", []),  # ten digits and more are no numbers of this world, not even in part
        ("5 + 1234567890 = 5", []),
        ("5 + 1 = 1234567890", []),
        ("5 + 1 = " + "9" * 5000, []),
    ],
)
def test_reading_calculations_out_of_free_text(text, expected):
    assert [tuple(c) for c in read_calculations(text)] == expected


@pytest.mark.parametrize(
    "text",
    [
        "1000000000005 + 3 = 8",  # must not be read by its last digits
        "5 + 3 = 8000000000000",
        "5 + 1000000000003 = 8",
        "-5 + 3 = 8",
        "1.5 + 3 = 8",
        "0,5 + 3 = 8",
        "5 + 3 = 8.5",
        "5 + 3 = 8,000",
        "5 + 3.5 = 8",
        "2 * 5 + 3 = 8",
        "2*5+3=8",
        "9 - 5 + 3 = 8",
        "5 + -3 = 8",
        "5 + 3 = -8",
        "5 + 3 = 8/2",
    ],
)
def test_a_part_of_another_calculation_is_not_taken_for_the_true_one(text):
    """Each text states something else than 5 + 3 = 8; who reads it as that, calls a wrong trace faithful."""
    assert not is_faithful(story(5, ("+", 3)), text)


def test_reading_stays_cheap_and_right_on_a_megabyte():
    """Digits, operators and spaces without end: no runaway matching, and what is right is still found."""
    for filler in ("1" * 1_000_000, "1 + " * 250_000, "= " * 500_000, "1+" * 500_000):
        found = [tuple(c) for c in read_calculations(lines("4 + 4 = 8") + "\n" + filler)]
        assert found == [(4, "+", 4, 8)]


# --- the shortcut -----------------------------------------------------------------------------


def test_the_shortcut_by_hand():
    """Gains and losses may change places, a doubling and a gain may not; equal events have no other order."""
    assert tinyworld.shortcut_holds(story(4, ("+", 3), ("-", 2), ("*", 2))) is True
    assert tinyworld.shortcut_holds(story(4, ("*", 2), ("+", 3))) is False
    assert tinyworld.shortcut_holds(story(4, ("+", 3), ("+", 3))) is None
    assert tinyworld.shortcut_holds(story(2, ("+", 3), ("-", 4))) is None  # the quantity would fall below one
    assert tinyworld.shortcut_holds(story(4, ("+", 3))) is None


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_the_shortcut_holds_on_its_share_of_a_split(share):
    problems = generate_splits({"a": 40}, {"a": [3]}, 9, 20, seed=2, shortcut={"a": share})["a"]
    held = [tinyworld.shortcut_holds(p) for p in problems]
    assert sum(held) == round(40 * share) and None not in held
    assert all(abs(sum(held[:n]) - n * share) <= 1 for n in range(41))  # spread evenly


def test_a_world_without_room_for_the_shortcut_says_so():
    with pytest.raises(ValueError, match="split 'a' of 2"):
        generate_splits({"a": 2}, {"a": [1]}, 9, 20, seed=2, shortcut={"a": 1.0})


@pytest.mark.parametrize("source, wrong", [("tiny_world", "test is no split"), ("tiny_code", "no events to swap")])
def test_a_shortcut_that_cannot_be_is_refused(source, wrong):
    splits = {"test" if source == "tiny_world" else "rl": 1.0}
    with pytest.raises(ValueError, match=wrong):
        TinyWorld(source=source, max_number=9, max_value=20, sizes={"rl": 3}, steps={"rl": [3]}, shortcut=splits)


def test_the_question_in_between_asks_for_the_first_result():
    for p in generate_splits({"a": 20}, {"a": [2, 3]}, 9, 20, seed=5)["a"]:
        asked = tinyworld.ask_between(p)
        assert asked.answer == str(true_steps(p)[0].after) and "after the first event?" in asked.problem
        assert asked.problem.count("?") == 1 and asked.reference_solution == p.reference_solution
