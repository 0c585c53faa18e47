"""The stage `planner_training` with real models of a few thousand weights: arms, log, collapse, SIGKILL."""

import os
import shutil
import signal

import forks
import numpy as np
import pandas as pd
import pytest
import torch
from common import UPSTREAM
from safetensors.torch import load_file

from tracelift_lib.models import supervised
from tracelift_lib.models.loading import load_model
from tracelift_lib.models.supervised import CheckpointCallback
from tracelift_lib.planner import training as planner_training
from tracelift_lib.planner.collapse import TrainingCollapsed
from tracelift_lib.planner.reward_engine import PARTS, RewardEngine
from tracelift_lib.planner.rewards import ARMS, NEEDS, compares
from tracelift_lib.problems.files import WORK
from tracelift_lib.runs import store
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.presets import load_preset


@pytest.fixture
def home(trained_home, monkeypatch, tmp_path):
    """All that planner training needs."""
    return move_to(trained_home, tmp_path / "copy", monkeypatch)


def move_to(source, folder, monkeypatch):
    shutil.copytree(source, folder)
    monkeypatch.setenv("TRACELIFT_HOME", str(folder))
    return folder


def settings(**training):
    return UPSTREAM | {f"planner_training.{name}": value for name, value in training.items()}


def train(arm, seed=0, **training):
    return Run("check", overrides=settings(**training)).make("planner_training", arm=arm, seed=seed).path


def count_steps(monkeypatch):
    """The steps whose rewards are asked for from now on."""
    asked, reward = [], RewardEngine.reward

    async def counted(self, *args, trainer_state, **kwargs):
        asked.append(trainer_state.global_step)
        return await reward(self, *args, trainer_state=trainer_state, **kwargs)

    monkeypatch.setattr(RewardEngine, "reward", counted)
    return asked


# --- arms and log -----------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains(home, arm):
    k = 4 if arm == "released_code" else 3  # it compares K runs with as many without a trace
    arms = list(dict.fromkeys(["exec_only", "tracelift", arm]))  # the lessons need the first two
    changes = {**settings(steps=2, arms=arms), "execution.k": k}
    run = Run("check", overrides=changes)
    run.make("baseline")
    folder = run.make("planner_training", arm=arm, seed=1).path
    rows = pd.read_parquet(folder / "rollouts.parquet")
    t = run.preset.planner_training
    assert len(rows) == 2 * t.problems_per_step * t.generations and rows["failure"].isna().all()
    written = rows[rows["trace"].notna()]
    assert 0 < len(written) < len(rows)
    assert written["malformed"].isna().all() and rows[rows["trace"].isna()]["malformed"].notna().all()
    np.testing.assert_allclose(written["reward"], [ARMS[arm](*parts) for parts in written[list(PARTS)].to_numpy()])
    assert (written[[p for p in PARTS if p not in NEEDS[arm] | {"u"}]] == 0).all(axis=None)
    assert ("q" not in NEEDS[arm]) or written["q"].between(0, 1, inclusive="neither").all()
    assert rows["baseline_success"].notna().all() if compares(arm) else rows["baseline_success"].isna().all()
    assert (rows["tokens"] <= t.max_completion).all() and (rows["tokens"] > 0).all()


def test_the_log_of_a_step_is_complete(home):
    """Means against the table of completions; the seconds of the phases against the reward phase as a whole."""
    schedule = {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 1}
    folder = train("tracelift", steps=3, beta=0.05, weight_decay=0.1, **schedule)
    steps, rows = pd.read_csv(folder / "steps.csv"), pd.read_parquet(folder / "rollouts.parquet")
    assert steps["step"].tolist() == [0, 1, 2] and not steps.drop(columns=["c", "j"]).isna().any(axis=None)
    by_step = rows.groupby("step")
    for column in ("reward", "s", "q", "u", "baseline_success", "tokens"):
        np.testing.assert_allclose(steps[column], by_step[column].mean(), rtol=1e-6)
    np.testing.assert_allclose(steps["format_errors"], by_step["trace"].apply(lambda z: z.isna().mean()))
    assert (steps["entropy"] > 0).all() and (steps["grad_norm"] >= 0).all()
    assert abs(steps["kl"][0]) < 1e-6  # the first step samples from the reference itself
    np.testing.assert_allclose(steps["learning_rate"], [0, 1e-3, 5e-4])  # warm-up of one step, then falling to zero
    assert (steps["tokens_so_far"].diff().dropna() > 8 * steps["tokens"][1:]).all()  # prompts count too
    assert (steps[["generation_seconds", "update_seconds", "executor_seconds", "rm_seconds"]] > 0).all(axis=None)
    assert (steps["executor_seconds"] <= steps["seconds"]).all() and (steps["rm_seconds"] <= steps["seconds"]).all()


