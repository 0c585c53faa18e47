"""Planner training: the log of rewards, TRL's settings, merging an adapter."""

import json

import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.planner.log import collect_log
from tracelift_lib.planner.training import grpo_config, load_policy, problem_order
from tracelift_lib.problems.files import InputError
from tracelift_lib.runs.presets import load_preset

SHAPE = Qwen2Shape(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    initializer_range=0.2,
)

# --- the log ----------------------------------------------------------------------------------


STATS = {
    "baseline": "cached",
    "executor_seconds": 0.5,
    "repeated_traces": 0.25,
    "rm_seconds": 0.1,
    "seconds": 2.5,
    "verifier_seconds": 0.2,
}


def write_step(folder, step, rows, **stats):
    parts = dict.fromkeys(("s", "q", "u", "j", "c", "baseline_success"), 0.0)
    rows = [{"step": step, "completion_characters": 10, "failure": None, **parts} | row for row in rows]
    (folder / f"{step:06d}.json").write_text(json.dumps(rows))
    (folder / "steps").mkdir(exist_ok=True)
    (folder / "steps" / f"{step:06d}.json").write_text(json.dumps({"step": step, **STATS, **stats}))


def row(problem, trace, reward, **parts):
    return {"problem_id": problem, "trace": trace, "reward": reward, **parts}


def test_means_of_a_step(tmp_path):
    write_step(
        tmp_path,
        0,
        [row("a", "t", 1.0, s=1.0), row("a", None, 0.0), row("b", "u", 0.5, q=0.4), row("b", "v", 0.5, q=0.2)],
    )
    write_step(tmp_path, 1, [row("a", "t", 0.2), row("a", "t", 0.2), row("b", "u", 0.1), row("b", "v", 0.1)])
    history = [
        {"completions/mean_length": 12.0, "entropy": 1.5, "grad_norm": 0.3, "loss": 0.0, "step": 1},
        {"completions/mean_length": 8.0, "entropy": 1.25, "grad_norm": 0.1, "loss": 0.1, "step": 2},
        {"train_runtime": 5, "step": 2},
    ]
    rollouts, steps = collect_log(tmp_path, history)
    assert len(rollouts) == 8
    assert steps["step"].tolist() == [0, 1]
    assert steps["reward"].tolist() == pytest.approx([0.5, 0.15])
    assert steps["s"].tolist() == pytest.approx([0.25, 0]) and steps["q"].tolist() == pytest.approx([0.15, 0])
    assert steps["format_errors"].tolist() == [0.25, 0]
    assert steps["zero_variance"].tolist() == [0.5, 1.0]
    assert steps["tokens"].tolist() == [12, 8] and steps["entropy"].tolist() == [1.5, 1.25]
    assert "kl" not in steps


def test_traces_stay_texts_in_the_log(tmp_path):
    """A planner may write nothing but a number or a date; as a number it would no longer be the trace it wrote."""
    write_step(tmp_path, 0, [row("1", "007", 0.0), row("1", None, 0.0)])
    write_step(tmp_path, 1, [row("2", "5 + 3", 0.0), row("2", "2024-01-01", 0.0)])
    rollouts, _ = collect_log(tmp_path, [])
    rollouts.to_parquet(tmp_path / "rollouts.parquet", index=False)
    read = pd.read_parquet(tmp_path / "rollouts.parquet")
    assert [z if isinstance(z, str) else None for z in read["trace"]] == ["007", None, "5 + 3", "2024-01-01"]
    assert read["problem_id"].tolist() == ["1", "1", "2", "2"]


def test_timings_and_failure_counts_of_a_step_are_in_its_row(tmp_path):
    for step in (0, 1):
        rows = [row("a", "t", 1.0), row("a", "u", None, failure="verifier" if step else None)]
        write_step(tmp_path, step, rows, seconds=2.5 + step)
    _, steps = collect_log(tmp_path, [])
    assert steps["seconds"].tolist() == [2.5, 3.5] and steps["repeated_traces"].tolist() == [0.25, 0.25]
    assert [json.loads(kinds) for kinds in steps["failures"]] == [{}, {"verifier": 1}]
    assert steps["reward"].tolist() == [1.0, 1.0]


# --- TRL settings and the merged policy -------------------------------------------------------


