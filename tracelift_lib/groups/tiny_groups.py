"""Groups of the generated worlds: the reference trace and one flawed trace of each kind that fits."""

from __future__ import annotations

import random

from tracelift_lib.groups.flaws import tiny_code, tiny_math
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.groups.schema import Candidate, Group, rubric_label
from tracelift_lib.groups.truth import true_rubric
from tracelift_lib.problems.problem import Problem


def perturb(problem: Problem, kind: str, rng: random.Random) -> str | None:
    """A flawed trace of `kind`, or None if this problem has no place for it."""
    flawed = (tiny_math if problem.domain == "math" else tiny_code).flawed_traces(problem, kind)
    return rng.choice(flawed) if flawed else None


def build_group(problem: Problem, seed: int) -> Group:
    """The reference trace and one flawed trace of each kind that fits, duplicates dropped."""
    rng = random.Random(f"{seed}:{problem.problem_id}")
    reference = problem.reference_solution
    negatives: dict[str, str] = {}
    for kind in kinds_of(problem.domain):
        trace = perturb(problem, kind, rng)
        if trace and trace != reference:
            negatives.setdefault(trace, kind)
    return Group(
        problem_id=problem.problem_id,
        source=problem.source,
        task_type=problem.task_type,
        problem=problem.problem,
        reference_solution=reference,
        positive_pool=[_candidate(problem, reference, None)],
        negative_bank=[_candidate(problem, trace, kind) for trace, kind in negatives.items()],
        metadata={**problem.metadata, "answer": problem.answer},
    )


def _candidate(problem: Problem, trace: str, kind: str | None) -> Candidate:
    rubric = true_rubric(problem, trace)
    weak = [name for name, label in rubric.labels.items() if label < 4]
    return Candidate(
        reasoning=trace,
        rubric=rubric,
        negative_kind=kind,
        rubric_label=rubric_label(rubric.total),
        rubric_score_raw=round(10 * rubric.total, 3),
        rubric_reason=f"ground truth: below full marks in {', '.join(weak)}" if weak else "ground truth: no flaw",
    )
