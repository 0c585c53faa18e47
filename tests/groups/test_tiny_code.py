"""Flaws in the plans of generated programs, and the rubric and the groups that follow from their ground truth."""

import random
from collections import Counter

import pytest
from common import CODE
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
    understand,
)

from tracelift_lib.groups.flaws.tiny_code import flawed_traces
from tracelift_lib.groups.group_maker import build_group, perturb
from tracelift_lib.groups.habits import write_habit
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.groups.truth import is_faithful, true_rubric
from tracelift_lib.problems import tinycode
from tracelift_lib.problems.tinycode import Action, Branch, generate_splits, read_plan, run_plan, write_program
from tracelift_lib.problems.tinyworld import read_calculations

KINDS = tuple(kinds_of("code"))
UNDERSTANDING, PLAN, COHERENCE, SUPPORT, LEAKAGE = CODE


@pytest.fixture(scope="module")
def problems():
    return generate_splits({"a": 150}, {"a": [1, 2, 3, 3, 4]}, max_number=9, max_value=20, seed=7)["a"]


def test_the_reference_is_faithful_and_has_full_marks(problems):
    for p in problems:
        rubric = true_rubric(p, p.reference_solution)
        assert is_faithful(p, p.reference_solution) and rubric.labels == dict.fromkeys(CODE, 4) and rubric.total == 1.0


def test_faithfulness_and_habits_go_by_the_domain():
    rng = random.Random(0)
    assert is_faithful(LINE, LINE_TRACE) and not is_faithful(LINE, LINE_TRACE + "\nprint(n)")
    assert write_habit(LINE, "full", rng) == LINE_TRACE
    assert write_habit(LINE, "bare_answer", rng) == "Plan: times 3, plus 4, times 2"
    assert write_habit(LINE, "skipped_step", rng) in flawed_traces(LINE, "unsupported_leap")
    assert write_habit(LINE, "wrong_operation", rng) in flawed_traces(LINE, "wrong_algorithm_choice")


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
    assert set(kinds_of("code")[kind].hurts) == lowered  # the registry says what the truth finds
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
    for p in problems[:40]:
        g = build_group(p, seed=0)
        assert g.domain == "code" and g.positive_pool[0].rubric.total == 1.0
        traces = [c.reasoning for c in g.negative_bank]
        found = [c.negative_kind for c in g.negative_bank]
        assert len(set(traces)) == len(traces) == len(set(found)) and set(found) <= set(KINDS)
        assert g.as_problem().domain == "code" and g.metadata["tests"] == p.metadata["tests"]
        assert g == build_group(p, seed=0)
