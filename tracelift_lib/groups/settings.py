"""Sections of a preset: TraceLift-Groups."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tracelift_lib.problems.settings import Positive, Section


class PublicSeeds(Section):
    """Groups built from public problems by the exact makers; data from the folder $TRACELIFT_DATA, or from the hub."""

    source: Literal["gsm_symbolic", "gsm8k", "mbpp", "contests"]
    every: Positive = Field(1, description="take every n-th seed (the paper: every second of GSM8K train)")
    drop_leaked: bool = Field(False, description="leave out seeds that are test problems, instead of refusing to build")


class ReleasedGroups(Section):
    """Groups that somebody else built, in the released schema."""

    source: Literal["released"]
    where: str = Field(description="folder with {train,dev}.jsonl or .parquet, or a data set on the hub")
    revision: str | None = Field(None, description="of the data set on the hub")


class Groups(Section):
    """TraceLift-Groups (paper section 3, docs/method.md section 3)."""

    sizes: dict[Literal["train", "dev", "test"], Positive] = Field(
        description="seeds, or released groups, of each split; dev comes out of train"
    )
    min_negatives: Positive = 4
    seeds: Annotated[PublicSeeds | ReleasedGroups, Field(discriminator="source")] | None = Field(
        None, description="null: the preset's own generated problems"
    )
    leave_out: list[str] = Field(
        [], description="kinds of flaw that train groups lack, dev and test groups have; of generated problems only"
    )
