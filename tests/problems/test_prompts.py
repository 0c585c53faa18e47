"""What models read, and which trace is taken out of what the planner writes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.models.base import train_tokenizer
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import (
    PromptLimits,
    as_chat,
    as_completion,
    executor_prompt,
    extract_trace,
    planner_prompt,
    reward_model_text,
    wrap_trace,
)

STYLES = ("short", "instruct")
LIMITS = PromptLimits()
OPEN, CLOSE = "<reasoning>", "</reasoning>"

# --- taking the trace out ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "completion, trace",
    [
        (f"{OPEN}a{CLOSE}", "a"),
        (f"{OPEN}\na\nb\n{CLOSE}", "a\nb"),
        (f"before {OPEN} a {CLOSE} after", "a"),
        (f"{OPEN}  a\n\nb  {CLOSE}", "a\n\nb"),
        (f"{OPEN}a < b > c <b>{CLOSE}", "a < b > c <b>"),
        (f"{OPEN}Сначала 5 + 3 = 8{CLOSE}", "Сначала 5 + 3 = 8"),
        (f"{OPEN}先有八个，再加三个。{CLOSE}", "先有八个，再加三个。"),
        (f"{OPEN}\u0645\u0631\u062d\u0628\u0627 🙂{CLOSE}", "\u0645\u0631\u062d\u0628\u0627 🙂"),
        (f"{OPEN}<think>x</think>{CLOSE}", "<think>x</think>"),
        (f"<think>I write {OPEN}a draft{CLOSE}.</think>\n{OPEN}x{CLOSE}", "x"),  # thinking that names the tags
        (f"I write {OPEN}a draft{CLOSE}.</think>\n{OPEN}x{CLOSE}", "x"),  # the template opened the thinking
        (f"<think>I write {OPEN}a draft{CLOSE}", None),  # cut off while it thinks
        (f"{OPEN}{{braces}} %s \\n{CLOSE}", "{braces} %s \\n"),
        ("", None),
        ("no tags", None),
        (OPEN, None),
        (CLOSE, None),
        (f"{OPEN}a", None),  # not closed
        (f"a{CLOSE}", None),  # not opened
        (f"{OPEN}{CLOSE}", None),  # empty
        (f"{OPEN} \n\t {CLOSE}", None),  # only white space
        (f"{OPEN}\u00a0\u2003{CLOSE}", None),  # other white space
        (f"{CLOSE}a{OPEN}", None),  # the wrong way round
        (f"{CLOSE}{OPEN}", None),
        (f"{OPEN}a{CLOSE}{OPEN}b{CLOSE}", None),  # two traces
        (f"{OPEN}a{CLOSE} {CLOSE}", None),
        (f"{OPEN} {OPEN}a{CLOSE}", None),
        (f"{OPEN}a{OPEN}b{CLOSE}c{CLOSE}", None),  # nested
        (f"{OPEN}{OPEN}a{CLOSE}{CLOSE}", None),
        (f"{OPEN}a{CLOSE}{OPEN}", None),
        ("<Reasoning>a</Reasoning>", None),  # the tags are exact
        ("< reasoning>a</ reasoning>", None),
        ("<reasoning >a</reasoning>", None),
        ("<reasoning/>a</reasoning>", None),
        ("&lt;reasoning&gt;a&lt;/reasoning&gt;", None),
    ],
)
def test_exactly_one_pair_of_tags_with_something_in_it(completion, trace):
    assert extract_trace(completion) == trace


def test_a_megabyte_is_no_trouble():
    body = "x" * 1_000_000
    assert extract_trace(f"{OPEN}{body}{CLOSE}") == body
    assert extract_trace(body) is None
    assert extract_trace(OPEN * 100_000 + CLOSE * 100_000) is None
    assert extract_trace("<" * 1_000_000) is None


free_text = st.text().filter(lambda t: OPEN not in t and CLOSE not in t)


@given(free_text, free_text, free_text)
def test_whatever_stands_between_one_pair_is_the_trace(before, trace, after):
    assert extract_trace(before + OPEN + "\n" + trace + "\n" + CLOSE + after) == (trace.strip() or None)
    assert extract_trace(wrap_trace(trace)) == (trace.strip() or None)
    assert extract_trace(before + trace + after) is None


PIECES = [OPEN, CLOSE, "a", " ", "\n", "<", "</", "reasoning>", "\ud800", "ß", "\0"]


@given(st.lists(st.sampled_from(PIECES), max_size=9))
def test_every_text_has_one_documented_result(pieces):
    """A trace exactly if one opening tag stands before one closing tag with something but white space in between."""
    text = "".join(pieces)
    opened = [m.start() for m in re.finditer(OPEN, text)]
    closed = [m.start() for m in re.finditer(CLOSE, text)]
    between = text[opened[0] + len(OPEN) : closed[0]] if len(opened) == len(closed) == 1 else ""
    assert extract_trace(text) == (between.strip() or None)


@given(st.text())
def test_extraction_never_fails(text):
    trace = extract_trace(text)
    assert trace is None or (trace == trace.strip() and trace in text and OPEN not in trace and CLOSE not in trace)


@given(free_text, free_text)
def test_two_pairs_are_no_trace_whatever_they_hold(first, second):
    assert extract_trace(wrap_trace(first) + wrap_trace(second)) is None
    assert extract_trace(wrap_trace(wrap_trace(first))) is None


# --- prompts ----------------------------------------------------------------------------------


def asked(text, domain):
    return Problem(
        problem_id="p", source="hand", domain=domain, task_type="t", problem=text, reference_solution="", answer=""
    )


def planner(text, style, limits=LIMITS, domain="math"):
    return planner_prompt(asked(text, domain), style, limits)


def executor(text, trace, style, limits=LIMITS, domain="math"):
    return executor_prompt(asked(text, domain), trace, style, limits)


@pytest.mark.parametrize("style", STYLES)
@given(problem=st.text(max_size=50), trace=st.text(max_size=50))
def test_the_problem_stands_before_the_trace(style, problem, trace):
    """So a server's prefix cache serves all samples of a problem. The marks make both texts findable."""
    p, z = f"@{problem}@", f"#{trace}#"
    prompt = executor(p, z, style)
    assert p in prompt and f"{OPEN}\n{z}\n{CLOSE}" in prompt
    assert prompt.index(p) + len(p) <= prompt.rindex(z)


