"""One group: the reference trace of a seed, flawed traces by a maker, the checks they must pass, and their rubrics."""

from __future__ import annotations

import ast
import functools
import os
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tracelift_lib.executor.structured import Asker, Failure
from tracelift_lib.groups import group_maker
from tracelift_lib.groups.checks import reject_reason
from tracelift_lib.groups.flaws.by_model import ask_for_flaw
from tracelift_lib.groups.flaws.code_makers import flawed_plans
from tracelift_lib.groups.flaws.math_makers import flawed_texts
from tracelift_lib.groups.flaws.plan_words import Unsupported
from tracelift_lib.groups.flaws.plans import parse_program, reference_plan
from tracelift_lib.groups.judge import Judge, RubricJudgement, candidate, programmatic_judgement
from tracelift_lib.groups.kinds import Flaw, kinds_of
from tracelift_lib.groups.schema import Group, Rubric, dimensions
from tracelift_lib.groups.seeds import SeedSettings
from tracelift_lib.groups.tiny_groups import perturb
from tracelift_lib.problems.code_tests import read_tests
from tracelift_lib.problems.problem import Problem
from tracelift_lib.sandbox.host import Limits, SandboxError
from tracelift_lib.sandbox.running import Outcome
from tracelift_lib.verifier.verify_code import CodeVerifier

TRIES = 4  # versions of a kind that are looked at before it is given up for a problem
Versions = dict[str, list[Flaw | Failure]]  # by kind, in the order in which they are tried
Propose = Callable[[Problem, str, random.Random], Versions]  # of a problem and its reference trace


