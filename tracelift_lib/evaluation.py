"""Two-stage evaluation (planner, then executor) and the intervals that its tables carry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from tracelift_lib.executor import Executor
from tracelift_lib.generation import Sampler
from tracelift_lib.groups import Group, dimensions, has_truth, is_faithful
from tracelift_lib.problems import Problem
from tracelift_lib.prompts import PromptLimits, PromptStyle, as_chat, extract_trace, planner_prompt
from tracelift_lib.reward_model import TraceScorer

CONFIDENCE = 0.95


def evaluate_planner(
    planner: Sampler,
    executor: Executor,
    scorer: TraceScorer,
    problems: Sequence[Problem],
    traces: int,
    style: PromptStyle,
    limits: PromptLimits,
    seed: int,
) -> pd.DataFrame:
    """One row a sampled trace: problem_id, sample, trace, success, faithful, quality, tokens.

    `traces` traces a problem are drawn as in training; the executor answers each once. A completion without
    a well-formed trace is no success, is not faithful and has quality 0. Where the true steps of the problems are not
    known, there is no column faithful.
    """
    prompts = [as_chat(planner_prompt(p, style, limits), planner.tokenizer) for p in problems]
    completions = planner.sample(prompts, traces, seed, progress="planner")
    rows = pd.DataFrame(
        {"problem_id": p.problem_id, "sample": i, "trace": extract_trace(text)}
        for p, texts in zip(problems, completions)
        for i, text in enumerate(texts)
    )
    valid = rows["trace"].notna().to_numpy()
    by_id = {p.problem_id: p for p in problems}
    asked = [by_id[i] for i in rows.loc[valid, "problem_id"]]
    written = rows.loc[valid, "trace"].tolist()
    known = all(has_truth(p) for p in problems)
    for column in ("success", "quality", *(["faithful"] if known else [])):
        rows[column] = 0.0
    rows.loc[valid, "success"] = executor.verdicts(asked, written, 1, seed + 1, progress="executor")[:, 0]
    rows.loc[valid, "quality"] = scorer.score(asked, written, progress="reward model")[0]
    if known:
        rows.loc[valid, "faithful"] = [float(is_faithful(p, z)) for p, z in zip(asked, written)]
    rows["tokens"] = [len(ids) for ids in planner.tokenizer(rows["trace"].fillna("").tolist())["input_ids"]]
    return rows


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a proportion of independent trials."""
    interval = stats.binomtest(int(successes), n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """(mean, low, high) of per-problem values: 95 % percentile bootstrap over problems."""
    return paired_bootstrap(np.asarray(values, float)[None, :], None, resamples, seed)


def paired_bootstrap(
    treated: np.ndarray, control: np.ndarray | None, resamples: int, seed: int
) -> tuple[float, float, float]:
    """(mean difference, low, high): 95 % percentile bootstrap over seeds and problems at once.

    Args:
        treated: values of shape (seeds, problems).
        control: the same problems in the same order and the same seeds, or one row (a policy that has no
            seeds, such as the warm start), or None for the plain mean of `treated`.

    A resample draws seeds and problems with replacement, the same ones on both sides. With three seeds the
    interval over seeds is rough: read it as a lower bound of what other seeds would do.
    """
    control = np.zeros((1, treated.shape[1])) if control is None else control
    if control.shape[1] != treated.shape[1] or control.shape[0] not in (1, treated.shape[0]):
        raise ValueError(f"shapes {treated.shape} and {control.shape} cannot be paired")
    difference = treated - control
    rng = np.random.default_rng(seed)
    n_seeds, n_problems = difference.shape
    means = np.empty(resamples)
    for i in range(resamples):
        seeds = rng.integers(n_seeds, size=n_seeds)
        counts = np.bincount(rng.integers(n_problems, size=n_problems), minlength=n_problems)
        means[i] = difference[seeds].mean(0) @ counts / n_problems
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(difference.mean()), float(low), float(high)


def per_problem(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Mean of `column` over a problem's sampled traces, in order of problem_id."""
    return rows.groupby("problem_id")[column].mean().sort_index().to_numpy(float)


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
        {"problem_id": group.problem_id, "kind": candidate.negative_kind or "reference", "q": score,
         "gold_total": candidate.rubric.total,
         **{f"gold_{name}": candidate.rubric.labels[name] for name in dimensions(group.domain)},
         **{f"expected_{name}": value for name, value in zip(dimensions(group.domain), label)}}
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
        "pair_accuracy": float(wins.mean().mean()), "group_accuracy": float((wins.min() == 1).mean()),
        "mae": float(error.abs().mean()), "rmse": float((error**2).mean() ** 0.5),
        **{f"mae_{name}": float(value) for name, value in by_dimension.items()},
    }


def metrics_by_kind(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a kind of trace: kind, traces, pair_accuracy (nan for references), mae, rmse, bias (mean of q − gold)."""
    accuracy = pair_wins(rows).groupby("kind")["win"].mean()
    error = (rows["q"] - rows["gold_total"]).groupby(rows["kind"])
    return pd.DataFrame(
        {"traces": error.size(), "pair_accuracy": accuracy, "mae": error.apply(lambda e: e.abs().mean()),
         "rmse": error.apply(lambda e: (e**2).mean() ** 0.5), "bias": error.mean()}
    ).rename_axis("kind").reset_index()


def metrics_by_dimension(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a rubric dimension: dimension, accuracy (nearest label is the gold one), mae, rmse, on the scale 0..4."""
    names = [name.removeprefix("expected_") for name in rows if name.startswith("expected_")]
    errors = {name: rows[f"expected_{name}"] - rows[f"gold_{name}"] for name in names}
    return pd.DataFrame(
        {"dimension": name, "accuracy": float((error.abs() < 0.5).mean()), "mae": float(error.abs().mean()),
         "rmse": float((error**2).mean() ** 0.5)}
        for name, error in errors.items()
    )


def calibration_curve(rows: pd.DataFrame, bins: int = 10) -> pd.DataFrame:
    """Mean q, mean gold total and number of traces in equal bins of q over [0, 1]; empty bins are left out."""
    bin_of = np.minimum((rows["q"] * bins).astype(int), bins - 1)
    grouped = rows.groupby(bin_of)
    return pd.DataFrame(
        {"q": grouped["q"].mean(), "gold_total": grouped["gold_total"].mean(), "traces": grouped.size()}
    ).reset_index(drop=True)
