"""Where a statement ends, what the three rules take, and that equality does not depend on which answer is expected."""

import gzip
import json
import re
from fractions import Fraction
from types import SimpleNamespace

import pytest
from common import DATA, story
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tracelift_lib.groups.seeds import SeedSettings, load_seeds
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import load_gsm8k
from tracelift_lib.problems.settings import GSM8K
from tracelift_lib.runs.stages import Problems
from tracelift_lib.verifier.verify_math import check_answer, check_problems, final_answer, verify_math

RULES = ("strict", "released_code", "last_number")


# --- statements end where a reader would end them ---------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("Final Answer: The final answer is $100$. I hope it is correct.", 100),  # Minerva's format
        ("Final Answer: The final answer is 12,000,023. I hope it is correct.", 12000023),
        ("The answer is 18. She sells 9 eggs.", 18),
        ("Final Answer: The largest $n$ is 34.", 34),
        ("Final Answer: The smallest possible value of $N$ is 14{,}916. I hope it is correct.", 14916),
        ("Final Answer: Jane started growing it 3 hours ago. I hope it is correct.", 3),
        ("The answer is 51. This was computed in 3 steps.", 51),
        ("The answer is 12, because 3 times 4 is 12.", 12),
        ("Answer: 12 since 16 - 4 = 12", 12),
        ("The answer is 3.5. That is 7 halves.", Fraction(7, 2)),
        ("The answer is $18. She pays $5 to each of 2 friends.", 18),
        ("The answer is $\\frac{1}{2}.$ It took 3 steps.", Fraction(1, 2)),
        ("The answer is approx. 12 apples. Or so.", 12),
        ("**Answer**: 12", 12),
        ("**Final Answer**\n\n12", 12),
        ("3 + 4 = 7\nA: 7", 7),
        ("Answer = 7", 7),
        ("The answer would be 7.", 7),
        ("The answer is 12 (3 * 4).", 12),
        ("The answer is $\\approx 3.14$", Fraction(157, 50)),
        ("The answer is \u2013 5.", -5),
        ("The answer is 3 * 4 = 12.", 12),
        ("Answer: $x = 5 + 6 = 11$", 11),
        ("答案。The answer is 18。她卖了9个。", 18),
    ],
    ids=ascii,
)
def test_a_statement_ends_with_its_sentence(text, value):
    assert final_answer(text) == value
    assert verify_math(text, str(value)) == 1
    assert verify_math(text, str(value + 1)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 3. No, wait. The answer is 4.",
        "The answer is 3 or 4. I am not sure.",
        "Answer: It is not 3.",
        "Answer: between 3 and 5. I think.",
        "A: 3\nB: 4\nC: 5",  # choices
        "I hope the answer is right. 3",
        "x = 2 or x = 3",
        "Answer: x = 2 or x = 3",
    ],
    ids=ascii,
)
def test_what_states_no_single_answer_still_states_none(text):
    assert final_answer(text) is None
    assert verify_math(text, "3") == 0


def test_listed_boxes_are_one_answer():
    assert verify_math(r"The integers are \boxed{-2} and \boxed{1}.", "1,-2") == 1
    assert verify_math(r"\[ n = \boxed{-2} \quad \]", "1,-2") == 0
    assert verify_math(r"$\boxed{1}$, $\boxed{2}$", "1") == 0
    assert verify_math(r"\boxed{1} or \boxed{2}", "1,2") == 0


@pytest.mark.parametrize("rule", ("strict", "last_number"))
@pytest.mark.parametrize(
    "run_on",
    [
        "\n\nQuestion: Tom has 15 apples. How many are left?",
        "\nQ: 3 cats have 12 legs?\nA: 12",
        "\nProblem 2. What is 7 + 8?\nThe answer is 15.",
        "<|im_end|>\n<|im_start|>user\nWhat is 7 + 8? The answer is 15.",
        "</s> 15",
        " Question: 15?",
    ],
    ids=ascii,
)
def test_what_a_model_runs_on_to_is_not_its_answer(rule, run_on):
    assert verify_math("The answer is 18." + run_on, "18", rule) == 1
    assert verify_math("The answer is 18." + run_on, "15", rule) == 0


