"""The memory estimate of planner training: its parts against models that are really built, and the refusal."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from tracelift_lib.models.loading import _dtype
from tracelift_lib.models.supervised import trainer_arguments
from tracelift_lib.planner.memory import kv_cache_size
from tracelift_lib.problems.files import InputError
from tracelift_lib.runs import gpu_budget
from tracelift_lib.runs.presets import load_preset

T4 = 15.6e9  # bytes that torch reports of one, about 14.6 GiB
SHAPES = {  # published configurations; only what decides sizes
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}


@pytest.fixture
def shape(tmp_path):
    def folder(name):
        config = Qwen2Config(**SHAPES[name], num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True)
        config.save_pretrained(tmp_path / name)
        return tmp_path / name

    return folder


def test_sizes_are_those_of_a_built_model(tmp_path):
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config)
    parts = gpu_budget.estimate(load_preset("colab"), tmp_path, tmp_path)
    assert parts["planner"] == parts["executor"] == 2 * sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    learning = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert parts["adapter with optimizer"] == 16 * learning
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(3, 5, dtype=torch.long), use_cache=True).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert kv_cache_size(config) * 3 * 5 == 2 * numbers  # in 16 bits


def test_preset_colab_fits_a_t4(shape):
    parts = gpu_budget.check(load_preset("colab"), shape("0.5B"), shape("0.5B"), T4)
    assert 0.98e9 < parts["planner"] < 1.0e9  # 0.49 billion parameters, as the model's card says
    staying = ("planner", "adapter with optimizer", "executor", "reward model", "CUDA and fragments")
    phases = [size for name, size in parts.items() if name.startswith("phase")]
    assert parts["total"] == pytest.approx(sum(parts[name] for name in staying) + max(phases))


def test_the_larger_planner_fits_beside_the_small_executor(shape):
    gpu_budget.check(load_preset("colab"), shape("1.5B"), shape("0.5B"), T4)


def test_what_does_not_fit_is_refused_with_figures(shape):
    with pytest.raises(InputError) as caught:
        gpu_budget.check(load_preset("colab"), shape("1.5B"), shape("1.5B"), T4)
    text = str(caught.value)
    parts = gpu_budget.estimate(load_preset("colab"), shape("1.5B"), shape("1.5B"))
    assert f"{parts['total'] / 1e9:.1f} GB" in text and "15.6 GB" in text
    assert all(f"{name}: {size / 1e9:.1f} GB" in text for name, size in parts.items())
    for knob in ("problems_per_step", "generations", "max_completion", "batch_tokens", "model_id"):
        assert knob in text


@pytest.mark.parametrize(
    "change",
    [
        {"planner_training.problems_per_step": 2},
        {"planner_training.generations": 2},
        {"planner_training.max_completion": 128},
        {"execution.batch_tokens": 8192},
    ],
)
def test_every_knob_that_the_error_names_lowers_the_estimate(shape, change):
    folder = shape("0.5B")
    before = gpu_budget.estimate(load_preset("colab"), folder, folder)
    after = gpu_budget.estimate(load_preset("colab", overrides=change), folder, folder)
    assert sum(after.values()) < sum(before.values()) and after["total"] <= before["total"]


def test_an_executor_behind_a_server_takes_nothing_here(shape):
    assert "executor" not in gpu_budget.estimate(load_preset("colab"), shape("0.5B"), None)


# --- no bfloat16 on a T4 ----------------------------------------------------------------------------


def t4(monkeypatch, bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16)


def test_emulated_bfloat16_does_not_count(monkeypatch, tmp_path):
    t4(monkeypatch, bf16=False)
    assert trainer_arguments()["fp16"] and not trainer_arguments()["bf16"]
    Qwen2Config(dtype="bfloat16").save_pretrained(tmp_path)
    assert _dtype(tmp_path) == torch.float16
    Qwen2Config(dtype="float32").save_pretrained(tmp_path)
    assert _dtype(tmp_path) == "auto"
    t4(monkeypatch, bf16=True)
    Qwen2Config(dtype="bfloat16").save_pretrained(tmp_path)
    assert trainer_arguments()["bf16"] and _dtype(tmp_path) == "auto"


def test_preset_colab_trains_without_bfloat16():
    preset = load_preset("colab")
    assert preset.planner_training.precision == "fp16" and preset.planner_training.backend == "unsloth"
    assert preset.reward_model.precision is None  # what the GPU has
