"""Sections of a preset: the planner, from its warm start to GRPO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, model_validator

from tracelift_lib.groups.habits import WRITERS
from tracelift_lib.models.settings import HubModel, SupervisedTraining, WheelModel
from tracelift_lib.planner.rewards import ARMS
from tracelift_lib.problems.settings import Positive, Section, Share


class WarmStart(SupervisedTraining):
    """A planner fine-tuned from the executor's own weights on traces that mix habits."""

    source: Literal["executor"]
    habits: dict[Literal[tuple(WRITERS)], Share] = Field(
        description="shares of the traces; habits.py says what each is"
    )  # type: ignore[valid-type]


class ReferenceStart(SupervisedTraining):
    """A planner fine-tuned from the executor's own weights, all of them, on reference traces of the split train."""

    source: Literal["reference_traces"]


PlannerSource = Annotated[WarmStart | ReferenceStart | WheelModel | HubModel, Field(discriminator="source")]


class Collapse(Section):
    """What stops a planner's training, seen over the last `window` steps (planner/collapse.py). Ours."""

    window: Positive = 10
    format_errors: Share = Field(0.9, description="share of completions without a trace, from which on")
    entropy: NonNegativeFloat = Field(0.005, description="nats per token, up to which")


class Prediction(Section):
    """What the trainings will do, said before they start (prediction.py). Ours."""

    problems: Positive = Field(description="of each split, on which the warm start's habits are measured")
    traces: Positive = Field(description="sampled per problem")
    runs: Positive = Field(description="of the executor with each trace, and without")
    trainings: Positive = Field(description="simulated for each arm")
    step_size: PositiveFloat = Field(description="gain of a logit per step and unit of mean advantage")


class PlannerTraining(Section):
    """GRPO (docs/method.md section 6)."""

    arms: list[Literal[tuple(ARMS)]]  # type: ignore[valid-type]
    seeds: list[int]
    split: str = Field("rl", description="of the problems, on which it trains")
    steps: Positive
    problems_per_step: Positive
    generations: Annotated[int, Field(ge=2)]
    learning_rate: PositiveFloat
    temperature: PositiveFloat
    top_p: Share = 1.0
    max_completion: Positive
    parameters: Literal["lora", "full"] = Field("lora", description="what is trained: an adapter, or the whole model")
    lora_r: Positive
    lora_alpha: Positive
    lora_dropout: Share
    loss_type: Literal["grpo", "dapo", "dr_grpo"] = "grpo"
    beta: NonNegativeFloat = Field(0.0, description="weight of the KL term; 0: no reference policy")
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 5
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="learning rate after warm-up")
    precision: Literal["bf16", "fp16", "fp32"] | None = Field(None, description="null: what the hardware has")
    backend: Literal["transformers", "unsloth"] = Field("transformers", description="planner/unsloth.py")
    liger: bool = Field(False, description="log-probabilities in chunks, in less memory (needs liger-kernel, a GPU)")
    collapse: Collapse | None = Field(Collapse(), description="null: only a NaN or infinite loss stops a run")
    judge_saturation: Share = Field(0.955, description="share of the simulated LLM judge's scores that are exactly 1")
    processes: Positive = Field(1, description="that share the completions of a step; more than one: runs/launch.py")

    @model_validator(mode="after")
    def _compatible(self) -> PlannerTraining:
        if self.problems_per_step % self.processes:
            raise ValueError(
                f"problems_per_step = {self.problems_per_step} must be a multiple of processes = "
                f"{self.processes}: a group stays in one process"
            )
        if self.backend == "unsloth" and self.parameters == "full":
            raise ValueError("backend unsloth trains an adapter: set parameters to lora, or backend to transformers")
        return self
