"""The verifier: one final answer, or none; then an exact comparison."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.verify import final_answer, parse_number, verify_math

HALF, NONE = Fraction(1, 2), None

# (text, what the strict rule takes, what the rule of the last number takes)
CASES = [
    # stated in each of the ways
    ("Answer: 12", 12, 12),
    ("answer: 12", 12, 12),
    ("ANSWER: 12", 12, 12),
    ("Answer:12", 12, 12),
    ("Answer : 12", 12, 12),
    ("Answer:\n12", 12, 12),
    ("Final answer: 12", 12, 12),
    ("**Answer:** 12", 12, 12),
    ("**Answer: 12**", 12, 12),
    ("The answer is 12", 12, 12),
    ("The answer is 12.", 12, 12),
    ("the answer is: 12", 12, 12),
    ("The answer is **12**.", 12, 12),
    ("So the final answer is 12 apples.", 12, 12),
    ("The answer  is\t12", 12, 12),
    ("#### 12", 12, 12),
    ("####12", 12, 12),
    ("first 3 + 4 = 7.\n#### 7", 7, 7),
    (r"\boxed{12}", 12, 12),
    (r"So it is \boxed{ 12 }.", 12, 12),
    (r"$\boxed{12}$ coins", 12, 12),
    (r"The answer is \boxed{12}.", 12, 12),
    # how a number may look
    ("Answer: -3", -3, -3),
    ("Answer: +3", 3, 3),
    ("Answer: 0", 0, 0),
    ("Answer: -0", 0, 0),
    ("Answer: 007", 7, 7),
    ("Answer: $1,200.00", 1200, 1200),
    ("Answer: 1,234,567", 1234567, 1234567),
    ("Answer: 1234567", 1234567, 1234567),
    ("Answer: 0.5", HALF, HALF),
    ("Answer: 1/2", HALF, HALF),
    ("Answer: -1/2", -HALF, -HALF),
    ("Answer: 2/4 of the cake", HALF, HALF),
    ("Answer: 50%", 50, 50),
    ("Answer: 50 %", 50, 50),
    ("Answer: €12", 12, 12),
    ("Answer: (12)", 12, 12),
    ("Answer: 12km", 12, 12),
    ("Answer: 12 hours", 12, 12),
    ("The answer is 12!", 12, 12),
    ("Answer: 3.0", 3, 3),
    ("Answer: 3.", 3, 3),
    ("Ответ дан ниже.\nAnswer: 8 яблок", 8, 8),
    ("答案如下。\nAnswer: 8 个", 8, 8),
    # said twice, and agreeing
    ("Answer: 12\nThe answer is 12.", 12, 12),
    ("Answer: 12\nAnswer: 12.0", 12, 12),
    (r"\boxed{0.5}" + "\n#### 1/2", HALF, HALF),
    # numbers elsewhere do not count as stated
    ("3 + 4 = 7, 7 - 2 = 5.\nAnswer: 5\nThat took 3 steps.", 5, 3),
    ("There are 3 boys and 4 girls.\nThe answer is 7.", 7, 7),
    # nothing stated
    ("", NONE, NONE),
    ("12", NONE, 12),
    ("12 apples and 5 pears", NONE, 5),
    ("= 12", NONE, 12),
    ("I do not know", NONE, NONE),
    ("Answer:", NONE, NONE),
    ("Answer: ", NONE, NONE),
    ("The answer is unknown.", NONE, NONE),
    (r"\boxed{}", NONE, NONE),
    (r"\boxed{x}", NONE, NONE),
    ("####", NONE, NONE),
    ("Answer: twelve", NONE, NONE),
    ("The answering machine has 12 calls", NONE, 12),
    ("### 12", NONE, 12),
    # more than one candidate is none
    ("The answer is 3 or 4.", NONE, 4),
    ("Answer: 12 or 13", NONE, 13),
    ("Answer: 3, 4, 5", NONE, 5),
    ("Answer: 1 2", NONE, 2),
    ("Answer: 12-13", NONE, 13),
    ("Answer: 12 + 5 = 17", NONE, 17),
    ("Answer: between 3 and 5", NONE, 5),
    ("Answer: 3. No, wait. Answer: 4.", NONE, 4),
    ("Answer: 3\nAnswer: 4", NONE, 4),
    ("Answer: 3\nThe answer is 4.", NONE, 4),
    (r"\boxed{3} or \boxed{4}", NONE, 4),
    (r"\boxed{3}" + "\n#### 4", NONE, 4),
    (r"\boxed{3, 4}", NONE, 4),
    ("#### 3\n#### 4", NONE, 4),
    ("Answer: 3\nAnswer: unknown", NONE, 3),  # one statement cannot be read: no answer
    ("Answer: 2^3", NONE, 3),
    ("Answer: 12:30", NONE, 30),
    ("Answer: 10 000", NONE, 0),
    # no value
    ("Answer: 1/0", NONE, NONE),
    ("Answer: " + "9" * 5000, NONE, NONE),
    ("Answer: v2", NONE, NONE),
]


@pytest.mark.parametrize("text, strict, last", CASES, ids=[f"{i}-{case[0][:20]!a}" for i, case in enumerate(CASES)])
def test_final_answer(text, strict, last):
    assert final_answer(text, "strict") == strict
    assert final_answer(text, "last_number") == last


def test_the_table_is_large_enough():
    assert len(CASES) >= 60 and len({text for text, _, _ in CASES}) == len(CASES)


# Texts that a rule of one number must not read as that number: reading them wrongly pays for a wrong answer.
@pytest.mark.parametrize("text, wrong", [
    ("Answer: -$5", 5),
    ("Answer: \u22125", 5),  # minus sign U+2212, which many models write
    ("Answer: - 5", 5),
    ("Answer: 1,2345", 1234),
    ("Answer: 1,23456", 1234),
    ("Answer: 1e3", 1),
    ("Answer: 2.5e6", Fraction(5, 2)),
    ("Answer: 1.2.3", Fraction(6, 5)),
    ("Answer: 0x1F", 0),
    ("Answer: 5\u00b2", 5),  # 5 squared
    ("The answer is not 12.", 12),
    ("The answer isn't 12.", 12),
    (r"\boxed{\frac{1}{2}}" + "\nAnswer: 5", 5),  # two statements, of which one cannot be read
], ids=ascii)
def test_what_is_not_that_number_is_not_read_as_it(text, wrong):
    assert final_answer(text, "strict") != wrong


@pytest.mark.parametrize("text, value", [
    ("Answer: .5", HALF), ("Answer: -.5", -HALF), ("Answer: -$5", -5), ("Answer: \u22125", -5),
], ids=ascii)
def test_other_ways_to_write_a_number_are_read(text, value):
    assert final_answer(text, "strict") == value


STATEMENTS = [r"\boxed{%s}", "#### %s", "The answer is %s.", "Answer: %s"]
numbers = st.fractions(min_value=-10**6, max_value=10**6, max_denominator=1000)


@given(numbers, st.sampled_from(STATEMENTS))
def test_a_stated_fraction_is_read_exactly(value, form):
    assert final_answer(form % value) == value
    assert verify_math(form % value, str(value)) == 1
    assert verify_math(form % value, str(value + Fraction(1, 10**9))) == 0


@given(st.integers(-10**12, 10**12), st.sampled_from(STATEMENTS))
def test_a_stated_integer_is_read_with_and_without_commas(value, form):
    assert final_answer(form % value) == final_answer(form % f"{value:,}") == value


@given(numbers, numbers, st.sampled_from(STATEMENTS), st.sampled_from(STATEMENTS),
       st.sampled_from(["\n", " ", ". ", " or "]))
def test_never_two_candidates(first, second, form, other_form, between):
    """Two different stated answers are none, wherever they stand: guessing must not pay."""
    text = form % first + between + other_form % second
    if first != second:
        assert final_answer(text) is None
        assert verify_math(text, str(first)) == verify_math(text, str(second)) == 0
    elif between == "\n":
        assert final_answer(text) == first


@given(numbers, numbers)
def test_two_numbers_in_one_statement_are_none(first, second):
    assert parse_number(f"{first} or {second}") is None
    assert final_answer(f"Answer: {first} or {second}") is None


@given(st.text())
def test_any_text_has_at_most_one_answer_and_never_fails(text):
    for rule in ("strict", "last_number"):
        value = final_answer(text, rule)
        assert value is None or isinstance(value, Fraction)


@pytest.mark.parametrize("expected", ["", "twelve", "3 or 4", "1/0", "x"])
def test_an_expected_answer_that_is_no_number_is_a_fault_of_the_data(expected):
    """Not a 0: a wrong reference would silently fail every trace."""
    with pytest.raises(ValueError, match="expected answer"):
        verify_math("Answer: 12", expected)


@pytest.mark.parametrize("text, expected, strict, last", [
    ("The answer is 1,200.", "1200", 1, 1),
    ("The answer is $1,200.00", "1200", 1, 1),
    ("Answer: 0.75", "3/4", 1, 1),
    ("Answer: 0.333", "1/3", 0, 0),  # exact, not nearly
    ("Answer: 12 or 13", "12", 0, 0),
    ("Answer: 12 or 13", "13", 0, 1),
    ("5 apples", "5", 0, 1),
    ("", "0", 0, 0),
    ("Answer: none", "0", 0, 0),
    ("Answer: 3", "-3", 0, 0),
])
def test_verdicts(text, expected, strict, last):
    assert verify_math(text, expected, "strict") == strict
    assert verify_math(text, expected, "last_number") == last


def test_long_texts_are_no_trouble():
    assert final_answer("1 " * 500_000 + "\nAnswer: 7") == 7
    assert final_answer("1," * 500_000) is None
    assert final_answer("answer " * 200_000) is None
    assert final_answer("1,234" * 100_000, "last_number") is None  # run-on digits are no number
