"""TraceLift-Groups: the seven kinds of flaw, the rubric from the ground truth, the schema, the split."""

import gzip
import hashlib
import json
import random

import pytest
from common import CODE, MATH, calculate, group_record, has_path, lines, quantities, story
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.groups import group_maker
from tracelift_lib.groups.group_files import load_groups
from tracelift_lib.groups.group_maker import build_group, perturb
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.groups.schema import Group, Rubric, rubric_from_shares, rubric_label, split_train_dev
from tracelift_lib.groups.truth import true_rubric
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.prompts import reward_model_text
from tracelift_lib.problems.tinyworld import generate_splits, read_calculations, true_steps

KINDS = (
    "wrong_operation",
    "arithmetic_slip",
    "misread_quantity",
    "lost_event",
    "swapped_events",
    "stale_value",
    "unsupported_leap",
)
UNDERSTANDING, STRATEGY, COHERENCE, CALCULATION, SUPPORT = MATH


@pytest.fixture(scope="module")
def problems():
    return generate_splits({"a": 150}, {"a": [2, 3, 3, 4]}, max_number=9, max_value=18, seed=3)["a"]


@pytest.fixture(scope="module")
def flawed(problems):
    """Every kind on every problem, four draws each: (problem, kind, calculations, trace)."""
    found = []
    for p in problems:
        for kind in KINDS:
            for draw in range(4):
                trace = perturb(p, kind, random.Random(draw))
                if trace is not None:
                    found.append((p, kind, read_calculations(trace), trace))
    return found


def of_kind(flawed, kind):
    chosen = [(p, calcs, trace) for p, k, calcs, trace in flawed if k == kind]
    assert len(chosen) > 50, f"{kind} hardly ever fits"
    return chosen


def truth_of(p):
    return [(s.before, s.op, s.operand, s.after) for s in true_steps(p)]


def wrong(calcs):
    """Places where a calculation is wrong in itself."""
    return [i for i, (a, op, b, c) in enumerate(calcs) if op == "/" and a % b or calculate(a, op, b) != c]


def broken_links(p, calcs):
    """Places where a calculation does not start from the result before it (or from the start of the story)."""
    results = [p.metadata["start"], *(c[3] for c in calcs)]
    return [i for i, c in enumerate(calcs) if c[0] != results[i]]


def events(calcs):
    return [(c[1], c[2]) for c in calcs]


# --- the seven kinds --------------------------------------------------------------------------


def test_every_flaw_differs_from_the_reference_and_moves_the_final_value(flawed):
    for p, kind, calcs, trace in flawed:
        assert trace != p.reference_solution
        assert [tuple(c) for c in calcs] != truth_of(p)
        moved = calcs[-1][3] != int(p.answer)
        assert moved == (kind != "unsupported_leap"), f"{kind}: {trace}"


def test_every_line_of_a_flawed_trace_is_a_calculation_with_a_positive_result(flawed):
    """A flaw must be plausible: nothing negative (a trace could not even be read back), nothing halved unevenly."""
    for _, _, calcs, trace in flawed:
        assert len(calcs) == len(trace.split("\n"))
        assert all(c[3] > 0 for c in calcs)
        assert all(a % b == 0 for a, op, b, _ in calcs if op == "/")


def test_wrong_operation(flawed):
    """One operation is exchanged; its operand stays, all else goes on from it in right arithmetic."""
    for p, calcs, _ in of_kind(flawed, "wrong_operation"):
        changed = [i for i, (x, y) in enumerate(zip(events(calcs), events(truth_of(p)), strict=True)) if x != y]
        assert len(changed) == 1 and calcs[changed[0]][2] == truth_of(p)[changed[0]][2]
        assert not wrong(calcs) and not broken_links(p, calcs)


def test_wrong_operation_takes_the_opposite(flawed):
    for p, calcs, _ in of_kind(flawed, "wrong_operation"):
        for (op, _), (true_op, _) in zip(events(calcs), events(truth_of(p))):
            if op != true_op:
                assert op == {"+": "-", "-": "+", "*": "+", "/": "-"}[true_op]


