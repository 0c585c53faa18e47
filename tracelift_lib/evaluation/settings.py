"""Sections of a preset: evaluation of planners and reward models."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tracelift_lib.evaluation.natural_sets import FORMATS, NATURAL_SETS
from tracelift_lib.problems.settings import Positive, Section


class Evaluation(Section):
    splits: list[str]
    traces: Positive = Field(description="sampled traces per problem")
    bootstrap: Positive = Field(
        description="resamples of a bootstrap; intervals of now need none, results of before name it"
    )


class OwnSet(Section):
    """A file of traces with labelled errors (docs/natural_errors.md)."""

    file: str = Field(description=".jsonl, .json or .parquet, the first two also .gz; counts from the project's folder")
    format: Literal[tuple(FORMATS)]  # type: ignore[valid-type]
    domain: Literal["math", "code"] = "math"
    task_type: str | None = Field(None, description="as the reward model reads it; null: one for each domain")
    problems: Positive | None = Field(None, description="drawn at random; null: all")


def _kind(value: Any) -> str:
    return "own" if isinstance(value, dict | OwnSet) else "problems"


class NaturalErrors(Section):
    """Natural errors: public sets from the folder $TRACELIFT_DATA or the hub, and files of the user's own."""

    sets: dict[
        str, Annotated[Annotated[Positive, Tag("problems")] | Annotated[OwnSet, Tag("own")], Discriminator(_kind)]
    ] = Field(min_length=1, description="problems of each public set, drawn at random; or a set of one's own")
    batch_tokens: Positive = Field(2048, description="padded tokens of one batch of the language model")
    bootstrap: Positive = Field(2000, description="resamples of the intervals")

    @model_validator(mode="after")
    def _known(self) -> NaturalErrors:
        for name, value in self.sets.items():
            public, own = name in NATURAL_SETS, isinstance(value, OwnSet)
            if not public and not own:
                raise ValueError(
                    f"sets: {name!r} is no public set ({', '.join(NATURAL_SETS)}); a file of your own is "
                    f"{name}: {{file: ..., format: ..., domain: ...}}"
                )
            if own and (public or not re.fullmatch(r"[a-z][a-z0-9_]*", name)):
                raise ValueError(f"sets: name your own set by a word of its own, such as mine, not {name!r}")
        return self


class Benchmarks(Section):
    """Benchmark sets that notebook 07 and `tracelift evaluate --preset` ask planners and the executor for.

    No other result depends on it.
    """

    sets: dict[str, Positive] = Field(
        min_length=1, description="set of evaluation/sets/, or a file -> problems, at most"
    )
    planners: list[str] = Field(
        ["none", "reference"],
        min_length=1,
        description="none, reference, warm_start or an arm; the first is compared with",
    )
    samples: Positive = Field(1, description="of each problem; 1 is greedy")
    planner_tokens: Positive | None = Field(
        None, description="of a trace, at most; null: planner_training.max_completion"
    )
    executor_tokens: Positive | None = Field(None, description="of an answer; null: execution.max_new_tokens")
    code_tokens: Positive | None = Field(None, description="of a program; null: executor_tokens, or 768")
