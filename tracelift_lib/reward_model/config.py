"""Settings of a Reasoning RM checkpoint, and how its backbone is loaded in 4 bits (method.md section 5)."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig

from tracelift_lib.problems.files import InputError


class RewardModelConfig(PreTrainedConfig):
    """The `rm_*` settings and the config of the backbone.

    On disk both stand side by side in one flat config.json whose `model_type` is the backbone's, as in the released
    checkpoints. Here `backbone` is a config of the backbone's own class, whose values (`hidden_size`, ...) can also
    be read from this one.

    Raises:
        InputError: an `rm_*` setting is missing or does not fit the others; names it.
    """

    has_no_defaults_at_init = True
    sub_configs = {"backbone": AutoConfig}

    def __init__(self, **settings: Any):
        own = {name: settings.pop(name) for name in list(settings) if name.startswith("rm_")}
        backbone_type = settings.pop("backbone_type", None) or settings.pop("model_type", None)
        self.backbone = AutoConfig.for_model(backbone_type, **settings)
        _check_settings(own)
        shared = ("architectures", "dtype", "attn_implementation", "name_or_path")
        super().__init__(**own, **{name: settings[name] for name in shared if name in settings})

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        settings, rest = super().get_config_dict(*args, **kwargs)
        if "model_type" in settings:  # under its own name transformers would hold it against this class's type
            settings["backbone_type"] = settings.pop("model_type")
        return settings, rest

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "backbone":  # not there yet: the config is being built or copied
            raise AttributeError(name)
        return getattr(self.backbone, name)

    def to_dict(self) -> dict[str, Any]:
        own = super().to_dict()
        own = {k: v for k, v in own.items() if k.startswith("rm_") or k in ("architectures", "dtype")}
        return self.backbone.to_dict() | own

    def to_diff_dict(self) -> dict[str, Any]:
        kept = {k: v for k, v in self.to_dict().items() if k.startswith("rm_") or k in ("architectures", "dtype")}
        return self.backbone.to_diff_dict() | kept


def _check_settings(own: dict[str, Any]) -> None:
    for name in ("rm_dimension_names", "rm_dimension_weights", "rm_num_labels", "rm_use_total_head"):
        if name not in own:
            raise InputError(f"config.json has no {name}: not a Reasoning RM, or one of another layout")
    names, weights = own["rm_dimension_names"], own["rm_dimension_weights"]
    if not names or len(set(names)) != len(names):
        raise InputError(f"rm_dimension_names must be different names, at least one; got {names!r}")
    if len(weights) != len(names) or min(weights) < 0 or not math.isclose(sum(weights), 1, abs_tol=1e-3):
        raise InputError(f"rm_dimension_weights must be {len(names)} numbers from 0 that add up to 1; got {weights!r}")
    if own["rm_num_labels"] < 2:
        raise InputError(f"rm_num_labels must be at least 2; got {own['rm_num_labels']!r}")
    if own["rm_use_total_head"] is not True:
        raise InputError("rm_use_total_head must be true: how a score is made without that head is not known")


def four_bit_settings() -> BitsAndBytesConfig:
    """How `from_backbone` loads a body in 4 bits.

    Raises:
        InputError: no GPU, or bitsandbytes is not installed.
    """
    if not torch.cuda.is_available():
        raise InputError("4-bit loading (reward_model.four_bit) needs a CUDA GPU; without one set it to false")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise InputError(
            "4-bit loading (reward_model.four_bit) needs bitsandbytes: pip install bitsandbytes, or set it to false"
        ) from None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
