"""Texts that begin alike, read once: token trees."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np


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
