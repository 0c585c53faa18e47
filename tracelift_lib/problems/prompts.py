"""Every text that a model reads (templates: prompts.yaml), and how a trace is taken out of what the planner writes.

The problem always stands before the trace, so that a server's prefix cache serves all samples
of one problem. Wordings are ours; the paper's prompts differ. Two styles: `short` for the tiny
models, which learn it from scratch, and `instruct` for pretrained chat models. Each reads as a chat turn or as plain
text (`as_chat`, `as_completion`).
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tracelift_lib.problems.problem import Frozen, Problem
from tracelift_lib.problems.records import data_file

PromptStyle = Literal["short", "instruct"]
# Of templates with a date: a fixed one, the day that Llama 3.1's template takes where it does not know the date.
DATED = {"date_string": "26 Jul 2024", "strftime_now": datetime.date(2024, 7, 26).strftime}
OPEN, CLOSE = "<reasoning>", "</reasoning>"
THINK, END_THINK = re.compile(r"<think(?:ing)?>|\[THINK\]"), re.compile(r"</think(?:ing)?>|\[/THINK\]")


class Templates(Frozen):
    """The prompts of one style and domain in prompts.yaml."""

    planner: str
    executor: str
    executor_with_trace: str


TEMPLATES = data_file(
    Path(__file__).with_name("prompts.yaml"), dict[PromptStyle, dict[Literal["math", "code"], Templates]]
)


@dataclass(frozen=True)
class PromptLimits:
    """Cuts in characters (docs/method.md section 6: math 2500 / 2000, code 3500 / 2500)."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": False}  # how runs/presets.py reads it from YAML
    problem: int = 2500
    trace: int = 2000


def planner_prompt(problem: Problem, style: PromptStyle, limits: PromptLimits = PromptLimits()) -> str:
    """What the planner is asked."""
    return TEMPLATES[style][problem.domain].planner.format(problem=problem.problem[: limits.problem])


def executor_prompt(
    problem: Problem, trace: str | None, style: PromptStyle, limits: PromptLimits = PromptLimits()
) -> str:
    """What the executor is asked; `trace=None` is the baseline E(·|x, ∅)."""
    templates, shown = TEMPLATES[style][problem.domain], problem.problem[: limits.problem]
    if trace is None:
        return templates.executor.format(problem=shown)
    return templates.executor_with_trace.format(problem=shown, trace=wrap_trace(trace[: limits.trace]))


def as_chat(prompt: str, tokenizer: Any) -> str:
    """`prompt` as one user turn, ready for the assistant's reply; plain text if there is no chat template.

    The whole text, with every special token: none is added when it is tokenized (models/contract.py). It is the same on
    every day (some templates write today's date into each prompt), and a model that may think answers without, unless
    its tokenizer's configuration has `enable_thinking` (`HubModel.thinking`).
    """
    if not tokenizer.chat_template:
        return beginning(tokenizer) + as_completion(prompt)
    turn = {"role": "user", "content": prompt}
    thinking = bool(getattr(tokenizer, "init_kwargs", {}).get("enable_thinking", False))
    return tokenizer.apply_chat_template(
        [turn], tokenize=False, add_generation_prompt=True, enable_thinking=thinking, **DATED
    )


def beginning(tokenizer: Any) -> str:
    """The token that a tokenizer puts before every text, as Llama's and Gemma's do; "" for others."""
    first = tokenizer("a")["input_ids"][:1]
    return tokenizer.bos_token if tokenizer.bos_token and first == [tokenizer.bos_token_id] else ""


def as_completion(prompt: str) -> str:
    """`prompt` as plain text for a base model to go on with: a line break ends it."""
    return prompt + "\n"


def wrap_trace(trace: str) -> str:
    """The planner's completion that holds `trace`."""
    return f"{OPEN}\n{trace}\n{CLOSE}"


def without_thinking(completion: str) -> str:
    """What a thinking model says outside its `<think> ... </think>`: all of the text of a model that does not think.

    Thinking that is cut off before it ends leaves nothing behind it. Where only its end is there (the template opens it
    in the prompt), all before that end is thinking.
    """
    said, position = [], 0
    for _ in range(len(completion)):
        start = THINK.search(completion, position)
        end = END_THINK.search(completion, start.end()) if start else None
        said.append(completion[position : start.start() if start else None])
        if not end:
            break
        position = end.end()
    text = "".join(said)
    ends = [match.end() for match in END_THINK.finditer(text)]
    return text[ends[-1] :] if ends else text


def extract_trace(completion: str) -> str | None:
    """The trace between the tags, stripped, in both domains; None if the completion breaks the format.

    | completion | trace |
    | --- | --- |
    | one pair of tags with text in it, whatever stands around it | the text between, stripped |
    | no tags, or one of the two is missing | None |
    | not closed, or closed before it is opened | None |
    | a tag twice: several traces, nested tags, a stray second tag | None |
    | nothing or only white space between the tags | None |
    | tags in what a thinking model thinks, `<think> ... </think>`, before it speaks | not seen |
    | tags in other case, with spaces, attributes, or escaped | None: they are no tags |
    | any length, any alphabet, tags of other names inside | the text as it is; prompts cut it (`PromptLimits`) |

    Time grows with the length only. A completion without a trace cannot help the executor: planner/reward_engine.py
    gives it reward 0. (The released code's code planner writes plain text without tags; here both domains have tags.)
    """
    said = without_thinking(completion)
    if THINK.match(completion.lstrip()) or (not THINK.search(completion) and OPEN in said):
        completion = said
    if completion.count(OPEN) != 1 or completion.count(CLOSE) != 1:
        return None
    start, end = completion.index(OPEN) + len(OPEN), completion.index(CLOSE)
    trace = completion[start:end].strip() if start <= end else ""
    return trace or None


def reward_model_text(problem: Problem, trace: str, tests: str | None = None) -> str:
    """The Reasoning RM's input (docs/method.md section 5). A wire format: released checkpoints read exactly this.

    Problem, tests and trace are stripped, as the released code does it (section 9). `tests`: by default those that the
    problem shows.
    """
    tests = problem.shown_tests if tests is None else tests.strip()
    shown = f"<tests>\n{tests}\n</tests>\n" if tests else ""
    return (
        f"<task>{problem.domain}</task>\n<type>{problem.task_type}</type>\n"
        f"<problem>\n{problem.problem.strip()}\n</problem>\n{shown}{wrap_trace(trace.strip())}"
    )
