"""Sections of a preset: the Reasoning Reward Model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tracelift_lib.problems.settings import Positive, Section, Share


class LoRA(Section):
    r: Positive
    alpha: Positive
    dropout: Share


class RewardModelTraining(Section):
    """Reasoning RM (docs/method.md section 5)."""

    backbone: Literal["planner", "executor"]
    new_layers: Annotated[int, Field(ge=0)] = Field(0, description="untrained layers between backbone and heads")
    lm_weight: Annotated[float, Field(ge=0)] = Field(0.0, description="ours, see model.Doubt; 0: without")
    negatives: Positive
    groups_per_step: Positive
    accumulation: Positive
    epochs: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: float = 0.01
    warmup: Share = 0.03
    max_length: Positive
    dimension_loss: Literal["ce", "mse"] = "ce"
    total_head: bool = Field(True, description="false: the derived score alone (docs/method.md section 9)")
    negatives_weight: Annotated[float, Field(ge=0)] = Field(0.0, description="of the ranking among negatives")
    lora: LoRA | None = None
    four_bit: bool = Field(False, description="backbone in 4-bit NF4 while LoRA trains; needs a GPU and bitsandbytes")
    precision: Literal["bf16", "fp32"] | None = Field(None, description="null: bf16 where a GPU has it")
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _trainable(self) -> RewardModelTraining:
        if self.lora and self.new_layers:
            raise ValueError("lora would leave new_layers as random as they start: set new_layers to 0")
        if self.lm_weight and (not self.new_layers or self.gradient_checkpointing):
            raise ValueError("lm_weight needs new_layers, which read the doubt, and gradient_checkpointing: false")
        if self.four_bit and not self.lora:
            raise ValueError("weights in 4 bits cannot be trained: four_bit needs lora")
        return self
