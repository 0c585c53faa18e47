"""The trace viewer: what it works out from rollouts, and what a browser draws of traces that mean harm."""

import functools
import math
import unicodedata

import pandas as pd
import pytest
from browser import needs_browser
from common import story
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tracelift_lib.problems.problem import Problem
from tracelift_lib.runs import cases as cs
from tracelift_lib.runs import cli, viewer

PARTS = {"s": 0.0, "q": 0.0, "u": 0.0, "j": 0.0, "c": 0.0, "t": 0.0, "baseline_success": 0.0, "failure": None}


def row(trace="a", problem="p", step=0, arm="tracelift", seed=0, **parts):
    reward = {"reward": 0.5 * parts.get("s", 0) + 0.5 * parts.get("q", 0) * parts.get("u", 0)}
    whose = {"problem_id": problem, "trace": trace, "step": step, "arm": arm, "seed": seed}
    return PARTS | reward | {"malformed": None} | whose | parts


def table(*rows):
    return cs.with_advantages(pd.DataFrame(rows))


def write(path, *rows):
    pd.DataFrame(rows).to_parquet(path)
    return path


# --- what is worked out ---------------------------------------------------------------------------------


def test_both_arms_advantages_by_hand():
    """Rewards (1, 0) and, with q û of 0.5 on the first, (0.75, 0): in a group of two always +-1/sqrt(2)."""
    rollouts = table(row("a", s=1.0, q=0.5, u=1.0), row("b"))
    assert rollouts["r_exec_only"].tolist() == [1, 0] and rollouts["r_tracelift"].tolist() == [0.75, 0]
    assert rollouts["A_exec_only"].tolist() == pytest.approx([0.7071, -0.7071], abs=1e-3)
    assert rollouts["A_tracelift"].tolist() == pytest.approx([0.7071, -0.7071], abs=1e-3)


def test_a_failed_reward_takes_no_part_and_a_completion_without_a_trace_earns_nothing():
    failed = row("c", s=math.nan, q=math.nan, u=math.nan, reward=None, failure="executor")
    rollouts = table(row("a", s=1.0), row(None, s=0.0, malformed="x"), failed)
    assert rollouts["A_exec_only"].tolist()[:2] == pytest.approx([0.7071, -0.7071], abs=1e-3)
    assert math.isnan(rollouts["A_exec_only"][2]) and math.isnan(rollouts["r_tracelift"][2])


def test_what_an_arm_has_not_computed_is_not_made_up():
    """exec_only logs q and û as zeros: they are no zeros."""
    rollouts = table(row(arm="exec_only", s=1.0, reward=1.0), row("b", arm="exec_only", reward=0.0))
    assert "A_tracelift" not in rollouts and "A_exec_only" in rollouts
    (case,) = cs.cases_of(rollouts, cs.choose(rollouts, "failures", 1), {}, "why")
    assert "q" not in case.columns["exec_only"][0].parts


def test_rules_take_the_group_with_the_largest_value_and_a_problem_once():
    equal = [row("a", "same", s=1.0, q=1.0, u=1.0), row("b", "same", s=0.0)]
    apart = [row(z, "apart", step, s=1.0, q=q, u=1.0) for step in (3, 5) for z, q in (("a", 1.0), ("b", 0.2))]
    rollouts = table(*equal, *apart)
    chosen = cs.choose(rollouts, "advantages", 5)
    assert [key[2:] for key in chosen.index] == [(3, "apart")]
    assert chosen.iloc[0] == pytest.approx(0.7071, abs=1e-3)  # exec_only 0 for both, tracelift +-0.7071
    assert cs.choose(rollouts, "disagreement", 1).to_dict() == {("tracelift", 0, 3, "apart"): pytest.approx(0.8)}
    assert cs.choose(rollouts, "failures", 5).to_dict() == {("tracelift", 0, 0, "same"): 0.5}
    graded = table(row("a", s=0.2), row("b", s=1.0), row("c", s=0.68), row(None, malformed="x"))
    assert cs.choose(graded, "failures", 1).tolist() == [0.75]  # partial credit is no success


def test_two_arms_stand_side_by_side_and_equal_traces_once():
    ours = [row("a", s=1.0, q=1.0, u=1.0), row("a", s=1.0, q=1.0, u=1.0), row("b", s=1.0, q=0.1, u=1.0)]
    theirs = [row("c", arm="exec_only", s=1.0, reward=1.0), row("d", arm="exec_only", reward=0.0)]
    rollouts = table(*ours, *theirs, row("e", arm="exec_only", seed=1))
    (case,) = cs.cases_of(rollouts, cs.choose(rollouts, "advantages", 1), {}, "why")
    assert {arm: [(t.text, t.times) for t in traces] for arm, traces in case.columns.items()} == {
        "tracelift": [("a", 2), ("b", 1)],
        "exec_only": [("c", 1), ("d", 1)],
    }
    assert case.columns["tracelift"][0].paid["tracelift"][0] == 1.0


