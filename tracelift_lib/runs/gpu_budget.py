"""Whether planner training fits the GPU, by arithmetic, before hours are spent on the way there.

An estimate of the peak of one process: what stays (weights, adapter with its optimizer) plus the largest of three
phases that follow each other (drawing completions, asking executor and reward model, the update). Ours; it has not been
compared with a measurement on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from tracelift_lib.planner.memory import lora_count, meta_model
from tracelift_lib.problems.files import InputError
from tracelift_lib.runs.presets import Preset

GB = 1e9
SMALL = 2  # bytes a number in float16 or bfloat16
LEARNING = 16  # bytes a learning number: weight, gradient and Adam's two moments in float32
CHARACTERS = 3  # of English a token, at least (Qwen2.5 takes about four)
OVERHEAD = 1.5 * GB  # CUDA context, cuBLAS workspaces, fragments
LOGITS_TILE = 3 * 8192 * 8192 * 4  # TRL takes log-probabilities tile by tile; in a tile: logits, softmax, gradient


def check(preset: Preset, planner: Path, executor: Path | None, available: float | None = None) -> dict[str, float]:
    """The parts of the estimate in bytes, `total` last; `available`: bytes of the GPU, found out if None.

    `executor` is its model folder, None if it runs behind a server.

    Raises:
        InputError: more than is available; names the parts and what to lower.
    """
    parts = estimate(preset, planner, executor)
    available = available or torch.cuda.get_device_properties(0).total_memory
    if parts["total"] > available:
        table = "\n".join(f"  {name}: {size / GB:.1f} GB" for name, size in parts.items())
        raise InputError(
            f"preset {preset.name}: planner training needs about {parts['total'] / GB:.1f} GB, this GPU has "
            f"{available / GB:.1f} GB:\n{table}\nLower what is large: planner_training.problems_per_step, generations "
            "or max_completion for the update and for drawing; execution.batch_tokens for executor and reward model; "
            "or take smaller models (planner.model_id and executor.model_id, with their revisions)"
        )
    return parts


def estimate(preset: Preset, planner: Path, executor: Path | None) -> dict[str, float]:
    """Bytes by part. Of the three phases only the largest is in `total`."""
    t, e = preset.planner_training, preset.execution
    p, p_size = _config_and_size(planner)
    rows = t.problems_per_step * t.generations
    prompt, trace = (n / CHARACTERS for n in (preset.limits.problem, preset.limits.trace))
    length = prompt + t.max_completion
    staying = {"planner": p_size * SMALL, "adapter with optimizer": lora_count(p, t.lora_r) * LEARNING}
    asking = 0.0
    if executor:
        x, x_size = _config_and_size(executor)
        staying["executor"] = x_size * SMALL
        samples = max(1, e.batch_tokens / (prompt + trace))
        asking = _kv_cache(x) * (e.batch_tokens + samples * e.max_new_tokens) + _one_layer(x) * e.batch_tokens
    if preset.reward_model and "tracelift" in t.arms:  # in float32, as it was trained
        r, r_size = _config_and_size(executor if executor and preset.reward_model.backbone == "executor" else planner)
        staying["reward model"] = r_size * 4
        asking = max(asking, 2 * _one_layer(r) * e.batch_tokens)
    phases = {
        "phase drawing": _kv_cache(p) * rows * length,
        "phase executor and reward model": asking,
        "phase update": rows * length * (p.num_hidden_layers * p.hidden_size * SMALL + 2 * _one_layer(p)) + LOGITS_TILE,
    }
    total = sum(staying.values()) + max(phases.values()) + OVERHEAD
    return {**staying, **phases, "CUDA and fragments": OVERHEAD, "total": total}


def _config_and_size(folder: Path) -> tuple[PreTrainedConfig, int]:
    config = AutoConfig.from_pretrained(folder)
    return config, sum(p.numel() for p in meta_model(config).parameters())


def _kv_cache(c: PreTrainedConfig) -> float:
    """Bytes a token: keys and values of all layers."""
    width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return 2 * c.num_hidden_layers * c.num_key_value_heads * width * SMALL


def _one_layer(c: PreTrainedConfig) -> float:
    """Bytes a token while one layer is computed: gate, up and their product, and about eight of the hidden size."""
    return (3 * c.intermediate_size + 8 * c.hidden_size) * SMALL
