"""Training the Reasoning RM with Hugging Face Trainer: whole groups, in a fixed order (paper section 5)."""

from __future__ import annotations

import random
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from tracelift_lib.groups.schema import Group, dimensions
from tracelift_lib.models.generation import seeded
from tracelift_lib.models.supervised import train_resumably, trainer_arguments
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.prompts import OPEN, reward_model_text
from tracelift_lib.reward_model.losses import lm_loss, reward_model_loss
from tracelift_lib.reward_model.metrics import pair_wins, reward_model_metrics, score_groups
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.scorer import Scorer
from tracelift_lib.reward_model.settings import LoRA, RewardModelTraining

DEV_BATCH_TOKENS = 16384


def train_reward_model(
    model: ReasoningRewardModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: list[Group],
    dev_groups: list[Group],
    settings: RewardModelTraining,
    seed: int,
    work: Path,
    adapter: Path | None = None,
) -> list[dict]:
    """Train on groups of one positive and sampled negatives; resumes from checkpoints in `work`.

    With `lm_weight` the backbone goes on learning to write the references, now in the RM's layout, so that its doubt
    (`model.Doubt`) stays what the new layers take it for. Source: ours.

    With `lora` only the adapter and the heads learn. They end in the folder `adapter`, which
    `ReasoningRewardModel.from_adapter` loads and merges; `model` keeps the adapter beside its weights.

    Held-out metrics on `dev_groups` are measured ten times on the way. Changes `model` in place; returns the trainer's
    log, in which those rows have `dev_pair_accuracy`, `dev_KIND` for each kind of flaw, and the rest of
    `metrics.reward_model_metrics`.
    """
    with seeded(seed):
        trained = add_lora(model, settings.lora) if settings.lora else model
    steps = schedule(groups, settings, seed)
    trainer = GroupTrainer(
        settings,
        model=trained,
        args=_training_arguments(settings, len(steps), seed, work),
        train_dataset=steps,
        data_collator=partial(collate, tokenizer=tokenizer, settings=settings),
        callbacks=[DevMetrics(Scorer(model, tokenizer, DEV_BATCH_TOKENS, settings.max_length), dev_groups)],
    )
    log = train_resumably(trainer)
    if settings.lora:
        _save_adapter(trained, adapter)
        tokenizer.save_pretrained(adapter)
    return log


class GroupTrainer(Trainer):
    """Trainer whose loss sees whole groups, in the order in which the data set gives them."""

    def __init__(self, settings: RewardModelTraining, **kwargs):
        super().__init__(**kwargs)
        self.settings = settings

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, totals = inputs.pop("labels"), inputs.pop("totals")
        scores, settings, size = model(**inputs), self.settings, 1 + self.settings.negatives
        loss = reward_model_loss(scores, labels, totals, size, settings.dimension_loss, settings.negatives_weight)[
            "loss"
        ]
        if scores.log_p is not None:
            loss = loss + settings.lm_weight * lm_loss(scores.log_p[::size], inputs["attention_mask"][::size])
        return (loss, scores) if return_outputs else loss