def test_arithmetic_slip(flawed):
    """One result is off by 1, 2 or 10; the plan stays and the rest follows from the wrong result."""
    for p, calcs, _ in of_kind(flawed, "arithmetic_slip"):
        assert events(calcs) == events(truth_of(p))
        assert len(wrong(calcs)) == 1 and not broken_links(p, calcs)
        a, op, b, c = calcs[wrong(calcs)[0]]
        assert abs(c - calculate(a, op, b)) in (1, 2, 10)


def test_misread_quantity(flawed):
    """One event is read with another number, in its words too."""
    for p, calcs, trace in of_kind(flawed, "misread_quantity"):
        pairs = list(zip(calcs, truth_of(p), strict=True))
        changed = [i for i, (c, t) in enumerate(pairs) if c[2] != t[2]]
        assert len(changed) == 1 and [c[1] for c, _ in pairs] == [t[1] for _, t in pairs]
        c, t = pairs[changed[0]]
        assert c[1] in "+-" and 1 <= abs(c[2] - t[2]) <= 3
        words = trace.split("\n")[changed[0]].split(":")[0]
        assert quantities(words) == [c[2]]
        assert not wrong(calcs) and not broken_links(p, calcs)


def test_lost_event(flawed):
    for p, calcs, _ in of_kind(flawed, "lost_event"):
        truth = events(truth_of(p))
        assert events(calcs) in [truth[:i] + truth[i + 1 :] for i in range(len(truth))]
        assert not wrong(calcs) and not broken_links(p, calcs)


def test_swapped_events(flawed):
    for p, calcs, _ in of_kind(flawed, "swapped_events"):
        truth = events(truth_of(p))
        assert events(calcs) in [truth[:i] + [truth[i + 1], truth[i]] + truth[i + 2 :] for i in range(len(truth) - 1)]
        assert not wrong(calcs) and not broken_links(p, calcs)


def test_stale_value(flawed):
    """One step starts from the value before the previous step; from there on everything is linked."""
    for p, calcs, _ in of_kind(flawed, "stale_value"):
        assert events(calcs) == events(truth_of(p)) and not wrong(calcs)
        assert len(broken_links(p, calcs)) == 1
        at = broken_links(p, calcs)[0]
        assert at >= 1 and calcs[at][0] == calcs[at - 1][0]


def test_unsupported_leap(flawed):
    """One true line, not the last, is left out and nothing else is touched."""
    for p, calcs, trace in of_kind(flawed, "unsupported_leap"):
        rows = p.reference_solution.split("\n")
        assert trace in ["\n".join(rows[:i] + rows[i + 1 :]) for i in range(len(rows) - 1)]
        assert len(broken_links(p, calcs)) == 1


