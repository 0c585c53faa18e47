"""Planner training: GRPO with TRL on the executor-grounded reward (paper section 6; docs/method.md sections 2, 6)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from trl import GRPOConfig, GRPOTrainer

from tracelift_lib.models.loading import load_model
from tracelift_lib.models.supervised import train_resumably, trainer_arguments
from tracelift_lib.planner.collapse import CollapseWatch, explain_collapse
from tracelift_lib.planner.reward_engine import BASELINE, FORMAT_ERRORS, PARTS, STEPS, RewardEngine
from tracelift_lib.planner.settings import PlannerTraining
from tracelift_lib.planner.unsloth import load_with_unsloth
from tracelift_lib.problems.files import WORK, InputError
from tracelift_lib.problems.prompts import PromptLimits, PromptStyle, as_chat, planner_prompt

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
SAVED = {"lora": "adapter", "full": "model"}  # subfolder in which a training run leaves what it has trained


def train_planner(
    start: Path,
    tokenizer: PreTrainedTokenizerBase,
    engine: RewardEngine,
    settings: PlannerTraining,
    style: PromptStyle,
    limits: PromptLimits,
    seed: int,
    out: Path,
) -> None:
    """GRPO from the model folder `start` on the engine's problems; resumes from checkpoints in `out/work`.

    Writes the trained weights, `out/adapter` (PEFT) or `out/model` (all of them), `out/rollouts.parquet` (every
    completion with its reward parts) and `out/steps.csv` (one row per step, see `collect_log`).

    Raises:
        TrainingCollapsed: see collapse.py. The log is written, the last checkpoint is kept.
        InputError: fewer problems than one step takes.
    """
    set_seed(seed)  # TRL draws an adapter's first weights before it sets the seed itself
    problems = list(engine.problems.values())
    prompts = [as_chat(planner_prompt(p, style, limits), tokenizer) for p in problems]
    order = problem_order(len(problems), settings.problems_per_step, settings.steps, seed)
    data = Dataset.from_list([{"prompt": prompts[i], "problem_id": problems[i].problem_id} for i in order])
    adapted = load_with_unsloth(start, settings, seed, data["prompt"], tokenizer)
    trainer = trl.GRPOTrainer(
        args=grpo_config(settings, seed, out / WORK / "trainer"),  # before the model: ZeRO-3 then spreads it
        model=adapted or trainable_model(start, settings),
        processing_class=tokenizer,
        reward_funcs=[engine.reward],
        train_dataset=data,
        peft_config=None if adapted else lora_config(settings),
        callbacks=[StepTimer(engine), CollapseWatch(settings.collapse)],
    )
    engine.log_folder.mkdir(parents=True, exist_ok=True)
    try:
        train_resumably(trainer)
    except RuntimeError as error:
        if collapse := explain_collapse(error, trainer, log=out):
            write_log(trainer, out)
            raise collapse from error
        raise
    save_trained(trainer, out / SAVED[settings.parameters])
    write_log(trainer, out)


def problem_order(n: int, per_step: int, steps: int, seed: int) -> list[int]:
    """Indices of the problems of all steps, shuffled anew each time all have been seen: TRL's order for this seed.

    TRL itself, resumed after its first pass through the problems, begins again with the order of the first.
    """
    if n < per_step:
        raise InputError(f"{n} problems are too few for planner_training.problems_per_step = {per_step}")
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    while len(order) < steps * per_step:
        order += torch.randperm(n, generator=generator).tolist()[: n // per_step * per_step]
    return order[: steps * per_step]


def trainable_model(start: Path, settings: PlannerTraining) -> PreTrainedModel:
    """The planner that training starts from; all weights in float32 if all of them are trained.

    In bfloat16 an update at a learning rate such as 5e-6 is smaller than the distance to the next number, and is lost.
    """
    model = load_model(start)
    whole = settings.parameters == "full" and not is_deepspeed_zero3_enabled()  # DeepSpeed has its own float32 copy
    return model.float() if whole else model


def lora_config(settings: PlannerTraining) -> LoraConfig | None:
    """An adapter on every linear layer; None if all weights are trained."""
    if settings.parameters == "full":
        return None
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def grpo_config(settings: PlannerTraining, seed: int, work: Path) -> GRPOConfig:
    """TRL's settings of one run: a step sees `problems_per_step` groups of G completions each."""
    return trl.GRPOConfig(
        output_dir=str(work),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.problems_per_step * settings.generations // settings.processes,
        gradient_accumulation_steps=1,
        num_generations=settings.generations,
        shuffle_dataset=False,  # `problem_order` has done it
        max_completion_length=settings.max_completion,
        lr_scheduler_type=SCHEDULES[settings.schedule],
        warmup_steps=min(settings.warmup_steps, settings.steps),
        scale_rewards="group",
        max_grad_norm=1.0,
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a NaN or infinite loss is logged as the mean of those before
        seed=seed,
        report_to=[],
        **settings.model_dump(include={"temperature", "top_p", "learning_rate", "weight_decay", "loss_type", "beta"}),
        **trainer_arguments(settings.precision),
    )


