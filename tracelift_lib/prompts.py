"""Every text that a model reads, and how a trace is taken out of what the planner writes.

The problem always stands before the trace, so that a server's prefix cache serves all samples
of one problem. Wordings are ours; the paper's prompts differ. Two styles: `short` for the tiny
models, which learn it from scratch, and `instruct` for pretrained chat models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tracelift_lib.problems import Problem

PromptStyle = Literal["short", "instruct"]

OPEN, CLOSE = "<reasoning>", "</reasoning>"

PLANNER = {
    "short": "Plan.\n{problem}",
    "instruct": (
        "Write a plan that helps somebody else to solve the problem below.\n"
        f"Put the plan between {OPEN} and {CLOSE}: numbered steps, each with its calculation. "
        "Do not state the final answer and do not write final code.\n\nProblem:\n{problem}"
    ),
}
# With and without trace the executor reads the same instruction. `instruct` asks for the answer at once: reasoning is
# the planner's part. The wording was chosen on GSM8K train problems (naming a placeholder, "The answer is N", made
# small models write the letter).
EXECUTOR = {
    "short": {
        "with": "Solve.\n{problem}\n" + OPEN + "\n{trace}\n" + CLOSE,
        "without": "Solve.\n{problem}",
    },
    "instruct": {
        "with": (
            "Solve the problem. Use the reasoning that is given with it.\n\nProblem:\n{problem}\n\n"
            f"Reasoning:\n{OPEN}\n{{trace}}\n{CLOSE}\n\n"
            "Reply with one line only: 'The answer is' and then the final number."
        ),
        "without": (
            "Solve the problem.\n\nProblem:\n{problem}\n\n"
            "Reply with one line only: 'The answer is' and then the final number."
        ),
    },
}


@dataclass(frozen=True)
class PromptLimits:
    """Cuts in characters (method.md section 6: math 2500 / 2000, code 3500 / 2500)."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": False}  # how presets.py reads it from YAML
    problem: int = 2500
    trace: int = 2000


def planner_prompt(problem: str, style: PromptStyle, limits: PromptLimits = PromptLimits()) -> str:
    """What the planner is asked."""
    return PLANNER[style].format(problem=problem[: limits.problem])


def executor_prompt(
    problem: str, trace: str | None, style: PromptStyle, limits: PromptLimits = PromptLimits()
) -> str:
    """What the executor is asked; `trace=None` is the baseline E(·|x, ∅)."""
    if trace is None:
        return EXECUTOR[style]["without"].format(problem=problem[: limits.problem])
    return EXECUTOR[style]["with"].format(
        problem=problem[: limits.problem], trace=trace[: limits.trace]
    )


def as_chat(prompt: str, tokenizer: Any) -> str:
    """`prompt` as one user turn, ready for the assistant's reply.

    A tokenizer without chat template (a base model) gets the prompt and a line break.
    """
    if not tokenizer.chat_template:
        return prompt + "\n"
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )


def wrap_trace(trace: str) -> str:
    """The planner's completion that holds `trace`."""
    return f"{OPEN}\n{trace}\n{CLOSE}"


def extract_trace(completion: str) -> str | None:
    """The trace between the tags, stripped; None unless there is exactly one pair and it is not empty.

    Missing, repeated, nested, unclosed or empty tags all give None: a completion that breaks the
    format has no trace, and the reward treats it as one that cannot help (rewards.py).
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
        "<problem>", problem.problem, "</problem>",
    ]
    if tests:
        lines += ["<tests>", tests, "</tests>"]
    return "\n".join([*lines, OPEN, trace, CLOSE])