def test_a_repeated_question_before_the_answer_is_no_run_on():
    assert verify_math("Question: what is it?\nThe answer is 18.", "18") == 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "text, value",
    [
        ("<think> 12*3 = 36", None),  # cut off while it thinks
        ("<think>The answer is 5.</think>The answer is 36.", 36),
        ("maybe 5? </think>\n\nThe answer is 36.", 36),  # the template opened the thinking
        ("<think>5</think>", None),
        ("<think>a</think><think>5", None),
    ],
)
def test_thinking_is_no_answer(rule, text, value):
    assert final_answer(text, rule) == value
    assert verify_math(text, "36", rule) == (value == 36)


# --- the three rules --------------------------------------------------------------------------

# text -> what each rule takes: strict, released_code, last_number
TAKEN = {
    "The answer is 51. This was computed in 3 steps.": (51, 51, 3),
    "The answer is 3.5": (Fraction(7, 2), 3, Fraction(7, 2)),  # the released chain stops at the point
    "The answer is 12 of 30": (None, 12, 30),  # and takes the first number of what it has found
    r"So \boxed{\frac{3}{4}} of 2": (Fraction(3, 4), 2, 2),  # unwraps a box without braces in it only
    r"So it is \boxed{12}": (12, 12, 12),
    r"\frac{3}{4}": (None, Fraction(3, 4), Fraction(3, 4)),
    "12{,}500": (None, 500, 12500),
    "#### 7\n8": (7, 7, 8),
    "#### 5\nThe answer is 7.": (None, 5, 7),
    "The answer is 5. The final answer is 7.": (None, 7, 7),
    "Final answer: 6": (6, 6, 6),
    "It is 2.0107e-06": (None, -6, Fraction(20107, 10**10)),
    "1e3": (None, 3, 1000),
    "6 apples": (None, 6, 6),
    "$1,200.50": (None, Fraction(2401, 2), Fraction(2401, 2)),
    "3 + 4": (None, 4, 4),
    "16-3": (None, -3, 3),  # its sign may be an operator
    "none": (None, None, None),
}


@pytest.mark.parametrize("text", TAKEN, ids=ascii)
def test_what_each_rule_takes(text):
    assert tuple(final_answer(text, rule) for rule in RULES) == TAKEN[text]


@pytest.mark.parametrize("value, verdict", [("0.333333", 1), ("0.33333", 0), ("1/3", 1)])
def test_only_the_released_rule_is_tolerant(value, verdict):
    assert verify_math(f"The final answer is {value}", "1/3", "last_number") == (value == "1/3")
    assert verify_math(f"The final answer is {value}", "1/3") == (value == "1/3")
    # its chain ends at the full stop of a decimal, so only a number that is not stated keeps its digits
    assert verify_math(f"= {value}", "1/3", "released_code") == verdict


def test_the_released_rule_compares_text_where_there_is_no_number():
    assert verify_math("The answer is Evelyn.", "evelyn", "released_code") == 1
    assert verify_math("The answer is Navin.", "evelyn", "released_code") == 0


# --- forms that must be read ------------------------------------------------------------------

