"""Plans read off programs, flaws put into them, and whether a flaw shows when the program runs."""

import ast
import re

import pytest
from common import DATA

from tracelift_lib.groups import group_maker
from tracelift_lib.groups.flaws.code_makers import flawed_plans
from tracelift_lib.groups.flaws.plans import Unsupported, parse_program, reference_plan, say
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.groups.seeds import SeedSettings, load_seeds
from tracelift_lib.problems.problem import Problem
from tracelift_lib.sandbox.running import Outcome

PROGRAM = '''
import math
def total_even(numbers, limit):
    """Adds up."""
    total = 0
    for x in numbers:
        if x % 2 == 0 and x < limit:
            total += x
    total = total * 2
    return total
'''
PLAN = """\
The goal is to add up the even numbers below a limit, twice.
- For total_even we are given numbers and limit.
  - Set total to 0.
  - For each x in numbers, repeat:
    - If ((the remainder of x divided by 2) equals 0) and (x is less than limit):
      - Increase total by x.
  - Set total to total times 2.
  - Give back total."""
TESTS = ["assert total_even([1, 2, 3, 4, 8], 8) == 12", "assert total_even([], 3) == 0"]


def problem(program=PROGRAM, tests=TESTS, text="Write a function to add up the even numbers below a limit, twice."):
    return Problem(
        problem_id="p",
        source="hand",
        domain="code",
        task_type="function",
        problem=text,
        reference_solution=program,
        answer="",
        metadata={"tests": {"style": "asserts", "code": tests}},
    )


def changes(kind, **about):
    """{(line before, line after)} of each version that changes one line."""
    found, reference = set(), reference_plan(problem(**about)).split("\n")
    for flaw in flawed_plans(problem(**about), kind):
        lines = flaw.text.split("\n")
        if len(lines) == len(reference):
            found |= {(a.strip(" -"), b.strip(" -")) for a, b in zip(reference, lines) if a != b}
    return found


def test_a_plan_states_every_statement_in_words_and_no_code():
    assert reference_plan(problem()) == PLAN


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("a[-1]", "element minus 1 of a"),
        ("a[1:n]", "the part of a from position 1 up to but not position n"),
        ("a[::-1]", "a in reverse"),
        ("(a + b) * c", "(a plus b) times c"),
        ("not x", "not x"),
        ("1 < x <= 3", "1 is less than x and is at most 3"),
        ("sorted(a, key=f)", "a in sorted order (with key f)"),
        ("range(1, n, 2)", "the numbers from 1 up to but not n in steps of 2"),
        ("''.join(w)", "the elements of w joined by the empty text"),
        ("[x * x for x in a if x > 0]", "the list of (x times x) for each x in a for which x is greater than 0"),
        ("lambda x: x + 1", "the rule that takes x to (x plus 1)"),
        ("'%d eggs' % n", "'%d eggs' filled in with n"),
        ("g(a)(b)", "the result of the result of g for a for b"),
        ("{}", "an empty dictionary"),
        ("None", "nothing"),
        ("a if b else c", "a if b, otherwise c"),
        ("x.pop()", "the last element taken off x"),
        ("-x", "minus x"),
    ],
)
def test_expressions_in_words(code, words):
    assert say(ast.parse(code, mode="eval").body) == words


@pytest.mark.parametrize(
    "program",
    [
        "def f(x:",
        "class A:\n  pass",
        "def f(x):\n  try:\n    return 1\n  except E:\n    pass",
        "def f(x):\n  yield x",
        "def f(x):\n  return f'{x}'",
        "async def f(x):\n  return 1",
        "def f(x):\n  with x:\n    return 1",
    ],
)
def test_what_has_no_words_is_refused_and_has_no_versions(program):
    with pytest.raises(Unsupported):
        reference_plan(problem(program))
    assert all(flawed_plans(problem(program), kind) == [] for kind in kinds_of("code"))


def test_short_programs_are_taken_apart_without_changing_what_they_do():
    program = "def f(words, n):\n    return sorted(set(''.join(words).lower()))[:len(words) + abs(min(n, 0))]"
    tree = parse_program(program)
    assert "part1" in ast.unparse(tree) and len(tree.body[0].body) > 3
    for arguments in ((["Ab", "cA"], 1), ([], 0), (["zyx"], -2)):
        results = []
        for code in (program, ast.unparse(tree)):
            scope = {}
            exec(code, scope)
            results.append(scope["f"](*arguments))
        assert results[0] == results[1]


def test_what_is_evaluated_only_sometimes_stays_where_it_is():
    tree = parse_program("def f(a):\n    return 0 if not a else sum(max(x) for x in a)")
    assert len(tree.body[0].body) == 1


# --- the kinds --------------------------------------------------------------------------------


def test_wrong_constant():
    assert changes("wrong_constant") == {
        ("Set total to 0.", "Set total to 1."),
        *(
            (
                "If ((the remainder of x divided by 2) equals 0) and (x is less than limit):",
                f"If ((the remainder of x divided by {a}) equals {b}) and (x is less than limit):",
            )
            for a, b in ((1, 0), (3, 0), (2, 1))
        ),
        ("Set total to total times 2.", "Set total to total times 1."),
        ("Set total to total times 2.", "Set total to total times 3."),
    }


def test_wrong_algorithm_choice():
    assert ("Increase total by x.", "Decrease total by x.") in changes("wrong_algorithm_choice")
    assert ("Set total to total times 2.", "Set total to total plus 2.") in changes("wrong_algorithm_choice")
    text = changes("wrong_algorithm_choice", program="def f(a):\n    return max(a) + 'x'")
    assert text == {("Set part1 to the largest of a.", "Set part1 to the smallest of a.")}  # texts are not subtracted


