"""Flawed traces by a language model, for references that have no parsed structure. Prompt: ours."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tracelift_lib.executor.structured import Asker, Failure
from tracelift_lib.groups.kinds import Flaw, changed_share, kinds_of
from tracelift_lib.problems.problem import Problem

PROMPT = """\
Below are a problem and sound reasoning about it. Write the reasoning again with exactly one flaw of one kind.

Kind of flaw: {kind.name}. {kind.definition}
An example of this kind: {kind.example}

Rules: copy the reasoning word for word up to the flaw. Put the flaw in one place. After it, change only what follows
from it (such as numbers computed from a wrong result). Stay with this problem, keep about the same length, use no
placeholders, and do not say or hint that anything is wrong.{code_rule}

Problem:
{problem}

Reasoning:
{reference}
"""


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
