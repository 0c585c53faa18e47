"""Losses of the Reasoning Reward Model (docs/method.md section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TOTAL_WEIGHT, RANKING_WEIGHT = 0.5, 0.7
NEGATIVES_MARGIN = 0.15  # gold totals of two negatives must be this far apart to be ranked against each other


@dataclass
class Scores:
    """Head outputs of B traces: `logits` (B, 5 dimensions, 5 labels), `total` and `q` (B,) in [0, 1].

    `log_p` (B, T), of an RM with doubt: what the backbone held each token for, as a log-probability.
    """

    logits: Tensor
    total: Tensor
    q: Tensor
    log_p: Tensor | None = None


def expected_labels(logits: Tensor) -> Tensor:
    """E[label] of each dimension: (B, D, L) logits to (B, D) values in 0..L-1."""
    labels = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * labels).sum(-1)


def reward_model_loss(
    scores: Scores,
    labels: Tensor,
    totals: Tensor,
    group_size: int,
    dimension_loss: str = "ce",
    negatives_weight: float = 0.0,
) -> dict[str, Tensor]:
    """The loss of docs/method.md section 5 on B = G · group_size traces, the positive first in each group.

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
        per_label = F.cross_entropy(scores.logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
    else:
        per_label = (expected_labels(scores.logits) - labels).square()
    q = scores.q.view(-1, group_size)
    parts = {
        "dimensions": per_label.mean(0).sum(),
        "total": F.huber_loss(scores.total, totals, delta=1.0),
        "ranking": -F.logsigmoid(q[:, :1] - q[:, 1:]).mean(-1).mean(),
        "negatives": negatives_ranking(q[:, 1:], totals.view_as(q)[:, 1:]),
    }
    loss = parts["dimensions"] + TOTAL_WEIGHT * parts["total"] + RANKING_WEIGHT * parts["ranking"]
    return {"loss": loss + negatives_weight * parts["negatives"], **parts}


def negatives_ranking(q: Tensor, totals: Tensor) -> Tensor:
    """Neg–neg ranking of (G, N) negatives: mean of −log σ(q_better − q_worse) over a group's pairs, then over groups.

    A pair counts if its gold totals differ by at least `NEGATIVES_MARGIN`; a group without such a pair does not count
    (docs/method.md section 5 leaves that case open), and without any the loss is 0.
    """
    better = totals[:, :, None] - totals[:, None, :] >= NEGATIVES_MARGIN - 1e-6  # 0.6 - 0.45 is below 0.15 in floats
    costs = -F.logsigmoid(q[:, :, None] - q[:, None, :]) * better
    pairs = better.sum((1, 2))
    by_group = costs.sum((1, 2)) / pairs.clamp(min=1)
    return by_group.sum() / (pairs > 0).sum().clamp(min=1)


def lm_loss(log_p: Tensor, mask: Tensor) -> Tensor:
    """Mean of -log p over the tokens (B, T) that `mask` names: how well the backbone foretells them."""
    return -log_p[mask.bool()].mean()
