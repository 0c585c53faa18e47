"""Sections of a preset: evaluation of planners and reward models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tracelift_lib.problems.settings import Positive, Section


class Evaluation(Section):
    splits: list[str]
    traces: Positive = Field(description="sampled traces per problem")
    bootstrap: Positive = Field(
        description="resamples of a bootstrap; intervals of now need none, results of before name it"
    )


class NaturalErrors(Section):
    """Natural errors of public sets (natural_sets.py); data from the folder $TRACELIFT_DATA, or from the hub."""

    sets: dict[Literal["gsm8k_solutions", "processbench_gsm8k", "processbench_math", "prmbench"], Positive] = Field(
        min_length=1, description="problems of each set, drawn at random"
    )
    batch_tokens: Positive = Field(2048, description="padded tokens of one batch of the language model")
    bootstrap: Positive = Field(2000, description="resamples of the intervals")


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
