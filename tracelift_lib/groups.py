"""TraceLift-Groups: one reference trace a problem and a bank of flawed ones, each with a rubric.

Paper section 3, method.md section 3. The seven math kinds of flaw below and the seven code kinds in tinycode.py,
their names and their exact makers are ours (of the paper's names one is available to us, wrong_algorithm_choice). A
flaw damages one place of the reference trace; what follows is recomputed, so the trace stays plausible, as after a
natural slip.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tracelift_lib import tinycode, tinyworld
from tracelift_lib.problems import InputError, Problem, read_jsonl
from tracelift_lib.tinyworld import (
    NUMBER_WORDS,
    Calculation,
    Step,
    apply,
    longest_common,
    read_calculations,
    true_steps,
    write_trace,
)

MATH_DIMENSIONS = (
    "problem_understanding", "solution_strategy", "step_coherence",
    "calculation_correctness", "answer_support",
)
CODE_DIMENSIONS = (
    "task_understanding", "plan_quality", "step_coherence", "action_support", "non_leakage",
)
SPLIT_SEED = 18
DEV_SHARE = 0.1


def dimensions(domain: str) -> tuple[str, ...]:
    """The rubric dimensions of a domain, in the order of the RM's heads."""
    return MATH_DIMENSIONS if domain == "math" else CODE_DIMENSIONS


class Rubric(BaseModel):
    """Labels 0..4 for the five dimensions of a domain, and a total in [0, 1]."""

    model_config = ConfigDict(extra="forbid")
    labels: dict[str, int]
    total: float = Field(ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, data: Any) -> Any:
        """Files hold the dimensions flat beside `total`, as the released data does."""
        if isinstance(data, dict) and "labels" not in data:
            return {"labels": {k: v for k, v in data.items() if k != "total"}, "total": data.get("total")}
        return data

    @model_validator(mode="after")
    def _five_dimensions(self) -> Rubric:
        if set(self.labels) not in (set(MATH_DIMENSIONS), set(CODE_DIMENSIONS)):
            raise ValueError(
                f"dimensions {sorted(self.labels)} are neither the math ones {sorted(MATH_DIMENSIONS)} "
                f"nor the code ones {sorted(CODE_DIMENSIONS)}"
            )
        if not all(0 <= label <= 4 for label in self.labels.values()):
            raise ValueError(f"labels must be in 0..4, got {self.labels}")
        return self

    @property
    def domain(self) -> Literal["math", "code"]:
        return "math" if "problem_understanding" in self.labels else "code"

    def flat(self) -> dict[str, float]:
        return {**self.labels, "total": self.total}


class Candidate(BaseModel):
    """A trace with its rubric; a flawed one also names its kind."""

    model_config = ConfigDict(extra="forbid")
    reasoning: str = Field(min_length=1)
    rubric: Rubric
    negative_kind: str | None = None
    rubric_label: Literal["strong", "acceptable", "weak", "bad"] | None = None
    rubric_score_raw: float | None = Field(None, ge=0, le=10)
    rubric_reason: str | None = None


class Group(BaseModel):
    """One problem's traces, in the released schema."""

    model_config = ConfigDict(extra="forbid")
    problem_id: str
    source: str
    task_type: str
    problem: str
    reference_solution: str
    positive_pool: list[Candidate] = Field(min_length=1)
    negative_bank: list[Candidate]
    metadata: dict[str, Any] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Group:
        domains = {c.rubric.domain for c in [*self.positive_pool, *self.negative_bank]}
        if len(domains) != 1:
            raise ValueError("candidates of one group must have rubrics of one domain")
        if any(c.negative_kind is None for c in self.negative_bank):
            raise ValueError("every candidate of negative_bank needs a negative_kind")
        return self

    @property
    def domain(self) -> Literal["math", "code"]:
        return self.positive_pool[0].rubric.domain

    def as_problem(self) -> Problem:
        """The problem of this group, for prompts and the RM text."""
        return Problem(
            problem_id=self.problem_id, source=self.source, domain=self.domain,
            task_type=self.task_type, problem=self.problem,
            reference_solution=self.reference_solution,
            answer=self.metadata.get("answer", ""), metadata=self.metadata,
        )

    def to_record(self) -> dict:
        """The JSON record: rubrics flat, absent fields left out."""
        record = self.model_dump(exclude={"positive_pool", "negative_bank"})
        for pool in ("positive_pool", "negative_bank"):
            record[pool] = [
                c.model_dump(exclude={"rubric"}, exclude_none=True) | {"rubric": c.rubric.flat()}
                for c in getattr(self, pool)
            ]
        return record


