"""Planner training: GRPO with TRL on the executor-grounded reward (paper section 6, method.md sections 2 and 6)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from tracelift_lib import store
from tracelift_lib.executor import Executor
from tracelift_lib.groups import true_rubric
from tracelift_lib.models import checkpoint_arguments, device_arguments, load_model, train_resumably
from tracelift_lib.presets import PlannerTraining, PromptLimits, PromptStyle
from tracelift_lib.problems import Problem
from tracelift_lib.prompts import as_chat, extract_trace, planner_prompt
from tracelift_lib.reward_model import Scorer
from tracelift_lib.rewards import ARMS, NEEDS, uplift


class TooManyFailures(RuntimeError):
    """More reward computations failed than the preset allows; training on the rest would be biased."""


@dataclass
class RewardEngine:
    """Rewards of sampled completions, every part of them kept.

    A completion without a well-formed trace gets reward 0 in every arm: it cannot have helped. A part that
    fails (an RM score that is not a number) makes the reward None, which TRL leaves out of the group; it is
    counted and stops the run above `max_failure_rate`. A failure is never a reward.

    Attributes:
        baseline: problem id -> no-trace verdicts, drawn once from the frozen executor.
        judge: rubric total of an LLM judge, for the arm `llm_judge`.
    """

    arm: str
    k: int
    executor: Executor
    scorer: Scorer | None
    problems: dict[str, Problem]
    baseline: dict[str, list[int]]
    seed: int
    max_failure_rate: float
    log_folder: Path
    failures: int = 0
    calls: int = 0
    judge: Any = None

    async def reward(self, completions: list[str], problem_id: list[str], trainer_state: Any, **_: Any) -> list:
        """TRL's reward function: one reward (or None) a completion; logs the step's rows."""
        step = trainer_state.global_step
        rows = self.score(completions, problem_id, seed=self.seed * 1_000_003 + step)
        store.write_json(self.log_folder / f"{step:06d}.json", [{"step": step, **row} for row in rows])
        return [row["reward"] for row in rows]

    def score(self, completions: Sequence[str], problem_ids: Sequence[str], seed: int) -> list[dict]:
        """One row a completion: trace, s, successes with and without, û, q, j, reward."""
        problems = [self.problems[i] for i in problem_ids]
        traces = [extract_trace(text) for text in completions]
        valid = [i for i, trace in enumerate(traces) if trace]
        rows = [
            {"problem_id": p.problem_id, "trace": z, "completion_characters": len(y), "reward": 0.0,
             "s": 0.0, "q": 0.0, "u": 0.0, "j": 0.0}
            for p, z, y in zip(problems, traces, completions)
        ]
        parts = self._parts([problems[i] for i in valid], [traces[i] for i in valid], seed)
        for i, part in zip(valid, parts):
            rows[i].update(part, reward=self._combine(part))
        self._check_failures(rows)
        return rows

    def _parts(self, problems: list[Problem], traces: list[str], seed: int) -> list[dict]:
        """s, and whatever else the arm needs, of well-formed traces. The first executor run of each is s."""
        needs = NEEDS[self.arm]
        runs = self.executor.verdicts(problems, traces, 1 + (self.k if "u" in needs else 0), seed)
        q = self.scorer.score(problems, traces)[0] if "q" in needs else [0.0] * len(traces)
        return [
            {
                "s": float(verdicts[0]),
                "q": float(quality),
                "u": uplift(verdicts[1:].tolist(), self.baseline[p.problem_id]) if "u" in needs else 0.0,
                "j": self.judge(p, z) if "j" in needs else 0.0,
            }
            for p, z, verdicts, quality in zip(problems, traces, runs, q)
        ]

    def _combine(self, part: dict) -> float | None:
        values = [part[name] for name in "squj"]
        return ARMS[self.arm](*values) if all(math.isfinite(v) for v in values) else None

    def _check_failures(self, rows: list[dict]) -> None:
        self.calls += len(rows)
        self.failures += sum(row["reward"] is None for row in rows)
        if self.failures > self.max_failure_rate * self.calls:
            raise TooManyFailures(
                f"{self.failures} of {self.calls} rewards failed, more than the allowed share "
                f"{self.max_failure_rate} (execution.max_failure_rate); see {self.log_folder}"
            )


def truth_judge(problem: Problem, trace: str) -> float:
    """The ground truth's rubric total, standing in for an LLM judge in the tiny world."""
    return true_rubric(problem, trace).total


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
    """GRPO from the model folder `start` with a LoRA adapter; resumes from checkpoints in `out/work`.

    Writes `out/adapter` (PEFT), `out/rollouts.parquet` (every completion with its reward parts) and
    `out/steps.csv` (means a step).
    """
    work = out / store.WORK / "trainer"
    model = load_model(start)
    config = grpo_config(settings, seed, work)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[engine.reward],
        train_dataset=Dataset.from_list(
            [
                {"prompt": as_chat(planner_prompt(p.problem, style, limits), tokenizer), "problem_id": p.problem_id}
                for p in problems
            ]
        ),
        args=config,
        peft_config=LoraConfig(
            r=settings.lora_r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
            target_modules="all-linear", task_type="CAUSAL_LM",
        ),
    )
    engine.log_folder.mkdir(parents=True, exist_ok=True)
    history = train_resumably(trainer)
    trainer.model.save_pretrained(out / "adapter")
    rollouts, steps = collect_log(engine.log_folder, history)
    rollouts.to_parquet(out / "rollouts.parquet", index=False)
    steps.to_csv(out / "steps.csv", index=False)


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
    """(rollouts, steps): every logged completion, and per step the mean reward parts beside TRL's own figures."""
    rollouts = pd.DataFrame([row for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())])
    steps = rollouts.groupby("step")[["reward", "s", "q", "u", "j"]].mean().reset_index()
    steps["format_errors"] = rollouts["trace"].isna().groupby(rollouts["step"]).mean().to_numpy()
    spread = rollouts.groupby(["step", "problem_id"])["reward"].std()
    steps["zero_variance"] = (spread < 1e-9).groupby("step").mean().to_numpy()
    own = pd.DataFrame([row for row in history if "completions/mean_length" in row])
    columns = {"completions/mean_length": "tokens", "entropy": "entropy", "grad_norm": "grad_norm"}
    for theirs, ours in columns.items():
        if theirs in own:
            steps[ours] = own[theirs].to_numpy()
    return rollouts, steps


def load_policy(start: Path, adapter: Path | None) -> PreTrainedModel:
    """The planner in `start`, with a trained adapter merged in if one is given."""
    model = load_model(start)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval() if adapter else model
