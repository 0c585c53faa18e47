"""Rewards while training, with stand-ins for the executor and the RM; the log; merging an adapter."""

import asyncio
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from common import lines, story
from peft import LoraConfig, get_peft_model

from tracelift_lib.models import new_qwen2, train_tokenizer
from tracelift_lib.presets import Qwen2Shape, load_preset
from tracelift_lib.prompts import wrap_trace
from tracelift_lib.rewards import ARMS, NEEDS
from tracelift_lib.training import RewardEngine, TooManyFailures, collect_log, grpo_config, load_policy, truth_judge

A, B = story(3, ("+", 2), problem_id="a"), story(4, ("*", 2), problem_id="b")


class FakeExecutor:
    """Gives the runs that are written for each trace, and remembers what it was asked."""

    def __init__(self, runs):
        self.runs, self.calls = runs, []

    def verdicts(self, problems, traces, n, seed, progress=None):
        self.calls.append(([p.problem_id for p in problems], list(traces), n, seed))
        return np.array([self.runs[z][:n] for z in traces], dtype=int).reshape(len(traces), n)


class FakeScorer:
    def __init__(self, quality):
        self.quality, self.calls = quality, []

    def score(self, problems, traces, progress=None):
        self.calls.append(([p.problem_id for p in problems], list(traces)))
        return np.array([self.quality[z] for z in traces], dtype=float), np.zeros((len(traces), 5))


RUNS = {"good": [1, 1, 0, 1], "bad": [0, 1, 0, 0], "lucky": [1, 0, 0, 0]}
QUALITY = {"good": 0.8, "bad": 0.5, "lucky": 0.25}
BASELINE = {"a": [0, 0, 0, 1], "b": [1, 0]}


def engine(tmp_path, arm="tracelift", quality=QUALITY, **change):
    arguments = dict(
        arm=arm, k=3, executor=FakeExecutor(RUNS), scorer=FakeScorer(quality), problems={"a": A, "b": B},
        baseline=BASELINE, seed=2, max_failure_rate=0.25, log_folder=tmp_path / "rollouts",
    )
    (tmp_path / "rollouts").mkdir(exist_ok=True)
    return RewardEngine(**(arguments | change))


def test_parts_and_reward_by_hand(tmp_path):
    """s is the first run alone; the uplift uses the other three and the problem's own baseline (1/4 and 1/2)."""
    e = engine(tmp_path)
    rows = e.score([wrap_trace(z) for z in ("good", "bad", "lucky", "good")], ["a", "a", "b", "b"], seed=9)
    parts = [(r["problem_id"], r["trace"], r["s"], r["q"], r["u"]) for r in rows]
    assert parts == [
        ("a", "good", 1, 0.8, pytest.approx(2 / 3 - 1 / 4)),
        ("a", "bad", 0, 0.5, pytest.approx(1 / 3 - 1 / 4)),
        ("b", "lucky", 1, 0.25, pytest.approx(0 - 1 / 2)),
        ("b", "good", 1, 0.8, pytest.approx(2 / 3 - 1 / 2)),
    ]
    assert [r["reward"] for r in rows] == pytest.approx([
        0.5 + 0.4 * 5 / 12, 0.25 / 12, 0.5 - 0.125 / 2, 0.5 + 0.4 / 6])
    assert e.executor.calls == [(["a", "a", "b", "b"], ["good", "bad", "lucky", "good"], 4, 9)]
    assert (e.calls, e.failures) == (4, 0)


MALFORMED = ["", "good", "<reasoning>good", "<reasoning></reasoning>", wrap_trace("good") + wrap_trace("bad")]


@pytest.mark.parametrize("arm", ARMS)
def test_a_completion_without_a_trace_earns_zero_and_runs_nothing(tmp_path, arm):
    """Zero in every arm, even where an empty trace could look better than a harmful one; it is no failure."""
    e = engine(tmp_path, arm, judge=lambda p, z: 1.0)
    mixed = [MALFORMED[0], wrap_trace("good"), *MALFORMED[1:]]
    rows = e.score(mixed, ["a"] * len(mixed), seed=0)
    assert [r["reward"] for i, r in enumerate(rows) if i != 1] == [0.0] * len(MALFORMED)
    assert all(r["trace"] is None and r["s"] == r["q"] == r["u"] == 0 for i, r in enumerate(rows) if i != 1)
    assert e.executor.calls[0][1] == ["good"] and e.failures == 0
    assert rows[1]["reward"] == pytest.approx(ARMS[arm](*(rows[1][name] for name in "squj"))) and rows[1]["s"] == 1


