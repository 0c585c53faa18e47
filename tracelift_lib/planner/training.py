"""Planner training: GRPO with TRL on the executor-grounded reward (paper section 6; docs/method.md sections 2, 6)."""

from __future__ import annotations

from itertools import chain, islice, repeat
from pathlib import Path

import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from tracelift_lib.models import contract
from tracelift_lib.models.loading import load_model
from tracelift_lib.models.supervised import train_resumably, trainer_arguments
from tracelift_lib.planner.collapse import CollapseWatch, explain_collapse
from tracelift_lib.planner.log import StepTimer, write_log
from tracelift_lib.planner.reward_engine import RewardEngine
from tracelift_lib.planner.settings import PlannerTraining
from tracelift_lib.planner.unsloth import load_with_unsloth
from tracelift_lib.problems.files import WORK, InputError
from tracelift_lib.problems.prompts import PromptLimits, PromptStyle, as_chat, planner_prompt

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
    completion with its reward parts) and `out/steps.csv` (one row per step, see log.py).

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
    trainer = contract_trainer()(
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
    """Indices of the problems of all steps, shuffled anew each time all have been seen, by TRL's own sampler.

    TRL itself, resumed after its first pass through the problems, begins again with the order of the first.
    """
    if n < per_step:
        raise InputError(f"{n} problems are too few for planner_training.problems_per_step = {per_step}")
    sampler = RepeatSampler(range(n), mini_repeat_count=1, batch_size=per_step, shuffle=True, seed=seed)
    passes = chain.from_iterable(repeat(sampler))  # each in an order of its own
    return list(islice(passes, steps * per_step))


def contract_trainer() -> type[GRPOTrainer]:
    """TRL's GRPOTrainer, which may be Unsloth's by now, with tokens and stops of models/contract.py.

    TRL itself puts BOS before a text that begins with it, and stops at one end of sequence only.
    """

    class ContractTrainer(trl.GRPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            model = contract.neutralise(self.accelerator.unwrap_model(self.model))  # Unsloth loads it in its own way
            self.stops = contract.stop_ids(model, self.processing_class)
            if getattr(self, "generation_config", None) is not None:  # not where vLLM samples: it knows all stops
                self.generation_config.update(eos_token_id=self.stops, **contract.NEUTRAL)
                self.generation_kwargs |= {"eos_token_id": self.stops, **contract.NEUTRAL}

        def _tokenize_prompts(self, prompts):
            return contract.token_ids(self.processing_class, prompts), None, {}

        def _generate_single_turn(self, *args, **kwargs):
            completions, log_probabilities = super()._generate_single_turn(*args, **kwargs)
            return [contract.up_to_stop(ids, self.stops) for ids in completions], log_probabilities

    return ContractTrainer


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
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        **settings.model_dump(include={"lora_alpha", "lora_dropout"}),
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
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=min(settings.warmup_steps, settings.steps),
        scale_rewards="group",
        max_grad_norm=1.0,
        logging_steps=1,
        logging_nan_inf_filter=False,  # else a NaN or infinite loss is logged as the mean of those before
        seed=seed,
        report_to=[],
        use_liger_kernel=settings.liger,
        **settings.model_dump(include={"temperature", "top_p", "learning_rate", "weight_decay", "loss_type", "beta"}),
        **trainer_arguments(settings.precision),
    )


def save_trained(trainer: GRPOTrainer, folder: Path) -> None:
    """The trained weights with the tokenizer; gathered first where they are spread over processes."""
    trainer.save_model(str(folder))
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle; the settings are in the stage's manifest


def load_policy(start: Path, trained: Path | None) -> PreTrainedModel:
    """The planner in `start`, or what training has made of it in the folder `trained`.

    An adapter is merged in float32 only: in bfloat16 most of its changes are smaller than the distance to the next
    number and would be lost, so another policy would be judged than was trained. There it stays beside the weights.
    """
    if trained is None:
        return load_model(start)
    if (trained / SAVED["full"]).exists():
        return load_model(trained / SAVED["full"])
    policy = PeftModel.from_pretrained(load_model(start), trained / SAVED["lora"]).eval()
    exact = policy.get_base_model().dtype == torch.float32
    return policy.merge_and_unload() if exact else policy
