"""Sections of a preset: base models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tracelift_lib.problems.settings import Positive, Section, Share


class Qwen2Shape(Section):
    """Qwen2Config keys. A small model wants larger initial weights than the default 0.02 of large ones."""

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    max_position_embeddings: Positive
    initializer_range: Annotated[float, Field(gt=0)]


class SupervisedTraining(Section):
    """How long and how fast `models.supervised` trains; the rest of its schedule is the same everywhere."""

    steps: Positive
    batch_size: Positive
    learning_rate: Annotated[float, Field(gt=0)]


class TrainedModel(SupervisedTraining):
    """A small Qwen2 model that the pipeline trains itself from random weights."""

    source: Literal["train"]
    vocab_size: Positive
    shape: Qwen2Shape
    mix: dict[Literal["plan", "solve_with_trace", "solve_without_trace", "solve_between"], Share] = Field(
        description="shares of the examples; solve_between: a story's quantity after its first event, with the trace"
    )


class WheelModel(Section):
    """A GGUF model inside a wheel on PyPI, converted once to safetensors."""

    source: Literal["wheel"]
    package: str
    version: str
    file: str
    sha256: str


class HubModel(Section):
    """A model on the Hugging Face hub, or a local copy of it."""

    source: Literal["hub"]
    model_id: str
    revision: str
    folder: str | None = None
    thinking: bool = Field(  # left out of keys where it is off: results are the same as before there was this switch
        False, exclude_if=lambda on: not on, description="whether a model that may think before it answers does so"
    )


ModelSource = Annotated[TrainedModel | WheelModel | HubModel, Field(discriminator="source")]