def test_full_parameter_training_changes_the_whole_model_and_is_loaded(home):
    run = Run("check", overrides=settings(parameters="full", steps=6))
    folder = run.make("planner_training", arm="no_uplift", seed=0).path
    assert (folder / "model").is_dir() and not (folder / "adapter").exists()
    start = load_model(run.need("planner").path).state_dict()
    trained = run.planner({"arm": "no_uplift", "seed": 0}).model.state_dict()
    assert all(not torch.equal(trained[name], start[name]) for name in start)
    saved = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(trained[name], tensor) for name, tensor in saved.items())


# --- the paper's settings ---------------------------------------------------------------------


def test_preset_paper_has_the_papers_hyperparameters():
    """Paper, section 6, math; the rest of the preset's training settings is named in its comments as ours."""
    paper = load_preset("paper")
    t, e = paper.planner_training, paper.execution
    assert (t.learning_rate, t.steps, t.generations) == (5e-6, 600, 4)
    assert (t.temperature, t.top_p, t.max_completion) == (0.7, 1.0, 512)
    assert (t.parameters, t.lora_r, t.lora_alpha, t.lora_dropout) == ("lora", 16, 32, 0.05)
    assert len(t.seeds) == 3 and t.loss_type == "grpo"
    assert (e.k, e.baseline_samples, e.temperature, e.max_new_tokens) == (3, 3, 0.5, 256)
    released = load_preset("paper_released").execution  # its way to run the executor; preset paper has a cheaper one
    assert (released.s_run, released.baseline) == ("separate", "fresh")
    assert (paper.limits.problem, paper.limits.trace) == (2500, 2000)
    assert paper.planner.model_id == paper.executor.model_id == "Qwen/Qwen2.5-7B-Instruct"


# --- collapse ---------------------------------------------------------------------------------


def test_a_policy_that_collapses_stops_the_run_and_nothing_is_lost(home, monkeypatch):
    """A learning rate of 30 ruins the policy in its first step; two windows of 3 steps show it."""
    monkeypatch.setattr(supervised, "SAVE_SECONDS", 0)
    monkeypatch.setattr(supervised, "SAVE_SHARE", 1.0)
    collapsing = {"steps": 9, "warmup_steps": 0, "learning_rate": 30.0}
    with pytest.raises(TrainingCollapsed) as caught:
        train("no_uplift", **collapsing, collapse={"window": 3})
    message = str(caught.value)
    folder = next((home / "runs" / "check" / "planner_training").glob("*/steps.csv")).parent
    steps, rows = pd.read_csv(folder / "steps.csv"), pd.read_parquet(folder / "rollouts.parquet")
    assert len(steps) == 6 and len(rows) == 8 * 6 and steps["format_errors"].tail(3).tolist() == [1, 1, 1]
    assert "at step 6 of 9: 100% of the completions contain no trace over the last 3 steps" in message
    assert f"mean reward is 0 (at the start {steps['reward'].head(3).mean():.3g})" in message
    assert "learning_rate (now 30)" in message and "beta above 0 (now 0)" in message
    assert f"{folder}/steps.csv" in message and "checkpoint-5;" not in message and "checkpoint-5." in message
    assert not (folder / store.MANIFEST).exists()

    asked = count_steps(monkeypatch)
    assert train("no_uplift", **collapsing, collapse=None) == folder
    assert asked == [5, 6, 7, 8]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "rollouts.parquet")[: len(rows)], rows)