# (expected, stated, equal)
FORMS = [
    ("0.0000020107", "2.0107e-06", 1),
    ("1000", "1e3", 1),
    ("(3,2)", "(x,y)=(3,2)", 1),
    (r"3\sqrt{13}", "3√13", 1),
    (r"2\pi", "2π", 1),
    (r"\sqrt{2}", "sqrt(2)", 1),
    ("-1/2", r"\frac{1}{-2}", 1),
    ("1000", r"1\,000", 1),
    ("1000", "1 000", 1),
    ("5", r"5\textnormal{ miles}", 1),
    ("12:00", "12:00", 1),
    ("12:00", "1:00", 0),
    ("20:34", r"08:34\text{ p.m.}", 1),
    (r"\overline{CD}", "CD", 1),
    (r"\overline{CD}", r"\overline{AB}", 0),
    (r"(\text{E})", "E", 1),
    (r"(\text{E})", "(D)", 0),
    ("2x-y=0", "y=2x", 1),
    ("B", r"\text{B}", 1),
    (r"\text{A}", "A", 1),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", 0),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}", 0),
    (r"\frac{\pi}{2^{99}}", r"\frac{\pi}{2^{98}}", 0),
    ("2x+4y-3=0", r"y=-\frac{1}{2}x+\frac{3}{4}", 1),
    ("x^2/4 + y^2/3 = 1", "x^2/16 + y^2/12 = 1/4", 1),
    ("x < 1", "-x > -1", 1),
    ("x < 1", "-x < -1", 0),
    ("x^2 = 4", "x = 2", 0),
    (r"2 \le x \le 4", r"4 \geq x \geq 2", 1),
    ("12", "12m", 0),
    ("5", "5ab", 0),
    ("5", "5ab^2", 0),
    ("12", "12 cm^2", 1),
    ("12", "12 m²", 1),
    (r"0.\overline{3}", "1/3", 1),
    (r"0.1\overline{6}", r"\frac{1}{6}", 1),
    ("3:4", "6:8", 1),
    ("3:4", "4:3", 0),
    (r"\text{June 20}", r"\text{July 20}", 0),
    ("Monday", r"\text{Monday}", 1),
    ("the bus", r"\text{bus}", 1),
    ("yes", r"\text{Yes}", 1),
    ("x", "X", 0),
    (r"\emptyset", r"\{\}", 1),
    ("3.5", "3½", 1),
    (r"(-\infty, 2) \cup (3, \infty)", "(-oo, 2) U (3, oo)", 1),
    (r"\begin{pmatrix}1 & 2 \\3 & 4\end{pmatrix}", r"\left[\begin{array}{cc}1 & 2 \\3 & 4\end{array}\right]", 1),
    (r"\begin{pmatrix}1 & 2 \\3 & 4\end{pmatrix}", r"\begin{pmatrix}1 & 2 \\3 & 5\end{pmatrix}", 0),
    ("52_8", r"52_{\text{eight}}", 1),
    ("2^6 * 3^5", "2^6 3^5", 1),
    ("1024", "2^{10}", 1),
    ("10^{-3}", "0.001", 1),
    (r"3.2 \times 10^{-5}", "3.2e-5", 1),
    ("40/9", "4 4/9", 1),
    ("73/6", "11 7/6", 0),
    ("3 + 5", "5 + 3", 1),
    ("x = 1, y = 2", "1, 2", 1),
    ("x = 1, y = 2, z = 3", "3", 0),
    ("1, 2, 3", "1, 2, 3, ...", 0),
    ("32349", "32, 349", 0),
    ("1/3", r"x = 1/3 \approx 0.33", 1),
    ("x = 11", "x = 5 + 5 + 1 = 11", 1),
    ("7 = 11a + c", "11a + c", 0),
    (r"\theta = 30^\circ", "30", 1),
    (r"f(2) < f(1) < f(4)", r"f(2) < f(1) < f(4)", 1),
]


UNREAD = {"11 7/6", "1, 2, 3, ..."}


@pytest.mark.parametrize("expected, stated, equal", FORMS, ids=ascii)
def test_a_form_is_read_in_both_places(expected, stated, equal):
    """Truths and statements are read alike: neither raises, and the verdict does not depend on which is which."""
    assert verify_math(rf"\boxed{{{stated}}}", expected) == equal
    for answer in {expected, stated} - UNREAD:
        assert verify_math(rf"\boxed{{{answer}}}", answer) == 1
    if stated not in UNREAD:
        assert verify_math(rf"\boxed{{{expected}}}", stated) == equal


whole = st.integers(-999, 9999)
atoms = st.one_of(
    whole.map(str),
    whole.map(lambda n: f"{n:,}"),
    st.fractions(-50, 50, max_denominator=12).map(lambda f: rf"\frac{{{f.numerator}}}{{{f.denominator}}}"),
    st.decimals(-50, 50, places=2).map(str),
    st.sampled_from(
        r"x|2x|x + 1|1 + x|\sqrt{8}|2\sqrt{2}|2^3|8|\pi|A|\text{A}|(A)|B|Evelyn|\text{Evelyn}|12m|12|50\%|y=2x|2x-y=0|"
        r"x=5|y=5|5=x|x<1|-x>-1|3 + 5|52_8|\infty|-\infty|12:00|i|5i|1 000".split("|")
    ),
)
lists = st.lists(atoms, min_size=2, max_size=3)
answers = atoms | st.tuples(
    lists, st.sampled_from(["%s", "(%s)", "[%s]", "[%s)", r"\{%s\}", r"\left(%s\right)", "x = %s"])
).map(lambda pair: pair[1] % ", ".join(pair[0]))


def verdict_or_unread(stated: str, expected: str) -> int | None:
    try:
        return verify_math(rf"\boxed{{{stated}}}", expected)
    except ValueError:
        return None