class BuildSettings(BaseModel):
    """What decides the result.

    `min_negatives`: groups with fewer distinct flawed traces are dropped (the paper: 4). `test`: so many seeds, the
    last ones, make groups for a split of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    seeds: SeedSettings
    min_negatives: int = 4
    test: int = Field(0, ge=0)
    drop_leaked: bool = False
    maker: Literal["exact", "openai", "local"] = "exact"
    judge: Literal["programmatic", "ground_truth", "openai", "local"] = "programmatic"
    model: str = ""


# --- proposals --------------------------------------------------------------------------------


def propose_exact(problem: Problem, reference: str, rng: random.Random) -> Versions:
    """Up to TRIES versions of each kind by the exact makers; of programs only those whose flaw shows when they run."""
    if is_generated(problem):
        made = {kind: perturb(problem, kind, rng) for kind in kinds_of(problem.domain)}
        return {kind: [Flaw(text, 0.5)] if text else [] for kind, text in made.items()}
    make = flawed_texts if problem.domain == "math" else flawed_plans
    versions = {kind: make(problem, kind) for kind in kinds_of(problem.domain)}
    drawn = {kind: rng.sample(flaws, min(TRIES, len(flaws))) for kind, flaws in versions.items()}
    return _that_show(problem, drawn) if problem.domain == "code" else drawn


def _that_show(problem: Problem, drawn: dict[str, list[Flaw]]) -> Versions:
    try:
        reference = ast.unparse(parse_program(problem.reference_solution))
    except Unsupported:
        return drawn
    programs = list(dict.fromkeys(f.program for flaws in drawn.values() for f in flaws if f.program))
    given = dict(zip([reference, *programs], group_maker.outcomes(problem, [reference, *programs])))
    return {
        kind: [
            flaw
            if flaw.program is None or group_maker.shows(given[reference], given[flaw.program], kind == "missing_step")
            else Failure("flaw does not show when run")
            for flaw in flaws
        ]
        for kind, flaws in drawn.items()
    }


def propose_by_model(asker: Asker) -> Propose:
    """One version of each kind by a language model."""

    def propose(problem: Problem, reference: str, rng: random.Random) -> Versions:
        return {kind: [ask_for_flaw(asker, problem, reference, kind)] for kind in kinds_of(problem.domain)}

    return propose


# --- one group --------------------------------------------------------------------------------


def reference_trace(problem: Problem) -> str:
    """The sound trace of a seed: its worked solution, or the plan of its program. Raises Unsupported."""
    has_trace = problem.domain == "math" or is_generated(problem)
    return problem.reference_solution if has_trace else reference_plan(problem)


def is_generated(problem: Problem) -> bool:
    """Whether the problem is of the tiny world, which knows every true step."""
    return problem.source.startswith("tiny_")


def make_group(
    problem: Problem, settings: BuildSettings, propose: Propose, judge: Judge | None
) -> tuple[Group | None, Counter[str]]:
    """The group of one seed, or None; and counts of "kind|outcome", where outcome is `kept` or why not.

    Without `judge` rubrics are programmatic: the reference gets full marks, a flaw what its kind's definition says.
    """
    counts: Counter[str] = Counter()
    try:
        reference = reference_trace(problem)
    except Unsupported as error:
        return None, Counter({f"reference|{error}": 1})
    rng = random.Random(f"{settings.seeds.seed}:{problem.problem_id}")
    proposals = propose(problem, reference, rng)
    kept: dict[str, Flaw] = {}
    for kind, versions in proposals.items():
        if not versions:
            counts[f"{kind}|no place for it"] += 1
        for flaw in versions:
            reason = flaw.reason if isinstance(flaw, Failure) else None
            reason = reason or reject_reason(problem, reference, flaw.text, kind, [f.text for f in kept.values()])
            counts[f"{kind}|{reason or 'kept'}"] += 1
            if reason is None:
                kept[kind] = flaw
                break
    judged = _judge_all(problem, reference, kept, judge, counts)
    if judged is None or len(judged) - 1 < settings.min_negatives:
        counts["group|too few negatives" if judged else "group|reference not judged"] += 1
        return None, counts
    counts["group|kept"] += 1
    return _assemble(problem, reference, kept, judged), counts


def _judge_all(
    problem: Problem, reference: str, kept: dict[str, Flaw], judge: Judge | None, counts: Counter[str]
) -> dict[str, RubricJudgement] | None:
    """Judgements of the reference (key "") and of each kind; a negative without one is left out."""
    names = dimensions(problem.domain)
    full = RubricJudgement(
        Rubric(labels=dict.fromkeys(names, 4), total=1.0), 10.0, "reference trace: full marks by definition"
    )
    if judge is None:
        kinds = kinds_of(problem.domain)
        return {"": full} | {kind: programmatic_judgement(kinds[kind], flaw, names) for kind, flaw in kept.items()}
    judged = {}
    for kind, text in {"": reference, **{kind: flaw.text for kind, flaw in kept.items()}}.items():
        if kind == "" and problem.domain == "math":  # as released: reference math traces get full marks
            judged[kind] = full
            continue
        given = judge.judge(problem, text)
        if isinstance(given, Failure):
            counts[f"{kind or 'reference'}|judge: {given.reason}"] += 1
        else:
            judged[kind] = given
    return judged if "" in judged else None


def _assemble(problem: Problem, reference: str, kept: dict[str, Flaw], judged: dict[str, RubricJudgement]) -> Group:
    return Group(
        problem_id=problem.problem_id,
        source=problem.source,
        task_type=problem.task_type,
        problem=problem.problem,
        reference_solution=problem.reference_solution,
        positive_pool=[candidate(reference, None, judged[""])],
        negative_bank=[candidate(flaw.text, kind, judged[kind]) for kind, flaw in kept.items() if kind in judged],
        metadata={**problem.metadata, "answer": problem.answer},
    )


LIMITS = Limits(cpu_s=0.5, wall_s=10)  # of one test; the references take milliseconds


@functools.cache
def _verifier() -> CodeVerifier:
    """Stays open until the process ends."""
    return CodeVerifier(os.cpu_count() or 1, LIMITS)


def outcomes(problem: Problem, programs: Sequence[str]) -> list[tuple[Outcome, ...]]:
    """How each program ends on each test of the problem.

    Raises:
        SandboxError: this machine offers no safe place to run programs, or it broke.
    """
    tests = read_tests(problem.metadata, problem.problem_id)
    results = _verifier().verify([(program, tests) for program in programs])
    if any(result.failed_to_run for result in results):
        raise SandboxError(f"problem {problem.problem_id}: the sandbox failed; run again to go on from here")
    return [result.outcomes for result in results]


def shows(reference: Sequence[Outcome], flawed: Sequence[Outcome], may_stop: bool = False) -> bool:
    """Whether a flaw shows on a test that the reference passes: another result, or, if it `may_stop`, none at all."""
    found = {f for r, f in zip(reference, flawed, strict=True) if r is Outcome.PASS}
    return bool(found - {Outcome.PASS}) if may_stop else Outcome.WRONG in found
