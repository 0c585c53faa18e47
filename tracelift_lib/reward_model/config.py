"""Checks of a Reasoning RM's settings, and how its backbone is loaded in 4 bits (docs/method.md section 5)."""

from __future__ import annotations

import math

import torch
from transformers import BitsAndBytesConfig, PreTrainedConfig
from transformers.utils import is_bitsandbytes_available

from tracelift_lib.problems.files import InputError


def check_settings(config: PreTrainedConfig) -> None:
    """Check the `rm_*` settings that stand beside a backbone's own in its config.json.

    Raises:
        InputError: an `rm_*` setting is missing or does not fit the others; names it.
    """
    for name in ("rm_dimension_names", "rm_dimension_weights", "rm_num_labels", "rm_use_total_head"):
        if getattr(config, name, None) is None:
            raise InputError(f"config.json has no {name}: not a Reasoning RM, or one of another layout")
    names, weights, labels = config.rm_dimension_names, config.rm_dimension_weights, config.rm_num_labels
    if not names or len(set(names)) != len(names):
        raise InputError(f"rm_dimension_names must be different names, at least one; got {names!r}")
    if len(weights) != len(names) or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-3):
        raise InputError(f"rm_dimension_weights must be {len(names)} numbers from 0 that add up to 1; got {weights!r}")
    if labels < 2:
        raise InputError(f"rm_num_labels must be at least 2; got {labels!r}")
    if config.rm_use_total_head is not True:
        raise InputError("rm_use_total_head must be true: how a score is made without that head is not known")


def four_bit_settings() -> BitsAndBytesConfig:
    """How `ReasoningRewardModel.from_backbone` loads a backbone in 4 bits (NF4, double quantization).

    Raises:
        InputError: no GPU, or bitsandbytes is not installed.
    """
    if not (torch.cuda.is_available() and is_bitsandbytes_available()):
        raise InputError(
            "4-bit loading (reward_model.four_bit) needs a CUDA GPU and bitsandbytes (pip install bitsandbytes); "
            "without one of them set it to false"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
