"""What trains the planner: transformers, or Unsloth with vLLM inside it (`planner_training.backend` of a preset).

Written against unsloth 2026.10.7; a test compares every argument with that package's own signatures. It has not run yet
where this was written: it needs a GPU.

Importing unsloth replaces TRL's trainer and its settings by its own, for the rest of the process. So they are looked
up in `trl` after `load_with_unsloth`, never imported by name. Unsloth warns that it wants to be imported before
transformers; a library that also works without it cannot grant that.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracelift_lib.models.contract import token_ids
from tracelift_lib.planner.settings import PlannerTraining

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # every linear layer
VLLM_SHARE = 0.4  # of the GPU, for vLLM's KV cache; executor, reward model and the update need the rest
FIRST_CAPABILITY = (8, 0)  # Ampere: unsloth's notebooks need another vLLM than ours on older cards such as the T4


def load_with_unsloth(
    start: Path, settings: PlannerTraining, seed: int, prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel | None:
    """The model folder `start` with a new adapter, loaded by Unsloth; None if plain transformers is to train.

    If the preset asks for Unsloth, one line says what is used and why.
    """
    if settings.backend == "transformers":
        return None
    if missing := why_no_unsloth():
        print(f"planner training with plain transformers: {missing}", flush=True)
        return None
    from unsloth import FastLanguageModel

    no_vllm = why_no_vllm()
    how = f"without vLLM: {no_vllm}" if no_vllm else "with vLLM fast inference, on the same weights"
    print(f"planner training with Unsloth, {how}", flush=True)
    longest = max(map(len, token_ids(tokenizer, prompts)))
    common = {"max_seq_length": longest + settings.max_completion, "random_state": seed}
    vllm = {"max_lora_rank": settings.lora_r, "gpu_memory_utilization": VLLM_SHARE}
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(start),
        dtype=DTYPES.get(settings.precision),
        load_in_4bit=False,
        load_in_16bit=True,  # as with transformers: the arms must not differ in this
        fast_inference=not no_vllm,
        **common,
        **({} if no_vllm else vllm),
    )
    adapter = settings.model_dump(include={"lora_alpha", "lora_dropout"}) | {"r": settings.lora_r}
    return FastLanguageModel.get_peft_model(
        model, target_modules=TARGETS, use_gradient_checkpointing="unsloth", **adapter, **common
    )


def why_no_unsloth() -> str | None:
    """Why Unsloth cannot be used here; None if it can, and then it is imported."""
    if not torch.cuda.is_available():
        return "Unsloth needs a GPU and there is none"
    if find_spec("unsloth") is None:
        return "unsloth is not installed (make setup EXTRAS=dev,unsloth)"
    try:
        import unsloth  # noqa: F401
    except (ImportError, NotImplementedError, RuntimeError) as error:  # what it raises where it does not fit
        return f"unsloth cannot be imported ({error})"
    return None


def why_no_vllm() -> str | None:
    """Why vLLM cannot draw the completions here; None if it can."""
    if find_spec("vllm") is None:
        return "vllm is not installed (make setup EXTRAS=dev,unsloth,gpu)"
    capability = torch.cuda.get_device_capability()
    if capability < FIRST_CAPABILITY:
        have, need = (".".join(map(str, c)) for c in (capability, FIRST_CAPABILITY))
        return f"this GPU has compute capability {have}, vllm at our pin is used from {need} on"
    return None
