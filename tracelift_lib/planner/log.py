"""What a training run leaves as tables: every completion with its reward parts, and one row for each step.

While it trains, each process logs its steps (reward_engine.py) and the trainer its own history; here they are joined.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import pandas as pd
import torch
from transformers import Trainer, TrainerCallback

from tracelift_lib.planner.reward_engine import BASELINE, FORMAT_ERRORS, PARTS, STEPS, RewardEngine
from tracelift_lib.problems.files import WORK

OTHER_PROCESS = "rank-{}"  # folder, within the log, of a process other than the first
# How a step's stats (RewardEngine.score) of several processes become one row: they run at the same time, and each has
# the same number of completions.
STATS_OF_PROCESSES = {"baseline": "first", "repeated_traces": "mean", "verifier_seconds": "sum"} | dict.fromkeys(
    ("seconds", "executor_seconds", "rm_seconds"), "max"
)
# Columns from TRL's log: under names of ours, and as they are there (no kl if beta is 0).
TRL_NAMES = {
    "completions/mean_length": "tokens",
    "completions/clipped_ratio": "truncated",
    "num_tokens": "tokens_so_far",
}
TRL_STATS = ["loss", "entropy", "kl", "grad_norm", "learning_rate", "generation_seconds", "update_seconds"]


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


def write_log(trainer: Trainer, out: Path) -> None:
    """`out/rollouts.parquet` and `out/steps.csv`, from the first process, if any step has been logged."""
    trainer.accelerator.wait_for_everyone()
    folder = out / WORK / "rollouts"
    if trainer.accelerator.is_main_process and any(folder.glob("*.json")):
        rollouts, steps = collect_log(folder, trainer.state.log_history)
        rollouts.to_parquet(out / "rollouts.parquet", index=False)
        steps.to_csv(out / "steps.csv", index=False)


def collect_log(folder: Path, history: list[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rollouts, steps): every logged completion with its reward parts, of all processes; one row per step.

    Columns of `steps`: means of reward, its parts and `baseline_success`; `format_errors`, share of completions
    without a trace; `zero_variance`, share of groups whose rewards are all equal; failures by kind; timings of the
    rewards (reward_engine.RewardEngine.score; `seconds` is the whole reward phase); what TRL logs.
    `generation_seconds` is all before the rewards, with the reference policy's log-probabilities if beta > 0,
    `update_seconds` all after them: loss, gradient, optimizer.
    """
    rollouts = pd.DataFrame(chain.from_iterable(_of_all_processes(folder, "*.json")))
    rollouts = rollouts.sort_values("step", kind="stable", ignore_index=True)
    rollouts["reward"] = rollouts["reward"].astype(float)  # None, a failed reward, is NaN here
    by_step = rollouts.assign(**{FORMAT_ERRORS: rollouts["trace"].isna()}).groupby("step")
    parts = [part for part in PARTS if part in rollouts]  # an older log has fewer
    steps = by_step[["reward", *parts, BASELINE, FORMAT_ERRORS]].mean()
    spread = rollouts.groupby(["step", "problem_id"])["reward"].std()
    steps["zero_variance"] = (spread < 1e-9).groupby("step").mean()
    stats = pd.DataFrame(_of_all_processes(folder, f"{STEPS}/*.json")).groupby("step").agg(STATS_OF_PROCESSES)
    stats["failures"] = by_step["failure"].agg(lambda kinds: json.dumps(Counter(kinds.dropna())))
    steps = steps.join(stats.sort_index(axis=1))
    updates = pd.DataFrame([row for row in history if "loss" in row])
    if len(updates):
        updates = updates.set_index(updates["step"] - 1).rename(columns=TRL_NAMES)  # TRL counts a step when it is done
        steps = steps.join(updates.filter([*TRL_NAMES.values(), *TRL_STATS]))
    return rollouts, steps.reset_index()


def _of_all_processes(folder: Path, pattern: str) -> list:
    """What is in these JSON files of the first process, then in those of the others, step by step."""
    paths = [*sorted(folder.glob(pattern)), *sorted(folder.glob(f"{OTHER_PROCESS.format('*')}/{pattern}"))]
    return [json.loads(path.read_text()) for path in paths]
