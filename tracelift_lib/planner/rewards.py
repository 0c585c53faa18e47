"""The rewards of the paper and of its released code, as pure functions.

Notation (docs/method.md sections 1 and 2): s execution reward of one run with the trace, q score of the Reasoning
Reward Model (RM) in [0, 1], û (`u`) uplift in [-1, 1], j score of a judge in [0, 1], c the released code's coefficient
of the bonus, in [-1, 1], t 1 if all s of the completion's group are equal, else 0. An arm of the ablation is a function
of all six, (s, q, u, j, c, t) -> reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

EXECUTION_WEIGHT = 0.5
BONUS_WEIGHT = 0.5
CODE_BONUS_WEIGHT = 0.2


def uplift(with_trace: Sequence[float], without_trace: Sequence[float]) -> float:
    """û: mean verdict (0 or 1) with the trace minus mean verdict without it, in [-1, 1].

    The two samples may differ in size: a cached baseline has more than K verdicts.
    Raises ValueError if either is empty.
    """
    if not with_trace or not without_trace:
        raise ValueError("uplift needs at least one verdict with and one without the trace")
    return sum(with_trace) / len(with_trace) - sum(without_trace) / len(without_trace)


def exec_only(s: float, q: float, u: float, j: float, c: float = 0.0, t: float = 0.0) -> float:
    """Only whether the executor succeeds with the trace: r = s."""
    return s


def tracelift(s: float, q: float, u: float, j: float, c: float = 0.0, t: float = 0.0) -> float:
    """The paper's reward: r = 0.5 s + 0.5 q û."""
    return EXECUTION_WEIGHT * s + BONUS_WEIGHT * q * u


def no_uplift(s: float, q: float, u: float, j: float, c: float = 0.0, t: float = 0.0) -> float:
    """Quality counts whether or not it helps the executor: r = 0.5 s + 0.5 q."""
    return EXECUTION_WEIGHT * s + BONUS_WEIGHT * q


def rm_uplift_only(s: float, q: float, u: float, j: float, c: float = 0.0, t: float = 0.0) -> float:
    """The bonus alone: r = q û."""
    return q * u


def llm_judge(s: float, q: float, u: float, j: float, c: float = 0.0, t: float = 0.0) -> float:
    """A judge's rubric score in place of the RM's: r = 0.5 s + 0.5 j û."""
    return EXECUTION_WEIGHT * s + BONUS_WEIGHT * j * u


def random_bonus(s: float, q: float, u: float, j: float, c: float = 0.0, t: float = 0.0) -> float:
    """A control (ours): the paper's reward with a random number j in place of the RM's score, r = 0.5 s + 0.5 j û."""
    return llm_judge(s, q, u, j)


def success_times_quality(s: float, q: float, u: float, j: float, c: float = 0.0, t: float = 0.0) -> float:
    """Quality pays only with success, and there is no uplift: r = s q (as CPPO does, docs/method.md section 10)."""
    return s * q


def quality_among_equals(s: float, q: float, u: float, j: float, c: float = 0.0, t: float = 0.0) -> float:
    """Quality decides where the outcome does not: r = s + t q (as Reasoning Arena does, docs/method.md section 10)."""
    return s + t * q


def code_coefficient(with_successes: int, without_successes: int, k: int, ties: Sequence[float] | None = None) -> float:
    """The sign-valued coefficient c of the released code-domain code (docs/method.md section 2).

    +1 if the trace helped, -1 if it hurt; a tie of a successes each pays `ties[a]`, by default
    0 for none, 1 for K of K, 0.5 for 1 of 3, else a/K.
    Raises ValueError for counts outside 0..k or a tie table of another length than k + 1.
    """
    if not (0 <= with_successes <= k and 0 <= without_successes <= k):
        raise ValueError(f"counts {with_successes} and {without_successes} must be in 0..{k}")
    if ties is not None and len(ties) != k + 1:
        raise ValueError(f"a tie table for K={k} needs {k + 1} values, not {len(ties)}")
    a, b = with_successes, without_successes
    if a != b:
        return 1.0 if a > b else -1.0
    if ties is not None:
        return ties[a]
    return 0.5 if (a, k) == (1, 3) else a / k


def released_code_reward(s: float, q: float, c: float) -> float:
    """Released code-domain reward: r = clip(s + 0.2 q c, 0, 1)."""
    return min(1.0, max(0.0, s + CODE_BONUS_WEIGHT * q * c))


def released_code(s: float, q: float, u: float, j: float, c: float = 0.0, t: float = 0.0) -> float:
    """The released code-domain reward as an arm, for either domain: r = clip(s + 0.2 q c, 0, 1)."""
    return released_code_reward(s, q, c)


ARMS: dict[str, Callable[..., float]] = {
    f.__name__: f
    for f in (
        exec_only,
        tracelift,
        no_uplift,
        rm_uplift_only,
        llm_judge,
        released_code,
        random_bonus,
        success_times_quality,
        quality_among_equals,
    )
}
# Which parts an arm depends on; the others are not computed while training.
NEEDS: dict[str, frozenset[str]] = {
    "exec_only": frozenset("s"),
    "tracelift": frozenset("squ"),
    "no_uplift": frozenset("sq"),
    "rm_uplift_only": frozenset("qu"),
    "llm_judge": frozenset("sju"),
    "released_code": frozenset("sqc"),
    "random_bonus": frozenset("sju"),
    "success_times_quality": frozenset("sq"),
    "quality_among_equals": frozenset("sqt"),
}


def compares(arm: str) -> bool:
    """Whether the arm compares executor runs with the trace and without it, so that it needs a baseline."""
    return bool(NEEDS[arm] & {"u", "c"})