def test_steps_are_right_wrong_or_missing_by_hand():
    problem = story(3, ("+", 2), ("*", 2), ("-", 4))
    first, second, third = problem.reference_solution.split("\n")
    marked = cs.marked_steps(problem, "\n".join([first, "times 2: 5 * 2 = 11.", third, "so it is 6"]))
    assert [(s.mark, s.text) for s in marked] == [
        ("right", first),
        ("wrong", "times 2: 5 * 2 = 11."),
        ("missing", second),
        ("right", third),
        ("wrong", "so it is 6"),
    ]
    skipped = cs.marked_steps(problem, f"{first}\n{third}")
    assert [s.mark for s in skipped] == ["right", "missing", "right"]
    elsewhere = problem.model_copy(update={"source": "gsm8k"})
    assert {s.mark for s in cs.marked_steps(elsewhere, first)} == {""}


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda p: p.write_bytes(b"PAR1 this is none"), "not a readable parquet"),
        (lambda p: None, "not a readable parquet"),
        (lambda p: p.mkdir(), "not a readable parquet"),
        (lambda p: pd.DataFrame({"trace": ["a"]}).to_parquet(p), "no column ['problem_id', 'reward']"),
        (lambda p: pd.DataFrame({"trace": [], "problem_id": [], "reward": []}).to_parquet(p), "no rows"),
    ],
    ids=["damaged", "absent", "folder", "other columns", "empty"],
)
def test_a_file_that_holds_no_rollouts_is_named(make, words, tmp_path, capsys):
    path = tmp_path / "rollouts.parquet"
    make(path)
    assert cli.main(["view", str(path), "--out", str(tmp_path / "x.html")]) == 2
    error = capsys.readouterr().err
    assert str(path) in error and words in error and not (tmp_path / "x.html").exists()


