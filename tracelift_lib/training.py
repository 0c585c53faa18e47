"""Planner training: GRPO with TRL on the executor-grounded reward (paper section 6, method.md sections 2 and 6)."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINING_ARGS_NAME
from trl import GRPOConfig, GRPOTrainer

from tracelift_lib import store
from tracelift_lib.models import checkpoint_arguments, device_arguments, load_model, train_resumably
from tracelift_lib.presets import PlannerTraining, PromptLimits, PromptStyle
from tracelift_lib.problems import Problem
from tracelift_lib.prompts import as_chat, planner_prompt
from tracelift_lib.reward_engine import PARTS, STEPS, RewardEngine

SAVED = {"lora": "adapter", "full": "model"}  # where in its folder a training run leaves what has learned


def train_planner(
    start: Path,
    tokenizer: PreTrainedTokenizerBase,
    problems: list[Problem],
    engine: RewardEngine,
    settings: PlannerTraining,
    style: PromptStyle,
    limits: PromptLimits,
    seed: int,
    out: Path,
) -> None:
    """GRPO from the model folder `start`; resumes from checkpoints in `out/work`.

    Writes what has learned, `out/adapter` (PEFT) or `out/model` (whole), `out/rollouts.parquet` (every completion
    with its reward parts) and `out/steps.csv` (means a step).
    """
    work = out / store.WORK / "trainer"
    config = grpo_config(settings, seed, work)
    trainer = GRPOTrainer(
        model=trainable_model(start, settings),
        processing_class=tokenizer,
        reward_funcs=[engine.reward],
        train_dataset=Dataset.from_list(
            [
                {"prompt": as_chat(planner_prompt(p, style, limits), tokenizer), "problem_id": p.problem_id}
                for p in problems
            ]
        ),
        args=config,
        peft_config=lora_config(settings),
    )
    engine.log_folder.mkdir(parents=True, exist_ok=True)
    history = train_resumably(trainer)
    save_trained(trainer, out / SAVED[settings.parameters])
    rollouts, steps = collect_log(engine.log_folder, history)
    rollouts.to_parquet(out / "rollouts.parquet", index=False)
    steps.to_csv(out / "steps.csv", index=False)


def trainable_model(start: Path, settings: PlannerTraining) -> PreTrainedModel:
    """The planner that training starts from; all weights in float32 if all of them learn.

    In bfloat16 a step at a learning rate such as 5e-6 is smaller than the distance to the next number, and is lost.
    """
    model = load_model(start)
    return model.float() if settings.parameters == "full" else model


def lora_config(settings: PlannerTraining) -> LoraConfig | None:
    """An adapter on every linear layer; None if the whole model learns."""
    if settings.parameters == "full":
        return None
    return LoraConfig(
        r=settings.lora_r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
        target_modules="all-linear", task_type="CAUSAL_LM",
    )


def save_trained(trainer: GRPOTrainer, folder: Path) -> None:
    """What has learned, with its tokenizer; gathered first where the weights are spread over processes."""
    trainer.save_model(str(folder))
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle; the settings are in the stage's manifest


def grpo_config(settings: PlannerTraining, seed: int, work: Path) -> GRPOConfig:
    """TRL settings of one run: a step sees `problems_per_step` problems with G completions each."""
    completions = settings.problems_per_step * settings.generations
    return GRPOConfig(
        output_dir=str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=completions,
        gradient_accumulation_steps=1,
        num_generations=settings.generations,
        max_completion_length=settings.max_completion,
        temperature=settings.temperature,
        top_p=settings.top_p,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=min(5, settings.steps),
        loss_type=settings.loss_type,
        scale_rewards="group",
        beta=settings.beta,
        max_grad_norm=1.0,
        logging_steps=1,
        seed=seed,
        report_to=[],
        **checkpoint_arguments(),
        **device_arguments(),
    )


def collect_log(folder: Path, history: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rollouts, steps): every logged completion; per step mean reward parts, what they took, and TRL's own figures."""
    rollouts = pd.DataFrame([row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())])
    rollouts["reward"] = rollouts["reward"].astype(float)  # None, a failed reward, is NaN here
    steps = rollouts.groupby("step")[["reward", *PARTS]].mean().reset_index()
    steps["format_errors"] = rollouts["trace"].isna().groupby(rollouts["step"]).mean().to_numpy()
    spread = rollouts.groupby(["step", "problem_id"])["reward"].std()
    steps["zero_variance"] = (spread < 1e-9).groupby("step").mean().to_numpy()
    figures = pd.DataFrame([json.loads(path.read_text()) for path in sorted((folder / STEPS).glob("*.json"))])
    if len(figures):
        figures["failures"] = [json.dumps(kinds) for kinds in figures["failures"]]
        steps = steps.merge(figures, on="step", how="left")
    own = pd.DataFrame([row for row in history if "completions/mean_length" in row])
    columns = {"completions/mean_length": "tokens", "entropy": "entropy", "grad_norm": "grad_norm"}
    for theirs, ours in columns.items():
        if theirs in own:
            steps[ours] = own[theirs].to_numpy()
    return rollouts, steps


def load_policy(start: Path, trained: Path | None) -> PreTrainedModel:
    """The planner in `start`, or what training has made of it in the folder `trained` (an adapter is merged in)."""
    if trained is None:
        return load_model(start)
    if (trained / SAVED["full"]).exists():
        return load_model(trained / SAVED["full"])
    return PeftModel.from_pretrained(load_model(start), trained / SAVED["lora"]).merge_and_unload().eval()
