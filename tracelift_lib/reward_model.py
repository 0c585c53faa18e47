"""The Reasoning Reward Model: five rubric heads and a total head on any backbone (paper section 5).

Weights are named `model.*`, `dimension_heads.N.*` and `total_head.*`, settings `rm_*`, and the input is
`prompts.reward_model_text`, as in the released checkpoints, so those load with `from_pretrained`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from tracelift_lib.generation import length_batches, seeded
from tracelift_lib.groups import Candidate, Group, dimensions
from tracelift_lib.models import checkpoint_arguments, device_arguments, load_tokenizer, train_resumably
from tracelift_lib.presets import RewardModelTraining
from tracelift_lib.problems import InputError, Problem
from tracelift_lib.prompts import OPEN, reward_model_text

NUM_LABELS = 5
TOTAL_WEIGHT, RANKING_WEIGHT = 0.5, 0.7
DEV_BATCH_TOKENS = 16384


@dataclass
class Scores:
    """Head outputs of B traces: `logits` (B, 5 dimensions, 5 labels), `total` and `q` (B,) in [0, 1].

    `departures` (B, T), in training only: logit that the trace leaves the reference at this token.
    """

    logits: Tensor
    total: Tensor
    q: Tensor
    departures: Tensor | None = None


class ReasoningRewardModel(PreTrainedModel):
    """q(x, z) = (derived + total) / 2 on the last non-padding token (method.md section 5).

    derived = Σ_i w_i · E[label_i] / 4, total = sigmoid(total_head).
    """

    config_class = PretrainedConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.model = AutoModel.from_config(config)
        labels = config.rm_num_labels
        self.dimension_heads = nn.ModuleList(
            nn.Linear(config.hidden_size, labels) for _ in config.rm_dimension_names
        )
        self.total_head = nn.Linear(config.hidden_size, 1)
        self.departure_head: nn.Linear | None = None  # see `train_reward_model`
        self.post_init()

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs) -> ReasoningRewardModel:
        """Load a checkpoint folder whose config.json has the `rm_*` keys beside the backbone's own."""
        kwargs.setdefault("config", AutoConfig.from_pretrained(folder))
        model, loading = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        if loading["missing_keys"]:  # transformers would fill them with random weights and only warn
            raise InputError(f"{folder}: no weights for {', '.join(sorted(loading['missing_keys']))}; not a whole RM")
        return model

    @classmethod
    def from_backbone(
        cls, folder: str | Path, dimensions: Sequence[str], seed: int, new_layers: int = 0
    ) -> ReasoningRewardModel:
        """New heads on a causal LM's body, whose LM head is dropped; `new_layers` untrained layers between them."""
        config = AutoConfig.from_pretrained(folder)
        if new_layers:
            depth = config.num_hidden_layers + new_layers
            config = config.from_dict(config.to_dict() | {"num_hidden_layers": depth, "layer_types": None})
        config.rm_dimension_names = list(dimensions)
        config.rm_dimension_weights = [1 / len(dimensions)] * len(dimensions)
        config.rm_num_labels = NUM_LABELS
        config.rm_use_total_head = True
        set_seed(seed)
        model = cls(config)
        body = AutoModel.from_pretrained(folder, dtype=torch.float32)
        model.model.load_state_dict(body.state_dict(), strict=new_layers == 0)
        return model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor,
        problem_ids: Tensor | None = None, problem_mask: Tensor | None = None,
    ) -> Scores:
        """Score token ids (B, T); padding may stand on either side.

        With `problem_ids` (G, P), padded on the left, `input_ids` go on after them: B / G traces a problem, which is
        read once for all of them.
        """
        cache, full_mask = None, attention_mask
        if problem_ids is not None:
            cache = self.model(input_ids=problem_ids, attention_mask=problem_mask, use_cache=True).past_key_values
            traces = len(input_ids) // len(problem_ids)
            cache.batch_repeat_interleave(traces)
            full_mask = torch.cat([problem_mask.repeat_interleave(traces, 0), attention_mask], 1)
        output = self.model(
            input_ids=input_ids, attention_mask=full_mask, past_key_values=cache, use_cache=cache is not None,
            output_hidden_states=self.departure_head is not None,
        )
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask * positions).argmax(-1)
        pooled = output.last_hidden_state[torch.arange(len(last), device=last.device), last]
        logits = torch.stack([head(pooled) for head in self.dimension_heads], dim=1)
        total = torch.sigmoid(self.total_head(pooled).squeeze(-1))
        weights = torch.tensor(self.config.rm_dimension_weights, dtype=logits.dtype, device=logits.device)
        derived = (expected_labels(logits) * weights).sum(-1) / (self.config.rm_num_labels - 1)
        departures = None
        if self.departure_head is not None:
            hidden = output.hidden_states[self.departure_layer]
            departures = self.departure_head(F.rms_norm(hidden, hidden.shape[-1:])).squeeze(-1)
        return Scores(logits, total, (derived + total) / 2, departures)