def test_misread_specification():
    condition = "If ((the remainder of x divided by 2) {}) and (x is {} limit):"
    before = condition.format("equals 0", "less than")
    found = changes("misread_specification")
    assert {
        (before, condition.format("differs from 0", "less than")),
        (before, condition.format("equals 0", "at most")),
        (before, condition.format("equals 0", "greater than")),
    } == found  # a list is not mistaken for a number
    inputs = changes("misread_specification", program="def f(a, b):\n    return a - b")
    assert inputs == {
        ("Give back a minus b.", "Give back b minus b."),
        ("Give back a minus b.", "Give back a minus a."),
    }


def test_missing_step_leaves_one_statement_out():
    texts = [flaw.text for flaw in flawed_plans(problem(), "missing_step")]
    lines = PLAN.split("\n")
    assert texts == [
        "\n".join(lines[:2] + lines[3:]),
        "\n".join(lines[:3] + lines[6:]),
        "\n".join(lines[:6] + lines[7:]),
    ]


def test_wrong_order_exchanges_neighbours_that_depend_on_each_other():
    lines = PLAN.split("\n")
    assert [flaw.text for flaw in flawed_plans(problem(), "wrong_order")] == [
        "\n".join([*lines[:2], *lines[3:6], lines[2], *lines[6:]]),
        "\n".join([*lines[:3], lines[6], *lines[3:6], lines[7]]),
    ]
    assert flawed_plans(problem("def f(a, b):\n    x = 1\n    y = 2\n    return x"), "wrong_order") == []


def test_unsupported_leap_claims_a_result_without_a_way():
    lines = PLAN.split("\n")
    texts = [flaw.text for flaw in flawed_plans(problem(), "unsupported_leap")]
    assert "\n".join([*lines[:3], "  - After this, total holds what is needed.", *lines[6:]]) in texts
    assert not any("Set total to the right value." in text.split("\n")[2] for text in texts)  # 0 needs no how


def test_leaked_code_pastes_the_program():
    (flaw,) = flawed_plans(problem(), "leaked_code")
    assert flaw.text == f"{PLAN}\nSo the finished program is:\n{PROGRAM}" and flaw.program is None


def test_severity_is_the_share_of_steps_from_the_flaw_on():
    by_line = {
        next(i for i, (a, b) in enumerate(zip(PLAN.split("\n"), f.text.split("\n"))) if a != b): f.severity
        for f in flawed_plans(problem(), "wrong_constant")
    }
    assert by_line == {2: 6 / 7, 4: 4 / 7, 6: 2 / 7}


# --- running ----------------------------------------------------------------------------------


PASS, WRONG, ERROR = Outcome.PASS, Outcome.WRONG, Outcome.ERROR


def test_programs_are_run_on_the_tests_in_the_sandbox(sandbox, tmp_path):
    change = {
        "total * 2": "total * 3",
        "total = 0\n": "pass\n",
        "    total = total * 2": "    while True: pass",
        "return total": f"open({str(tmp_path / 'made')!r}, 'w').write('x')\n    return total",
    }
    programs = [PROGRAM, *(PROGRAM.replace(*pair) for pair in change.items()), "def total_even("]
    found = group_maker.outcomes(problem(), programs)
    assert found[:3] == [(PASS, PASS), (WRONG, PASS), (ERROR, ERROR)]
    assert found[3] == (Outcome.TIMEOUT,) * 2 and found[5] == (ERROR, ERROR)
    assert not (tmp_path / "made").exists()


def test_standard_input_and_output_are_tests_too(sandbox):
    tests = {"style": "stdio", "cases": [{"input": "3\n", "output": "6\n"}, {"input": "0\n", "output": "0\n"}]}
    contest = problem().model_copy(update={"metadata": {"tests": tests}})
    found = group_maker.outcomes(contest, ["print(2 * int(input()))", "print(3 * int(input()))", "print(input().x)"])
    assert found == [(PASS, PASS), (WRONG, PASS), (ERROR, ERROR)]


def test_a_flaw_shows_by_another_result_or_if_allowed_by_none():
    good = [PASS, PASS, ERROR]
    assert not group_maker.shows(good, good) and not group_maker.shows(good, good, may_stop=True)
    assert group_maker.shows(good, [PASS, WRONG, ERROR])
    assert not group_maker.shows(good, [ERROR, PASS, PASS])
    assert group_maker.shows(good, [Outcome.TIMEOUT, PASS, ERROR], may_stop=True)
    assert not group_maker.shows(good, [PASS, PASS, WRONG], may_stop=True)  # the reference fails there


@pytest.mark.skipif(not DATA.exists(), reason="public data are not here")
def test_plans_of_real_programs():
    """Nearly every MBPP program has a plan; none holds code; each version differs from it, and its program parses."""
    code = re.compile(r"^\s*(?:def|class|return|import|from|if|while)\b.*[:)]?$|```|==|\+=", re.MULTILINE)
    planned = versions = 0
    for seed in load_seeds(SeedSettings(source="mbpp", folder=DATA)):
        try:
            plan = reference_plan(seed)
        except Unsupported:
            continue
        planned += 1
        steps = "\n".join(plan.split("\n")[1:])
        assert not code.search(re.sub(r"'[^']*'", "", steps)), plan
        if planned % 10 == 0:
            for kind in kinds_of("code").keys() - {"leaked_code"}:
                for flaw in flawed_plans(seed, kind)[:5]:
                    versions += 1
                    assert flaw.text != plan and 0 < flaw.severity <= 1
                    assert kind == "unsupported_leap" or ast.parse(flaw.program)
    assert planned == 458 and versions > 500