class StepTimer(TrainerCallback):
    """Adds to the log of a step the seconds before its rewards (generation) and after them (update)."""

    def __init__(self, engine: RewardEngine):
        self.engine, self.began, self.ended = engine, 0.0, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the GPU may still be at work on the update
        self.ended = time.monotonic()

    def on_log(self, args, state, control, **kwargs):
        row = state.log_history[-1]
        if "loss" in row:
            row["generation_seconds"] = self.engine.began - self.began
            row["update_seconds"] = self.ended - self.engine.ended


def save_trained(trainer: GRPOTrainer, folder: Path) -> None:
    """The trained weights with the tokenizer; gathered first where they are spread over processes."""
    trainer.save_model(str(folder))
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle; the settings are in the stage's manifest


def load_policy(start: Path, trained: Path | None) -> PreTrainedModel:
    """The planner in `start`, or what training has made of it in the folder `trained` (an adapter is merged in)."""
    if trained is None:
        return load_model(start)
    if (trained / SAVED["full"]).exists():
        return load_model(trained / SAVED["full"])
    return PeftModel.from_pretrained(load_model(start), trained / SAVED["lora"]).merge_and_unload().eval()


# --- the log ----------------------------------------------------------------------------------------------------------


def write_log(trainer: GRPOTrainer, out: Path) -> None:
    """`out/rollouts.parquet` and `out/steps.csv`, from the first process, if any step has been logged."""
    trainer.accelerator.wait_for_everyone()
    folder = out / WORK / "rollouts"
    if trainer.accelerator.is_main_process and any(folder.glob("*.json")):
        rollouts, steps = collect_log(folder, trainer.state.log_history)
        rollouts.to_parquet(out / "rollouts.parquet", index=False)
        steps.to_csv(out / "steps.csv", index=False)


def _failures_of_all(processes: Iterable[dict[str, int]]) -> str:
    total: Counter[str] = Counter()
    for failures in processes:
        total.update(failures)
    return json.dumps(total)


# How a step's stats (RewardEngine.score) of several processes become one row: they run at the same time, and each has
# the same number of completions.
STATS_OF_PROCESSES = {
    "baseline": "first",
    "executor_seconds": "max",
    "failures": _failures_of_all,
    "repeated_traces": "mean",
    "rm_seconds": "max",
    "seconds": "max",
    "verifier_seconds": "sum",
}
# Columns from TRL's log: under names of ours, and as they are there (no kl if beta is 0).
TRL_NAMES = {
    "completions/mean_length": "tokens",
    "completions/clipped_ratio": "truncated",
    "num_tokens": "tokens_so_far",
}
TRL_STATS = ["loss", "entropy", "kl", "grad_norm", "learning_rate", "generation_seconds", "update_seconds"]


def collect_log(folder: Path, history: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rollouts, steps): every logged completion with its reward parts, of all processes; one row per step.

    Columns of `steps`: means of reward, its parts and `baseline_success`; `format_errors`, share of completions
    without a trace; `zero_variance`, share of groups whose rewards are all equal; timings and failure counts of the
    rewards (reward_engine.RewardEngine.score; `seconds` is the whole reward phase); what TRL logs.
    `generation_seconds` is all before the rewards, with the reference policy's log-probabilities if beta > 0,
    `update_seconds` all after them: loss, gradient, optimizer.
    """
    processes = [folder, *sorted(folder.glob(rank_folder("*")))]
    rollouts = pd.DataFrame([row for process in processes for rows in _records(process) for row in rows])
    rollouts = rollouts.sort_values("step", kind="stable", ignore_index=True)
    rollouts["reward"] = rollouts["reward"].astype(float)  # None, a failed reward, is NaN here
    steps = rollouts.groupby("step")[["reward", *PARTS, BASELINE]].mean()
    steps[FORMAT_ERRORS] = rollouts["trace"].isna().groupby(rollouts["step"]).mean()
    spread = rollouts.groupby(["step", "problem_id"])["reward"].std()
    steps["zero_variance"] = (spread < 1e-9).groupby("step").mean()
    stats = pd.DataFrame([record for process in processes for record in _records(process / STEPS)])
    steps = steps.join(stats.groupby("step").agg(STATS_OF_PROCESSES))
    updates = pd.DataFrame([row for row in history if "loss" in row])
    if len(updates):
        updates = updates.set_index(updates["step"] - 1).rename(columns=TRL_NAMES)  # TRL counts a step when it is done
        steps = steps.join(updates.filter([*TRL_NAMES.values(), *TRL_STATS]))
    return rollouts, steps.reset_index()


def rank_folder(rank: int | str) -> str:
    """Name of the folder, within the log, of a process other than the first."""
    return f"rank-{rank}"


def _records(folder: Path) -> Iterator:
    """What a process has logged, step by step."""
    return (json.loads(path.read_text()) for path in sorted(folder.glob("*.json")))