def expected_labels(logits: Tensor) -> Tensor:
    """E[label] of each dimension: (B, D, L) logits to (B, D) values in 0..L-1."""
    labels = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * labels).sum(-1)


def reward_model_loss(
    scores: Scores, labels: Tensor, totals: Tensor, group_size: int, dimension_loss: str = "ce"
) -> dict[str, Tensor]:
    """The loss of method.md section 5 on B = G · group_size traces, the positive first in each group.

    Args:
        labels: (B, D) gold labels 0..4. totals: (B,) gold totals in [0, 1].
        dimension_loss: `ce`, or `mse` between the expected and the gold label.
    Returns:
        `loss` and its parts `dimensions` (summed over dimensions), `total` (Huber, δ = 1) and `ranking`
        (mean over a group's negatives of −log σ(q_pos − q_neg), then mean over groups).
    """
    if dimension_loss == "ce":
        per_item = F.cross_entropy(scores.logits.flatten(0, 1), labels.flatten(), reduction="none")
    else:
        per_item = (expected_labels(scores.logits) - labels).square().flatten()
    dimensions = per_item.view_as(labels).mean(0).sum()
    total = F.huber_loss(scores.total, totals, delta=1.0)
    q = scores.q.view(-1, group_size)
    ranking = -F.logsigmoid(q[:, :1] - q[:, 1:]).mean(-1).mean()
    loss = dimensions + TOTAL_WEIGHT * total + RANKING_WEIGHT * ranking
    return {"loss": loss, "dimensions": dimensions, "total": total, "ranking": ranking}


def departure_loss(logits: Tensor, departures: Tensor) -> Tensor:
    """Cross-entropy of "the trace leaves the reference here", over the tokens (B, T) labelled 0 or 1. Source: ours."""
    known = departures >= 0
    return F.binary_cross_entropy_with_logits(logits[known], departures[known])


class _GroupTrainer(Trainer):
    """Trainer whose loss sees whole groups, in the order in which the data set gives them."""

    def __init__(self, *args, group_size: int, settings: RewardModelTraining, **kwargs):
        super().__init__(*args, **kwargs)
        self.group_size, self.dimension_loss = group_size, settings.dimension_loss
        self.departure_weight = settings.departure_weight

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels, totals, departures = (inputs.pop(name) for name in ("labels", "totals", "departures"))
        scores = model(**inputs)
        loss = reward_model_loss(scores, labels, totals, self.group_size, self.dimension_loss)["loss"]
        if scores.departures is not None:
            loss = loss + self.departure_weight * departure_loss(scores.departures, departures)
        return (loss, scores) if return_outputs else loss