def test_a_step_sees_problems_times_generations(tmp_path):
    preset = load_preset(
        "check",
        overrides={
            "planner_training.problems_per_step": 3,
            "planner_training.generations": 5,
            "planner_training.steps": 7,
            "planner_training.temperature": 0.9,
        },
    )
    config = grpo_config(preset.planner_training, 4, tmp_path)
    assert (config.num_generations, config.generation_batch_size, config.max_steps, config.seed) == (5, 15, 7, 4)
    assert config.temperature == 0.9 and config.learning_rate == preset.planner_training.learning_rate
    assert config.weight_decay == 0 and config.lr_scheduler_type == "constant_with_warmup" and config.beta == 0
    assert config.num_iterations == 1  # the log has one file a step, and the executor's seed is the step's


@pytest.mark.parametrize(
    "precision, flags", [("bf16", (True, False)), ("fp16", (False, True)), ("fp32", (False, False))]
)
def test_precision_and_schedule_come_from_the_preset(tmp_path, precision, flags):
    changes = {"precision": precision, "schedule": "cosine", "warmup_steps": 9, "weight_decay": 0.1, "steps": 4}
    preset = load_preset("check", overrides={f"planner_training.{name}": value for name, value in changes.items()})
    config = grpo_config(preset.planner_training, 0, tmp_path)
    assert (config.bf16, config.fp16) == flags
    assert (config.lr_scheduler_type, config.warmup_steps, config.weight_decay) == ("cosine", 4, 0.1)


@pytest.mark.parametrize("n, per_step, steps", [(8, 2, 12), (7, 3, 5), (5, 5, 3), (9, 4, 1)])
def test_problems_are_shuffled_anew_pass_after_pass(n, per_step, steps):
    """As in a run that is never interrupted; the problems that fill no step are left out of a pass."""
    generator, expected = torch.Generator().manual_seed(3), []
    for _ in range(steps):
        expected += torch.randperm(n, generator=generator).tolist()[: n // per_step * per_step]
    assert problem_order(n, per_step, steps, seed=3) == expected[: per_step * steps]


def test_a_step_needs_enough_problems():
    with pytest.raises(InputError, match="3 problems are too few for planner_training.problems_per_step = 4"):
        problem_order(3, 4, 1, seed=0)


def test_a_trained_adapter_is_merged_into_the_start(tmp_path):
    """W + (alpha / r) B A in every linear layer, computed by hand; without an adapter the start as it is."""
    tokenizer = train_tokenizer(["some text"], 300)
    new_qwen2(tokenizer, SHAPE, seed=0).save_pretrained(tmp_path / "start")
    start = load_policy(tmp_path / "start", None)
    weights = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    tuned = get_peft_model(start, LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    tuned.save_pretrained(tmp_path / "adapter")
    lora = {name: tensor.clone() for name, tensor in tuned.state_dict().items() if "lora_" in name}

    merged = load_policy(tmp_path / "start", tmp_path)
    plain = load_policy(tmp_path / "start", None)
    assert not merged.training and not any("lora" in name for name in merged.state_dict())
    changed = 0
    for name, tensor in merged.state_dict().items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.default.weight" in lora:
            delta = 6 / 2 * lora[f"{stem}.lora_B.default.weight"] @ lora[f"{stem}.lora_A.default.weight"]
            torch.testing.assert_close(tensor, weights[name] + delta)
            changed += 1
        else:
            torch.testing.assert_close(tensor, weights[name])
        torch.testing.assert_close(plain.state_dict()[name], weights[name])
    assert changed == 7  # q, k, v, o, gate, up, down


def test_a_policy_trained_whole_is_loaded_instead_of_the_start(tmp_path):
    tokenizer = train_tokenizer(["some text"], 300)
    for seed, folder in enumerate(("start", "trained/model")):
        new_qwen2(tokenizer, SHAPE, seed).save_pretrained(tmp_path / folder)
    start, trained = load_policy(tmp_path / "start", None), load_policy(tmp_path / "start", tmp_path / "trained")
    again = new_qwen2(tokenizer, SHAPE, seed=1).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in trained.state_dict().items())
    assert not all(torch.equal(tensor, again[name]) for name, tensor in start.state_dict().items())