def test_a_policy_without_probabilities_stops_the_run(home):
    """Weights that overflow: torch cannot sample from what they give."""
    with pytest.raises(TrainingCollapsed, match="at step 1 of 4: the policy's probabilities are NaN or infinite"):
        train("no_uplift", steps=4, warmup_steps=0, learning_rate=1e30, parameters="full", collapse=None)


def test_a_policy_that_learns_is_left_alone(home):
    training = {
        "problems_per_step": 4,
        "steps": 24,
        "warmup_steps": 0,
        "learning_rate": 4e-3,
        "collapse": {"window": 6},
    }
    steps = pd.read_csv(train("no_uplift", **training) / "steps.csv")
    assert len(steps) == 24 and steps["reward"].tail(6).mean() > 1.2 * steps["reward"].head(6).mean()


# --- SIGKILL ----------------------------------------------------------------------------------


def train_until_killed(arm, overrides, every, last):
    """In a process of its own: trains, saves every `every` steps, and is killed while it is in step `last`."""
    reward = RewardEngine.reward

    async def deadly(self, *args, trainer_state, **kwargs):
        result = await reward(self, *args, trainer_state=trainer_state, **kwargs)
        if trainer_state.global_step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def save_sometimes(self, args, state, control, **kwargs):
        control.should_save = state.global_step % every == 0

    if last == overrides["planner_training.steps"]:  # all steps are done
        planner_training.save_trained = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    RewardEngine.reward, CheckpointCallback.on_step_end = deadly, save_sometimes
    Run("check", overrides=overrides).make("planner_training", arm=arm, seed=0)


def results(folder):
    steps = pd.read_csv(folder / "steps.csv")
    weights = load_file(next(p for p in folder.rglob("*.safetensors")))
    return steps[[c for c in steps if "seconds" not in c]], pd.read_parquet(folder / "rollouts.parquet"), weights


@pytest.mark.parametrize(
    "arm, training, every, last",
    [
        ("no_uplift", {"lora_dropout": 0.1}, 2, 3),  # steps 2 and 3 are lost and come again
        ("no_uplift", {"parameters": "full", "beta": 0.05}, 3, 5),  # the checkpoint lies in the second pass
        ("no_uplift", {}, 2, 6),  # nothing is left to do but to save
        ("tracelift", {}, 99, 1),  # no checkpoint yet
    ],
)
def test_killed_and_run_again_equals_a_run_in_one_piece(
    trained_home, monkeypatch, tmp_path, arm, training, every, last
):
    """6 steps of 2 out of 4 problems are three passes, each in its own order."""
    training = training | {"steps": 6}
    move_to(trained_home, tmp_path / "whole", monkeypatch)
    whole = results(train(arm, **training))

    home = move_to(trained_home, tmp_path / "parts", monkeypatch)
    process = forks.start(train_until_killed, arm, settings(**training), every, last, log=tmp_path / "log")
    process.join()
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]
    kept = [p.name for p in home.glob(f"runs/check/planner_training/*/{WORK}/trainer/checkpoint-*")]
    assert kept == ([f"checkpoint-{last // every * every}"] if last >= every else [])
    again = count_steps(monkeypatch)
    steps, rollouts, weights = results(train(arm, **training))
    assert again == list(range(last // every * every, 6))
    pd.testing.assert_frame_equal(steps, whole[0], check_exact=True)
    pd.testing.assert_frame_equal(rollouts, whole[1], check_exact=True)
    assert weights.keys() == whole[2].keys() and all(torch.equal(weights[n], whole[2][n]) for n in weights)
    passes = [rollouts[rollouts["step"].between(2 * i, 2 * i + 1)]["problem_id"].unique().tolist() for i in range(3)]
    assert all(sorted(order) == sorted(passes[0]) for order in passes) and passes[0] != passes[1] != passes[2]
