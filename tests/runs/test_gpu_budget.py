"""The memory estimate of planner training: its parts against models that are really built, and the refusal."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from tracelift_lib.models.loading import _dtype
from tracelift_lib.models.supervised import trainer_arguments
from tracelift_lib.planner.memory import kv_cache_size
from tracelift_lib.planner.rewards import ARMS
from tracelift_lib.problems.files import InputError
from tracelift_lib.runs import gpu_budget
from tracelift_lib.runs.presets import load_preset

T4 = 15.6e9  # bytes that torch reports of one, about 14.6 GiB
SHAPES = {  # published configurations; only what decides sizes
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}


@pytest.fixture(autouse=True)
def unsloth(monkeypatch):
    """As if Unsloth were there, which preset colab trains with."""
    monkeypatch.setattr(gpu_budget, "find_spec", lambda name: name)


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


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_that_asks_the_reward_model_has_its_memory(shape, arm):
    folder = shape("0.5B")
    colab = load_preset("colab")
    preset = colab.model_copy(
        update={"planner_training": colab.planner_training.model_copy(update={"arms": ["exec_only", arm]})}
    )
    asks = arm in ("tracelift", "no_uplift", "rm_uplift_only", "released_code", "success_times_quality")
    asks |= arm == "quality_among_equals"
    assert ("reward model" in gpu_budget.estimate(preset, folder, folder)) == asks


def test_a_reward_model_behind_a_service_takes_nothing_here(shape):
    preset = load_preset("colab", overrides={"execution.scorer": {"url": "http://localhost:1", "model": "rm"}})
    assert "reward model" not in gpu_budget.estimate(preset, shape("0.5B"), shape("0.5B"))


def full(**change):
    changed = {"planner_training.parameters": "full", "planner_training.backend": "transformers"}
    return load_preset("colab", overrides=changed | {f"planner_training.{k}": v for k, v in change.items()})


def test_full_parameters_have_gradients_and_an_optimizer(shape):
    """Weights, gradients and two moments in float32: 16 bytes a parameter, where LoRA keeps 2 for a frozen one."""
    folder = shape("0.5B")
    lora = gpu_budget.estimate(load_preset("colab"), folder, folder)
    parts = gpu_budget.estimate(full(), folder, folder)
    assert parts["planner"] + parts["gradients and optimizer"] == pytest.approx(8 * lora["planner"])
    assert "adapter with optimizer" not in parts


@pytest.mark.parametrize("stage, share", [("2", 2 + (2 + 4 + 8) / 4), ("3", 16 / 4)])
def test_zero_spreads_full_parameters_over_the_gpus(shape, monkeypatch, stage, share):
    folder = shape("0.5B")
    one = gpu_budget.estimate(load_preset("colab"), folder, folder)["planner"] / 2  # parameters
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    parts = gpu_budget.estimate(full(processes=4), folder, folder)
    assert parts["planner"] + parts["gradients and optimizer"] == pytest.approx(share * one)


def test_the_whole_logits_count_unless_they_are_never_there(shape, monkeypatch):
    """16 completions of 512 tokens: 8 bytes for each of 16 x 513 x 151,936 numbers, about 10 GB, more than a T4 has."""
    folder = shape("0.5B")

    def update(**change):
        preset = load_preset("colab", overrides={f"planner_training.{k}": v for k, v in change.items()})
        return gpu_budget.estimate(preset, folder, folder)["phase update"]

    chunked, whole = update(), update(backend="transformers")
    assert whole - chunked == pytest.approx(8 * 16 * 513 * 151936 - gpu_budget.LOGITS_TILE)
    assert update(backend="transformers", liger=True) == chunked
    monkeypatch.setattr(gpu_budget, "find_spec", lambda name: None)
    assert update() == whole
    with pytest.raises(InputError, match="planner_training.liger"):
        gpu_budget.check(load_preset("colab"), folder, folder, T4)


def test_the_estimate_against_a_measured_peak(shape):
    """128 completions of 128 tokens, 0.5B: 25.7 GB were allocated with LoRA, 32.2 GB with all parameters."""
    folder, size = shape("0.5B"), {"problems_per_step": 16, "generations": 8, "max_completion": 128}
    lengths = {"limits.problem": 3 * 128, "limits.trace": 3 * 128, "execution.batch_tokens": 32768}
    for parameters, measured in (("lora", 25.66e9), ("full", 32.18e9)):
        changed = size | {"parameters": parameters, "backend": "transformers"}
        preset = load_preset("colab", overrides=lengths | {f"planner_training.{k}": v for k, v in changed.items()})
        parts = gpu_budget.estimate(preset, folder, folder)
        staying = parts["total"] - max(v for k, v in parts.items() if k.startswith("phase")) - gpu_budget.OVERHEAD
        assert measured < staying + parts["phase update"] + gpu_budget.OVERHEAD < 1.25 * measured


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