def test_a_batch_without_any_trace(tmp_path):
    assert [r["reward"] for r in engine(tmp_path).score(MALFORMED, ["b"] * 5, seed=0)] == [0.0] * 5


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_computes_only_what_it_needs(tmp_path, arm):
    """Runs, RM and judge cost time: an arm without uplift asks for one run, one without q for no score."""
    judged = []
    e = engine(
        tmp_path, arm, scorer=FakeScorer(QUALITY) if "q" in NEEDS[arm] else None,
        judge=(lambda p, z: judged.append(z) or 0.6) if "j" in NEEDS[arm] else None,
        baseline=BASELINE if "u" in NEEDS[arm] else {},
    )
    (row,) = e.score([wrap_trace("good")], ["a"], seed=0)
    assert e.executor.calls[0][2] == (4 if "u" in NEEDS[arm] else 1)
    assert (judged == ["good"]) == (arm == "llm_judge")
    s, q, u, j = 1.0, 0.8, 2 / 3 - 1 / 4, 0.6
    assert row["reward"] == pytest.approx(
        {"exec_only": s, "tracelift": 0.5 * s + 0.5 * q * u, "no_uplift": 0.5 * s + 0.5 * q, "rm_uplift_only": q * u,
         "llm_judge": 0.5 * s + 0.5 * j * u}[arm])


def test_a_quality_that_is_no_number_gives_no_reward_and_counts(tmp_path):
    """None leaves it out of the group; a zero would punish the trace for our failure."""
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    completions = [wrap_trace("good"), wrap_trace("bad"), wrap_trace("good"), wrap_trace("lucky")]
    rows = e.score(completions, ["a"] * 4, seed=0)
    assert rows[1]["reward"] is None and all(rows[i]["reward"] is not None for i in (0, 2, 3))
    assert (e.failures, e.calls) == (1, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_kind_of_broken_number_becomes_a_reward(tmp_path, value):
    e = engine(tmp_path, "no_uplift", quality={"good": value}, max_failure_rate=1.0)
    assert e.score([wrap_trace("good")], ["a"], seed=0)[0]["reward"] is None


def test_a_broken_quality_does_not_touch_an_arm_that_has_none(tmp_path):
    (scored,) = engine(tmp_path, "exec_only", quality={"good": math.nan}).score([wrap_trace("good")], ["a"], 0)
    assert scored["reward"] == 1


def test_too_many_failures_stop_the_run(tmp_path):
    """The share counts over the whole run: 1 of 4 is allowed at 0.25, 2 of 5 is not."""
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    e.score([wrap_trace(z) for z in ("good", "bad", "good", "good")], ["a"] * 4, seed=0)
    with pytest.raises(TooManyFailures, match="2 of 5"):
        e.score([wrap_trace("bad")], ["a"], seed=1)


def test_no_failure_is_allowed_at_rate_zero(tmp_path):
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan}, max_failure_rate=0.0)
    e.score([wrap_trace("good")], ["a"], seed=0)
    with pytest.raises(TooManyFailures):
        e.score([wrap_trace("good")] * 9 + [wrap_trace("bad")], ["a"] * 10, seed=0)


# --- as TRL calls it --------------------------------------------------------------------------


def call(e, completions, ids, step):
    state = SimpleNamespace(global_step=step)
    return asyncio.run(e.reward(completions=completions, problem_id=ids, trainer_state=state, prompts=["p"] * len(ids)))


def test_the_reward_function_returns_rewards_in_order_and_logs_every_part(tmp_path):
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    completions = [wrap_trace("good"), "no trace", wrap_trace("bad"), wrap_trace("good")]
    rewards = call(e, completions, ["a", "a", "b", "b"], step=7)
    assert rewards == [pytest.approx(0.5 + 0.4 * 5 / 12), 0.0, None, pytest.approx(0.5 + 0.4 / 6)]
    (file,) = (tmp_path / "rollouts").iterdir()
    rows = json.loads(file.read_text())
    assert [r["step"] for r in rows] == [7] * 4 and [r["problem_id"] for r in rows] == ["a", "a", "b", "b"]
    assert [r["reward"] for r in rows] == rewards and [r["trace"] for r in rows] == ["good", None, "bad", "good"]
    assert [r["completion_characters"] for r in rows] == [len(c) for c in completions]
    assert rows[0]["q"] == 0.8 and rows[0]["s"] == 1 and rows[0]["u"] == pytest.approx(5 / 12)


def test_each_step_and_each_seed_draws_other_executor_runs(tmp_path):
    """The same noise at every step would be learned; the same at a repeated step makes a resumed run the same."""
    seen = {}
    for seed in (0, 1, 2):
        for step in (0, 1, 2, 50):
            e = engine(tmp_path, seed=seed)
            call(e, [wrap_trace("good")], ["a"], step)
            seen[seed, step] = e.executor.calls[0][3]
    assert len(set(seen.values())) == len(seen)
    e = engine(tmp_path, seed=1)
    call(e, [wrap_trace("good")], ["a"], 2)
    assert e.executor.calls[0][3] == seen[1, 2]