def load_groups(path: Path) -> Iterator[Group]:
    """Validated groups of a .jsonl file.

    Raises:
        InputError: a line is not JSON or breaks the schema; names file, line and field.
    """
    for number, record in read_jsonl(path):
        try:
            yield Group.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "record"
            raise InputError(f"{path}:{number}: field {field}: {first['msg']}") from None


def split_train_dev(problem_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """(train, dev) ids: ordered by SHA-256 of (seed 18, id), the first 10 % are dev (method.md section 3)."""
    ordered = sorted(
        problem_ids, key=lambda i: hashlib.sha256(f"{SPLIT_SEED}:{i}".encode()).hexdigest()
    )
    cut = round(DEV_SHARE * len(ordered))
    return ordered[cut:], ordered[:cut]


# --- rubric from the ground truth ------------------------------------------------------------


def rubric_from_shares(shares: dict[str, float], overall: float) -> Rubric:
    """A rubric from scores in [0, 1] (a judge's 0..10 divided by 10): label = floor(score / 2) cut to 0..4."""
    return Rubric(
        labels={name: min(4, int(10 * share / 2 + 1e-9)) for name, share in shares.items()},
        total=round(min(1.0, max(0.0, overall)), 4),
    )


def true_rubric(problem: Problem, trace: str) -> Rubric:
    """What an infallible judge says of any trace of a tiny-world problem, math or code. Source: ours.

    Each dimension is a share of right things in [0, 1]; the overall score is the mean of their mean
    and their minimum, because a trace is not much better than its weakest part.
    """
    values = (_shares if problem.domain == "math" else tinycode.shares)(problem, trace)
    shares = dict(zip(dimensions(problem.domain), values, strict=True))
    return rubric_from_shares(shares, (sum(values) / len(values) + min(values)) / 2)


def has_truth(problem: Problem) -> bool:
    """True if every true step of the problem is known, as in the tiny world: faithfulness can be measured then only."""
    return problem.source in ("tiny_world", "tiny_code")


def is_faithful(problem: Problem, trace: str) -> bool:
    """True if `trace` makes exactly the steps of the ground truth; raises KeyError outside the tiny world."""
    return (tinyworld if problem.domain == "math" else tinycode).is_faithful(problem, trace)


def _shares(problem: Problem, trace: str) -> tuple[float, ...]:
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


def rubric_label(total: float) -> Literal["strong", "acceptable", "weak", "bad"]:
    """Quarters of the total score."""
    return ("bad", "weak", "acceptable", "strong")[min(3, int(total * 4))]


# --- the seven math kinds ---------------------------------------------------------------------

Maker = Callable[[list[Step]], list[list[Step]]]  # every flawed version of the reference's steps


def _recompute(steps: list[Step], first: int) -> list[Step]:
    """`steps` with everything from index `first` on recomputed from the result before it."""
    fixed = list(steps[:first])
    for step in steps[first:]:
        before = fixed[-1].after if fixed else step.before
        fixed.append(
            step.model_copy(update={"before": before, "after": apply(step.op, before, step.operand)})
        )
    return fixed


def _replace(steps: list[Step], i: int, **change: Any) -> list[Step]:
    """`steps` with step i changed, its result computed unless given, and later steps recomputed."""
    step = steps[i].model_copy(update=change)
    if "after" not in change:
        step = step.model_copy(update={"after": apply(step.op, step.before, step.operand)})
    return _recompute([*steps[:i], step, *steps[i + 1 :]], i + 1)


def wrong_operation(steps: list[Step]) -> list[list[Step]]:
    """One event is turned into the opposite calculation: gains are subtracted, doubling is halving."""
    opposite = {"+": "-", "-": "+", "*": "+", "/": "-"}
    return [_replace(steps, i, op=opposite[step.op]) for i, step in enumerate(steps)]


def arithmetic_slip(steps: list[Step]) -> list[list[Step]]:
    """One result is off by one, two or ten."""
    errors = (-10, -2, -1, 1, 2, 10)
    return [_replace(steps, i, after=step.after + error) for i, step in enumerate(steps) for error in errors]


def misread_quantity(steps: list[Step]) -> list[list[Step]]:
    """One event is read with another number than the story has."""
    flawed = []
    for i, step in enumerate(steps):
        if step.op in "+-":
            for operand in range(max(1, step.operand - 3), min(step.operand + 4, len(NUMBER_WORDS))):
                event = step.event.replace(NUMBER_WORDS[step.operand], NUMBER_WORDS[operand])
                flawed.append(_replace(steps, i, operand=operand, event=event))
    return flawed


def lost_event(steps: list[Step]) -> list[list[Step]]:
    """One event is forgotten together with its effect."""
    if len(steps) < 2:
        return []
    flawed = []
    for i in range(len(steps)):
        rest = [*steps[:i], *steps[i + 1 :]]
        if i == 0:  # the new first step starts where the story starts
            rest[0] = rest[0].model_copy(
                update={"before": steps[0].before, "after": apply(rest[0].op, steps[0].before, rest[0].operand)}
            )
        flawed.append(_recompute(rest, max(i, 1)))
    return flawed


def swapped_events(steps: list[Step]) -> list[list[Step]]:
    """Two neighbouring events are taken in the wrong order."""
    flawed = []
    for i in range(len(steps) - 1):
        first = steps[i + 1].model_copy(update={"before": steps[i].before})
        flawed.append(
            _recompute(
                [*steps[:i], first.model_copy(update={"after": apply(first.op, first.before, first.operand)}),
                 steps[i], *steps[i + 2 :]],
                i + 1,
            )
        )
    return flawed


def stale_value(steps: list[Step]) -> list[list[Step]]:
    """One step goes on from the value before the previous step, as if that had not happened."""
    return [_replace(steps, i, before=steps[i - 1].before) for i in range(1, len(steps))]


def unsupported_leap(steps: list[Step]) -> list[list[Step]]:
    """One calculation is left out, but its result is used: the answer is right, its support has a hole."""
    return [[*steps[:i], *steps[i + 1 :]] for i in range(len(steps) - 1)]


MATH_KINDS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (
        wrong_operation, arithmetic_slip, misread_quantity, lost_event,
        swapped_events, stale_value, unsupported_leap,
    )
}
KEEPS_ANSWER = {"unsupported_leap"}


