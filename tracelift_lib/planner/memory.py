"""Where the memory of training goes: weights, gradients, optimizer, activations, by ZeRO stage and number of GPUs.

Bytes throughout. Model states are counted (Rajbhandari et al. 2020, "ZeRO", section 3.1); parameters and activations
are found on the `meta` device, which has shapes but no memory.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config

GIB = 2**30
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def _config(family: type[PreTrainedConfig], *sizes: int, **more: int | bool) -> PreTrainedConfig:
    return family(**dict(zip(SIZES, sizes, strict=True)), **more)


# The paper's planners (docs/method.md section 6), written out so that no hub is needed. Only what decides sizes.
CONFIGS: dict[str, PreTrainedConfig] = {
    "Qwen3-4B": _config(Qwen3Config, 151936, 2560, 9728, 36, 32, 8, head_dim=128, tie_word_embeddings=True),
    "Qwen2.5-7B": _config(Qwen2Config, 152064, 3584, 18944, 28, 28, 4, tie_word_embeddings=False),
    "Llama-3.1-8B": _config(LlamaConfig, 128256, 4096, 14336, 32, 32, 8, tie_word_embeddings=False),
}
SMALLER: dict[str, PreTrainedConfig] = {  # models of presets smol and colab
    "SmolLM2-135M": _config(LlamaConfig, 49152, 576, 1536, 30, 9, 3, tie_word_embeddings=True),
    "Qwen2.5-0.5B": _config(Qwen2Config, 151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True),
    "Qwen2.5-1.5B": _config(Qwen2Config, 151936, 1536, 8960, 28, 12, 2, tie_word_embeddings=True),
}


@dataclass(frozen=True)
class States:
    """Bytes of model states: on one GPU, or for each trainable parameter (a frozen one has weights only)."""

    weights: float
    gradients: float
    master: float  # float32 copy of the weights, to which the optimizer adds its steps
    moments: float  # Adam's two

    @property
    def total(self) -> float:
        return sum(astuple(self))


MIXED = States(weights=2, gradients=2, master=4, moments=8)  # bytes per parameter: DeepSpeed with bf16 or fp16
FLOAT32 = States(weights=4, gradients=4, master=0, moments=8)  # autocast: the weights are their own master


def meta_model(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The model without any memory behind its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def parameter_count(config: PreTrainedConfig) -> int:
    """Parameters of a causal LM; tied embeddings count once."""
    return meta_model(config).num_parameters()


def lora_count(config: PreTrainedConfig, r: int) -> int:
    """Parameters of an adapter of rank `r` on every linear layer but the head: r (inputs + outputs) for each."""
    linears = [m for m in meta_model(config).model.modules() if isinstance(m, torch.nn.Linear)]
    return sum(r * (m.in_features + m.out_features) for m in linears)


def kv_cache_size(config: PreTrainedConfig) -> int:
    """Bytes per token of the keys and values of all layers in 16 bits."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * width * 2


def model_states(frozen: int, trainable: int, per_parameter: States, stage: int = 0, processes: int = 1) -> States:
    """Bytes on each of `processes` GPUs under ZeRO stage 0 (plain data parallel), 1, 2 or 3.

    Stage 1 spreads master copy and moments over the GPUs, stage 2 the gradients too, stage 3 the weights too.
    Temporary memory is left out: communication buckets, at stage 3 the layer that is being computed.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO stage {stage}: there are 0, 1, 2 and 3")
    parameters = (frozen + trainable, trainable, trainable, trainable)
    shares = [processes if stage >= first else 1 for first in (3, 2, 1, 1)]
    return States(*(n * size / share for n, size, share in zip(parameters, astuple(per_parameter), shares)))


def measured_states(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> States:
    """Bytes of the tensors in memory, after a step of Adam; its step counters (4 bytes per tensor) are left out."""
    parameters = list(model.parameters())
    moments = [t for s in optimizer.state.values() for n, t in s.items() if n != "step" and torch.is_tensor(t)]
    return States(_bytes(parameters), _bytes([p.grad for p in parameters if p.grad is not None]), 0, _bytes(moments))


def saved_for_backward(model: PreTrainedModel, batch: int, length: int, completion: int) -> int:
    """Bytes that autograd keeps of one forward pass with the log-probabilities of the last `completion` tokens.

    Weights are not counted; a tensor that is kept twice is counted once. Works on any device, `meta` too.
    """
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor  # the reference keeps its address from being used again
        return tensor

    ids = torch.zeros(batch, length, dtype=torch.long, device=model.device)
    # Four dimensions: transformers inspects the values of a two-dimensional mask, and `meta` has none.
    mask = torch.zeros(batch, 1, length, length, device=model.device, dtype=model.dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=completion, use_cache=False).logits
        result = logits.float().log_softmax(-1).gather(-1, ids[:, -completion:, None])
    size = sum(t.untyped_storage().nbytes() for t in kept.values())
    del result  # autograd's graph had to live until here
    return size


def activations(config: PreTrainedConfig, batch: int, length: int, completion: int, checkpointing: bool) -> float:
    """Bytes of activations of `batch` sequences in 16 bits: kept whole, or with gradient checkpointing.

    With checkpointing each layer keeps its input, and one layer at a time is computed again. Attention is counted as if
    its matrix were kept, which kernels such as FlashAttention do not do: an upper bound for long sequences.
    """

    def saved_with(layers: int) -> int:
        small = type(config)(**{**config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
        return saved_for_backward(meta_model(small).train(), batch, length, completion)

    one, two, layers = saved_with(1), saved_with(2), config.num_hidden_layers
    layer, rest = two - one, 2 * one - two
    if not checkpointing:
        return layers * layer + rest
    return layers * batch * length * config.hidden_size * 2 + layer + rest


def _bytes(tensors: list[torch.Tensor]) -> int:
    """Each storage once: tied weights are one tensor."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())
