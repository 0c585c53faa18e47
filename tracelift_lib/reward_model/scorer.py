"""Scores of traces by a reward model in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from tracelift_lib.reward_model.model import Reading, ReasoningRewardModel

CPU_BATCH_TOKENS = 1024  # larger batches fall out of a core's cache: a third slower at 4,096 (tiny RM)
TREE_TOKENS = 1024  # attention inside a tree is dense: beyond this its cost eats what sharing saves
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


@dataclass
class TokenTree:
    """Some texts as lists of tokens; what a text shares with the start of the one before it is kept once.

    Node i has token `ids[i]`; `paths` has for each text (by its index) its nodes from the first token to the last. A
    node attends to its ancestors only, so the hidden state at a path's end is that of the text alone, as attention
    looks back only.
    """

    ids: list[int]
    paths: dict[int, list[int]]

    def visible(self) -> np.ndarray:
        """(T, T): whether node i attends to node j."""
        seen = np.zeros((len(self.ids), len(self.ids)), dtype=bool)
        for path in self.paths.values():
            seen[np.ix_(path, path)] = np.tri(len(path), dtype=bool)
        return seen


def grow_trees(encoded: Sequence[list[int]], order: Sequence[int]) -> list[TokenTree]:
    """Token trees of the texts in `order` (sorted by their tokens).

    A text joins the tree of the one before it if it shares at least a third of its tokens with that.
    """
    trees: list[TokenTree] = []
    previous, path = [], []
    for i in order:
        text, shared = encoded[i], len(os.path.commonprefix([previous, encoded[i]]))
        if not trees or 3 * shared < len(text) or len(trees[-1].ids) + len(text) - shared > TREE_TOKENS:
            trees.append(TokenTree([], {}))
            shared = 0
        tree = trees[-1]
        path = path[:shared] + list(range(len(tree.ids), len(tree.ids) + len(text) - shared))
        tree.ids += text[shared:]
        tree.paths[i] = path
        previous = text
    return trees


def score_trees(model: ReasoningRewardModel, trees: Sequence[TokenTree]) -> Scores:
    """Scores of all texts of some token trees, tree after tree, in one forward pass."""
    width, dtype = max(len(tree.ids) for tree in trees), model.model.dtype
    ids, parents = torch.zeros(len(trees), width, dtype=torch.long), torch.full((len(trees), width), -1)
    seen = torch.zeros(len(trees), width, width, dtype=torch.bool)
    for row, tree in enumerate(trees):
        n = len(tree.ids)
        ids[row, :n], seen[row, :n, :n] = torch.tensor(tree.ids), torch.from_numpy(tree.visible())
        for path in tree.paths.values() if model.doubt is not None else ():
            before = model.trace_parents(ids[row, path][None])[0]
            parents[row, path] = torch.tensor(path)[before].where(before >= 0, -1)
    blocked = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    depths = (seen.sum(-1) - 1).clamp(min=0)  # how many ancestors a node has; 0 for padding
    inputs = {"attention_mask": blocked[:, None], "position_ids": depths}
    reading = Reading(ids.to(model.device), parents.to(model.device))
    output = model.read(reading, **{k: v.to(model.device) for k, v in inputs.items()}, use_cache=False)
    ends = [row * width + path[-1] for row, tree in enumerate(trees) for path in tree.paths.values()]
    return model.heads(output.last_hidden_state.flatten(0, 1)[ends])
