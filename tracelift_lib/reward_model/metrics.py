"""How well a reward model ranks and scores held-out groups (method.md section 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tracelift_lib.groups.schema import Group, dimensions
from tracelift_lib.reward_model.scorer import TraceScorer


def ranking(q_positive: np.ndarray, q_negatives: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Per group: (share of negatives scored below the positive, whether all are); ties count half, or not.

    Args:
        q_positive: (G,) scores. q_negatives: for each group its negatives' scores.
    """
    pairs = np.array([((p > n) + 0.5 * (p == n)).mean() for p, n in zip(q_positive, q_negatives)])
    groups = np.array([bool((p > n).all()) for p, n in zip(q_positive, q_negatives)])
    return pairs, groups


def score_groups(scorer: TraceScorer, groups: Sequence[Group], progress: str | None = None) -> pd.DataFrame:
    """The RM's view of every trace of some groups, one row each: what the metrics below read.

    Columns: problem_id, kind (`reference` for a positive), q, gold_total, and for each dimension gold_NAME (label) and
    expected_NAME (expected label).
    """
    traces = [(g, c) for g in groups for c in [*g.positive_pool, *g.negative_bank]]
    q, labels = scorer.score([g.as_problem() for g, _ in traces], [c.reasoning for _, c in traces], progress)
    return pd.DataFrame(
        {
            "problem_id": group.problem_id,
            "kind": candidate.negative_kind or "reference",
            "q": score,
            "gold_total": candidate.rubric.total,
            **{f"gold_{name}": candidate.rubric.labels[name] for name in dimensions(group.domain)},
            **{f"expected_{name}": value for name, value in zip(dimensions(group.domain), label)},
        }
        for (group, candidate), score, label in zip(traces, q, labels)
    )


def pair_wins(rows: pd.DataFrame) -> pd.DataFrame:
    """problem_id, kind and win (1.0 or 0.0) of each (reference, flawed trace) pair: the reference scores higher.

    Args:
        rows: what `score_groups` gives.
    """
    is_reference = rows["kind"] == "reference"
    references = rows.loc[is_reference, ["problem_id", "q"]].rename(columns={"q": "q_ref"})
    pairs = rows[~is_reference].merge(references, on="problem_id")
    return pairs[["problem_id", "kind"]].assign(win=(pairs["q_ref"] > pairs["q"]).astype(float))


def reward_model_metrics(rows: pd.DataFrame) -> dict[str, float]:
    """Metrics of method.md section 5 on the rows of `score_groups`.

    pair_accuracy (mean over the pairs of a group, then over groups; a tie is no win), group_accuracy (share of groups
    whose references win every pair), mae and rmse of q against the gold total, and mae_NAME of each dimension's
    expected label, on its scale 0..4.
    """
    wins = pair_wins(rows).groupby("problem_id")["win"]
    error = rows["q"] - rows["gold_total"]
    by_dimension = metrics_by_dimension(rows).set_index("dimension")["mae"]
    return {
        "pair_accuracy": float(wins.mean().mean()),
        "group_accuracy": float((wins.min() == 1).mean()),
        "mae": float(error.abs().mean()),
        "rmse": float((error**2).mean() ** 0.5),
        **{f"mae_{name}": float(value) for name, value in by_dimension.items()},
    }


def metrics_by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a kind of trace: kind, traces, pair_accuracy (nan for references), mae, rmse, bias (mean of q − gold)."""
    accuracy = pair_wins(rows).groupby("kind")["win"].mean()
    error = (rows["q"] - rows["gold_total"]).groupby(rows["kind"])
    return (
        pd.DataFrame(
            {
                "traces": error.size(),
                "pair_accuracy": accuracy,
                "mae": error.apply(lambda e: e.abs().mean()),
                "rmse": error.apply(lambda e: (e**2).mean() ** 0.5),
                "bias": error.mean(),
            }
        )
        .rename_axis("kind")
        .reset_index()
    )


def metrics_by_dimension(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a rubric dimension: dimension, accuracy (nearest label is the gold one), mae, rmse, on the scale 0..4."""
    names = [name.removeprefix("expected_") for name in rows if name.startswith("expected_")]
    errors = {name: rows[f"expected_{name}"] - rows[f"gold_{name}"] for name in names}
    return pd.DataFrame(
        {
            "dimension": name,
            "accuracy": float((error.abs() < 0.5).mean()),
            "mae": float(error.abs().mean()),
            "rmse": float((error**2).mean() ** 0.5),
        }
        for name, error in errors.items()
    )


def calibration_curve(rows: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Mean q, mean gold total and number of traces in equal bins of q over [0, 1]; empty bins are left out."""
    bin_of = np.minimum((rows["q"] * bins).astype(int), bins - 1)
    grouped = rows.groupby(bin_of)
    return pd.DataFrame(
        {"q": grouped["q"].mean(), "gold_total": grouped["gold_total"].mean(), "traces": grouped.size()}
    ).reset_index(drop=True)