class DevMetrics(TrainerCallback):
    """Measures ten times in a run how held-out groups are scored, also by kind of flaw: what is learned when?"""

    def __init__(self, scorer: Scorer, groups: list[Group]):
        self.scorer, self.groups = scorer, groups

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % max(1, state.max_steps // 10) == 0:
            rows = score_groups(self.scorer, self.groups)
            self.scorer.model.train()
            metrics, by_kind = reward_model_metrics(rows), pair_wins(rows).groupby("kind")["win"].mean()
            row = {"step": state.global_step, "dev_pair_accuracy": metrics.pop("pair_accuracy")}
            # Into the history itself, which checkpoints keep; Trainer.log here would swallow the step's loss.
            state.log_history.append(row | by_kind.add_prefix("dev_").to_dict() | metrics)


def _training_arguments(settings: RewardModelTraining, samples: int, seed: int, work: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=1,  # the schedule already holds every epoch
        per_device_train_batch_size=settings.groups_per_step,
        gradient_accumulation_steps=settings.accumulation,
        gradient_checkpointing_kwargs={"use_reentrant": False},  # the other way finds no gradient below an adapter
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        warmup_steps=settings.warmup,
        lr_scheduler_type="cosine",
        train_sampling_strategy="sequential",
        use_cache=True,  # a problem is read once for its traces; Trainer would write false into config.json
        logging_steps=max(1, samples // settings.groups_per_step // settings.accumulation // 50),
        remove_unused_columns=False,
        seed=seed,
        **trainer_arguments(settings.precision) | {"gradient_checkpointing": settings.gradient_checkpointing},
    )


def add_lora(model: ReasoningRewardModel, lora: LoRA) -> PeftModel:
    """The model with an adapter on every projection of the backbone; its heads learn as a whole, the rest is frozen."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted({name.split(".")[-1] for name in linear if name.startswith("model.")}),
        modules_to_save=[name for name in linear if not name.startswith("model.")],
    )
    return get_peft_model(model, settings)


def _save_adapter(trained: PeftModel, folder: Path) -> None:
    """The adapter with the RM's heads and settings, as `ReasoningRewardModel.from_adapter` reads it."""
    trained.save_pretrained(folder, save_embedding_layers=False)  # else PEFT reads the base's settings as an RM's
    trained.get_base_model().config.save_pretrained(folder)


def usable_groups(groups: list[Group], negatives: int) -> list[Group]:
    """Those with `negatives` flawed traces or more; a line says how many are left out. Raises InputError: all are."""
    usable = [g for g in groups if len(g.negative_bank) >= negatives]
    if not usable:
        raise InputError(f"none of {len(groups)} groups has {negatives} flawed traces: lower reward_model.negatives")
    if left_out := len(groups) - len(usable):
        print(
            f"reward model: {left_out} of {len(groups)} groups have fewer than {negatives} flawed traces "
            "(reward_model.negatives) and are left out of training",
            flush=True,
        )
    return usable


def schedule(groups: list[Group], settings: RewardModelTraining, seed: int) -> list[Group]:
    """What each step sees, over all epochs: groups of one positive and the negatives sampled for this epoch.

    Fixed beforehand, so that a resumed run sees exactly what the interrupted one would have seen.
    Within chunks, groups are sorted by length to save padding; the batches are shuffled in each epoch.
    """
    rng, usable = random.Random(seed), usable_groups(groups, settings.negatives)
    size = settings.groups_per_step
    samples: list[Group] = []
    for _ in range(settings.epochs):
        order = rng.sample(usable, len(usable))
        batches = []
        for start in range(0, len(order), 16 * size):
            chunk = sorted(order[start : start + 16 * size], key=lambda g: len(g.problem) + len(g.reference_solution))
            batches += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        rng.shuffle(batches)
        for group in chain.from_iterable(batches):
            positive = rng.choice(group.positive_pool)
            negatives = rng.sample(group.negative_bank, settings.negatives)
            samples.append(group.model_copy(update={"positive_pool": [positive], "negative_bank": negatives}))
    return samples


def collate(
    groups: list[Group], tokenizer: PreTrainedTokenizerBase, settings: RewardModelTraining
) -> dict[str, Tensor]:
    """What `ReasoningRewardModel.forward` takes, and the gold values of the traces, group by group, positive first.

    Each text is `reward_model_text`, cut behind its opening tag, where every tokenizer here splits anyway: the
    problem's part (G, P) is padded on the left, the traces' (B, T) on the right. With `gradient_checkpointing` the
    traces' part is the whole text, as that cannot have the cache which a shared problem needs.
    Texts are cut to `max_length` tokens; of a trace behind a problem that long, its first token is left.
    `labels` (B, 5), `totals` (B,).
    """
    problems, traces, rubrics = [], [], []
    for group in groups:
        candidates = group.candidates
        texts = [reward_model_text(group.as_problem(), c.reasoning) for c in candidates]
        cut = texts[0].index(OPEN) + len(OPEN) + 1
        problem = tokenizer(texts[0][:cut], add_special_tokens=False)["input_ids"][: settings.max_length - 1]
        ids = tokenizer([text[cut:] for text in texts], add_special_tokens=False)["input_ids"]
        before = problem if settings.gradient_checkpointing else []
        problems.append(problem)
        traces += [before + trace[: settings.max_length - len(problem)] for trace in ids]
        rubrics += [c.rubric for c in candidates]
    batch = dict(tokenizer.pad({"input_ids": traces}, padding_side="right", return_tensors="pt"))
    batch["labels"] = torch.tensor([[r.labels[name] for name in dimensions(r.domain)] for r in rubrics])
    batch["totals"] = torch.tensor([r.total for r in rubrics])
    if not settings.gradient_checkpointing:
        shared = tokenizer.pad({"input_ids": problems}, padding_side="left", return_tensors="pt")
        batch |= {"problem_ids": shared["input_ids"], "problem_mask": shared["attention_mask"]}
    return batch