def test_the_judge_of_the_tiny_world_is_its_truth():
    p = story(3, ("+", 2), ("*", 2))
    assert truth_judge(p, p.reference_solution) == 1.0
    assert truth_judge(p, "The result is 10.") == 0.0
    # Leap: shares 1/2, 1/2, 0, 1, 1/2; mean 0.5, minimum 0.
    assert truth_judge(p, lines("5 * 2 = 10")) == pytest.approx(0.25)


# --- the log ----------------------------------------------------------------------------------


def write_step(folder, step, rows):
    rows = [{"step": step, "completion_characters": 10, "s": 0.0, "q": 0.0, "u": 0.0, "j": 0.0} | row for row in rows]
    (folder / f"{step:06d}.json").write_text(json.dumps(rows))


def row(problem, trace, reward, **parts):
    return {"problem_id": problem, "trace": trace, "reward": reward, **parts}


def test_means_of_a_step(tmp_path):
    write_step(tmp_path, 0, [row("a", "t", 1.0, s=1.0), row("a", None, 0.0),
                             row("b", "u", 0.5, q=0.4), row("b", "v", 0.5, q=0.2)])
    write_step(tmp_path, 1, [row("a", "t", 0.2), row("a", "t", 0.2), row("b", "u", 0.1), row("b", "v", 0.1)])
    history = [
        {"completions/mean_length": 12.0, "entropy": 1.5, "grad_norm": 0.3, "step": 1}, {"loss": 3.0},
        {"completions/mean_length": 8.0, "entropy": 1.25, "grad_norm": 0.1, "step": 2}, {"train_runtime": 5},
    ]
    rollouts, steps = collect_log(tmp_path, history)
    assert len(rollouts) == 8
    assert steps["step"].tolist() == [0, 1]
    assert steps["reward"].tolist() == pytest.approx([0.5, 0.15])
    assert steps["s"].tolist() == pytest.approx([0.25, 0]) and steps["q"].tolist() == pytest.approx([0.15, 0])
    assert steps["format_errors"].tolist() == [0.25, 0]
    assert steps["zero_variance"].tolist() == [0.5, 1.0]
    assert steps["tokens"].tolist() == [12, 8] and steps["entropy"].tolist() == [1.5, 1.25]


def test_traces_stay_texts_in_the_log(tmp_path):
    """A planner may write nothing but a number or a date; as a number it would no longer be the trace it wrote."""
    write_step(tmp_path, 0, [row("1", "007", 0.0), row("1", None, 0.0)])
    write_step(tmp_path, 1, [row("2", "5 + 3", 0.0), row("2", "2024-01-01", 0.0)])
    rollouts, _ = collect_log(tmp_path, [])
    rollouts.to_parquet(tmp_path / "rollouts.parquet", index=False)
    read = pd.read_parquet(tmp_path / "rollouts.parquet")
    assert [z if isinstance(z, str) else None for z in read["trace"]] == ["007", None, "5 + 3", "2024-01-01"]
    assert read["problem_id"].tolist() == ["1", "1", "2", "2"]


def test_failed_rewards_survive_the_log(tmp_path):
    e = engine(tmp_path, quality=QUALITY | {"bad": math.nan})
    call(e, [wrap_trace("good"), wrap_trace("bad"), wrap_trace("good"), wrap_trace("good")], ["a"] * 4, step=0)
    rollouts, steps = collect_log(tmp_path / "rollouts", [])
    assert rollouts["reward"].isna().tolist() == [False, True, False, False]
    assert rollouts["q"].isna().tolist() == [False, True, False, False]
    assert steps["reward"].tolist() == pytest.approx([0.5 + 0.4 * 5 / 12])


# --- TRL settings and the merged policy -------------------------------------------------------


def test_a_step_sees_problems_times_generations(tmp_path):
    preset = load_preset("check", overrides={"planner_training.problems_per_step": 3, "planner_training.generations": 5,
                                             "planner_training.steps": 7, "planner_training.temperature": 0.9})
    config = grpo_config(preset.planner_training, 4, tmp_path)
    assert (config.num_generations, config.generation_batch_size, config.max_steps, config.seed) == (5, 15, 7, 4)
    assert config.temperature == 0.9 and config.learning_rate == preset.planner_training.learning_rate
    assert config.num_iterations == 1  # the log has one file a step, and the executor's seed is the step's


def test_a_trained_adapter_is_merged_into_the_start(tmp_path):
    """W + (alpha / r) B A in every linear layer, computed by hand; without an adapter the start as it is."""
    tokenizer = train_tokenizer(["some text"], 300)
    shape = Qwen2Shape(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                       num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.2)
    new_qwen2(tokenizer, shape, seed=0).save_pretrained(tmp_path / "start")
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

    merged = load_policy(tmp_path / "start", tmp_path / "adapter")
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
