"""A language model as maker of flawed traces, for references without a parsed structure, and as judge of any trace.

It is asked through `structured.Asker`, and all functions raise what `Asker.ask` raises. The prompts are ours.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from tracelift_lib.executor.structured import Asker, Failure
from tracelift_lib.groups.group_maker import Propose, Versions
from tracelift_lib.groups.judge import Judge, RubricJudgement, rubric_from_scores
from tracelift_lib.groups.kinds import Flaw, changed_share, kinds_of
from tracelift_lib.groups.schema import DIMENSIONS
from tracelift_lib.problems.problem import Problem

FLAW_PROMPT, JUDGE_PROMPT = (
    Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("flaw_prompt.md", "judge_prompt.md")
)


class FlawedTrace(BaseModel):
    """What the model must answer: the whole flawed reasoning, and what it changed."""

    model_config = ConfigDict(extra="forbid")
    reasoning: str
    changed_place: str
    why_it_is_a_flaw: str


def propose_by_model(asker: Asker) -> Propose:
    """One version of each kind."""

    def propose(problem: Problem, reference: str, rng: random.Random) -> Versions:
        return {kind: [ask_for_flaw(asker, problem, reference, kind)] for kind in kinds_of(problem.domain)}

    return propose


def ask_for_flaw(asker: Asker, problem: Problem, reference: str, kind: str, seed: int = 0) -> Flaw | Failure:
    """One flawed trace, or why there is none."""
    rule = " Write no code." if problem.domain == "code" and kind != "leaked_code" else ""
    definition = kinds_of(problem.domain)[kind]
    prompt = FLAW_PROMPT.format(kind=definition, problem=problem.problem, reference=reference, code_rule=rule)
    answer = asker.ask(prompt, FlawedTrace, seed)
    if isinstance(answer, Failure):
        return answer
    text = answer.reasoning.strip()
    return Flaw(text, changed_share(reference, text))


def score_schema(domain: str) -> type[BaseModel]:
    """What a judge must answer: a whole number from 0 to 10 for each dimension and overall, and a reason."""
    score = (int, Field(ge=0, le=10))
    fields: dict[str, Any] = {**dict.fromkeys(DIMENSIONS[domain], score), "overall": score, "reason": (str, ...)}
    return create_model(f"{domain}_scores", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def judge_by_model(asker: Asker) -> Judge:
    """The judge of which docs/method.md section 3 speaks."""

    def judge(problem: Problem, trace: str, repeat: int = 0) -> RubricJudgement | Failure:
        names = DIMENSIONS[problem.domain]
        asked = "\n".join(f"- {name}: {meaning}" for name, meaning in names.items())
        prompt = JUDGE_PROMPT.format(asked=asked, problem=problem.problem, trace=trace)
        answer = asker.ask(prompt, score_schema(problem.domain), seed=repeat)
        if isinstance(answer, Failure):
            return answer
        rubric = rubric_from_scores(answer.model_dump(include=set(names)), answer.overall)
        return RubricJudgement(rubric, answer.overall, answer.reason)

    return judge
