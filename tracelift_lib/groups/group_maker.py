"""One group: the reference trace of a seed, flawed traces by a maker, the checks they must pass, and their rubrics."""

from __future__ import annotations

import ast
import functools
import os
import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Literal

from pydantic import Field

from tracelift_lib.executor.structured import Failure
from tracelift_lib.groups.checks import reject_reason
from tracelift_lib.groups.flaws import tiny_code, tiny_math
from tracelift_lib.groups.flaws.code_makers import flawed_plans
from tracelift_lib.groups.flaws.math_makers import flawed_texts
from tracelift_lib.groups.flaws.plans import Unsupported, parse_program, reference_plan
from tracelift_lib.groups.judge import Judge, judge_by_truth, judge_candidate
from tracelift_lib.groups.kinds import Flaw, kinds_of
from tracelift_lib.groups.schema import Group
from tracelift_lib.groups.seeds import SeedSettings
from tracelift_lib.groups.truth import has_truth
from tracelift_lib.problems.code_tests import read_tests
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.settings import Section
from tracelift_lib.sandbox.host import Limits, SandboxError
from tracelift_lib.sandbox.running import Outcome
from tracelift_lib.verifier.verify_code import CodeVerifier

TRIES = 4  # versions of a kind that are looked at before it is given up for a problem
LIMITS = Limits(cpu_s=0.5, wall_s=10)  # of one test; the references take milliseconds
Versions = dict[str, list[Flaw | Failure]]  # by kind, in the order in which they are tried
Propose = Callable[[Problem, str, random.Random], Versions]  # of a problem and its reference trace
Reject = Callable[[Problem, str, str, str, Collection[str]], str | None]  # as `reject_reason`


class BuildSettings(Section):
    """What decides the result.

    `min_negatives`: groups with fewer distinct flawed traces are dropped (the paper: 4). `test`: so many seeds, the
    last ones, make groups for a split of their own. `maker`, `judge` and `model` say, in the report, who did it.
    """

    seeds: SeedSettings
    min_negatives: int = 4
    test: int = Field(0, ge=0)
    drop_leaked: bool = False
    maker: Literal["exact", "openai", "local"] = "exact"
    judge: Literal["programmatic", "ground_truth", "openai", "local"] = "programmatic"
    model: str = ""


# --- proposals --------------------------------------------------------------------------------


def perturb(problem: Problem, kind: str, rng: random.Random) -> str | None:
    """A flawed trace of a generated problem, or None if it has no place for this kind."""
    flawed = (tiny_math if problem.domain == "math" else tiny_code).flawed_traces(problem, kind)
    return rng.choice(flawed) if flawed else None


def propose_exact(problem: Problem, reference: str, rng: random.Random) -> Versions:
    """Up to TRIES versions of each kind by the exact makers; of programs only those whose flaw shows when they run."""
    kinds = kinds_of(problem.domain)
    if has_truth(problem):
        made = {kind: perturb(problem, kind, rng) for kind in kinds}
        return {kind: [Flaw(text, 0.5)] if text else [] for kind, text in made.items()}
    make = flawed_texts if problem.domain == "math" else flawed_plans
    versions = {kind: make(problem, kind) for kind in kinds}
    drawn = {kind: rng.sample(flaws, min(TRIES, len(flaws))) for kind, flaws in versions.items()}
    return _those_that_show(problem, drawn) if problem.domain == "code" else drawn


def _those_that_show(problem: Problem, drawn: dict[str, list[Flaw]]) -> Versions:
    """Runs the flawed programs beside the reference; a Failure takes the place of a flaw without effect."""
    reference = ast.unparse(parse_program(problem.reference_solution))
    flawed = [flaw.program for flaws in drawn.values() for flaw in flaws if flaw.program]
    programs = list(dict.fromkeys([reference, *flawed]))
    given = dict(zip(programs, outcomes(problem, programs)))

    def checked(flaw: Flaw, kind: str) -> Flaw | Failure:
        if flaw.program is None or shows(given[reference], given[flaw.program], may_stop=kind == "missing_step"):
            return flaw
        return Failure("flaw does not show when run")

    return {kind: [checked(flaw, kind) for flaw in flaws] for kind, flaws in drawn.items()}


