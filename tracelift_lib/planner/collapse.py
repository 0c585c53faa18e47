"""When to stop a run of reinforcement learning that has gone wrong, and what to tell whoever started it. Source: ours.

A policy that gets worse for a few steps may recover; one of these is a collapse:

- the loss, the gradient or the policy's probabilities are NaN or infinite: stop at once;
- over a whole window of steps nearly no completion contains a trace, or the policy's entropy is nearly zero, *and* the
  reward is lower than in the first window. A good planner ends with little entropy too, but with more reward; and one
  that has never written a trace has not collapsed.
"""

from __future__ import annotations

import math
from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tracelift_lib.planner.reward_engine import FORMAT_ERRORS
from tracelift_lib.planner.settings import Collapse

NO_PROBABILITIES = ("probability tensor contains", "device-side assert")  # torch, when it samples from NaN: CPU, CUDA


class TrainingCollapsed(RuntimeError):
    """The policy is beyond repair; the message says at which step, by which measure, and what to try."""


class CollapseWatch(TrainerCallback):
    """Raises TrainingCollapsed after a step that shows a collapse, before anything of that step is saved."""

    def __init__(self, settings: Collapse | None):
        self.settings = settings

    def on_log(self, args, state, control, **kwargs):
        if sign := sign_of_collapse(state.log_history, self.settings, scaled=args.fp16):
            raise TrainingCollapsed(sign)


def sign_of_collapse(history: list[dict], settings: Collapse | None, scaled: bool = False) -> str | None:
    """What shows a collapse at the last step of a trainer's log, in words; None if nothing does.

    With `scaled` losses (fp16) a gradient that overflows is no sign: the scaler leaves that step out.
    """
    steps = [row for row in history if "loss" in row]
    if not steps:
        return None
    for name in ("loss",) if scaled else ("loss", "grad_norm"):
        if not math.isfinite(steps[-1].get(name, 0.0)):
            return f"{name} is {steps[-1][name]}"
    if settings is None or len(steps) < 2 * settings.window:
        return None
    first, last = steps[: settings.window], steps[-settings.window :]
    start, reward = _mean(first, "reward"), _mean(last, "reward")
    if not reward < start:
        return None
    worse = f"over the last {settings.window} steps, and the mean reward is {reward:.3g} (at the start {start:.3g})"
    if (errors := _mean(last, FORMAT_ERRORS)) >= settings.format_errors:
        return f"{errors:.0%} of the completions contain no trace {worse}"
    if (entropy := _mean(last, "entropy")) <= settings.entropy:
        return f"the entropy is {entropy:.2g} nats per token {worse}"
    return None


def _mean(rows: list[dict], name: str) -> float:
    """Mean over the rows that have this entry; NaN, which is neither above nor below any limit, if none has."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else math.nan


def explain_collapse(error: RuntimeError, trainer: Trainer, log: Path) -> TrainingCollapsed | None:
    """The full account of a collapse, with the folder `log` and the last checkpoint; None if `error` is another."""
    sampling = any(words in str(error) for words in NO_PROBABILITIES)
    if not sampling and not isinstance(error, TrainingCollapsed):
        return None
    sign = "the policy's probabilities are NaN or infinite" if sampling else str(error)
    folder = trainer.args.output_dir
    checkpoint = get_last_checkpoint(folder) if Path(folder).exists() else None
    return TrainingCollapsed(
        f"training collapsed at step {trainer.state.global_step} of {trainer.state.max_steps}: {sign}. "
        f"Try a lower planner_training.learning_rate (now {trainer.args.learning_rate:g}), or a "
        f"planner_training.beta above 0 (now {trainer.args.beta:g}), which holds the policy near its start. "
        f"The log so far: {log}/steps.csv and rollouts.parquet; last checkpoint: {checkpoint or 'none yet'}. "
        "What counts as a collapse is set in planner_training.collapse; with other settings there the run goes on "
        "from that checkpoint."
    )
