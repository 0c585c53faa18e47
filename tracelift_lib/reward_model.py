"""The Reasoning Reward Model: five rubric heads and a total head on any backbone (paper section 5).

Weights are named `model.*`, `dimension_heads.N.*` and `total_head.*`, settings `rm_*`, and the input is
`prompts.reward_model_text`, as in the released checkpoints, so those load with `from_pretrained`.
Training is in rm_training.py, the scoring service in rm_server.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from tracelift_lib.generation import length_batches
from tracelift_lib.models import load_tokenizer
from tracelift_lib.problems import InputError, Problem
from tracelift_lib.prompts import reward_model_text
from tracelift_lib.rm_config import RewardModelConfig, four_bit_settings

NUM_LABELS = 5
TOTAL_WEIGHT, RANKING_WEIGHT = 0.5, 0.7
NEGATIVES_MARGIN = 0.15  # gold totals of two negatives must be this far apart to be ranked against each other
HEAD = re.compile(r"(dimension_heads\.\d+|total_head)\.(?:modules_to_save\.\w+\.)?(weight|bias)$")


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

    derived = Σ_i w_i · E[label_i] / 4, total = sigmoid(total_head). The backbone may run in bf16; the heads are kept
    and computed in fp32, because in bf16 two scores that differ by less than 0.004 could not be told apart.
    """

    config_class = RewardModelConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ["dimension_heads", "total_head"]

    def __init__(self, config: RewardModelConfig, body: PreTrainedModel | None = None):
        """Random weights; with `body`, a loaded backbone, only the heads are random."""
        super().__init__(config)
        self.model = AutoModel.from_config(config.backbone) if body is None else body
        for module in body.modules() if body else ():
            module._is_hf_initialized = True
        labels = config.rm_num_labels
        self.dimension_heads = nn.ModuleList(
            nn.Linear(config.hidden_size, labels) for _ in config.rm_dimension_names
        )
        self.total_head = nn.Linear(config.hidden_size, 1)
        self.departure_head: nn.Linear | None = None  # see `rm_training.train_reward_model`
        self.post_init()

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> ReasoningRewardModel:
        """Load a checkpoint (folder or hub name) whose config.json has the `rm_*` keys beside the backbone's own.

        A local folder may hold a LoRA adapter instead; see `from_adapter`.
        """
        if (Path(folder) / "adapter_config.json").exists():
            return cls.from_adapter(folder, **kwargs)
        model, loading = super().from_pretrained(folder, output_loading_info=True, **kwargs)
        if loading["missing_keys"]:  # transformers would fill them with random weights and only warn
            raise InputError(f"{folder}: no weights for {', '.join(sorted(loading['missing_keys']))}; not a whole RM")
        return model

    @classmethod
    def from_adapter(
        cls, folder: str | Path, backbone: str | Path | None = None, dtype: torch.dtype = torch.float32
    ) -> ReasoningRewardModel:
        """The RM of a PEFT folder, with the adapter merged into the backbone's weights.

        The folder holds adapter_config.json, PEFT's weights, config.json with the `rm_*` keys, and the heads in any of
        its safetensors files: they are found by their names `dimension_heads.N.*` and `total_head.*`, whatever stands
        before those. `backbone` is used in place of the base model that adapter_config.json names.

        Raises:
            InputError: a head is missing.
        """
        from peft import PeftConfig, PeftModel

        base = backbone or PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
        config = RewardModelConfig.from_pretrained(folder, dtype=dtype)
        model = cls(config, AutoModel.from_pretrained(base, dtype=dtype))
        heads = _head_weights(Path(folder))
        expected = [name for name in model.state_dict() if not name.startswith("model.")]
        if missing := [name for name in expected if name not in heads]:
            raise InputError(f"{folder}: no weights for {', '.join(missing)} in its safetensors files; not a whole RM")
        model.load_state_dict(heads, strict=False)
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()

    @classmethod
    def from_backbone(
        cls, folder: str | Path, dimensions: Sequence[str], seed: int, new_layers: int = 0,
        dtype: torch.dtype = torch.float32, four_bit: bool = False,
    ) -> ReasoningRewardModel:
        """New heads on a causal LM's body, whose LM head is dropped; `new_layers` untrained layers between them.

        `four_bit` loads the body in 4-bit NF4 (bitsandbytes), for training with LoRA on a GPU.
        """
        backbone = AutoConfig.from_pretrained(folder)
        if new_layers:
            depth = backbone.num_hidden_layers + new_layers
            backbone = backbone.from_dict(backbone.to_dict() | {"num_hidden_layers": depth, "layer_types": None})
        config = RewardModelConfig(
            **backbone.to_dict() | {"dtype": dtype},
            rm_dimension_names=list(dimensions), rm_dimension_weights=[1 / len(dimensions)] * len(dimensions),
            rm_num_labels=NUM_LABELS, rm_use_total_head=True,
        )
        quantization = {"quantization_config": four_bit_settings()} if four_bit else {}
        body = AutoModel.from_pretrained(folder, dtype=dtype, **quantization)
        set_seed(seed)
        if new_layers:
            model = cls(config)
            model.model.load_state_dict(body.state_dict(), strict=False)
        else:
            model = cls(config, body)
        model.is_loaded_in_4bit = four_bit  # PEFT asks for it
        model.config.name_or_path = str(folder)  # an adapter names its base model
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
        scores = self.heads(pooled)
        if self.departure_head is not None:
            hidden = output.hidden_states[self.departure_layer]
            scores.departures = self.departure_head(F.rms_norm(hidden, hidden.shape[-1:])).squeeze(-1)
        return scores

    def heads(self, pooled: Tensor) -> Scores:
        """Scores of B traces from the hidden states (B, hidden_size) of their last tokens."""
        with torch.autocast(pooled.device.type, enabled=False):
            pooled = pooled.to(next(self.total_head.parameters()).dtype)
            logits = torch.stack([head(pooled) for head in self.dimension_heads], dim=1)
            total = torch.sigmoid(self.total_head(pooled).squeeze(-1))
        weights = torch.tensor(self.config.rm_dimension_weights, dtype=logits.dtype, device=logits.device)
        derived = (expected_labels(logits) * weights).sum(-1) / (self.config.rm_num_labels - 1)
        return Scores(logits, total, (derived + total) / 2)

    def score_trees(self, trees: Sequence[TokenTree]) -> Scores:
        """Scores of all texts of some token trees, tree after tree."""
        width, device = max(len(tree.ids) for tree in trees), self.device
        shape = (len(trees), width)
        ids, depths = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        blocked = torch.full((len(trees), 1, width, width), torch.finfo(self.model.dtype).min, dtype=self.model.dtype)
        for row, tree in enumerate(trees):
            n = len(tree.ids)
            ids[row, :n], depths[row, :n] = torch.tensor(tree.ids), torch.tensor(tree.depths)
            blocked[row, 0, :n, :n].masked_fill_(torch.from_numpy(tree.visible()), 0)
        output = self.model(
            input_ids=ids.to(device), attention_mask=blocked.to(device), position_ids=depths.to(device), use_cache=False
        )
        ends = torch.tensor([row * width + end for row, tree in enumerate(trees) for end in tree.ends], device=device)
        return self.heads(output.last_hidden_state.flatten(0, 1)[ends])


