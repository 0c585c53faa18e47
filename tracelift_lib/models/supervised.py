"""Supervised training that can be interrupted and resumed."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Literal

import torch
import trl
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from tracelift_lib.models.contract import token_ids
from tracelift_lib.models.loading import bf16_in_hardware
from tracelift_lib.models.settings import SupervisedTraining
from tracelift_lib.problems.files import WORK, write_json

SAVE_SECONDS = 15  # between two checkpoints, at least
SAVE_SHARE = 0.05  # of the time, at most, goes into checkpoints: one of a 7B model takes as long as several steps
Pair = tuple[str, str]  # (context, target): a text in two parts, of which the model learns to write the second


def supervised_training(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Pair],
    settings: SupervisedTraining,
    seed: int,
    out: Path,
) -> None:
    """Train on (context, target) pairs, loss on the targets only, with TRL's SFTTrainer.

    `out` becomes the trained model's folder, with its tokenizer and the trainer's log (log.json). Training resumes from
    the newest checkpoint under `out`. `model` is changed in place.
    """
    trainer = trl.SFTTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=_tokenize(tokenizer, pairs),
        args=trl.SFTConfig(
            output_dir=str(out / WORK / "trainer"),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(50, settings.steps // 10),
            weight_decay=0.01,
            adam_beta2=0.98,  # short runs: the default 0.999 remembers longer than they last
            logging_steps=max(1, settings.steps // 50),
            seed=seed,
            max_length=None,
            **trainer_arguments(),
        ),
    )
    log = train_resumably(trainer)
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    write_json(out / "log.json", log)


def _tokenize(tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]) -> Dataset:
    """Pairs as SFTTrainer's tokenized records; in one batch, ten times faster than the trainer's own mapping."""
    contexts = token_ids(tokenizer, [context for context, _ in pairs])
    targets = token_ids(tokenizer, [target + tokenizer.eos_token for _, target in pairs])
    token_pairs = list(zip(contexts, targets))
    input_ids = [context + target for context, target in token_pairs]
    labels = [[-100] * len(context) + target for context, target in token_pairs]  # -100: no loss there
    return Dataset.from_dict({"input_ids": input_ids, "labels": labels})


def train_resumably(trainer: Trainer) -> list[dict]:
    """Train from the newest checkpoint in the trainer's output folder, if there is one; returns the log.

    A checkpoint is written every SAVE_SECONDS, or as seldom as its cost asks for (SAVE_SHARE), so a killed run loses no
    more than that. An interrupt (Ctrl-C, or the
    stop button of JupyterLab) waits for the end of the current step, saves, and then raises KeyboardInterrupt, so
    nothing is lost. Outside the main thread, where Python cannot catch interrupts, only the timer saves.
    """
    folder = Path(trainer.args.output_dir)
    with trainer.args.main_process_first(local=False):
        for checkpoint in folder.glob("checkpoint-*"):
            if not (checkpoint / TRAINER_STATE_NAME).exists():  # it is written last: the run was killed before that
                shutil.rmtree(checkpoint)
    callback = CheckpointCallback()
    trainer.add_callback(callback)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        handler_before = signal.signal(signal.SIGINT, callback.interrupt)
    try:
        trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler_before)
    if callback.interrupted:
        raise KeyboardInterrupt(f"stopped after step {trainer.state.global_step}; run again to go on from there")
    return trainer.state.log_history


class CheckpointCallback(TrainerCallback):
    """Saves a checkpoint on a timer and on an interrupt, which also ends the training.

    The timer waits so long after a checkpoint that writing them takes no more than SAVE_SHARE of the time. What one
    costs is known after the first, which comes when SAVE_SECONDS are over.
    """

    def __init__(self) -> None:
        self.saved_at = self.step_ended = time.monotonic()
        self.cost, self.interrupted = 0.0, False  # seconds of the last checkpoint; whether there was an interrupt

    def interrupt(self, *_) -> None:
        """The handler of SIGINT: it only takes note, `on_step_end` acts."""
        self.interrupted = True

    def on_step_end(self, args, state, control, **kwargs):
        """What one process of a launch sees counts for all: they must save, and stop, after the same step."""
        self.step_ended = time.monotonic()
        due = self.step_ended - self.saved_at > max(SAVE_SECONDS, self.cost * (1 / SAVE_SHARE - 1))
        states = gather_object([(self.interrupted, due)])
        self.interrupted = any(interrupted for interrupted, _ in states)
        control.should_training_stop |= self.interrupted
        control.should_save |= self.interrupted or any(due for _, due in states)

    def on_save(self, args, state, control, **kwargs):
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - self.step_ended


def trainer_arguments(precision: Literal["bf16", "fp16", "fp32"] | None = None) -> dict:
    """TrainingArguments for the hardware at hand, which leave the saving of checkpoints to `train_resumably`.

    Without a `precision`: bf16 where the GPU has it, fp16 on another GPU, fp32 on a CPU.
    """
    gpu = torch.cuda.is_available()
    precision = precision or ("bf16" if bf16_in_hardware() else "fp16" if gpu else "fp32")
    hardware = {"use_cpu": not gpu, "gradient_checkpointing": gpu, "dataloader_pin_memory": gpu}
    saving = {"save_strategy": "no", "save_total_limit": 1}
    return {**hardware, **saving, "bf16": precision == "bf16", "fp16": precision == "fp16"}
