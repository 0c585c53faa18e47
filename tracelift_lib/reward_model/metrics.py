"""How well a reward model ranks and scores held-out groups (docs/method.md section 5).

One rule for ties, everywhere: in a pair of a reference and a flawed trace a tie counts half, so that a score which
says nothing, a constant or a coin, has pair accuracy 1/2 (as in the area under a ROC curve); a group counts as ranked
right only if its references are strictly above every flawed trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tracelift_lib.groups.schema import Group, dimensions
from tracelift_lib.reward_model.scorer import TraceScorer


def score_groups(scorer: TraceScorer, groups: Sequence[Group], progress: str | None = None) -> pd.DataFrame:
    """The RM's view of every trace of some groups of one domain, one row each: what the metrics below read.

    Columns: problem_id, kind (`reference` for a positive), q, gold_total, and for each dimension gold_NAME (label) and
    expected_NAME (expected label).
    """
    traces = [(g, c) for g in groups for c in g.candidates]
    names = list(dimensions(groups[0].domain))
    q, labels = scorer.score([g.as_problem() for g, _ in traces], [c.reasoning for _, c in traces], progress)
    known = [(g.problem_id, c.negative_kind or "reference", x, c.rubric.total) for (g, c), x in zip(traces, q)]
    table = pd.DataFrame(known, columns=["problem_id", "kind", "q", "gold_total"])
    gold = pd.DataFrame([c.rubric.labels for _, c in traces])[names].add_prefix("gold_")
    return pd.concat([table, gold, pd.DataFrame(labels, columns=names).add_prefix("expected_")], axis=1)


def pair_wins(rows: pd.DataFrame, score: str = "q") -> pd.DataFrame:
    """problem_id, kind and win of each (reference, flawed trace) pair: 1 if the reference scores higher, 1/2 if equal.

    Args:
        rows: what `score_groups` gives. score: the column to rank by.
    """
    is_reference = rows["kind"] == "reference"
    references = rows.loc[is_reference, ["problem_id", score]]
    pairs = rows[~is_reference].merge(references, on="problem_id", suffixes=("", "_reference"))
    best, other = pairs[f"{score}_reference"], pairs[score]
    return pairs[["problem_id", "kind"]].assign(win=(best > other) + 0.5 * (best == other))


def ranking(rows: pd.DataFrame, score: str = "q") -> pd.DataFrame:
    """For each problem_id (the index, sorted): pair_accuracy (mean win of its pairs) and group_accuracy (all are 1)."""
    wins = pair_wins(rows, score).groupby("problem_id")["win"]
    return pd.DataFrame({"pair_accuracy": wins.mean(), "group_accuracy": wins.min() == 1})


def mae(error: pd.Series) -> float:
    """Mean absolute error."""
    return float(error.abs().mean())


def rmse(error: pd.Series) -> float:
    """Root of the mean squared error."""
    return float((error**2).mean() ** 0.5)


def reward_model_metrics(rows: pd.DataFrame) -> dict[str, float]:
    """Metrics of docs/method.md section 5 on the rows of `score_groups`.

    pair_accuracy and group_accuracy (means of `ranking` over groups), mae and rmse of q against the gold total, and
    mae_NAME of each dimension's expected label, on its scale 0..4.
    """
    error = rows["q"] - rows["gold_total"]
    return {
        **ranking(rows).mean().to_dict(),
        "mae": mae(error),
        "rmse": rmse(error),
        **{f"mae_{row.dimension}": row.mae for row in metrics_by_dimension(rows).itertuples()},
    }


def metrics_by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each kind of trace: kind, traces, pair_accuracy (NaN for references), mae, rmse, bias (mean error)."""
    error = (rows["q"] - rows["gold_total"]).groupby(rows["kind"])
    table = error.agg(traces="size", mae=mae, rmse=rmse, bias="mean")
    table.insert(1, "pair_accuracy", pair_wins(rows).groupby("kind")["win"].mean())
    return table.reset_index()


def metrics_by_dimension(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each dimension: dimension, accuracy (nearest label is the gold one), mae, rmse, on the scale 0..4."""
    names = [name.removeprefix("expected_") for name in rows if name.startswith("expected_")]
    errors = {name: rows[f"expected_{name}"] - rows[f"gold_{name}"] for name in names}
    return pd.DataFrame(
        {"dimension": name, "accuracy": float((error.abs() < 0.5).mean()), "mae": mae(error), "rmse": rmse(error)}
        for name, error in errors.items()
    )


def calibration_curve(rows: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Mean q, mean gold total and number of traces in equal bins of q over [0, 1]; empty bins are left out."""
    bin_of = np.minimum((rows["q"] * bins).astype(int), bins - 1)
    columns = {"q": ("q", "mean"), "gold_total": ("gold_total", "mean"), "traces": ("q", "size")}
    return rows.groupby(bin_of).agg(**columns).reset_index(drop=True)
