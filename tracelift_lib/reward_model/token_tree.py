"""Token trees: what several texts have in common at their start is read once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tracelift_lib.reward_model.losses import Scores
from tracelift_lib.reward_model.model import ReasoningRewardModel

TREE_TOKENS = 1024  # attention inside a tree is dense: beyond this its cost eats what sharing saves


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
    ids = torch.zeros(len(trees), width, dtype=torch.long)
    seen = torch.zeros(len(trees), width, width, dtype=torch.bool)
    for row, tree in enumerate(trees):
        n = len(tree.ids)
        ids[row, :n], seen[row, :n, :n] = torch.tensor(tree.ids), torch.from_numpy(tree.visible())
    blocked = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    depths = (seen.sum(-1) - 1).clamp(min=0)  # how many ancestors a node has; 0 for padding
    inputs = {"input_ids": ids, "attention_mask": blocked[:, None], "position_ids": depths}
    output = model.model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}, use_cache=False)
    ends = [row * width + path[-1] for row, tree in enumerate(trees) for path in tree.paths.values()]
    return model.heads(output.last_hidden_state.flatten(0, 1)[ends])
