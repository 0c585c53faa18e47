"""What a flawed trace must pass, reason by reason."""

import pytest

from tracelift_lib.groups.checks import reject_reason
from tracelift_lib.problems.problem import Problem

STORY = "A farmer fills 3 boxes with 12 eggs each. 6 eggs break. Half of the rest are sold for $2 each. How much money?"
LINES = (
    "The boxes hold 3 * 12 = 36 eggs.",
    "After 6 broke there are 36 - 6 = 30 eggs.",
    "He sells half of the 30 eggs, so 30 / 2 = 15 eggs.",
    "He earns 15 * $2 = $30",
)
TRACE = "\n".join(LINES)
SLIP = "\n".join(
    [
        LINES[0],
        "After 6 broke there are 36 - 6 = 28 eggs.",
        "He sells half of the 28 eggs, so 28 / 2 = 14 eggs.",
        "He earns 14 * $2 = $28",
    ]
)
PLAN = """\
The goal is to add numbers.
- Set total to 0.
- For each x in numbers, repeat:
  - Increase total by x.
- Give back total."""


def reason(text, kind="arithmetic_slip", taken=(), reference=TRACE, domain="math"):
    problem = Problem(
        problem_id="p",
        source="hand",
        domain=domain,
        task_type="t",
        problem=STORY if domain == "math" else "Add numbers.",
        reference_solution=reference,
        answer="30" if domain == "math" else "",
    )
    return reject_reason(problem, reference, text, kind, taken)


def test_a_sound_negative_is_accepted():
    assert reason(SLIP) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n. ", "empty"),
        (TRACE, "same as the reference"),
        (TRACE.upper().replace("\n", "  \n"), "same as the reference"),
        (SLIP.replace("He earns", "TODO he earns"), "placeholder"),
        (LINES[0] + "\n...\n" + LINES[3], "placeholder"),
        ("[insert flawed reasoning here] " + SLIP, "placeholder"),
        ("<reasoning>\n" + SLIP, "markup"),
        (SLIP + "\n</think>", "markup"),
        (SLIP + "\nThis step is wrong.", "tells of its flaw"),
        ("An intentional slip. " + SLIP, "tells of its flaw"),
        ("36 eggs.", "too short"),
        (SLIP + "\n" + " ".join(LINES) * 2, "too long"),
        ("\n".join(f"def f{i}(x):\n    return x" for i in range(4)), "holds code"),
        (
            "The moon orbits our planet in roughly 27 days while tides rise along every distant ocean shore tonight",
            "off topic",
        ),
    ],
)
def test_bad_negatives_are_rejected_with_the_reason(text, why):
    assert reason(text) == why


def test_duplicates_are_found_whatever_their_spacing():
    assert reason(SLIP, taken=[SLIP.replace("\n", " ")]) == "duplicate"
    assert reason(SLIP, taken=[TRACE]) is None


@pytest.mark.parametrize(
    "text",
    [
        # two steps reworded
        "\n".join(
            [
                "Three boxes of 12 eggs: 3 * 12 = 35 eggs.",
                LINES[1].replace("36 - 6 = 30", "35 - 6 = 29"),
                "He sells half, so 30 / 2 = 15 eggs.",
                LINES[3],
            ]
        ),
        # a second slip of its own: 28 / 2 is not 13, and no 13 stands anywhere
        SLIP.replace("28 / 2 = 14", "28 / 2 = 13").replace("14 * $2 = $28", "13 * $2 = $26"),
        # numbers from nowhere
        SLIP.replace("14 * $2 = $28", "17 * $2 = $34"),
    ],
)
def test_a_second_damage_is_found(text):
    assert reason(text) == "differs in more than one place"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            "lost_event",
            "\n".join([LINES[0], "He sells half of the 36 eggs, so 36 / 2 = 18 eggs.", "He earns 18 * $2 = $36"]),
        ),
        (
            "swapped_events",
            "\n".join(
                [
                    LINES[0],
                    "He sells half of the 36 eggs, so 36 / 2 = 18 eggs.",
                    "After 6 broke there are 18 - 6 = 12 eggs.",
                    "He earns 12 * $2 = $24",
                ]
            ),
        ),
        (
            "wrong_operation",
            "\n".join(
                [
                    LINES[0],
                    "After 6 broke there are 36 + 6 = 42 eggs.",
                    "He sells half of the 42 eggs, so 42 / 2 = 21 eggs.",
                    "He earns 21 * $2 = $42",
                ]
            ),
        ),
        ("unsupported_leap", "\n".join(LINES[:1] + LINES[2:])),
    ],
)
def test_consequences_of_one_damage_are_one_place(kind, text):
    assert reason(text, kind) is None


def test_the_answer_changes_unless_the_kind_keeps_it():
    kept = "\n".join(LINES[:1] + LINES[2:])
    assert reason(kept, "lost_event") == "keeps the answer"
    assert reason(kept, "unsupported_leap") is None
    assert reason(SLIP, "unsupported_leap") == "loses the answer"


def test_code_may_be_held_by_leaked_code_only():
    code = PLAN + "\nSo the finished program is:\ndef add(numbers):\n    return sum(numbers)"
    assert reason(code, "leaked_code", reference=PLAN, domain="code") is None
    assert reason(code, "missing_step", reference=PLAN, domain="code") == "holds code"
    assert reason(PLAN + "\nThe end.", "leaked_code", reference=PLAN, domain="code") == "no code in it"
    fenced = PLAN + "\n```python\nsum(numbers)\n```"
    assert reason(fenced, "wrong_constant", reference=PLAN, domain="code") == "holds code"


def test_plans_may_differ_in_one_stretch_or_one_exchange():
    lines = PLAN.split("\n")

    def why(changed, kind="wrong_order"):
        return reason("\n".join(changed), kind, reference=PLAN, domain="code")

    assert why([lines[0], *lines[2:4], lines[1], lines[4]]) is None
    assert why([*lines[:3], "  - Decrease total by x.", lines[4]], "wrong_algorithm_choice") is None
    assert why([lines[0], "- Set total to 1.", *lines[2:4], "- Give back x."], "wrong_constant") == (
        "differs in more than one place"
    )


def test_words_of_prose_are_no_code():
    prose = TRACE + "\nImport duties are not counted, and he wants a return of the rest."
    changed = prose.replace("36 - 6 = 30 eggs", "36 - 6 = 28 eggs").replace(
        "30 eggs, so 30 / 2 = 15", "28 eggs, so 28 / 2 = 14"
    )
    assert reason(changed.replace("15 * $2 = $30", "14 * $2 = $28"), reference=prose) is None
