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
# The words in which the two domains differ, for the instruct style.
PLANNER_GOAL = {"math": "solve the problem", "code": "write the program"}
PLANNER_STEPS = {
    "math": "numbered steps, each with its calculation",
    "code": "numbered steps in words, with the data that each step keeps and the special cases",
}
EXECUTOR_TASK = {"math": "Solve the problem.", "code": "Write a Python program for the problem."}
# With and without trace the executor is asked to reply in the same way: directly, without reasoning, which is the
# planner's part. The wording for math was chosen on GSM8K train problems (naming a placeholder, "The answer is N", made
# small models write the letter).
EXECUTOR_REPLY = {
    "math": "Reply with one line only: 'The answer is' and then the final number.",
    "code": "Reply with one Python code block that holds the whole program, and nothing else.",
}


@dataclass(frozen=True)
class PromptLimits:
    """Cuts in characters (docs/method.md section 6: math 2500 / 2000, code 3500 / 2500)."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": False}  # how runs/presets.py reads it from YAML
    problem: int = 2500
    trace: int = 2000


def planner_prompt(problem: Problem, style: PromptStyle, limits: PromptLimits = PromptLimits()) -> str:
    """What the planner is asked."""
    domain, text = problem.domain, problem.problem[: limits.problem]
    if style == "short":
        return {"math": "Plan.\n", "code": "Plan a program.\n"}[domain] + text
    return (
        f"Write a plan that helps somebody else to {PLANNER_GOAL[domain]} below.\n"
        f"Put the plan between {OPEN} and {CLOSE}: {PLANNER_STEPS[domain]}. "
        f"Do not state the final answer and do not write final code.\n\nProblem:\n{text}"
    )


def executor_prompt(
    problem: Problem, trace: str | None, style: PromptStyle, limits: PromptLimits = PromptLimits()
) -> str:
    """What the executor is asked; `trace=None` is the baseline E(·|x, ∅)."""
    domain, text = problem.domain, problem.problem[: limits.problem]
    given = None if trace is None else wrap_trace(trace[: limits.trace])
    if style == "short":
        asked = {"math": "Solve.\n", "code": "Program.\n"}[domain] + text
        return f"{asked}\n{given}" if given else asked
    use, reasoning = "", ""
    if given:
        use, reasoning = " Use the reasoning that is given with it.", f"\n\nReasoning:\n{given}"
    return f"{EXECUTOR_TASK[domain]}{use}\n\nProblem:\n{text}{reasoning}\n\n{EXECUTOR_REPLY[domain]}"


def as_chat(prompt: str, tokenizer: Any) -> str:
    """`prompt` as one user turn, ready for the assistant's reply; `as_completion` if there is no chat template."""
    if not tokenizer.chat_template:
        return as_completion(prompt)
    turn = {"role": "user", "content": prompt}
    return tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)


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

    Time grows with the length only. A completion without a trace cannot help the executor: planner/reward_engine.py
    gives it reward 0. (The released code's code planner writes plain text without tags; here both domains have tags.)
    """
    if completion.count(OPEN) != 1 or completion.count(CLOSE) != 1:
        return None
    start, end = completion.index(OPEN) + len(OPEN), completion.index(CLOSE)
    trace = completion[start:end].strip() if start <= end else ""
    return trace or None


def reward_model_text(problem: Problem, trace: str, tests: str | None = None) -> str:
    """The Reasoning RM's input (docs/method.md section 5). A wire format: released checkpoints read exactly this."""
    shown = f"<tests>\n{tests}\n</tests>\n" if tests else ""
    return (
        f"<task>{problem.domain}</task>\n<type>{problem.task_type}</type>\n"
        f"<problem>\n{problem.problem}\n</problem>\n{shown}{wrap_trace(trace)}"
    )