EXPECTED = {  # story(3, +2, *2): 3 + 2 = 5, 5 * 2 = 10. All that each kind can make of it, by hand.
    "wrong_operation": {((3, "-", 2, 1), (1, "*", 2, 2)), ((3, "+", 2, 5), (5, "+", 2, 7))},
    "arithmetic_slip": {((3, "+", 2, r), (r, "*", 2, 2 * r)) for r in (3, 4, 6, 7, 15)}
    | {((3, "+", 2, 5), (5, "*", 2, r)) for r in (8, 9, 11, 12, 20)},
    "misread_quantity": {((3, "+", n, 3 + n), (3 + n, "*", 2, 6 + 2 * n)) for n in (1, 3, 4, 5)},
    "lost_event": {((3, "*", 2, 6),), ((3, "+", 2, 5),)},
    "swapped_events": {((3, "*", 2, 6), (6, "+", 2, 8))},
    "stale_value": {((3, "+", 2, 5), (3, "*", 2, 6))},
    "unsupported_leap": {((5, "*", 2, 10),)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_flaws_of_one_small_story(kind):
    """-10 as a slip gives nothing positive; a misreading by -2 or -3 leaves no quantity: neither may appear."""
    p = story(3, ("+", 2), ("*", 2))
    drawn = [perturb(p, kind, random.Random(i)) for i in range(300)]
    assert {tuple(map(tuple, read_calculations(trace))) for trace in drawn if trace} == EXPECTED[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_none_means_that_there_is_no_place_not_bad_luck(kind):
    """The story above has a place for each kind, so no draw may come back empty-handed."""
    p = story(3, ("+", 2), ("*", 2))
    assert all(perturb(p, kind, random.Random(i)) is not None for i in range(300))


def test_kinds_that_have_no_place_give_none():
    rng = random.Random(0)
    one = story(5, ("+", 3))
    for kind in ("lost_event", "swapped_events", "stale_value", "unsupported_leap"):
        assert perturb(one, kind, rng) is None
    assert perturb(story(5, ("+", 3), ("+", 1)), "swapped_events", rng) is None  # the order does not matter
    assert perturb(story(2, ("+", 5)), "wrong_operation", rng) is None  # 2 - 5 is below zero
    assert perturb(story(2, ("*", 2)), "wrong_operation", rng) is None  # 2 + 2 = 2 * 2
    assert perturb(story(6, ("*", 2), ("/", 2)), "misread_quantity", rng) is None  # no quantity is named


def test_a_flaw_never_halves_an_odd_number():
    """3 + 1 = 4, 4 / 2 = 2: a slip by 1 or a misreading by 1 would halve an odd number."""
    p = story(3, ("+", 1), ("/", 2))
    for kind in KINDS:
        for i in range(60):
            trace = perturb(p, kind, random.Random(i))
            for a, op, b, _ in read_calculations(trace or ""):
                assert op != "/" or a % b == 0


KEPT_AND_LOWERED = {
    "wrong_operation": ({UNDERSTANDING, COHERENCE, CALCULATION}, {STRATEGY, SUPPORT}),
    "arithmetic_slip": ({UNDERSTANDING, STRATEGY, COHERENCE}, {CALCULATION, SUPPORT}),
    "misread_quantity": ({STRATEGY, COHERENCE, CALCULATION}, {UNDERSTANDING, SUPPORT}),
    "lost_event": ({COHERENCE, CALCULATION}, {UNDERSTANDING, STRATEGY, SUPPORT}),
    "swapped_events": ({UNDERSTANDING, COHERENCE, CALCULATION}, {STRATEGY, SUPPORT}),
    "stale_value": ({UNDERSTANDING, STRATEGY, CALCULATION}, {COHERENCE, SUPPORT}),
    "unsupported_leap": ({CALCULATION}, {UNDERSTANDING, STRATEGY, COHERENCE, SUPPORT}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_hurts_its_own_dimensions(flawed, kind):
    """Up to four steps every lost share shows in the label (3/4 is 7.5 of 10, so label 3)."""
    kept, lowered = KEPT_AND_LOWERED[kind]
    assert set(kinds_of("math")[kind].hurts) == lowered  # the registry says what the truth finds
    for p, _, trace in of_kind(flawed, kind):
        labels = true_rubric(p, trace).labels
        assert {name for name in MATH if labels[name] == 4} == kept, trace
        assert {name for name in MATH if labels[name] < 4} == lowered, trace


# --- the rubric -------------------------------------------------------------------------------

STORY = story(3, ("+", 2), ("*", 2), ("-", 4))  # 3 + 2 = 5, 5 * 2 = 10, 10 - 4 = 6


@pytest.mark.parametrize(
    "trace, labels, total",
    [
        # All five shares are 1.
        (STORY.reference_solution, (4, 4, 4, 4, 4), 1.0),
        # Nothing is calculated: nothing is supported.
        ("The result is 6.", (0, 0, 0, 0, 0), 0.0),
        # Wrong operation. Shares 1, 2/3, 1, 1; one of three results, last wrong: 1/6. Mean 23/30, minimum 1/6: 7/15.
        (lines("3 + 2 = 5", "5 + 2 = 7", "7 - 4 = 3"), (4, 3, 4, 4, 0), 0.4667),
        # Slip at once. Shares 1, 1, 1, 2/3; results 6, 12, 8 have the 6 in common with 5, 10, 6: 1/6. The same total.
        (lines("3 + 2 = 6", "6 * 2 = 12", "12 - 4 = 8"), (4, 4, 4, 3, 0), 0.4667),
        # Leap. Shares 2/3, 2/3, 1/2, 1, and 2/3 with the last right. Mean 0.7, minimum 0.5: 0.6.
        (lines("3 + 2 = 5", "10 - 4 = 6"), (3, 3, 2, 4, 3), 0.6),
        # An invented fourth step. Shares 3/4, 3/4, 1, 1, 3/4. Mean 0.85, minimum 0.75: 0.8.
        (lines("3 + 2 = 5", "5 * 2 = 10", "10 - 4 = 6", "6 + 0 = 6"), (3, 3, 4, 4, 3), 0.8),
        # Division by zero is wrong, not a crash. Shares 0, 0, 1, 0, 0. Mean 0.2, minimum 0: 0.1.
        (lines("3 / 0 = 0"), (0, 0, 4, 0, 0), 0.1),
        # The last line alone. Shares 1/3, 1/3, 0, 1, 1/3. Mean 0.4, minimum 0: 0.2.
        (lines("10 - 4 = 6"), (1, 1, 0, 4, 1), 0.2),
        # Two of three results, the last one wrong: support 2/3 halved. Shares 1, 1, 1, 2/3, 1/3. Mean 0.8, minimum 1/3.
        (lines("3 + 2 = 5", "5 * 2 = 10", "10 - 4 = 7"), (4, 4, 4, 3, 1), 0.5667),
        # An operand used twice counts twice only if the story has it twice: 2, 2 and 4 against 2, 2, 2 gives 2/3.
        (lines("3 + 2 = 5", "5 * 2 = 10", "10 - 2 = 8"), (3, 4, 4, 4, 1), 0.5667),
    ],
)
def test_rubric_by_hand(trace, labels, total):
    rubric = true_rubric(STORY, trace)
    assert tuple(rubric.labels[name] for name in MATH) == labels
    assert rubric.total == pytest.approx(total, abs=5e-5)


def test_every_reference_has_full_marks(problems):
    for p in problems:
        rubric = true_rubric(p, p.reference_solution)
        assert rubric.labels == dict.fromkeys(MATH, 4) and rubric.total == 1.0


def test_only_the_truth_has_full_marks(flawed):
    assert all(true_rubric(p, trace).total < 1 for p, _, _, trace in flawed)


@pytest.mark.parametrize(
    "score, label",
    [
        (0, 0),
        (1, 0),
        (1.9, 0),
        (2, 1),
        (3, 1),
        (3.99, 1),
        (4, 2),
        (5, 2),
        (6, 3),
        (7, 3),
        (7.9, 3),
        (8, 4),
        (9, 4),
        (10, 4),
    ],
)
def test_label_is_half_the_score_rounded_down_and_cut_to_4(score, label):
    rubric = rubric_from_shares(dict.fromkeys(MATH, score / 10), 0.5)
    assert set(rubric.labels.values()) == {label}


@pytest.mark.parametrize("overall, total", [(-0.2, 0.0), (0.0, 0.0), (0.35, 0.35), (1.0, 1.0), (1.7, 1.0)])
def test_total_is_cut_to_the_unit_interval(overall, total):
    """And it is its own score, not the mean of the dimensions (docs/method.md section 8)."""
    assert rubric_from_shares(dict.fromkeys(MATH, 0.9), overall).total == total


@pytest.mark.parametrize(
    "total, label",
    [
        (0, "bad"),
        (0.2499, "bad"),
        (0.25, "weak"),
        (0.4999, "weak"),
        (0.5, "acceptable"),
        (0.7499, "acceptable"),
        (0.75, "strong"),
        (1, "strong"),
    ],
)
def test_words_for_the_total_are_its_quarters(total, label):
    assert rubric_label(total) == label


# --- groups -----------------------------------------------------------------------------------


def test_a_group_holds_the_reference_and_distinct_flaws(problems):
    for p in problems:
        g = build_group(p, seed=0)
        (reference,) = g.positive_pool
        assert reference.reasoning == p.reference_solution and reference.negative_kind is None
        assert reference.rubric.total == 1.0 and set(reference.rubric.labels.values()) == {4}
        traces = [c.reasoning for c in g.negative_bank]
        assert len(set(traces)) == len(traces) and p.reference_solution not in traces
        kinds = [c.negative_kind for c in g.negative_bank]
        assert len(set(kinds)) == len(kinds) and set(kinds) <= set(KINDS)
        assert all(c.rubric.total < 1 for c in g.negative_bank)
        assert (g.problem_id, g.problem, g.metadata["answer"], g.domain) == (p.problem_id, p.problem, p.answer, "math")


def test_duplicates_and_copies_of_the_reference_are_dropped(monkeypatch):
    """Two kinds that damage a trace in the same way give one candidate, named by the first."""
    p = story(3, ("+", 2), ("*", 2))
    last = p.reference_solution.split("\n")[-1]
    traces = {"arithmetic_slip": last, "lost_event": p.reference_solution, "stale_value": last}
    monkeypatch.setattr(group_maker, "perturb", lambda problem, kind, rng: traces.get(kind))
    assert [c.negative_kind for c in build_group(p, 0).negative_bank] == ["arithmetic_slip"]


def test_a_candidates_rubric_is_that_of_its_own_trace(problems):
    for p in problems[:40]:
        for c in build_group(p, seed=0).negative_bank:
            assert c.rubric == true_rubric(p, c.reasoning)
            assert c.rubric_score_raw == pytest.approx(10 * c.rubric.total, abs=1e-3)
            assert c.rubric_label == rubric_label(c.rubric.total)


def test_groups_depend_on_seed_and_problem_only(problems):
    first = [build_group(p, 0) for p in problems[:30]]
    again = [build_group(p, 0) for p in reversed(problems[:30])][::-1]
    assert first == again
    assert first != [build_group(p, 1) for p in problems[:30]]


def test_a_group_gives_its_problem_back(problems):
    p = problems[0]
    again = build_group(p, 0).as_problem()
    assert (again.problem_id, again.problem, again.answer, again.domain, again.task_type) == (
        p.problem_id,
        p.problem,
        p.answer,
        "math",
        p.task_type,
    )
    assert true_steps(again) == true_steps(p)


# --- the split --------------------------------------------------------------------------------


@given(st.sets(st.text(min_size=1, max_size=12), max_size=80), st.randoms())
def test_split_follows_sha256_of_seed_18_and_id(ids, rng):
    shuffled = sorted(ids)
    rng.shuffle(shuffled)
    train, dev = split_train_dev(shuffled)
    assert sorted([*train, *dev]) == sorted(ids)
    by_hash = sorted(ids, key=lambda i: hashlib.sha256(b"18:" + i.encode()).digest())
    assert dev == by_hash[: len(dev)] and train == by_hash[len(dev) :]
    assert abs(len(dev) - 0.1 * len(ids)) <= 0.5


def test_dev_is_a_tenth():
    train, dev = split_train_dev([f"p{i}" for i in range(3000)])
    assert (len(train), len(dev)) == (2700, 300)


# --- the schema -------------------------------------------------------------------------------


def write(path, records):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(r) + "\n" for r in records)
    return path


@pytest.mark.parametrize("name", ["groups.jsonl", "groups.jsonl.gz"])
def test_what_is_written_is_read_back(tmp_path, problems, name):
    built = [build_group(p, 0) for p in problems[:20]]
    path = write(tmp_path / name, [g.to_record() for g in built])
    assert list(load_groups(path)) == built


def test_a_record_by_hand_round_trips_without_gain_or_loss(tmp_path):
    (group,) = load_groups(write(tmp_path / "g.jsonl", [group_record()]))
    assert group.to_record() == group_record()
    assert group.negative_bank[1].rubric.labels["solution_strategy"] == 2
    assert group.negative_bank[1].rubric.total == 0.5
    assert (group.as_problem().answer, group.domain) == ("5", "math")


def test_a_code_group_is_valid():
    record = group_record()
    for candidate in [*record["positive_pool"], *record["negative_bank"]]:
        candidate["rubric"] = dict.fromkeys(CODE, 3) | {"total": 0.7}
    group = Group.model_validate(record)
    assert group.domain == group.as_problem().domain == "code"
    assert group.to_record() == record


def change(*keys):
    """A change of the record at a path of keys; the last one is the new value, or `del`."""
    *path, last, value = keys

    def apply(record):
        place = record
        for key in path:
            place = place[key]
        if value is del_:
            del place[last]
        else:
            place[last] = value

    return apply


del_ = object()
POSITIVE, FIRST, SECOND = ("positive_pool", 0), ("negative_bank", 0), ("negative_bank", 1)
BAD = [  # (what, change, field as named, a word of the message)
    ("unknown dimension", change(*POSITIVE, "rubric", "elegance", 3), "positive_pool.0.rubric", "elegance"),
    ("missing dimension", change(*POSITIVE, "rubric", "step_coherence", del_), "positive_pool.0.rubric", "dimensions"),
    ("label 7", change(*SECOND, "rubric", "step_coherence", 7), "negative_bank.1.rubric.labels.step_coherence", "to 4"),
    (
        "label -1",
        change(*FIRST, "rubric", "step_coherence", -1),
        "negative_bank.0.rubric.labels.step_coherence",
        "to 0",
    ),
    ("label 2.5", change(*FIRST, "rubric", "step_coherence", 2.5), "negative_bank.0.rubric", "step_coherence"),
    ("label in words", change(*FIRST, "rubric", "step_coherence", "x"), "negative_bank.0.rubric", "step_coherence"),
    ("total 1.5", change(*POSITIVE, "rubric", "total", 1.5), "positive_pool.0.rubric.total", "1"),
    ("no total", change(*POSITIVE, "rubric", "total", del_), "positive_pool.0.rubric.total", ""),
    ("no rubric", change(*POSITIVE, "rubric", del_), "positive_pool.0.rubric", "required"),
    ("no positive", change("positive_pool", []), "positive_pool", "at least 1"),
    ("no negative_kind", change(*SECOND, "negative_kind", del_), "", "negative_kind"),
    ("empty reasoning", change(*FIRST, "reasoning", ""), "negative_bank.0.reasoning", "at least 1"),
    ("blank reasoning", change(*FIRST, "reasoning", " \n"), "negative_bank.0.reasoning", "white space"),
    ("label as text", change(*FIRST, "rubric", "step_coherence", "3"), "negative_bank.0.rubric", "step_coherence"),
    ("label true", change(*POSITIVE, "rubric", "step_coherence", True), "positive_pool.0.rubric", "step_coherence"),
    ("total as text", change(*FIRST, "rubric", "total", "0.5"), "negative_bank.0.rubric.total", "number"),
    ("no flawed trace", change("negative_bank", []), "negative_bank", "flawed"),
    ("an id again", change("problem_id", "p-1"), "problem_id", "g.jsonl"),
    ("an answer that is none", change("metadata", {"answer": [18]}), "", "metadata.answer"),
    ("metadata that is no JSON", change("metadata", "{"), "", "JSONDecodeError"),
    ("unknown word", change(*FIRST, "rubric_label", "great"), "negative_bank.0.rubric_label", "strong"),
    ("raw score 11", change(*FIRST, "rubric_score_raw", 11), "negative_bank.0.rubric_score_raw", "10"),
    ("no problem_id", change("problem_id", del_), "problem_id", "required"),
    ("number as problem", change("problem", 5), "problem", "string"),
    ("unknown field", change("colour", "red"), "colour", "not permitted"),
    ("unknown field of a candidate", change(*FIRST, "judge", "x"), "negative_bank.0.judge", "not permitted"),
    ("mixed domains", change(*FIRST, "rubric", dict.fromkeys(CODE, 3) | {"total": 0.5}), "", "domain"),
]


@pytest.mark.parametrize("mutate, field, word", [case[1:] for case in BAD], ids=[case[0] for case in BAD])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_violation_is_named_with_file_line_and_field(tmp_path, mutate, field, word, suffix):
    broken = group_record("p-3")
    mutate(broken)
    path = write(tmp_path / f"g{suffix}", [group_record("p-1"), group_record("p-2"), broken])
    loaded = load_groups(path)
    assert [next(loaded).problem_id, next(loaded).problem_id] == ["p-1", "p-2"]
    with pytest.raises(InputError) as caught:
        next(loaded)
    message = str(caught.value)
    assert has_path(message, path, 3), message
    assert (f"field {field}" in message or not field) and word in message, message


def test_a_key_that_is_there_twice_is_named(tmp_path):
    text = json.dumps(group_record())
    path = tmp_path / "g.jsonl"
    path.write_text(text.replace('"total": 0.45', '"total": 0.45, "total": 0.9'))
    with pytest.raises(InputError, match="'total' is given twice") as caught:
        list(load_groups(path))
    assert has_path(str(caught.value), path, 1)


def test_a_number_as_answer_is_read_as_text(tmp_path):
    record = group_record()
    record["metadata"]["answer"] = 18
    (group,) = load_groups(write(tmp_path / "g.jsonl", [record]))
    assert group.as_problem().answer == "18"


# --- the released code's own groups (docs/method.md section 9) ----------------------------------


def released_math_record(problem_id="math_gsm8k_000018"):
    """As its script for math groups writes one: which keys, and of what kind."""
    record = group_record(problem_id) | {"source": "gsm8k", "task_type": "math"}
    lengths = {"raw_reason_length": 21, "clean_reason_length": 18}
    record["positive_pool"][0] |= {"label": "positive", "rubric_label": "positive", "rubric_score_raw": 10.0, **lengths}
    for number, candidate in enumerate(record["negative_bank"]):
        meta = {"judge_meta": {"model": "m"}, "source_row_index": 36, "parent_source_row_index": None}
        candidate |= {"label": "negative", "negative_index": number, "metadata": meta, **lengths}
    record["negative_bank"][1] |= {"rubric_label": None, "rubric_score_raw": 5.0, "rubric_reason": None}
    record["metadata"] = {
        "source_row_index": 18,
        "answer": "5",
        "negative_count": 2,
        "math_dimension_names": list(MATH),
    }
    return record


def released_code_record(problem_id="code_000007"):
    """As its script for code groups writes one."""
    record = group_record(problem_id)
    del record["task_type"]
    record["metadata"] = {"task_type": "stdin", "source_dataset": None, "positive_has_any_code_pattern": False}
    for candidate in [*record["positive_pool"], *record["negative_bank"]]:
        candidate["rubric"] = dict.fromkeys(CODE, 3) | {"total": 0.45}
        candidate |= {"label": None, "raw_reason_length": 9, "clean_reason_length": 9, "rubric_label": "acceptable"}
        candidate |= {"rubric_score_raw": None, "rubric_reason": None}
    return record


@pytest.mark.parametrize("name", ["train_groups_min4.jsonl", "train_groups.jsonl", "train.jsonl"])
@pytest.mark.parametrize("make, task_type", [(released_math_record, "math"), (released_code_record, "stdin")])
def test_groups_of_the_released_scripts_load_from_their_folders(tmp_path, name, make, task_type):
    write(tmp_path / name, [make()])
    write(tmp_path / name.replace("train", "dev"), [make("other")])
    (group,), (dev,) = load_groups(tmp_path), load_groups(tmp_path, "dev")
    assert group.task_type == group.as_problem().task_type == task_type and dev.problem_id == "other"
    assert [c.reasoning for c in group.candidates] == [
        c["reasoning"] for c in make()["positive_pool"] + make()["negative_bank"]
    ]


def test_two_files_of_one_split_are_named(tmp_path):
    for name in ("train_groups_min4.jsonl", "train_groups_min2.jsonl"):
        write(tmp_path / name, [released_math_record()])
    with pytest.raises(InputError, match="train_groups_min2.jsonl, train_groups_min4.jsonl; name one"):
        next(load_groups(tmp_path))


def test_a_group_without_any_task_type_has_its_source(tmp_path):
    record = released_code_record() | {"metadata": {}}
    (group,) = load_groups(write(tmp_path / "g.jsonl", [record]))
    assert group.task_type == "hand"


def rendered(record, candidate, domain):
    """The released code's text of a candidate, from the record as it is on disk."""
    tests = record.get("tests_or_constraints") or record.get("tests") or ""
    kind = record.get("task_type") or record["metadata"].get("task_type")
    parts = [f"<task>{domain}</task>", f"<type>{kind}</type>", "<problem>", record["problem"].strip(), "</problem>"]
    parts += ["<tests>", tests.strip(), "</tests>"] if tests else []
    return "\n".join([*parts, "<reasoning>", candidate["reasoning"].strip(), "</reasoning>"])


@pytest.mark.parametrize("key", [None, "tests", "tests_or_constraints"])
@pytest.mark.parametrize("make, domain", [(released_math_record, "math"), (released_code_record, "code")])
def test_the_reward_model_reads_what_the_released_one_does(tmp_path, make, domain, key):
    record = make() | {"problem": "\n  Sum them.\n\n"} | ({key: "\nin: 1\nout: 2\n"} if key else {})
    record["negative_bank"][0]["reasoning"] = "  add them up\n"
    (group,) = load_groups(write(tmp_path / "g.jsonl", [record]))
    texts = [reward_model_text(group.as_problem(), c.reasoning) for c in group.candidates]
    assert texts == [rendered(record, c, domain) for c in record["positive_pool"] + record["negative_bank"]]
    assert ("<tests>" in texts[0]) == (key is not None)


def test_the_released_collator_reads_ours(problems):
    """What it asks of a record: one domain's labels under their names, whole numbers; totals; references; negatives."""
    for problem in problems[:20]:
        record = json.loads(json.dumps(build_group(problem, 0).to_record()))
        assert record["positive_pool"] and record["negative_bank"] and "tests" not in record
        for candidate in record["positive_pool"] + record["negative_bank"]:
            assert all(type(candidate["rubric"][name]) is int for name in MATH)
            assert 0 <= float(candidate["rubric"]["total"]) <= 1 and candidate["reasoning"].strip()
            text = reward_model_text(problem, candidate["reasoning"])
            assert text == rendered(record, candidate, "math")


def test_lines_that_are_no_json_objects_are_named(tmp_path):
    path = write(tmp_path / "g.jsonl", [group_record()])
    good = path.read_text()
    path.write_text(good + "\n" + '{"problem_id": \n')  # a blank line counts but is skipped
    with pytest.raises(InputError) as caught:
        list(load_groups(path))
    assert has_path(str(caught.value), path, 3) and "JSON" in str(caught.value)
    path.write_text(good + "[1, 2]\n")
    with pytest.raises(InputError) as caught:
        list(load_groups(path))
    assert has_path(str(caught.value), path, 2) and "list" in str(caught.value)


@pytest.mark.parametrize(
    "labels",
    [
        dict.fromkeys(MATH, 4) | {"extra": 1},
        dict.fromkeys(MATH[:4], 4),
        dict.fromkeys([*MATH[:4], "non_leakage"], 4),
        {},
    ],
)
def test_a_rubric_has_the_five_dimensions_of_one_domain(labels):
    with pytest.raises(ValueError):
        Rubric(labels=labels, total=0.5)
