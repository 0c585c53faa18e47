"""The rubric judge: scores 0..10 for five dimensions and overall, become labels and a total (docs/method.md section 3).

Judges: the ground truth of generated problems, or a language model (by_model.py).
`calibrate` shows how far a judge can be trusted: one that gives everything full marks tells nothing (section 7 there).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from tracelift_lib.executor.structured import Failure
from tracelift_lib.groups.kinds import Flaw, Kind, kinds_of
from tracelift_lib.groups.schema import DIMENSIONS, Candidate, Group, Rubric, rubric_from_shares, rubric_label
from tracelift_lib.groups.truth import has_truth, true_rubric
from tracelift_lib.problems.problem import Problem


class RubricJudgement(NamedTuple):
    """A rubric, the overall score 0..10 that it came from, and the judge's reason."""

    rubric: Rubric
    overall: float
    reason: str


# Scores a trace of a problem; the number asks for another opinion on the same trace.
Judge = Callable[[Problem, str, int], RubricJudgement | Failure]


def judge_by_truth(problem: Problem, trace: str, repeat: int = 0) -> RubricJudgement | Failure:
    """The infallible judge of the generated worlds, stories and programs."""
    if not has_truth(problem):
        return Failure("no ground truth")
    rubric = true_rubric(problem, trace)
    weak = [name for name, label in rubric.labels.items() if label < 4]
    reason = f"ground truth: below full marks in {', '.join(weak)}" if weak else "ground truth: no flaw"
    return RubricJudgement(rubric, round(10 * rubric.total, 3), reason)


def rubric_from_scores(scores: dict[str, int], overall: float) -> Rubric:
    """label = floor(score / 2) cut to 0..4, total = overall / 10 cut to [0, 1] (docs/method.md section 3)."""
    return rubric_from_shares({name: score / 10 for name, score in scores.items()}, overall / 10)


def judge_candidate(problem: Problem, kind: str | None, flaw: Flaw, judge: Judge | None) -> Candidate | Failure:
    """The candidate of a flaw of this kind, or of the reference (`kind` None), with its rubric.

    Without `judge` rubrics are programmatic. References of math seeds get full marks from every judge, as released.
    """
    if kind is None and (judge is None or problem.domain == "math" and not has_truth(problem)):
        rubric = Rubric(labels=dict.fromkeys(DIMENSIONS[problem.domain], 4), total=1)
        judgement = RubricJudgement(rubric, 10, "reference trace: full marks by definition")
    elif judge is None:
        judgement = programmatic_judgement(kinds_of(problem.domain)[kind], flaw)
    else:
        judgement = judge(problem, flaw.text, 0)
    if isinstance(judgement, Failure):
        return judgement
    return Candidate(
        reasoning=flaw.text,
        rubric=judgement.rubric,
        negative_kind=kind,
        rubric_label=rubric_label(judgement.rubric.total),
        rubric_score_raw=judgement.overall,
        rubric_reason=judgement.reason,
    )


def programmatic_judgement(kind: Kind, flaw: Flaw) -> RubricJudgement:
    """A rubric for a flaw that we made and therefore know; no judge has read the trace. Source: ours.

    The dimension that the kind hurts most gets label 2, or 1 if more than half of the trace builds on the flaw; the
    others that it hurts get one more; all else keeps 4. `answer_support` gets 0 or 1 if the answer becomes wrong.
    total = mean of (mean, minimum) of the labels over 4.
    """
    deep = flaw.severity > 0.5
    labels = dict.fromkeys(DIMENSIONS[kind.domain], 4)
    for place, name in enumerate(kind.hurts):
        labels[name] = (1 if deep else 2) + (place > 0)
    if kind.domain == "math" and not kind.keeps_answer:
        labels["answer_support"] = 0 if deep else 1
    rubric = rubric_from_shares({name: label / 4 for name, label in labels.items()})
    hurt = ", ".join(name for name, label in labels.items() if label < 4)
    reason = (
        f"programmatic, from the definition of {kind.name}: hurts {hurt}; {flaw.severity:.0%} of the steps build on it"
    )
    return RubricJudgement(rubric, round(10 * rubric.total, 3), reason)


MEASURES = (
    "saturation_rate saturation_rate_negatives agreement total_spread pair_accuracy ties group_accuracy failure_rate"
).split()


def calibrate(judge: Judge, groups: Iterable[Group], repeats: int = 2) -> dict[str, float]:
    """How a judge behaves on groups whose truth is known: the reference is better than each negative.

    Returns shares in [0, 1] (NaN where there is nothing to count):
        saturation_rate: totals that are exactly 1; saturation_rate_negatives: the same of flawed traces.
        agreement: (trace, dimension) pairs that get the same label in every repeat.
        total_spread: mean standard deviation of the total over repeats of a trace.
        pair_accuracy: negatives scored below their reference; a tie counts as wrong. ties: share of ties.
        group_accuracy: groups whose reference is above all its negatives.
        failure_rate: judgements that gave no score. judged: how many were asked for.
    """
    seen: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        problem, means = group.as_problem(), []
        for trace in group.candidates:
            answers = [judge(problem, trace.reasoning, repeat) for repeat in range(repeats)]
            rubrics = [answer.rubric for answer in answers if isinstance(answer, RubricJudgement)]
            totals = [rubric.total for rubric in rubrics]
            means.append(round(float(np.mean(totals)), 9) if totals else None)  # 0.9 is 0.9, however it came about
            seen["failure_rate"] += [isinstance(answer, Failure) for answer in answers]
            seen["saturation_rate"] += [total == 1 for total in totals]
            if trace.negative_kind:
                seen["saturation_rate_negatives"] += [total == 1 for total in totals]
            if len(rubrics) > 1:
                seen["total_spread"].append(float(np.std(totals)))
                seen["agreement"] += [len({r.labels[name] for r in rubrics}) == 1 for name in rubrics[0].labels]
        best, others = means[0], [mean for mean in means[len(group.positive_pool) :] if mean is not None]
        if best is not None and others:
            seen["pair_accuracy"] += [best > other for other in others]
            seen["ties"] += [best == other for other in others]
            seen["group_accuracy"].append(all(best > other for other in others))
    rates = {name: float(np.mean(seen[name])) if seen[name] else float("nan") for name in MEASURES}
    return rates | {"judged": len(seen["failure_rate"])}