def kinds(domain: str) -> tuple[str, ...]:
    """The seven kinds of flaw of a domain."""
    return tuple(MATH_KINDS if domain == "math" else tinycode.KINDS)


def perturb(problem: Problem, kind: str, rng: random.Random) -> str | None:
    """A flawed trace of `kind`, or None if this problem has no place for it."""
    flawed = (_flawed_traces if problem.domain == "math" else tinycode.flawed_traces)(problem, kind)
    return rng.choice(flawed) if flawed else None


def _flawed_traces(problem: Problem, kind: str) -> list[str]:
    """Every math trace with a `kind` of flaw.

    A flaw must show: results stay whole and positive, and the final value changes unless the kind keeps it.
    """
    truth = true_steps(problem)
    return [
        write_trace(steps) for steps in MATH_KINDS[kind](truth)
        if _plausible(steps) and (kind in KEEPS_ANSWER or steps[-1].after != truth[-1].after)
    ]


def _plausible(steps: list[Step]) -> bool:
    """Whole positive results, and no halving of an odd number."""
    return all(s.after > 0 and (s.op != "/" or s.before % s.operand == 0) for s in steps)


def build_group(problem: Problem, seed: int) -> Group:
    """The reference trace and one flawed trace of each kind that fits, duplicates dropped."""
    rng = random.Random(f"{seed}:{problem.problem_id}")
    reference = problem.reference_solution
    negatives: dict[str, str] = {}
    for kind in kinds(problem.domain):
        trace = perturb(problem, kind, rng)
        if trace and trace != reference:
            negatives.setdefault(trace, kind)
    return Group(
        problem_id=problem.problem_id, source=problem.source, task_type=problem.task_type,
        problem=problem.problem, reference_solution=reference,
        positive_pool=[_candidate(problem, reference, None)],
        negative_bank=[_candidate(problem, trace, kind) for trace, kind in negatives.items()],
        metadata={**problem.metadata, "answer": problem.answer},
    )


def _candidate(problem: Problem, trace: str, kind: str | None) -> Candidate:
    rubric = true_rubric(problem, trace)
    weak = [name for name, label in rubric.labels.items() if label < 4]
    return Candidate(
        reasoning=trace, rubric=rubric, negative_kind=kind,
        rubric_label=rubric_label(rubric.total), rubric_score_raw=round(10 * rubric.total, 3),
        rubric_reason=f"ground truth: below full marks in {', '.join(weak)}" if weak else "ground truth: no flaw",
    )
