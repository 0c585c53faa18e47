"""Flawed traces of the generated worlds, by kind."""

from __future__ import annotations

import random

from tracelift_lib.groups.flaws import tiny_code, tiny_math
from tracelift_lib.problems.problem import Problem


def perturb(problem: Problem, kind: str, rng: random.Random) -> str | None:
    """A flawed trace of `kind`, or None if this problem has no place for it."""
    flawed = (tiny_math if problem.domain == "math" else tiny_code).flawed_traces(problem, kind)
    return rng.choice(flawed) if flawed else None