def test_the_least_that_a_table_can_have_is_shown(tmp_path, capsys):
    """A table of somebody else's trainer: no parts, no steps, no manifest, no problems."""
    rows = [{"problem_id": 7, "trace": "think", "reward": 1.0}, {"problem_id": 7, "trace": None, "reward": 0.0}]
    out = tmp_path / "page.html"
    assert cli.main(["view", str(write(tmp_path / "r.parquet", *rows)), "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "think" in text and "no well-formed trace" in text and "not at hand" in text and "+0.71" in text


def test_problems_are_found_or_named(tmp_path, capsys):
    problem = story(3, ("+", 2), problem_id="p")
    (tmp_path / "problems.jsonl").write_text(problem.model_dump_json() + "\n")
    rollouts = write(tmp_path / "r.parquet", row("gets 2: 3 + 2 = 5.", s=1.0, q=1.0, u=1.0), row("x: 1 + 1 = 2."))
    arguments = [
        "view",
        str(rollouts),
        "--problems",
        str(tmp_path / "problems.jsonl"),
        "--out",
        str(tmp_path / "o.html"),
    ]
    assert cli.main(arguments) == 0
    text = (tmp_path / "o.html").read_text(encoding="utf-8")
    assert "Mia has 3 coins" in text and 'class="right"' in text and 'class="wrong"' in text
    (tmp_path / "problems.jsonl").write_text('{"problem_id": "p"}\n')
    assert cli.main(arguments) == 2 and "problems.jsonl:1: not a problem" in capsys.readouterr().err


# --- what is drawn ----------------------------------------------------------------------------------------


@settings(max_examples=25)
@example("\u202e\x1b[31m")
@given(st.text(st.characters(codec=None), min_size=1, max_size=80))
def test_no_text_can_hide_or_leave_its_place(text):
    """Any text at all, lone surrogates too: the page can be written, and every character of it can be seen."""
    shown = viewer.visible(text)
    assert all(c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    case = hostile_case(text)
    assert "\x1b" not in str(case) and "\u202e" not in str(case)
    body = viewer.page([case], whole=False).encode("utf-8").decode()
    assert body.count("<") == tags_of_a_harmless_page()


@functools.cache
def tags_of_a_harmless_page():
    return viewer.page([hostile_case("a")], whole=False).count("<")


def hostile_case(text, domain="math"):
    """`text` in every place where a model, a data set or a file name can put it."""
    tests = {"tests": {"style": "stdio", "cases": [{"input": "1", "output": "1"}]}}
    values = {"problem_id": text, "source": text, "domain": domain, "task_type": text, "problem": text}
    problem = Problem(**values, reference_solution=text, answer="1" if domain == "math" else "print(1)", metadata=tests)
    sample = cs.Sample(text, False, text, ((text, text),))
    trace = cs.Trace(
        [cs.Step(text, "wrong")], text, 1, {"s": 1.0}, {"exec_only": (1.0, 0.5)}, {text: 2.0}, [sample], text
    )
    return cs.Case(text, text, problem, {text: [trace]}, [sample])


HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title='owned'\"><svg onload=\"document.title='owned'\">",
    "</style></div><style>* { display: none !important }</style>",
    "\"><a href=\"javascript:document.title='owned'\">x</a>' onmouseover='document.title=1",
    "{{ 7 * 7 }}{% for x in y %}&lt;&amp;",
    "\u202e\u2066 read me backwards \u200b\ufeff\x00\x1b[31m",
    "x" * 300_000,
    "\n" * 3_000 + "end",
    "Z" + "\u0335\u0321\u0322" * 400,
]


@needs_browser
@pytest.mark.parametrize("domain", ["math", "code"])
def test_a_browser_draws_hostile_traces_as_text(browser, tmp_path, domain):
    page = tmp_path / "hostile.html"
    text = viewer.page([hostile_case(text, domain) for text in HOSTILE], "seen").replace("<details", "<details open")
    page.write_text(text, encoding="utf-8")
    browser.open(page, width=390)
    assert browser.run("return document.title") == "seen"
    counts = browser.run(
        "return ['script','img','a','iframe','svg','style'].map(t => document.querySelectorAll(t).length)"
    )
    assert counts == [0, 0, 0, 0, 0, 1]
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    drawn = browser.run("return document.body.innerText")
    assert "<script>document.title = 'owned'</script>" in drawn and "{{ 7 * 7 }}" in drawn
    assert "⟨U+202E⟩" in drawn and "\u202e" not in drawn and "more characters" in drawn
    width, widest = browser.run("return [innerWidth, document.documentElement.scrollWidth]")
    assert width == 390 and widest <= 390
    heights = browser.run("return [...document.querySelectorAll('.case')].map(c => c.getBoundingClientRect().height)")
    assert len(heights) == len(HOSTILE) and 100 < min(heights) and max(heights) < 6_000
    out = "return [...document.querySelectorAll('.text')].filter(e => { const r = e.getBoundingClientRect(); "
    assert browser.run(out + "return r.width && (r.left < 0 || r.right > 391)}).length") == 0


@needs_browser
def test_a_browser_draws_marks_bars_and_advantages(browser, tmp_path):
    problem = story(3, ("+", 2), ("*", 2))
    trace = problem.reference_solution.replace("= 10", "= 11")
    cases = cs.cases_of(
        table(row(trace, s=1.0, q=0.4, u=1.0), row(problem.reference_solution, s=1.0, q=1.0, u=1.0)),
        pd.Series({("tracelift", 0, 0, "p"): 1.0}),
        {"p": problem},
        "why",
    )
    cases[0].columns["tracelift"][1].rubric = {"step_coherence": 1.0, "answer_support": 4.0}
    path = tmp_path / "page.html"
    path.write_text(viewer.page(cases), encoding="utf-8")
    browser.open(path)
    marks = "return [...document.querySelectorAll('.steps li')].map(e => e.className)"
    assert browser.run(marks) == ["right", "right", "right", "wrong", "missing"]
    bars = "return [...document.querySelectorAll('.bar')].map(b => b.firstChild.offsetWidth / b.offsetWidth)"
    assert browser.run(bars) == pytest.approx([0.25, 1.0], abs=0.03)
    swings = "return [...document.querySelectorAll('.swing i')].map(e => [e.className, e.offsetWidth > 5])"
    assert browser.run(swings) == [["up", False], ["up", True], ["up", False], ["down", True]]
    assert "0.5 · 1.00 + 0.5 · 0.40 · (+1.00)" in browser.run("return document.body.innerText")


def test_inline_and_page_are_the_same_and_the_page_forbids_scripts():
    case = hostile_case("x")
    whole, inline = viewer.page([case]), viewer.show([case]).data
    assert inline.strip() in whole.replace("<h2>TraceLift cases</h2>\n", "") or "<section" in inline
    assert "default-src 'none'" in whole and "http" not in inline and "<script" not in whole