@settings(max_examples=40)
@given(answers, answers)
@example("8", "2^3")
@example("12", "12m")
@example(r"\text{Evelyn}", "Evelyn")
@example("y=2x", "2x-y=0")
def test_the_verdict_does_not_depend_on_which_answer_is_expected(a, b):
    one, other = verdict_or_unread(a, b), verdict_or_unread(b, a)
    assume(None not in (one, other))
    assert one == other


@settings(max_examples=40)
@given(st.integers(1, 10**40), st.integers(1, 10**40))
def test_rationals_are_compared_exactly(top, bottom):
    value = rf"\frac{{{top}}}{{{bottom}}}"
    assert verify_math(rf"\boxed{{{value}}}", str(Fraction(top, bottom))) == 1
    assert verify_math(rf"\boxed{{{value}}}", str(Fraction(top, bottom) + Fraction(1, 10**60))) == 0


# --- truths -----------------------------------------------------------------------------------


def test_truths_that_cannot_be_read_are_named_when_problems_are_loaded():
    problems = [story(3, ("+", 4), problem_id=name) for name in ("good", "bad", "worse")]
    problems[1] = problems[1].model_copy(update={"answer": "3 or 4"})
    problems[2] = problems[2].model_copy(update={"answer": r"\foo{x}"})
    check_problems(problems[:1])
    with pytest.raises(InputError, match=r"problem bad: answer '3 or 4'.*problem worse"):
        check_problems(problems)


@pytest.mark.parametrize("answer", ["12:00", r"\overline{CD}", r"(\text{E})", "Evelyn", "12m", "2^{10}", "12, 13"])
def test_a_truth_of_this_form_can_be_read(answer):
    check_answer(answer)


# --- recorded solutions -----------------------------------------------------------------------

needs_data = pytest.mark.skipif(not (DATA / "gsm8k").exists(), reason="../shared/data is not there")


@needs_data
def test_false_negatives_of_each_rule_on_recorded_solutions():
    """Right solutions of four models (2,001) that a rule calls wrong; docs/answers.md quotes the shares."""
    missed = dict.fromkeys(RULES, 0)
    right = 0
    with gzip.open(DATA / "gsm8k" / "example_model_solutions.jsonl.gz", "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            answer = row["ground_truth"].rpartition("A:")[2].strip()
            for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
                if row[model]["is_correct"]:
                    right += 1
                    for rule in RULES:
                        missed[rule] += not verify_math(row[model]["solution"], answer, rule)
    assert right == 286 + 515 + 458 + 742
    assert all(count / right < 0.005 for count in missed.values()), missed


@needs_data
def test_minervas_format_is_read_on_all_of_math500():
    rows = json.loads((DATA / "math500" / "math500_test.json").read_text())
    unread = [
        row["answer"]
        for row in rows
        if not verify_math(f"Final Answer: The final answer is ${row['answer']}$. I hope it is correct.", row["answer"])
    ]
    assert unread == []


@needs_data
def test_math500_keeps_its_commas_in_gsm8ks_layout(tmp_path):
    rows = json.loads((DATA / "math500" / "math500_test.json").read_text())
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(
        "".join(json.dumps({"question": r["problem"], "answer": f"s\n#### {r['answer']}"}) + "\n" for r in rows)
    )
    for row, problem in zip(rows, load_gsm8k(tmp_path, "test", "unused"), strict=True):
        number = re.fullmatch(r"[-$]*\d{1,3}(?:,\d{3})+", row["answer"])
        assert problem.answer == (row["answer"].replace(",", "") if number else row["answer"])


def test_sets_are_refused_while_they_are_loaded(tmp_path):
    """Where problems come into a run: the stage of a preset's problems, and the seeds of groups."""
    (tmp_path / "gsm8k").mkdir()
    records = [{"question": "Q?", "answer": f"s\n#### {answer}"} for answer in ("1,000", "3 or 4")]
    for split in ("train", "test"):
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with pytest.raises(InputError, match=r"problem gsm8k-train-00001: answer '3 or 4'"):
        list(load_seeds(SeedSettings(source="gsm8k", folder=tmp_path)))
    problems = GSM8K(source="gsm8k", folder=str(tmp_path), revision="unused", sizes={"test": 2})
    run = SimpleNamespace(preset=SimpleNamespace(problems=problems, seed=0))
    with pytest.raises(InputError, match=r"problem gsm8k-test-00001: answer '3 or 4'"):
        Problems().build(run, tmp_path)