def outcomes(problem: Problem, programs: Sequence[str]) -> list[tuple[Outcome, ...]]:
    """How each program ends on each test of the problem.

    Raises:
        SandboxError: this machine offers no safe place to run programs, or it broke.
    """
    tests = read_tests(problem.metadata, problem.problem_id)
    try:
        results = _verifier().verify([(program, tests) for program in programs])
    except SandboxError as error:
        raise SandboxError(f"problem {problem.problem_id}: {error}; run again to go on from here") from None
    return [result.outcomes for result in results]


@functools.cache
def _verifier() -> CodeVerifier:
    """Stays open until the process ends."""
    return CodeVerifier(os.cpu_count() or 1, LIMITS)


def shows(reference: Sequence[Outcome], flawed: Sequence[Outcome], may_stop: bool = False) -> bool:
    """Whether a flaw shows on a test that the reference passes: another result, or, if it `may_stop`, none at all."""
    found = {f for r, f in zip(reference, flawed, strict=True) if r is Outcome.PASS}
    return bool(found - {Outcome.PASS}) if may_stop else Outcome.WRONG in found


# --- one group --------------------------------------------------------------------------------


def build_group(problem: Problem, seed: int) -> Group:
    """The group of a generated problem by its ground truth, as presets use it, however few flaws fit.

    The makers of the generated worlds do one damage by design, and their stories may be short: only copies are dropped.
    """
    settings = BuildSettings(seeds=SeedSettings(source=problem.source, seed=seed), min_negatives=0)
    return make_group(problem, settings, propose_exact, judge_by_truth, _copies)[0]


def _copies(problem: Problem, reference: str, text: str, kind: str, taken: Collection[str]) -> str | None:
    return "duplicate" if text in (reference, *taken) else None


def reference_trace(problem: Problem) -> str:
    """The sound trace of a seed: its worked solution, or the plan of its program. Raises Unsupported."""
    is_program = problem.domain == "code" and not has_truth(problem)
    return reference_plan(problem) if is_program else problem.reference_solution


def make_group(
    problem: Problem, settings: BuildSettings, propose: Propose, judge: Judge | None, reject: Reject = reject_reason
) -> tuple[Group | None, Counter[str]]:
    """The group of one seed, or None; and counts of "kind|outcome", where outcome is `kept` or why not.

    Without `judge` rubrics are programmatic: the reference gets full marks, a flaw what its kind's definition says.
    """
    counts: Counter[str] = Counter()
    try:
        reference = reference_trace(problem)
    except Unsupported as error:
        return None, Counter({f"reference|{error}": 1})
    proposals = propose(problem, reference, random.Random(f"{settings.seeds.seed}:{problem.problem_id}"))
    kept = _first_sound(problem, reference, proposals, reject, counts)
    candidates = []
    for kind, flaw in {None: Flaw(reference, 0), **kept}.items():
        made = judge_candidate(problem, kind, flaw, judge)
        if isinstance(made, Failure):
            counts[f"{kind or 'reference'}|judge: {made.reason}"] += 1
        else:
            candidates.append(made)
    outcome = "kept"
    if not candidates or candidates[0].negative_kind:
        outcome = "reference not judged"
    elif len(candidates) - 1 < settings.min_negatives:
        outcome = "too few negatives"
    counts[f"group|{outcome}"] += 1
    if outcome != "kept":
        return None, counts
    shared = problem.model_dump(exclude={"domain", "answer", "metadata"})
    metadata = {**problem.metadata, "answer": problem.answer}
    return Group(**shared, positive_pool=candidates[:1], negative_bank=candidates[1:], metadata=metadata), counts


def _first_sound(
    problem: Problem, reference: str, proposals: Versions, reject: Reject, counts: Counter[str]
) -> dict[str, Flaw]:
    """Of each kind the first version that passes the checks; every outcome is counted."""
    kept: dict[str, Flaw] = {}
    for kind, versions in proposals.items():
        if not versions:
            counts[f"{kind}|no place for it"] += 1
        for flaw in versions:
            taken = [other.text for other in kept.values()]
            failed = isinstance(flaw, Failure)
            reason = flaw.reason if failed else reject(problem, reference, flaw.text, kind, taken)
            counts[f"{kind}|{reason or 'kept'}"] += 1
            if reason is None:
                kept[kind] = flaw
                break
    return kept