@pytest.mark.parametrize("style", STYLES)
def test_with_and_without_trace_share_all_up_to_the_trace(style):
    """Else the uplift would also measure a difference of wording before the trace, and share no prefix."""
    with_trace, without = executor("PROBLEM", "TRACE", style), executor("PROBLEM", None, style)
    assert "PROBLEM" in without and "TRACE" not in without and OPEN not in without and CLOSE not in without
    assert with_trace.count("PROBLEM") == with_trace.count("TRACE") == without.count("PROBLEM") == 1


@pytest.mark.parametrize("style", STYLES)
def test_an_empty_trace_is_still_a_trace(style):
    """`None` asks for the baseline, an empty text does not."""
    assert OPEN in executor("p", "", style) and OPEN not in executor("p", None, style)


@pytest.mark.parametrize("style", STYLES)
def test_braces_in_texts_are_left_alone(style):
    """Programs hold braces; a second round of formatting would fail or fill them."""
    text = "print(f'{x}') {problem} {trace} {} {0}"
    assert text in planner(text, style)
    assert executor(text, "T", style).count(text) == 1
    assert text in executor("P", text, style)


def test_the_wording_for_math_stays():
    """Models of the tiny world are trained on the short one, results of SmolLM2 depend on the other."""
    assert planner("P", "short") == "Plan.\nP"
    assert executor("P", None, "short") == "Solve.\nP"
    assert executor("P", "Z", "short") == "Solve.\nP\n<reasoning>\nZ\n</reasoning>"
    reply = "Reply with one line only: 'The answer is' and then the final number."
    assert executor("P", None, "instruct") == f"Solve the problem.\n\nProblem:\nP\n\n{reply}"
    assert executor("P", "Z", "instruct") == (
        "Solve the problem. Use the reasoning that is given with it.\n\nProblem:\nP\n\n"
        f"Reasoning:\n<reasoning>\nZ\n</reasoning>\n\n{reply}"
    )


PLAN_RULES = "Do not state the final answer and do not write final code.\n\nProblem:\nP"


def test_the_wording_for_plans_and_programs_stays():
    code = {"limits": LIMITS, "domain": "code"}
    assert planner("P", "instruct") == (
        "Write a plan that helps somebody else to solve the problem below.\n"
        "Put the plan between <reasoning> and </reasoning>: numbered steps, each with its calculation. " + PLAN_RULES
    )
    assert planner("P", "instruct", **code) == (
        "Write a plan that helps somebody else to write the program below.\n"
        "Put the plan between <reasoning> and </reasoning>: numbered steps in words, with the data that each step "
        "keeps and the special cases. " + PLAN_RULES
    )
    assert planner("P", "short", **code) == "Plan a program.\nP"
    assert executor("P", None, "short", **code) == "Program.\nP"
    assert executor("P", "Z", "short", **code) == "Program.\nP\n<reasoning>\nZ\n</reasoning>"
    reply = "Reply with one Python code block that holds the whole program, and nothing else."
    task = "Write a Python program for the problem."
    assert executor("P", None, "instruct", **code) == f"{task}\n\nProblem:\nP\n\n{reply}"
    assert executor("P", "Z", "instruct", **code) == (
        f"{task} Use the reasoning that is given with it.\n\nProblem:\nP\n\n"
        f"Reasoning:\n<reasoning>\nZ\n</reasoning>\n\n{reply}"
    )