def train_reward_model(
    model: ReasoningRewardModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: list[Group],
    dev_groups: list[Group],
    settings: RewardModelTraining,
    seed: int,
    work: Path,
) -> list[dict]:
    """Train on groups of one positive and sampled negatives; resumes from checkpoints in `work`.

    With `departure_weight` a further head learns from every token whether the trace leaves the reference there, read
    below the new layers. It serves training alone: a label for the whole trace does not say where to look, and a
    small backbone does not find it out from a few thousand groups.

    Pair accuracy on `dev_groups` is measured a few times on the way. Changes `model` in place; returns the
    trainer's log, in which those rows have `dev_pair_accuracy`, and `dev_KIND` for each kind of flaw.
    """
    steps = _schedule(groups, settings, seed)
    if settings.departure_weight:
        model.departure_layer = model.config.num_hidden_layers - settings.new_layers
        with seeded(seed):
            model.departure_head = nn.Linear(model.config.hidden_size, 1)
    args = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=1,  # the schedule already holds every epoch
        per_device_train_batch_size=settings.groups_per_step,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        warmup_steps=settings.warmup,
        lr_scheduler_type="cosine",
        train_sampling_strategy="sequential",
        logging_steps=max(1, len(steps) // settings.groups_per_step // settings.accumulation // 50),
        remove_unused_columns=False,
        seed=seed,
        report_to=[],
        **checkpoint_arguments(),
        **device_arguments() | {"gradient_checkpointing": False},  # it goes without the cache that groups share
    )
    trainer = _GroupTrainer(
        model=model, args=args, train_dataset=steps,
        data_collator=lambda items: collate(items, tokenizer, settings.max_length),
        group_size=1 + settings.negatives, settings=settings,
    )
    trainer.add_callback(_DevRanking(Scorer(model, tokenizer, DEV_BATCH_TOKENS, settings.max_length), dev_groups))
    log = train_resumably(trainer)
    model.departure_head = None
    return log