def _head_weights(folder: Path) -> dict[str, Tensor]:
    """The heads' tensors in the safetensors files of a folder, under their plain names."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                if match := HEAD.search(name):
                    found[f"{match[1]}.{match[2]}"] = file.get_tensor(name)
    return found


def expected_labels(logits: Tensor) -> Tensor:
    """E[label] of each dimension: (B, D, L) logits to (B, D) values in 0..L-1."""
    labels = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * labels).sum(-1)


def reward_model_loss(
    scores: Scores, labels: Tensor, totals: Tensor, group_size: int, dimension_loss: str = "ce",
    negatives_weight: float = 0.0,
) -> dict[str, Tensor]:
    """The loss of method.md section 5 on B = G · group_size traces, the positive first in each group.

    Args:
        labels: (B, D) gold labels 0..4. totals: (B,) gold totals in [0, 1].
        dimension_loss: `ce`, or `mse` between the expected and the gold label.
        negatives_weight: weight of the neg–neg ranking.
    Returns:
        `loss` and its parts `dimensions` (summed over dimensions), `total` (Huber, δ = 1), `ranking`
        (mean over a group's negatives of −log σ(q_pos − q_neg), then mean over groups) and `negatives`
        (see `negatives_ranking`).
    """
    if dimension_loss == "ce":
        per_item = F.cross_entropy(scores.logits.flatten(0, 1), labels.flatten(), reduction="none")
    else:
        per_item = (expected_labels(scores.logits) - labels).square().flatten()
    dimensions = per_item.view_as(labels).mean(0).sum()
    total = F.huber_loss(scores.total, totals, delta=1.0)
    q = scores.q.view(-1, group_size)
    ranking = -F.logsigmoid(q[:, :1] - q[:, 1:]).mean(-1).mean()
    negatives = negatives_ranking(q[:, 1:], totals.view_as(q)[:, 1:])
    loss = dimensions + TOTAL_WEIGHT * total + RANKING_WEIGHT * ranking
    if negatives_weight:
        loss = loss + negatives_weight * negatives
    return {"loss": loss, "dimensions": dimensions, "total": total, "ranking": ranking, "negatives": negatives}


def negatives_ranking(q: Tensor, totals: Tensor) -> Tensor:
    """Neg–neg ranking of (G, N) negatives: mean of −log σ(q_better − q_worse) over a group's pairs, then over groups.

    A pair counts if its gold totals differ by at least `NEGATIVES_MARGIN`; a group without such a pair does not count
    (method.md leaves that case open), and without any the loss is 0.
    """
    better = totals[:, :, None] - totals[:, None, :] >= NEGATIVES_MARGIN - 1e-6  # 0.6 - 0.45 is below 0.15 in floats
    costs = -F.logsigmoid(q[:, :, None] - q[:, None, :]) * better
    pairs = better.sum((1, 2))
    by_group = costs.sum((1, 2)) / pairs.clamp(min=1)
    return by_group.sum() / (pairs > 0).sum().clamp(min=1)


def departure_loss(logits: Tensor, departures: Tensor) -> Tensor:
    """Cross-entropy of "the trace leaves the reference here", over the tokens (B, T) labelled 0 or 1. Source: ours."""
    known = departures >= 0
    return F.binary_cross_entropy_with_logits(logits[known], departures[known])


class TokenTree:
    """Texts as token lists, each distinct prefix kept once: what they share is read once.

    Node i has token `ids[i]` at depth `depths[i]` and may see its ancestors only; `ends` are the texts' last nodes. The
    hidden state there is that of the text alone, as attention looks back only.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.parents: list[int] = []
        self.ends: list[int] = []
        self._nodes: dict[tuple[int, int], int] = {}

    def add(self, text: list[int]) -> None:
        node = -1
        for depth, token in enumerate(text):
            parent, node = node, self._nodes.setdefault((node, token), len(self.ids))
            if node == len(self.ids):
                self.ids.append(token)
                self.depths.append(depth)
                self.parents.append(parent)
        self.ends.append(node)

    def visible(self) -> np.ndarray:
        """(T, T): whether node i sees node j."""
        seen = np.eye(len(self.ids), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


TREE_TOKENS = 1024  # attention inside a tree is dense: beyond this its cost eats what sharing saves
CPU_BATCH_TOKENS = 1024  # larger batches fall out of a core's cache: a third slower at 4,096 (tiny RM)
TREE_BACKBONES = ("qwen2", "qwen3", "llama")  # whose attention takes any mask as it is, and positions by relation only


def grow_trees(encoded: Sequence[list[int]], order: Sequence[int]) -> list[tuple[TokenTree, list[int]]]:
    """Token trees of the texts in `order`, each with its texts; a text joins if the one before has a third of it."""
    grown: list[tuple[TokenTree, list[int]]] = []
    previous: list[int] = []
    for i in order:
        text, shared = encoded[i], len(os.path.commonprefix([previous, encoded[i]]))
        if not grown or 3 * shared < len(text) or len(grown[-1][0].ids) + len(text) - shared > TREE_TOKENS:
            grown.append((TokenTree(), []))
        grown[-1][0].add(text)
        grown[-1][1].append(i)
        previous = text
    return grown


class TraceScorer(Protocol):
    """What scores traces: a `Scorer` here, or `rm_server.RemoteScorer` in front of a service."""

    def score(
        self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]: ...


class Scorer:
    """A Reasoning RM with its tokenizer, ready to score traces in length-sorted batches.

    Traces of one problem begin with the same tokens: these are read once for all of them (`TokenTree`), on backbones
    where that is known to change nothing.
    """

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

    def score(
        self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(q, labels): q of shape (N,) in [0, 1], expected labels of shape (N, 5) in [0, 4], in order."""
        texts = [reward_model_text(p, z) for p, z in zip(problems, traces, strict=True)]
        return self.score_tokens(self.encode(texts, self.max_length), progress=progress)

    def encode(self, texts: list[str], max_length: int) -> list[list[int]]:
        """Token ids of RM texts, cut at `max_length`."""
        if not texts:
            return []
        return self.tokenizer(texts, truncation=True, max_length=max_length, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def score_tokens(
        self, encoded: Sequence[list[int]], batch_size: int | None = None, progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """`score` of encoded texts, at most `batch_size` of them in one forward pass."""
        self.model.eval()
        q = np.zeros(len(encoded))
        labels = np.zeros((len(encoded), len(self.model.dimension_heads)))
        order = sorted(range(len(encoded)), key=lambda i: encoded[i])  # texts that begin alike side by side
        most = batch_size or max(1, len(order))
        with tqdm(total=len(order), desc=progress, disable=progress is None) as bar:
            for start in range(0, len(order), most):
                for texts, scores in self._batches(encoded, order[start : start + most]):
                    q[texts] = scores.q.float().cpu()
                    labels[texts] = expected_labels(scores.logits).float().cpu()
                    bar.update(len(texts))
        return q, labels

    def _batches(self, encoded: Sequence[list[int]], order: list[int]) -> Iterator[tuple[list[int], Scores]]:
        """(indices of texts, their scores) for the texts in `order`, batch by batch."""
        budget = min(self.batch_tokens, CPU_BATCH_TOKENS) if self.model.device.type == "cpu" else self.batch_tokens
        if self._shares_prefixes():
            trees = grow_trees(encoded, order)
            for batch in length_batches([len(tree.ids) for tree, _ in trees], budget):
                texts = [i for tree in batch for i in trees[tree][1]]
                yield texts, self.model.score_trees([trees[tree][0] for tree in batch])
            return
        for batch in length_batches([len(encoded[i]) for i in order], budget):
            texts = [order[i] for i in batch]
            inputs = self.tokenizer.pad({"input_ids": [encoded[i] for i in texts]}, return_tensors="pt")
            yield texts, self.model(**inputs.to(self.model.device))

    def _shares_prefixes(self) -> bool:
        backbone = self.model.config.backbone
        layers = set(getattr(backbone, "layer_types", None) or ["full_attention"])
        return backbone.model_type in TREE_BACKBONES and layers == {"full_attention"}
