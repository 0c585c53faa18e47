"""Whether planner training fits the GPU, by arithmetic, before hours are spent on the way there.

An estimate of the peak of one process: what stays (weights, gradients and optimizer of what is trained) plus the
largest of three phases that follow each other (drawing completions, running executor and reward model, the update).
Ours. On an H200 (paper_figures/gpu/gpu_check.csv) the logits of the update decide, with 8 bytes a number: four runs
peaked between 20 and 23 GB above what stays, where 128 completions of 128 tokens and a vocabulary of 151,936 give 20.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig

from tracelift_lib.planner.memory import FLOAT32, MIXED, kv_cache_size, lora_count, model_states, parameter_count
from tracelift_lib.planner.rewards import NEEDS
from tracelift_lib.planner.settings import PlannerTraining
from tracelift_lib.problems.files import InputError
from tracelift_lib.runs.presets import Preset

GB = 1e9
SMALL = 2  # bytes per number in float16 or bfloat16
CHARACTERS = 3  # of English per token, at least (Qwen2.5 takes about four)
OVERHEAD = 1.5 * GB  # CUDA context, cuBLAS workspaces, fragments
LOGITS_TILE = 3 * 8192 * 8192 * 4  # log-probabilities in chunks; in one: logits, softmax, gradient
LOGIT = 8  # bytes of each number of the whole logits: in float32, and its gradient


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
            "planner_training.liger: true (pip install liger-kernel) keeps the whole logits out of the update; "
            "parameters: lora, or smaller models (planner.model_id and executor.model_id, with their revisions)"
        )
    return parts


def estimate(preset: Preset, planner: Path, executor: Path | None) -> dict[str, float]:
    """`estimate_of` models in folders."""
    read = AutoConfig.from_pretrained
    return estimate_of(preset, read(planner), read(executor) if executor else None)


def estimate_of(preset: Preset, p: PreTrainedConfig, x: PreTrainedConfig | None) -> dict[str, float]:
    """Bytes by part for a planner of shape `p` and an executor of shape `x`, None if it runs behind a server.

    Of the three phases only the largest is in `total`.
    """
    t, e = preset.planner_training, preset.execution
    rows = t.problems_per_step * t.generations // t.processes
    prompt, trace = (n / CHARACTERS for n in (preset.limits.problem, preset.limits.trace))
    length = prompt + t.max_completion
    staying = _trained(t, p)
    rewards = 0.0
    if x:
        staying["executor"] = parameter_count(x) * SMALL
        samples = max(1, e.batch_tokens / (prompt + trace))
        rewards = kv_cache_size(x) * (e.batch_tokens + samples * e.max_new_tokens) + _one_layer(x) * e.batch_tokens
    if preset.reward_model and not e.scorer and any("q" in NEEDS[arm] for arm in t.arms):  # in float32, as trained
        r = x if x and preset.reward_model.backbone == "executor" else p
        staying["reward model"] = parameter_count(r) * FLOAT32.weights
        rewards = max(rewards, 2 * _one_layer(r) * e.batch_tokens)
    activations = rows * length * (p.num_hidden_layers * p.hidden_size * SMALL + 2 * _one_layer(p))
    phases = {
        "phase drawing": kv_cache_size(p) * rows * length,
        "phase executor and reward model": rewards,
        "phase update": activations + _logits(t, p),
    }
    total = sum(staying.values()) + max(phases.values()) + OVERHEAD
    return {**staying, **phases, "CUDA and fragments": OVERHEAD, "total": total}


def _trained(t: PlannerTraining, planner: PreTrainedConfig) -> dict[str, float]:
    """Bytes of the planner and of what its training adds, on one GPU; full parameters under ZeRO as accelerate says."""
    n = parameter_count(planner)
    if t.parameters == "lora":
        return {"planner": n * SMALL, "adapter with optimizer": lora_count(planner, t.lora_r) * FLOAT32.total}
    stage = int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 0))
    states = model_states(0, n, MIXED if stage else FLOAT32, stage, t.processes)
    return {"planner": states.weights, "gradients and optimizer": states.total - states.weights}


def _logits(t: PlannerTraining, planner: PreTrainedConfig) -> float:
    """Bytes of the logits of one update: whole, unless Liger or Unsloth take log-probabilities in chunks."""
    if t.liger or (t.backend == "unsloth" and find_spec("unsloth")):  # not imported here: it replaces TRL's trainer
        return LOGITS_TILE
    rows = t.problems_per_step * t.generations // t.processes
    return LOGIT * rows * (t.max_completion + 1) * planner.vocab_size


def _one_layer(c: PreTrainedConfig) -> float:
    """Bytes per token while one layer is computed: gate, up and their product, and about eight of the hidden size."""
    return (3 * c.intermediate_size + 8 * c.hidden_size) * SMALL
