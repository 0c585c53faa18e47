"""Sections of a preset: the base class, and where problems come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys and values of another type are errors, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TinyWorld(Section):
    """Generated problems: arithmetic stories (tinyworld.py), or programs (tinycode.py)."""

    source: Literal["tiny_world", "tiny_code"]
    max_number: Annotated[int, Field(ge=2, le=20)] = Field(
        description="largest quantity that a story names; largest number that a program adds or subtracts"
    )
    max_value: Positive = Field(description="all values in a true trace stay in 1..max_value")
    sizes: dict[str, Positive] = Field(description="problems of each split")
    steps: dict[str, list[Positive]] = Field(description="numbers of steps of each split")
    shortcut: dict[str, Share] | None = Field(
        None, description="split -> share of stories in which the order of the first two events makes no difference"
    )

    @model_validator(mode="after")
    def _same_splits(self) -> TinyWorld:
        if set(self.sizes) != set(self.steps):
            raise ValueError("sizes and steps must name the same splits")
        if unknown := set(self.shortcut or {}) - set(self.sizes):
            raise ValueError(f"shortcut: {', '.join(sorted(unknown))} is no split of sizes ({', '.join(self.sizes)})")
        if self.shortcut and self.source == "tiny_code":
            raise ValueError("shortcut: programs of tiny_code have no events to swap; set it to null")
        if self.source == "tiny_code" and self.max_value > 20:
            raise ValueError("max_value of tiny_code must be at most 20: its problems name all values in words")
        return self


class GSM8K(Section):
    """Grade-school word problems, from a local folder or the hub."""

    source: Literal["gsm8k"]
    folder: str | None = Field(None, description="folder with gsm8k/test.jsonl; null: $TRACELIFT_DATA, or the hub")
    revision: str = Field(description="revision of openai/gsm8k on the hub")
    sizes: dict[Literal["train", "rl", "test"], Positive] = Field(
        description="train: warm start; rl: other problems of GSM8K train, for GRPO"
    )


class GsmSymbolic(Section):
    """GSM8K-like problems from the templates of reasoning-gym, as many as one likes, offline."""

    source: Literal["gsm_symbolic"]
    sizes: dict[Literal["train", "rl", "dev", "test"], Positive]
