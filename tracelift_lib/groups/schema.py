"""TraceLift-Groups: one reference trace for each problem and a bank of flawed ones, each with a rubric.

Paper section 3, docs/method.md section 3. A flaw damages one place of the reference trace; what follows is recomputed,
so the trace stays plausible, as after a natural slip. kinds.yaml defines the fourteen kinds of flaw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_serializer, model_validator

from tracelift_lib.problems.problem import SHOWN_TESTS, Problem
from tracelift_lib.problems.records import data_file

# What full marks say of each dimension, by domain. They are in the order of the RM's heads.
DIMENSIONS = data_file(Path(__file__).with_name("rubric.yaml"), dict[Literal["math", "code"], dict[str, str]])
SPLIT_SEED = 18
DEV_SHARE = 0.1
RubricLabel = Literal["bad", "weak", "acceptable", "strong", "positive"]  # the last: a reference, in released groups


def dimensions(domain: str) -> tuple[str, ...]:
    """The rubric dimensions of a domain, in the order of the RM's heads."""
    return tuple(DIMENSIONS[domain])


class Rubric(BaseModel):
    """Labels 0..4 for the five dimensions of a domain, and a total in [0, 1]."""

    model_config = ConfigDict(extra="forbid")
    labels: dict[str, Annotated[int, Field(ge=0, le=4, strict=True)]]
    total: float = Field(ge=0, le=1, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _from_flat(cls, data: Any) -> Any:
        """Files hold the dimensions flat beside `total`, as the released data does."""
        if isinstance(data, dict) and "labels" not in data:
            return {"labels": {k: v for k, v in data.items() if k != "total"}, "total": data.get("total")}
        return data

    @model_validator(mode="after")
    def _five_dimensions(self) -> Rubric:
        if all(self.labels.keys() != names.keys() for names in DIMENSIONS.values()):
            math, code = (sorted(names) for names in DIMENSIONS.values())
            raise ValueError(
                f"dimensions {sorted(self.labels)} are neither the math ones {math} nor the code ones {code}"
            )
        return self

    @property
    def domain(self) -> Literal["math", "code"]:
        return "math" if "problem_understanding" in self.labels else "code"

    @model_serializer
    def flat(self) -> dict[str, float]:
        """As files hold it: the labels and `total` side by side."""
        return {**self.labels, "total": self.total}


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("only white space")
    return text


class Candidate(BaseModel):
    """A trace with its rubric; a flawed one also names its kind.

    The fields below `rubric` are written by the released code's scripts (docs/method.md section 9); nothing reads them.
    """

    model_config = ConfigDict(extra="forbid")
    reasoning: Annotated[str, Field(min_length=1), AfterValidator(_not_blank)]
    negative_kind: str | None = None
    rubric_label: RubricLabel | None = None
    rubric_score_raw: float | None = Field(None, ge=0, le=10)
    rubric_reason: str | None = None
    rubric: Rubric
    label: Any = None
    negative_index: int | None = None
    raw_reason_length: int | None = None
    clean_reason_length: int | None = None
    metadata: Any = None


class Group(BaseModel):
    """One problem's traces, in the released schema. Records are written in the order of these fields.

    `tests_or_constraints`, or `tests`: text that belongs to the task's statement; the reward model reads it.
    """

    model_config = ConfigDict(extra="forbid")
    problem_id: str
    source: str
    task_type: str
    problem: str
    reference_solution: str
    tests_or_constraints: str | None = Field(None, validation_alias=AliasChoices(SHOWN_TESTS, "tests"))
    metadata: dict[str, Any] = {}
    positive_pool: list[Candidate] = Field(min_length=1)
    negative_bank: list[Candidate]

    @model_validator(mode="before")
    @classmethod
    def _with_task_type(cls, data: Any) -> Any:
        """Released code groups have `task_type` under `metadata` only; without it the released code takes `source`."""
        if isinstance(data, dict) and not data.get("task_type"):
            metadata = data.get("metadata")
            inside = metadata.get("task_type") if isinstance(metadata, dict) else None
            data = data | {"task_type": inside or data.get("source")}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Group:
        if len({c.rubric.domain for c in self.candidates}) != 1:
            raise ValueError("candidates of one group must have rubrics of one domain")
        if any(c.negative_kind is None for c in self.negative_bank):
            raise ValueError("every candidate of negative_bank needs a negative_kind")
        return self

    @property
    def candidates(self) -> list[Candidate]:
        """All traces, the references first."""
        return [*self.positive_pool, *self.negative_bank]

    @property
    def domain(self) -> Literal["math", "code"]:
        return self.positive_pool[0].rubric.domain

    def without(self, kinds: Collection[str]) -> Group:
        """The group without its flawed traces of some kinds."""
        bank = [c for c in self.negative_bank if c.negative_kind not in kinds]
        return self.model_copy(update={"negative_bank": bank})

    def as_problem(self) -> Problem:
        """The problem of this group, for prompts and the RM text. Raises ValueError if it has no answer in words."""
        shared = self.model_dump(include=set(Problem.model_fields) - {"metadata"})
        shown = {SHOWN_TESTS: self.tests_or_constraints} if self.tests_or_constraints else {}
        return Problem(**shared, domain=self.domain, answer=self._answer(), metadata=self.metadata | shown)

    def _answer(self) -> str:
        answer = self.metadata.get("answer")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
            raise ValueError(f"metadata.answer must be text or a number, not {answer!r}")
        return "" if answer is None else str(answer)

    def to_record(self) -> dict[str, Any]:
        """The JSON record: rubrics flat, absent fields left out."""
        return self.model_dump(exclude_none=True)


def split_train_dev(problem_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """(train, dev) ids: ordered by SHA-256 of (seed 18, id), the first 10 % are dev (docs/method.md section 3)."""
    ordered = sorted(problem_ids, key=lambda i: hashlib.sha256(f"{SPLIT_SEED}:{i}".encode()).digest())
    cut = round(DEV_SHARE * len(ordered))
    return ordered[cut:], ordered[:cut]


# --- rubrics from scores ----------------------------------------------------------------------


def rubric_from_shares(shares: dict[str, float], overall: float | None = None) -> Rubric:
    """A rubric from scores in [0, 1] (a judge's 0..10 divided by 10): label = floor(score / 2) cut to 0..4.

    `overall`, by default the mean of their mean and their minimum, becomes the total: a trace is not much better than
    its weakest part.
    """
    if overall is None:
        overall = (sum(shares.values()) / len(shares) + min(shares.values())) / 2
    return Rubric(
        labels={name: min(4, int(10 * share / 2 + 1e-9)) for name, share in shares.items()},
        total=round(min(1.0, max(0.0, overall)), 4),
    )


def rubric_label(total: float) -> RubricLabel:
    """Quarters of the total score."""
    return ("bad", "weak", "acceptable", "strong")[min(3, int(total * 4))]
