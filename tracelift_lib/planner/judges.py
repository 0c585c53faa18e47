"""Judges that stand in for an LLM's in the generated worlds: j of the arms `llm_judge` and `random_bonus`.

Source: ours. A judge gives (totals, labels) of traces, as the Reasoning RM does (reward_model/scorer.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracelift_lib.executor.backends import derived_seed
from tracelift_lib.groups.truth import true_rubric
from tracelift_lib.problems.problem import Problem
from tracelift_lib.reward_model.scorer import TraceScorer, TraceScores


def draws(seed: int, problems: Sequence[Problem], traces: Sequence[str]) -> np.ndarray:
    """A number in [0, 1) for each trace, uniform, and the same whenever this trace of this problem is judged again."""
    ids = [derived_seed(seed, p.problem_id, z) for p, z in zip(problems, traces, strict=True)]
    return np.array(ids, float) / 2**31


class TruthJudge:
    """An infallible judge: the ground truth's rubric."""

    def score(self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None) -> TraceScores:
        rubrics = [true_rubric(p, z) for p, z in zip(problems, traces, strict=True)]
        return np.array([r.total for r in rubrics]), np.array([list(r.labels.values()) for r in rubrics])


@dataclass
class SaturatedJudge:
    """Simulates an LLM judge: most scores are exactly 1 whatever the trace, the others are the ground truth's.

    `share` are 1 (of the paper's judge 95.5 %, docs/method.md section 7); which ones does not depend on the trace.
    """

    share: float
    seed: int

    def score(self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None) -> TraceScores:
        totals, labels = TruthJudge().score(problems, traces)
        return np.where(draws(self.seed, problems, traces) < self.share, 1.0, totals), labels


@dataclass
class RandomJudge:
    """A control: a uniform random number in place of a score."""

    seed: int

    def score(self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None) -> TraceScores:
        numbers = draws(self.seed, problems, traces)
        return numbers, numbers[:, None]


def judge_of(arm: str, saturation: float, seed: int) -> TraceScorer | None:
    """Who gives j in this arm, if anybody does."""
    return {"llm_judge": SaturatedJudge(saturation, seed), "random_bonus": RandomJudge(seed)}.get(arm)
