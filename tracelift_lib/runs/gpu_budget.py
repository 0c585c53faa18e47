"""Whether planner training fits the GPU, by arithmetic, before hours are spent on the way there.

An estimate of the peak of one process: what stays (weights, adapter with its optimizer) plus the largest of three
phases that follow each other (drawing completions, running executor and reward model, the update). Ours; it has not
been compared with a measurement on a GPU yet.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from tracelift_lib.planner.memory import FLOAT32, kv_cache_size, lora_count, parameter_count
from tracelift_lib.problems.files import InputError
from tracelift_lib.runs.presets import Preset

GB = 1e9
SMALL = 2  # bytes per number in float16 or bfloat16
CHARACTERS = 3  # of English per token, at least (Qwen2.5 takes about four)
OVERHEAD = 1.5 * GB  # CUDA context, cuBLAS workspaces, fragments
LOGITS_TILE = 3 * 8192 * 8192 * 4  # TRL takes log-probabilities tile by tile; in a tile: logits, softmax, gradient


def check(preset: Preset, planner: Path, executor: Path | None, available: float | None = None) -> dict[str, float]:
    """The parts of the estimate in bytes, `total` last; `available`: bytes of the GPU; None asks torch.

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
    p = AutoConfig.from_pretrained(planner)
    rows = t.problems_per_step * t.generations
    prompt, trace = (n / CHARACTERS for n in (preset.limits.problem, preset.limits.trace))
    length = prompt + t.max_completion
    staying = {"planner": parameter_count(p) * SMALL, "adapter with optimizer": lora_count(p, t.lora_r) * FLOAT32.total}
    rewards = 0.0
    if executor:
        x = AutoConfig.from_pretrained(executor)
        staying["executor"] = parameter_count(x) * SMALL
        samples = max(1, e.batch_tokens / (prompt + trace))
        rewards = kv_cache_size(x) * (e.batch_tokens + samples * e.max_new_tokens) + _one_layer(x) * e.batch_tokens
    if preset.reward_model and "tracelift" in t.arms:  # in float32, as it was trained
        r = x if executor and preset.reward_model.backbone == "executor" else p
        staying["reward model"] = parameter_count(r) * FLOAT32.weights
        rewards = max(rewards, 2 * _one_layer(r) * e.batch_tokens)
    phases = {
        "phase drawing": kv_cache_size(p) * rows * length,
        "phase executor and reward model": rewards,
        "phase update": rows * length * (p.num_hidden_layers * p.hidden_size * SMALL + 2 * _one_layer(p)) + LOGITS_TILE,
    }
    total = sum(staying.values()) + max(phases.values()) + OVERHEAD
    return {**staying, **phases, "CUDA and fragments": OVERHEAD, "total": total}


def _one_layer(c: PreTrainedConfig) -> float:
    """Bytes per token while one layer is computed: gate, up and their product, and about eight of the hidden size."""
    return (3 * c.intermediate_size + 8 * c.hidden_size) * SMALL
