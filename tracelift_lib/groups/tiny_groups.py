"""Flawed traces of the generated worlds, by kind."""

from __future__ import annotations

import random

from tracelift_lib.groups.flaws.tiny_code import KINDS, flawed_traces
from tracelift_lib.groups.flaws.tiny_math import MATH_KINDS, _flawed_traces
from tracelift_lib.problems.problem import Problem


def kinds(domain: str) -> tuple[str, ...]:
    """The seven kinds of flaw of a domain."""
    return tuple(MATH_KINDS if domain == "math" else KINDS)


def perturb(problem: Problem, kind: str, rng: random.Random) -> str | None:
    """A flawed trace of `kind`, or None if this problem has no place for it."""
    flawed = (_flawed_traces if problem.domain == "math" else flawed_traces)(problem, kind)
    return rng.choice(flawed) if flawed else None
