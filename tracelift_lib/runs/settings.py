"""A preset: the sections of all rooms together."""

from __future__ import annotations

from functools import reduce
from typing import Annotated, Any

from pydantic import Field, model_validator

from tracelift_lib.evaluation.settings import Benchmarks, Evaluation, NaturalErrors
from tracelift_lib.executor.settings import Execution
from tracelift_lib.groups.kinds import kinds_of
from tracelift_lib.groups.settings import Groups
from tracelift_lib.models.settings import ModelSource, TrainedModel
from tracelift_lib.planner.settings import PlannerSource, PlannerTraining, Prediction
from tracelift_lib.problems.prompts import PromptLimits, PromptStyle
from tracelift_lib.problems.settings import GSM8K, GsmSymbolic, Positive, Section, TinyWorld
from tracelift_lib.reward_model.settings import RewardModelTraining


class Preset(Section):
    """Everything that decides what a run computes. A section that is null is not run at this size."""

    name: str
    description: str
    is_result: bool = Field(description="false: outputs are marked 'not a result'")
    results_of: str | None = Field(None, description="preset whose folder in runs/ it shares; null: its own")
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    min_free_gb: Annotated[float, Field(ge=0)] = 1.0
    threads: Positive | None = Field(None, description="of torch on a CPU; null: as many as it likes")
    leaves_out: dict[str, str] = Field({}, description="notebook number -> why it is not run at this size")
    prompt_style: PromptStyle
    limits: PromptLimits = PromptLimits()
    problems: Annotated[TinyWorld | GSM8K | GsmSymbolic, Field(discriminator="source")]
    executor: ModelSource
    second_executor: TrainedModel | None = Field(None, description="reads traces that were never written for it")
    planner: PlannerSource | None = None
    groups: Groups | None = None
    reward_model: RewardModelTraining | None = None
    execution: Execution
    planner_training: PlannerTraining | None = None
    prediction: Prediction | None = None
    evaluation: Evaluation | None = None
    natural_errors: NaturalErrors | None = None
    benchmarks: Benchmarks | None = None
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="name -> values of keys that differ from this preset; notebook 08 trains and compares them"
    )
    simulated_groups: Positive = Field(50_000, description="groups that a simulation of notebooks 04 and 09 draws")

    @model_validator(mode="after")
    def _comparable(self) -> Preset:
        e, arms = self.execution, self.planner_training.arms if self.planner_training else []
        if "released_code" in arms and e.baseline == "cached" and e.baseline_samples != e.k:
            raise ValueError(
                "arm released_code compares K runs with K runs: set execution.baseline to fresh, or "
                f"execution.baseline_samples to k = {e.k}"
            )
        return self

    @model_validator(mode="after")
    def _kinds_to_leave_out(self) -> Preset:
        named = self.groups.leave_out if self.groups else []
        kinds = kinds_of("code" if self.problems.source == "tiny_code" else "math")
        if unknown := [name for name in named if name not in kinds]:
            raise ValueError(f"groups.leave_out: unknown kind {unknown[0]!r}; these problems have {', '.join(kinds)}")
        if named and self.groups.seeds:
            raise ValueError("groups.leave_out is for generated problems: set it to [], or groups.seeds to null")
        return self

    @property
    def results(self) -> str:
        """Name of the folder in runs/ that holds its results."""
        return self.results_of or self.name

    @property
    def local_executor(self) -> bool:
        """Whether the executor runs in this process; a model behind a server is not ours to make."""
        return self.execution.backend.kind == "local"

    def value(self, key: str) -> Any:
        """The value of a dotted key; None if a part of it is."""
        return reduce(lambda section, part: getattr(section, part, None), key.split("."), self)