@pytest.mark.parametrize("style", STYLES)
@given(problem=st.text(max_size=50), trace=st.text(max_size=50))
def test_prompts_for_programs_keep_the_same_rules(style, problem, trace):
    """Problem before trace, both whole, no trace without one; and they are other prompts than those for math."""
    p, z = f"@{problem}@", f"#{trace}#"
    with_trace, without = (executor(p, t, style, PromptLimits(), "code") for t in (z, None))
    assert p in with_trace and f"{OPEN}\n{z}\n{CLOSE}" in with_trace and p in without and OPEN not in without
    assert with_trace.index(p) + len(p) <= with_trace.rindex(z)
    assert p in planner(p, style, PromptLimits(), "code")
    assert with_trace != executor(p, z, style) and planner(p, style) != planner(p, style, PromptLimits(), "code")
    assert executor("@@@@", "§§§§", style, PromptLimits(3, 2), "code").count("@") == 3


@pytest.mark.parametrize("domain", ["math", "code"])
def test_the_planner_is_told_the_rules(domain):
    """Method section 1: between the tags, no final answer, no final code."""
    prompt = planner("PROBLEM", "instruct", PromptLimits(), domain)
    assert "PROBLEM" in prompt and OPEN in prompt and CLOSE in prompt
    assert "not state the final answer" in prompt and "not write final code" in prompt


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("length, kept", [(9, 9), (10, 10), (11, 10), (500, 10)])
def test_long_texts_are_cut_at_the_limit(style, length, kept):
    limits = PromptLimits(problem=10, trace=10)
    assert executor("@" * length, None, style, limits).count("@") == kept
    assert planner("@" * length, style, limits).count("@") == kept
    prompt = executor("@" * length, "§" * length, style, limits)
    assert prompt.count("@") == prompt.count("§") == kept
    assert prompt.endswith(CLOSE) or CLOSE in prompt  # the closing tag outlives the cut


def test_the_two_limits_are_separate_and_keep_the_beginning():
    prompt = executor("abcdef", "uvwxyz", "short", PromptLimits(problem=3, trace=4))
    assert "abc" in prompt and "abcd" not in prompt and "uvwx" in prompt and "uvwxy" not in prompt


def test_default_limits_are_those_of_the_paper_for_math():
    prompt = executor("@" * 9000, "§" * 9000, "short")
    assert (prompt.count("@"), prompt.count("§")) == (2500, 2000)


def test_chat_form():
    tokenizer = train_tokenizer(["some text 12"], 300)
    assert as_chat("Hi {x}", tokenizer) == "<|im_start|>user\nHi {x}<|im_end|>\n<|im_start|>assistant\n"
    tokenizer.chat_template = None
    assert as_chat("Hi {x}", tokenizer) == as_completion("Hi {x}") == "Hi {x}\n"


# --- the reward model's wire format -----------------------------------------------------------

PROBLEM = Problem(
    problem_id="id-1",
    source="src",
    domain="math",
    task_type="word_problem",
    problem="Two\nlines <b>?",
    reference_solution="REF",
    answer="42",
)


def test_reward_model_text_is_exactly_the_wire_format():
    """Written out from docs/method.md section 5; released checkpoints read exactly this."""
    assert reward_model_text(PROBLEM, "step 1\nstep 2") == (
        "<task>math</task>\n"
        "<type>word_problem</type>\n"
        "<problem>\n"
        "Two\nlines <b>?\n"
        "</problem>\n"
        "<reasoning>\n"
        "step 1\nstep 2\n"
        "</reasoning>"
    )


def test_reward_model_text_with_tests():
    code = PROBLEM.model_copy(update={"domain": "code", "task_type": "stdin"})
    assert reward_model_text(code, "plan", tests="in: 1\nout: 2") == (
        "<task>code</task>\n<type>stdin</type>\n<problem>\nTwo\nlines <b>?\n</problem>\n"
        "<tests>\nin: 1\nout: 2\n</tests>\n<reasoning>\nplan\n</reasoning>"
    )


@given(st.sampled_from(["", " ", "\n", "\t \n"]), st.sampled_from(["", "  ", "\n\n"]))
def test_reward_model_text_has_no_white_space_around_its_parts(before, after):
    """The released code strips problem, tests and trace; HumanEval's prompts all end with white space."""
    around = [f"{before}{text}{after}" for text in ("Sum them.", "in: 1\nout: 2", "plan")]
    code = PROBLEM.model_copy(
        update={"domain": "code", "problem": around[0], "metadata": {"tests_or_constraints": around[1]}}
    )
    assert reward_model_text(code, around[2]) == (
        "<task>code</task>\n<type>word_problem</type>\n<problem>\nSum them.\n</problem>\n"
        "<tests>\nin: 1\nout: 2\n</tests>\n<reasoning>\nplan\n</reasoning>"
    )


def test_hidden_tests_are_not_shown_to_the_reward_model():
    code = PROBLEM.model_copy(update={"domain": "code", "metadata": {"tests": {"style": "stdio", "cases": ["secret"]}}})
    assert "secret" not in reward_model_text(code, "plan") and "<tests>" not in reward_model_text(code, "plan")


def test_reward_model_text_gives_nothing_away():
    """The RM judges reasoning; it must see neither the answer nor the reference."""
    text = reward_model_text(PROBLEM, "z")
    assert "42" not in text and "REF" not in text and "id-1" not in text
