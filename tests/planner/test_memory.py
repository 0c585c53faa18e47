"""Memory of training: counts and bytes against the models and tensors that are really there."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from tracelift_lib.planner import memory
from tracelift_lib.planner.memory import CONFIGS, FLOAT32, MIXED, model_states

SMALL = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
)
FAMILIES = [Qwen2Config, Qwen3Config, LlamaConfig]


def test_the_papers_models_have_the_sizes_that_their_cards_state():
    """Billions of parameters, from the model cards: 4.0, 7.61 and 8.03."""
    sizes = {name: round(memory.parameter_count(c) / 1e9, 2) for name, c in CONFIGS.items()}
    assert sizes == {"Qwen3-4B": 4.02, "Qwen2.5-7B": 7.62, "Llama-3.1-8B": 8.03}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_and_adapters_are_counted_as_they_are_built(family, tied):
    config = family(**SMALL, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    assert memory.parameter_count(config) == model.num_parameters()
    adapted = get_peft_model(model, LoraConfig(r=5, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert memory.lora_count(config, 5) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def step_of_adam(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(input_ids=torch.arange(10)[None]).logits.sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("family", FAMILIES)
def test_states_in_float32_are_the_bytes_of_the_tensors(family):
    model = AutoModelForCausalLM.from_config(family(**SMALL))
    n = model.num_parameters()
    measured = memory.measured_states(model, step_of_adam(model))
    assert measured == model_states(0, n, FLOAT32) and measured.total == 16 * n


def test_states_of_an_adapter_are_the_bytes_of_the_tensors():
    base = AutoModelForCausalLM.from_config(Qwen2Config(**SMALL))
    frozen, learning = base.num_parameters(), memory.lora_count(base.config, 4)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert memory.measured_states(model, step_of_adam(model)) == model_states(frozen, learning, FLOAT32)


def test_states_by_stage_and_gpus():
    """ZeRO paper, figure 1: 7.5 billion parameters on 64 GPUs take 120, 31.4, 16.6 and 1.9 GB."""
    totals = [model_states(0, 7_500_000_000, MIXED, stage, 64).total / 1e9 for stage in range(4)]
    assert totals == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)
    assert model_states(0, 100, MIXED, 3, 1) == model_states(0, 100, MIXED, 0, 8)
    with pytest.raises(ValueError, match="ZeRO stage 4"):
        model_states(0, 100, MIXED, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_on_meta_are_those_of_a_real_forward_pass(family):
    """Kept whole: the sum over layers that `activations` extrapolates, and what the same model keeps on a CPU."""
    config = family(**SMALL)
    real = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()
    kept = memory.saved_for_backward(memory.meta_model(config).train(), 2, 24, 10)
    assert memory.activations(config, 2, 24, 10, checkpointing=False) == kept
    with sdpa_kernel(SDPBackend.MATH):  # the one that keeps the attention matrix, as `meta` does
        assert kept == memory.saved_for_backward(real, 2, 24, 10)
    assert kept > memory.saved_for_backward(real, 2, 24, 10)
    checkpointed = memory.activations(config, 2, 24, 10, checkpointing=True)
    assert 3 * 2 * 24 * 32 * 2 < checkpointed < kept


def test_what_autograd_keeps_is_counted_by_hand():
    """y = exp(a) keeps its result; the inputs of a product are kept, a weight among them is not counted."""

    class Product(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(7))

        def forward(self, input_ids, logits_to_keep, **_):
            x = torch.ones(*input_ids.shape, 7) * 2
            return type("Out", (), {"logits": (x * self.weight)[:, -logits_to_keep:]})

    # x (2 x 5 x 7 floats), log-probabilities (2 x 3 x 7 floats), indices of the gather (ids: 2 x 5 longs)
    assert memory.saved_for_backward(Product(), 2, 5, 3) == 4 * 70 + 4 * 42 + 8 * 10
