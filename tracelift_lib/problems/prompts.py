"""Every text that a model reads, and how a trace is taken out of what the planner writes.

The problem always stands before the trace, so that a server's prefix cache serves all samples
of one problem. Wordings are ours; the paper's prompts differ. Two styles: `short` for the tiny
models, which learn it from scratch, and `instruct` for pretrained chat models. Each reads as a chat turn or as plain
text (`as_chat`, `as_completion`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tracelift_lib.problems.problem import Problem

PromptStyle = Literal["short", "instruct"]
OPEN, CLOSE = "<reasoning>", "</reasoning>"
PLANNER = {
    "math": {
        "short": "Plan.\n{problem}",
        "instruct": (
            "Write a plan that helps somebody else to solve the problem below.\n"
            f"Put the plan between {OPEN} and {CLOSE}: numbered steps, each with its calculation. "
            "Do not state the final answer and do not write final code.\n\nProblem:\n{problem}"
        ),
    },
    "code": {
        "short": "Plan a program.\n{problem}",
        "instruct": (
            "Write a plan that helps somebody else to write the program below.\n"
            f"Put the plan between {OPEN} and {CLOSE}: numbered steps in words, with the data that each step keeps "
            "and the special cases. Do not state the final answer and do not write final code.\n\nProblem:\n{problem}"
        ),
    },
}
# With and without trace the executor reads the same instruction. `instruct` asks for the answer at once: reasoning is
# the planner's part. The wording for math was chosen on GSM8K train problems (naming a placeholder, "The answer is N",
# made small models write the letter).
_MATH_REPLY = "Reply with one line only: 'The answer is' and then the final number."
_CODE_REPLY = "Reply with one Python code block that holds the whole program, and nothing else."
_GIVEN = f"\n\nReasoning:\n{OPEN}\n{{trace}}\n{CLOSE}\n\n"
_SHORT_GIVEN = "\n" + OPEN + "\n{trace}\n" + CLOSE
EXECUTOR = {
    "math": {
        "short": {"with": "Solve.\n{problem}" + _SHORT_GIVEN, "without": "Solve.\n{problem}"},
        "instruct": {
            "with": (
                "Solve the problem. Use the reasoning that is given with it.\n\nProblem:\n{problem}"
                + _GIVEN
                + _MATH_REPLY
            ),
            "without": "Solve the problem.\n\nProblem:\n{problem}\n\n" + _MATH_REPLY,
        },
    },
    "code": {
        "short": {"with": "Program.\n{problem}" + _SHORT_GIVEN, "without": "Program.\n{problem}"},
        "instruct": {
            "with": (
                "Write a Python program for the problem. Use the reasoning that is given with it.\n\n"
                "Problem:\n{problem}" + _GIVEN + _CODE_REPLY
            ),
            "without": "Write a Python program for the problem.\n\nProblem:\n{problem}\n\n" + _CODE_REPLY,
        },
    },
}


@dataclass(frozen=True)
class PromptLimits:
    """Cuts in characters (method.md section 6: math 2500 / 2000, code 3500 / 2500)."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": False}  # how presets.py reads it from YAML
    problem: int = 2500
    trace: int = 2000


def planner_prompt(problem: Problem, style: PromptStyle, limits: PromptLimits = PromptLimits()) -> str:
    """What the planner is asked."""
    return PLANNER[problem.domain][style].format(problem=problem.problem[: limits.problem])


def executor_prompt(
    problem: Problem, trace: str | None, style: PromptStyle, limits: PromptLimits = PromptLimits()
) -> str:
    """What the executor is asked; `trace=None` is the baseline E(·|x, ∅)."""
    texts, text = EXECUTOR[problem.domain][style], problem.problem[: limits.problem]
    if trace is None:
        return texts["without"].format(problem=text)
    return texts["with"].format(problem=text, trace=trace[: limits.trace])


def as_chat(prompt: str, tokenizer: Any) -> str:
    """`prompt` as one user turn, ready for the assistant's reply; `as_completion` if there is no chat template."""
    if not tokenizer.chat_template:
        return as_completion(prompt)
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )


def as_completion(prompt: str) -> str:
    """`prompt` as plain text for a base model to go on with: a line break ends it."""
    return prompt + "\n"


def wrap_trace(trace: str) -> str:
    """The planner's completion that holds `trace`."""
    return f"{OPEN}\n{trace}\n{CLOSE}"


def extract_trace(completion: str) -> str | None:
    """The trace between the tags, stripped, in both domains; None if the completion breaks the format.

    | completion | trace |
    | --- | --- |
    | one pair of tags with text in it, whatever stands around it | the text between, stripped |
    | no tags, or one of the two is missing | None |
    | not closed, or closed before it is opened | None |
    | a tag twice: several traces, nested tags, a stray second tag | None |
    | nothing or only white space between the tags | None |
    | tags in other case, with spaces, attributes, or escaped | None: they are no tags |
    | any length, any alphabet, tags of other names inside | the text as it is; prompts cut it (`PromptLimits`) |

    Time grows with the length only. A completion without a trace cannot help the executor: `reward_engine` gives it
    reward 0. (The released code's code planner writes plain text without tags; here both domains have tags.)
    """
    if completion.count(OPEN) != 1 or completion.count(CLOSE) != 1:
        return None
    start, end = completion.index(OPEN) + len(OPEN), completion.index(CLOSE)
    trace = completion[start:end].strip() if start <= end else ""
    return trace or None


def reward_model_text(problem: Problem, trace: str, tests: str | None = None) -> str:
    """The Reasoning RM's input (method.md section 5). A wire format: released checkpoints read exactly this."""
    lines = [
        f"<task>{problem.domain}</task>",
        f"<type>{problem.task_type}</type>",
        "<problem>",
        problem.problem,
        "</problem>",
    ]
    if tests:
        lines += ["<tests>", tests, "</tests>"]
    return "\n".join([*lines, OPEN, trace, CLOSE])
