"""Ground truth of the generated worlds: the rubric an infallible judge would give, and faithfulness."""

from __future__ import annotations

from collections import Counter

from tracelift_lib.groups.schema import Rubric, dimensions, rubric_from_shares
from tracelift_lib.problems import tinycode, tinyworld
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinyworld import Calculation, apply, longest_common, read_calculations, true_steps

SOURCES_WITH_TRUTH = ("tiny_world", "tiny_code")


def has_truth(problem: Problem) -> bool:
    """True if every true step is known, as in the generated worlds: only then can faithfulness be measured."""
    return problem.source in SOURCES_WITH_TRUTH


def is_faithful(problem: Problem, trace: str) -> bool:
    """True if `trace` makes exactly the steps of the ground truth; raises KeyError outside the generated worlds."""
    return (tinyworld if problem.domain == "math" else tinycode).is_faithful(problem, trace)


def true_rubric(problem: Problem, trace: str) -> Rubric:
    """What an infallible judge says of any trace of a generated problem, math or code. Source: ours.

    Each dimension is the share of what is right, in [0, 1].

    Raises:
        KeyError: the problem is not of a generated world.
    """
    values = (_math_shares if problem.domain == "math" else tinycode.rubric_shares)(problem, trace)
    return rubric_from_shares(dict(zip(dimensions(problem.domain), values, strict=True)))


def _math_shares(problem: Problem, trace: str) -> tuple[float, ...]:
    """(understanding, strategy, coherence, calculation, support) of a math trace, each in [0, 1]."""
    start, truth, given = problem.metadata["start"], true_steps(problem), read_calculations(trace)
    if not given:
        return (0.0,) * 5
    longest = max(len(truth), len(given))
    operands = Counter(s.operand for s in truth) & Counter(c.operand for c in given)
    results = [c.after for c in given]
    links = zip([start, *results], (c.before for c in given))
    support = longest_common(results, [s.after for s in truth]) / longest
    return (
        operands.total() / longest,
        longest_common([c.op for c in given], [s.op for s in truth]) / longest,
        sum(previous == before for previous, before in links) / len(given),
        sum(_is_right(c) for c in given) / len(given),
        support if results[-1] == truth[-1].after else support / 2,
    )


def _is_right(c: Calculation) -> bool:
    return (c.op != "/" or c.operand != 0) and apply(c.op, c.before, c.operand) == c.after