class _DevRanking(TrainerCallback):
    """Notes pair accuracy on held-out groups ten times in a run, also by kind of flaw: what is learned when?"""

    def __init__(self, scorer: Scorer, groups: list[Group]):
        self.scorer, self.groups = scorer, groups

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % max(1, state.max_steps // 10) == 0:
            wins = self.scorer.pair_wins(self.groups)
            self.scorer.model.train()
            by_kind = wins.groupby("kind")["win"].mean()
            # Into the history itself, which checkpoints keep; Trainer.log here would swallow the step's loss.
            state.log_history.append(
                {"step": state.global_step, "dev_pair_accuracy": wins.groupby("problem_id")["win"].mean().mean(),
                 **{f"dev_{kind}": value for kind, value in by_kind.items()}}
            )


@dataclass
class GroupSample:
    """One group as a step sees it: the positive first, then the sampled negatives."""

    problem: Problem
    candidates: list[Candidate]


def _schedule(groups: list[Group], settings: RewardModelTraining, seed: int) -> list[GroupSample]:
    """Every (group, sampled negatives) of all epochs, in order.

    Fixed beforehand, so that a resumed run sees exactly what the interrupted one would have seen.
    Within chunks, groups are sorted by length to save padding; the chunks are shuffled each epoch.
    """
    rng = random.Random(seed)
    usable = [g for g in groups if len(g.negative_bank) >= settings.negatives]
    batch = settings.groups_per_step
    schedule: list[GroupSample] = []
    for _ in range(settings.epochs):
        order = rng.sample(usable, len(usable))
        batches = []
        for start in range(0, len(order), 16 * batch):
            chunk = sorted(order[start : start + 16 * batch], key=lambda g: len(g.problem) + len(g.reference_solution))
            batches += [chunk[i : i + batch] for i in range(0, len(chunk), batch)]
        rng.shuffle(batches)
        schedule += [
            GroupSample(g.as_problem(), [rng.choice(g.positive_pool), *rng.sample(g.negative_bank, settings.negatives)])
            for b in batches for g in b
        ]
    return schedule


def collate(items: list[GroupSample], tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Tensor]:
    """What `ReasoningRewardModel.forward` takes, and the gold values of the candidates of all groups, group by group.

    Each text is `reward_model_text`, cut behind its opening tag, where every tokenizer here splits anyway: the
    problem's part (G, P) is padded on the left, the traces' (B, T) on the right. `labels` (B, 5), `totals` (B,);
    `departures` (B, T): 1 at the first token that differs from the group's reference, 0 before it, -1 behind it.
    """
    problems, traces, departures = [], [], []
    for item in items:
        texts = [reward_model_text(item.problem, c.reasoning) for c in item.candidates]
        cut = texts[0].index(OPEN) + len(OPEN) + 1
        problems.append(tokenizer(texts[0][:cut], add_special_tokens=False)["input_ids"])
        ids = tokenizer([text[cut:] for text in texts], add_special_tokens=False)["input_ids"]
        traces += [trace[: max_length - len(problems[-1])] for trace in ids]
        departures += [_departure(trace, ids[0]) for trace in ids]
    candidates = [c for item in items for c in item.candidates]
    problem = tokenizer.pad({"input_ids": problems}, padding_side="left", return_tensors="pt")
    trace = tokenizer.pad({"input_ids": traces}, padding_side="right", return_tensors="pt")
    width = trace["input_ids"].shape[1]
    return {
        "problem_ids": problem["input_ids"], "problem_mask": problem["attention_mask"],
        "input_ids": trace["input_ids"], "attention_mask": trace["attention_mask"],
        "labels": torch.tensor([[c.rubric.labels[name] for name in dimensions(c.rubric.domain)] for c in candidates]),
        "totals": torch.tensor([c.rubric.total for c in candidates]),
        "departures": torch.tensor([(d + [-1.0] * width)[:width] for d in departures]),
    }


def _departure(trace: list[int], reference: list[int]) -> list[float]:
    """0 for each token that `trace` shares with the start of `reference`, then 1, if it does not end there."""
    same = next((i for i, (a, b) in enumerate(zip(trace, reference)) if a != b), min(len(trace), len(reference)))
    return [0.0] * same + [1.0] * (same < len(trace))


class Scorer:
    """A Reasoning RM with its tokenizer, ready to score traces in length-sorted batches."""

    def __init__(
        self, model: ReasoningRewardModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, max_length: int
    ):
        self.model, self.tokenizer = model, tokenizer
        self.batch_tokens, self.max_length = batch_tokens, max_length

    @classmethod
    def from_folder(cls, folder: Path | str, batch_tokens: int, max_length: int) -> Scorer:
        """The model and tokenizer in `folder`, on the GPU if there is one."""
        model = ReasoningRewardModel.from_pretrained(folder)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, load_tokenizer(folder), batch_tokens, max_length)

    def pair_wins(self, groups: list[Group]) -> pd.DataFrame:
        """A row for each flawed trace: problem_id, kind, and whether it scores below the reference of its group."""
        traces = [(g.as_problem(), c.reasoning) for g in groups for c in [g.positive_pool[0], *g.negative_bank]]
        q, _ = self.score([p for p, _ in traces], [z for _, z in traces])
        ends = np.cumsum([1 + len(g.negative_bank) for g in groups])
        return pd.DataFrame(
            {"problem_id": g.problem_id, "kind": c.negative_kind, "win": float(part[0] > low)}
            for g, part in zip(groups, np.split(q, ends[:-1])) for c, low in zip(g.negative_bank, part[1:])
        )

    @torch.inference_mode()
    def score(
        self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(q, labels): q of shape (N,) in [0, 1], expected labels of shape (N, 5) in [0, 4], in order."""
        self.model.eval()
        texts = [reward_model_text(p, z) for p, z in zip(problems, traces, strict=True)]
        q = np.zeros(len(texts))
        labels = np.zeros((len(texts), len(self.model.dimension_heads)))
        if not texts:
            return q, labels
        encoded = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, add_special_tokens=False
        )["input_ids"]
        with tqdm(total=len(texts), desc=progress, disable=progress is None) as bar:
            for batch in length_batches([len(ids) for ids in encoded], self.batch_tokens):
                inputs = self.tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
                scores = self.model(**inputs.to(self.model.device))
                q[batch] = scores.q.float().cpu()
                labels[batch] = expected_labels(scores.logits).float().cpu()
                bar.update(len(batch))
        return q, labels
