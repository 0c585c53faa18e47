"""Flawed traces by a language model, for references that have no parsed structure. The prompt is ours."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tracelift_lib.executor.structured import Asker, Failure
from tracelift_lib.groups.kinds import Flaw, changed_share, kinds_of
from tracelift_lib.problems.problem import Problem

PROMPT = Path(__file__).with_name("flaw_prompt.md").read_text(encoding="utf-8")


class FlawedTrace(BaseModel):
    """What the model must answer: the whole flawed reasoning, and what it changed."""

    model_config = ConfigDict(extra="forbid")
    reasoning: str
    changed_place: str
    why_it_is_a_flaw: str


def prompt_for(problem: Problem, reference: str, kind_name: str) -> str:
    """The request for one flawed trace."""
    kind = kinds_of(problem.domain)[kind_name]
    return PROMPT.format(
        kind=kind,
        problem=problem.problem,
        reference=reference,
        code_rule=" Write no code." if problem.domain == "code" and kind.name != "leaked_code" else "",
    )


def ask_for_flaw(asker: Asker, problem: Problem, reference: str, kind: str, seed: int = 0) -> Flaw | Failure:
    """One flawed trace, or why there is none. Raises what `Asker.ask` raises."""
    answer = asker.ask(prompt_for(problem, reference, kind), FlawedTrace, seed)
    if isinstance(answer, Failure):
        return answer
    text = answer.reasoning.strip()
    return Flaw(text, changed_share(reference, text))
