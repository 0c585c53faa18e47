"""Where the memory of training goes: weights, gradients, optimizer, activations, by ZeRO stage and number of GPUs.

Bytes throughout. Model states are counted (Rajbhandari et al. 2020, "ZeRO", section 3.1); activations are the tensors
that autograd keeps, found by a forward pass on the `meta` device, which has shapes but no memory.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config

GIB = 2**30
# The paper's planners (method.md section 6), written out so that no hub is needed. Only what decides sizes.
CONFIGS: dict[str, PreTrainedConfig] = {
    "Qwen3-4B": Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "Qwen2.5-7B": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    ),
    "Llama-3.1-8B": LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
}


@dataclass(frozen=True)
class Widths:
    """Bytes a parameter that learns; a frozen one has weights only."""

    weights: int
    gradients: int
    master: int  # float32 copy of the weights, that the optimizer adds its steps to
    moments: int  # Adam's two


MIXED = Widths(weights=2, gradients=2, master=4, moments=8)  # DeepSpeed with bf16 or fp16
FLOAT32 = Widths(weights=4, gradients=4, master=0, moments=8)  # autocast: the weights are their own master


@dataclass(frozen=True)
class States:
    """Bytes of model states on one GPU."""

    weights: float
    gradients: float
    master: float
    moments: float

    @property
    def total(self) -> float:
        return sum(astuple(self))


def linear_sizes(config: PreTrainedConfig) -> list[tuple[int, int]]:
    """(inputs, outputs) of the linear maps of one layer: q, k, v, o, gate, up, down."""
    h, i = config.hidden_size, config.intermediate_size
    d = getattr(config, "head_dim", None) or h // config.num_attention_heads
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    return [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)]


def parameter_count(config: PreTrainedConfig) -> int:
    """Parameters of a causal LM with a Qwen2, Qwen3 or Llama config."""
    h, linears = config.hidden_size, linear_sizes(config)
    d = linears[0][1] // config.num_attention_heads
    bias = sum(out for _, out in linears[:3]) if config.model_type == "qwen2" else 0  # of q, k, v
    norms = 2 * h + (2 * d if config.model_type == "qwen3" else 0)  # qwen3 also normalises q and k in each head
    layer = sum(a * b for a, b in linears) + bias + norms
    embeddings = config.vocab_size * h * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * layer + embeddings + h


def lora_count(config: PreTrainedConfig, r: int) -> int:
    """Parameters of an adapter of rank `r` on every linear layer but the head."""
    return config.num_hidden_layers * sum(r * (a + b) for a, b in linear_sizes(config))


def meta_model(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """The model without any memory behind its weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def model_states(frozen: int, learning: int, widths: Widths, stage: int = 0, processes: int = 1) -> States:
    """Bytes on each of `processes` GPUs under ZeRO stage 0 (plain data parallel), 1, 2 or 3.

    Stage 1 spreads master copy and moments over the GPUs, stage 2 the gradients too, stage 3 the weights too.
    Without what comes and goes: communication buckets, at stage 3 the layer that is being computed.
    """
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"ZeRO stage {stage}: there are 0, 1, 2 and 3")
    share = [processes if stage >= first else 1 for first in (3, 2, 1, 1)]
    whole = (
        (frozen + learning) * widths.weights,
        learning * widths.gradients,
        learning * widths.master,
        learning * widths.moments,
    )
    return States(*(size / n for size, n in zip(whole, share)))


def measured_states(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> States:
    """Bytes of the tensors that are there, after a step of Adam; its step counters (4 a tensor) are left out."""
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
    mask = torch.zeros(batch, 1, length, length, device=model.device, dtype=model.dtype)  # 2-D ones are looked into
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
    one, two = (_saved_by_layers(config, n, batch, length, completion) for n in (1, 2))
    layer, rest, layers = two - one, 2 * one - two, config.num_hidden_layers
    if not checkpointing:
        return layers * layer + rest
    return layers * batch * length * config.hidden_size * 2 + layer + rest


def _saved_by_layers(config: PreTrainedConfig, layers: int, batch: int, length: int, completion: int) -> int:
    small = type(config)(**{**config.to_dict(), "num_hidden_layers": layers, "layer_types": None})
    return saved_for_backward(meta_model(small).train(), batch, length, completion)


def _bytes(tensors: list[torch.Tensor]) -> int:
    """Each storage once: tied weights are one tensor."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())
