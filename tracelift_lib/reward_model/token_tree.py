"""Token trees: what several texts have in common at their start is read once."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch

from tracelift_lib.reward_model.losses import Scores
from tracelift_lib.reward_model.model import ReasoningRewardModel

TREE_TOKENS = 1024  # attention inside a tree is dense: beyond this its cost eats what sharing saves


class TokenTree:
    """Texts as token lists; what a text shares with the start of the one before it is kept once.

    Node i has token `ids[i]`; `paths[t]` are the nodes of text t, from its first token to its last. A node attends to
    its ancestors only, so the hidden state at a path's end is that of the text alone, as attention looks back only.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.paths: list[list[int]] = []

    def add(self, text: list[int], shared: int) -> None:
        """Add a text whose first `shared` tokens are those of the text before it."""
        known = self.paths[-1][:shared] if shared else []
        self.paths.append(known + list(range(len(self.ids), len(self.ids) + len(text) - shared)))
        self.ids += text[shared:]

    def visible(self) -> np.ndarray:
        """(T, T): whether node i attends to node j."""
        seen = np.zeros((len(self.ids), len(self.ids)), dtype=bool)
        for path in self.paths:
            seen[np.ix_(path, path)] = np.tri(len(path), dtype=bool)
        return seen


def grow_trees(encoded: Sequence[list[int]], order: Sequence[int]) -> list[tuple[TokenTree, list[int]]]:
    """Token trees of the texts in `order` (sorted by their tokens), each with the indices of its texts.

    A text joins the tree of the one before it if it shares at least a third of its tokens with that.
    """
    grown: list[tuple[TokenTree, list[int]]] = []
    previous: list[int] = []
    for i in order:
        text, shared = encoded[i], len(os.path.commonprefix([previous, encoded[i]]))
        if not grown or 3 * shared < len(text) or len(grown[-1][0].ids) + len(text) - shared > TREE_TOKENS:
            grown.append((TokenTree(), []))
            shared = 0
        tree, members = grown[-1]
        tree.add(text, shared)
        members.append(i)
        previous = text
    return grown


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
    ends = [row * width + path[-1] for row, tree in enumerate(trees) for path in tree.paths]
    return model.heads(output.last_hidden_state.flatten(0, 1)[ends])
