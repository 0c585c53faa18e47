"""Scores of traces by a reward model in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from tracelift_lib.models.generation import length_batches
from tracelift_lib.models.loading import load_tokenizer
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import reward_model_text
from tracelift_lib.reward_model.losses import Scores, expected_labels
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.token_tree import grow_trees, score_trees

CPU_BATCH_TOKENS = 1024  # larger batches fall out of a core's cache: a third slower at 4,096 (tiny RM)
TREE_BACKBONES = ("qwen2", "qwen3", "llama")  # whose attention takes any mask as it is, and positions by relation only
TraceScores = tuple[np.ndarray, np.ndarray]  # q of shape (N,), expected labels of shape (N, 5)


class TraceScorer(Protocol):
    """What scores traces: a `Scorer` here, or `remote.RemoteScorer` in front of a service."""

    def score(self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None) -> TraceScores: ...


class Scorer:
    """A Reasoning RM with its tokenizer, ready to score traces in length-sorted batches.

    Traces of one problem begin with the same tokens: these are read once for all of them (`TokenTree`), on backbones
    where that is known to change nothing.
    """

    def __init__(
        self, model: ReasoningRewardModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, max_length: int
    ):
        """`batch_tokens` bounds the padded tokens of a forward pass; texts are cut to `max_length` tokens."""
        self.model, self.tokenizer = model, tokenizer
        self.batch_tokens, self.max_length = batch_tokens, max_length

    @classmethod
    def from_folder(cls, folder: Path | str, batch_tokens: int, max_length: int) -> Scorer:
        """The model and tokenizer in `folder`, on the GPU if there is one."""
        model = ReasoningRewardModel.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, load_tokenizer(folder), batch_tokens, max_length)

    def score(self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None) -> TraceScores:
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
    ) -> TraceScores:
        """`score` of encoded texts, at most `batch_size` of them in one forward pass."""
        self.model.eval()
        q, labels = np.zeros(len(encoded)), np.zeros((len(encoded), len(self.model.dimension_heads)))
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
        config, device = self.model.config, self.model.device
        budget = min(self.batch_tokens, CPU_BATCH_TOKENS) if device.type == "cpu" else self.batch_tokens
        layers = set(getattr(config, "layer_types", None) or ["full_attention"])
        if config.model_type in TREE_BACKBONES and layers == {"full_attention"}:
            trees = grow_trees(encoded, order)
            for batch in length_batches([len(tree.ids) for tree in trees], budget):
                together = [trees[i] for i in batch]
                yield [i for tree in together for i in tree.paths], score_trees(self.model, together)
            return
        for batch in length_batches([len(encoded[i]) for i in order], budget):
            texts = [order[i] for i in batch]
            inputs = self.tokenizer.pad({"input_ids": [encoded[i] for i in texts]}, return_tensors="pt")
            yield texts, self.model(**inputs.to(device))
