"""Natural errors: traces that models really wrote, with somebody else's labels. The paper does not test on them.

Four public sets. Their problems are test problems (of GSM8K and MATH), so nothing may be trained on them.

| set | from | label |
| --- | --- | --- |
| gsm8k_solutions | openai/grade-school-math, example_model_solutions: four models a problem | answer right or not |
| processbench_gsm8k, processbench_math | Qwen/ProcessBench | first wrong step, or none |
| prmbench | hitsmy/PRMBench_Preview: a solution and a version with errors put in | all wrong steps |

Every score reads the same text: `trace_of_solution` and `plain_step` say what is taken out of it, and why.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracelift_lib.evaluation.natural_sets import NaturalTrace, prefixes
from tracelift_lib.evaluation.planner_evaluation import CONFIDENCE
from tracelift_lib.models.generation import token_log_likelihoods
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import OPEN, PromptStyle, as_chat, planner_prompt
from tracelift_lib.reward_model.scorer import TraceScorer

CONTROL = "multi_solutions"  # PRMBench's kind whose second solution is right too
SCORES = {  # column -> name in tables; for all of them, higher means better reasoning
    "q": "RM",
    "log_likelihood": "LM log-likelihood, whole prefix",
    "step_log_likelihood": "LM log-likelihood, last step",
    "length": "length (shorter is better)",
    "coin": "coin",
}
LUCKY = "right answer, wrong reason"


def score_traces(
    traces: Sequence[NaturalTrace],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: TraceScorer | None,
    style: PromptStyle,
    batch_tokens: int,
    seed: int,
) -> pd.DataFrame:
    """One row a prefix: the fields of the trace, `step` (the prefix's last, from 0), `steps` (of the whole trace), and
    the SCORES; q only with a scorer.

    A language model reads each different (problem, trace) once: all its prefixes' likelihoods come from that.
    """
    parts = [(t, prefix) for t in traces for prefix in prefixes(t)]
    asked = [_as_problem(t.problem) for t, _ in parts]
    unique = list(dict.fromkeys((t.problem, t.steps) for t in traces))
    likelihood = dict(zip(unique, _prefix_likelihoods(unique, model, tokenizer, style, batch_tokens)))
    rows = pd.DataFrame(
        {
            "set": t.set,
            "item": t.item,
            "part": t.part,
            "kind": t.kind,
            "problem": t.problem,
            "step": len(prefix) - 1,
            "steps": len(t.steps),
            "errors": list(t.errors),
            "answer_right": t.answer_right,
            "log_likelihood": likelihood[t.problem, t.steps][len(prefix) - 1][0],
            "step_log_likelihood": likelihood[t.problem, t.steps][len(prefix) - 1][1],
            "length": -float(len("\n".join(prefix))),
        }
        for t, prefix in parts
    )
    rows["answer_right"] = rows["answer_right"].astype("boolean")
    if scorer:
        rows["q"] = scorer.score(asked, ["\n".join(prefix) for _, prefix in parts])[0]
    return rows.assign(coin=np.random.default_rng(seed).random(len(rows)))


def _as_problem(text: str) -> Problem:
    return Problem(
        problem_id="natural",
        source="natural",
        domain="math",
        task_type="math_word_problem",
        problem=text,
        reference_solution="",
        answer="",
    )


def _prefix_likelihoods(
    traces: Sequence[tuple[str, tuple[str, ...]]],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    style: PromptStyle,
    batch_tokens: int,
) -> list[np.ndarray]:
    """For each (problem, steps): shape (steps, 2), mean log-likelihood in nats a token of the prefix and of its last
    step. A token belongs to the step in which it starts."""
    texts = [f"{OPEN}\n" + "\n".join(steps) for _, steps in traces]
    prompts = [as_chat(planner_prompt(_as_problem(p), style), tokenizer) for p, _ in traces]
    values = token_log_likelihoods(model, tokenizer, prompts, texts, batch_tokens)
    offsets = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    result = []
    for (_, steps), logs, spans in zip(traces, values, offsets):
        ends = len(OPEN) + 1 + np.cumsum([len(s) + 1 for s in steps])
        step_of = np.searchsorted(ends, [start for start, _ in spans], side="right").clip(max=len(steps) - 1)
        sums = np.bincount(step_of, logs, minlength=len(steps))
        counts = np.bincount(step_of, minlength=len(steps))
        result.append(np.stack([sums.cumsum() / counts.cumsum(), sums / np.maximum(counts, 1)], axis=1))
    return result


def known_scores(rows: pd.DataFrame) -> list[str]:
    """The SCORES that `rows` holds."""
    return [name for name in SCORES if name in rows]


def cluster_interval(
    table: pd.DataFrame, statistic: Callable[[np.ndarray], float], resamples: int, seed: int
) -> tuple[float, float, float]:
    """(value, low, high): a statistic of column sums, with its 95 % percentile bootstrap over the rows of `table`.

    Args:
        table: a row a problem (the cluster), columns of sums over its traces. statistic: sums -> number.
    """
    values, rng = table.to_numpy(float), np.random.default_rng(seed)
    draws = [
        statistic(rng.multinomial(len(values), np.full(len(values), 1 / len(values))) @ values)
        for _ in range(resamples)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return statistic(values.sum(0)), float(low), float(high)


def _share(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def rank_solutions(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Right against wrong solutions of one problem, a row a (score, metric): value, low, high, cases.

    `pair accuracy` is the mean over problems of the share of (right, wrong) pairs in which the right one scores higher,
    ties half, a problem's own AUC. `AUC within problem` is that over all pairs; problems with more pairs count more.
    Cases are problems and pairs.
    """
    results = []
    for score in known_scores(rows):
        pairs = pd.DataFrame(_pairs_of(group, score) for _, group in rows.groupby("problem")).dropna()
        means = pd.DataFrame({"sum": pairs["wins"] / pairs["pairs"], "n": 1})
        for metric, table, n in (
            ("pair accuracy", means, len(pairs)),
            ("AUC within problem", pairs, int(pairs["pairs"].sum())),
        ):
            value, low, high = cluster_interval(table, _share, resamples, seed)
            results.append(
                {"score": SCORES[score], "metric": metric, "value": value, "low": low, "high": high, "cases": n}
            )
    return pd.DataFrame(results)


def _pairs_of(group: pd.DataFrame, score: str) -> dict[str, float]:
    right = group.loc[group["answer_right"].astype(bool), score].to_numpy()[:, None]
    wrong = group.loc[~group["answer_right"].astype(bool), score].to_numpy()[None, :]
    wins = ((right > wrong) + 0.5 * (right == wrong)).sum()
    return {"wins": wins, "pairs": right.size * wrong.size or np.nan}


def rank_pairs(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """PRMBench: the share of rows whose original process scores above the modified one (ties half), by kind.

    The kind `multi_solutions` holds no error: there 0.5 is what a fair score gives. `all kinds` is without it.
    Cases are rows.
    """
    last = rows[rows["step"] == rows["steps"] - 1]
    results = []
    for score in known_scores(rows):
        table = last.pivot_table(index=["problem", "kind", "item"], columns="part", values=score).reset_index()
        win = (table["original"] > table["modified"]) + 0.5 * (table["original"] == table["modified"])
        table = table.assign(win=win, n=1)
        errors = table[table["kind"] != CONTROL]
        for kind, part in [("all kinds", errors), *table.groupby("kind")]:
            if part.empty:
                continue
            value, low, high = cluster_interval(part.groupby("problem")[["win", "n"]].sum(), _share, resamples, seed)
            results.append(
                {"score": SCORES[score], "kind": kind, "value": value, "low": low, "high": high, "cases": len(part)}
            )
    return pd.DataFrame(results)


def first_below(scores: np.ndarray, threshold: float) -> int:
    """The decision rule: the first step whose prefix scores below `threshold`; -1 if there is none."""
    below = np.flatnonzero(scores < threshold)
    return int(below[0]) if len(below) else -1


def halves(problems: Sequence[str], seed: int) -> dict[str, int]:
    """Each problem's half, 0 or 1: a threshold is chosen on one and judged on the other."""
    unique = sorted(set(problems))
    random.Random(seed).shuffle(unique)
    return {p: i % 2 for i, p in enumerate(unique)}


GRID = 101  # thresholds tried: quantiles of the scores of the half on which it is chosen


def decide(
    rows: pd.DataFrame,
    score: str,
    outcome: Callable[[pd.DataFrame, float], pd.DataFrame],
    statistic: Callable[[np.ndarray], float],
    seed: int,
) -> pd.DataFrame:
    """`outcome` of every trace, each with the threshold that is best by `statistic` on the *other* half of problems.

    Args:
        outcome: (rows, threshold) -> a row a trace, with `problem` and columns to sum.
    """
    half = rows["problem"].map(halves(rows["problem"].tolist(), seed))
    results = []
    for judged in (0, 1):
        chosen_on, reported = rows[half != judged], rows[half == judged]
        if chosen_on.empty or reported.empty:
            raise InputError(
                "one problem only: a threshold cannot be chosen on other problems than it is judged on; "
                "raise the number of problems in natural_errors.sets"
            )
        thresholds = [*np.quantile(chosen_on[score], np.linspace(0, 1, GRID)), np.inf]
        quality = [statistic(outcome(chosen_on, t).drop(columns="problem").to_numpy(float).sum(0)) for t in thresholds]
        best = thresholds[int(np.argmax(np.nan_to_num(quality)))]
        results.append(outcome(reported, best).assign(threshold=best))
    return pd.concat(results, ignore_index=True)


def harmonic_f1(sums: np.ndarray) -> float:
    """ProcessBench's F1: harmonic mean of the accuracies on erroneous and on correct traces.

    Args:
        sums: found exactly, erroneous, left alone, correct.
    """
    wrong, right = (sums[0] / sums[1] if sums[1] else 0.0), (sums[2] / sums[3] if sums[3] else 0.0)
    return float(2 * wrong * right / (wrong + right)) if wrong + right else 0.0


def _first_error_outcome(score: str) -> Callable[[pd.DataFrame, float], pd.DataFrame]:
    """Of each trace: did the rule find its first error, or leave a correct trace alone."""

    def outcome(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
        rows = rows.sort_values(["item", "part", "step"], kind="stable")
        items = (rows["item"] + "\n" + rows["part"]).to_numpy()
        starts = np.flatnonzero(np.r_[True, items[1:] != items[:-1]])
        found = np.array([first_below(s, threshold) for s in np.split(rows[score].to_numpy(), starts[1:])])
        first = rows.iloc[starts]
        label = np.array([e[0] if len(e) else -1 for e in first["errors"]])
        wrong, hit = label >= 0, found == label
        lucky = wrong & first["answer_right"].fillna(False).to_numpy(bool)
        return pd.DataFrame(
            {
                "problem": first["problem"].to_numpy(),
                "hit_wrong": hit & wrong,
                "wrong": wrong,
                "hit_right": hit & ~wrong,
                "right": ~wrong,
                "flagged_lucky": (found >= 0) & lucky,
                "hit_lucky": hit & lucky,
                "lucky": lucky,
            }
        )

    return outcome


def find_first_errors(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """A row a (score, metric): F1 and its two accuracies, and, where answers are labelled, LUCKY traces alone.

    LUCKY: final answer right, a step wrong. Exact: the first wrong step found; flagged: any step. Of PRMBench's
    modified processes those count that have labels, or (CONTROL) no error.
    """
    known = rows["errors"].map(len) > 0
    rows = rows[known | (rows["part"] != "modified") | (rows["kind"] == CONTROL)]
    labelled = rows["answer_right"].notna().any()
    columns = {
        "F1": (["hit_wrong", "wrong", "hit_right", "right"], harmonic_f1),
        "accuracy on erroneous": (["hit_wrong", "wrong"], _share),
        "accuracy on correct": (["hit_right", "right"], _share),
        f"{LUCKY}: exact": (["hit_lucky", "lucky"], _share),
        f"{LUCKY}: flagged": (["flagged_lucky", "lucky"], _share),
    }
    results = []
    for score in known_scores(rows):
        traces = decide(rows, score, _first_error_outcome(score), harmonic_f1, seed)
        by_problem = traces.groupby("problem").sum()
        for metric, (names, statistic) in columns.items():
            if metric.startswith(LUCKY) and not labelled:
                continue
            table = by_problem[names]
            value, low, high = cluster_interval(table, statistic, resamples, seed)
            n = int(table.to_numpy()[:, 1].sum()) if metric != "F1" else len(traces)
            results.append(
                {"score": SCORES[score], "metric": metric, "value": value, "low": low, "high": high, "cases": n}
            )
    return pd.DataFrame(results)


def step_f1(sums: np.ndarray) -> float:
    """Mean of the F1 of finding wrong steps and of finding right ones, as PRMBench weighs them.

    Args:
        sums: wrong and flagged, wrong and not, right and flagged, right and not (counts of steps).
    """
    hit, miss, false, quiet = sums
    parts = [2 * a / (2 * a + miss + false) if a + miss + false else 0.0 for a in (hit, quiet)]
    return float(np.mean(parts))


def _step_outcome(score: str) -> Callable[[pd.DataFrame, float], pd.DataFrame]:
    def outcome(rows: pd.DataFrame, threshold: float) -> pd.DataFrame:
        flagged = rows[score].to_numpy() < threshold
        wrong = np.array([step in errors for step, errors in zip(rows["step"], rows["errors"])])
        return pd.DataFrame(
            {
                "problem": rows["problem"].to_numpy(),
                "hit": wrong & flagged,
                "miss": wrong & ~flagged,
                "false": ~wrong & flagged,
                "quiet": ~wrong & ~flagged,
            }
        )

    return outcome


def find_error_steps(rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """PRMBench: is a step of the modified processes wrong? A row per score: `step_f1` with interval."""
    rows = rows[(rows["part"] == "modified") & (rows["kind"] != CONTROL) & (rows["errors"].map(len) > 0)]
    results = []
    for score in known_scores(rows):
        steps = decide(rows, score, _step_outcome(score), step_f1, seed)
        table = steps.groupby("problem")[["hit", "miss", "false", "quiet"]].sum()
        value, low, high = cluster_interval(table, step_f1, resamples, seed)
        results.append(
            {"score": SCORES[score], "metric": "step F1", "value": value, "low": low, "high": high, "cases": len(steps)}
        )
    return pd.DataFrame(results)


def all_results(rows: pd.DataFrame, resamples: int, seed: int) -> dict[str, Any]:
    """Table by name: `ranking` (gsm8k_solutions), `first_errors` (ProcessBench, PRMBench), `pairs`, `error_steps`
    (PRMBench).

    Only of the sets that are in `rows`; a column `set` says which.
    """
    measures = {
        "gsm8k_solutions": {"ranking": rank_solutions},
        "processbench_gsm8k": {"first_errors": find_first_errors},
        "processbench_math": {"first_errors": find_first_errors},
        "prmbench": {"first_errors": find_first_errors, "pairs": rank_pairs, "error_steps": find_error_steps},
    }
    tables: dict[str, list[pd.DataFrame]] = {}
    for name, part in rows.groupby("set"):
        for table, measure in measures[name].items():
            result = measure(part, resamples, seed)
            result.insert(0, "set", name)
            tables.setdefault(table, []).append(result)
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}


HEADLINES = {  # table -> (column, its value that is the table's one number, what a coin gets)
    "ranking": ("metric", "pair accuracy", 0.5),
    "first_errors": ("metric", "F1", None),  # None: as measured, by the score `coin`
    "pairs": ("kind", "all kinds", 0.5),
    "error_steps": ("metric", "step F1", None),
}


def headlines(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One number a (set, score) of each table of `all_results`: task, score, value, low, high, cases, chance."""
    parts = []
    for name, (column, wanted, chance) in HEADLINES.items():
        if name in tables:
            part = tables[name][tables[name][column] == wanted]
            coin = part[part["score"] == SCORES["coin"]].set_index("set")
            parts.append(
                part.assign(
                    task=part["set"] + ": " + ("original above modified" if name == "pairs" else wanted),
                    **{
                        column: part["set"].map(coin[of]) if chance is None else chance
                        for column, of in (("chance", "value"), ("chance_low", "low"), ("chance_high", "high"))
                    },
                )
            )
    columns = ["task", "score", "value", "low", "high", "cases", "chance", "chance_low", "chance_high"]
    return pd.concat(parts, ignore_index=True)[columns]


def in_words(headline: pd.DataFrame) -> list[str]:
    """A sentence a task of `headlines`: the first score (the RM, if there is one) against chance and the best other."""
    sentences = []
    for task, part in headline.groupby("task", sort=False):
        own, others = part.iloc[0], part.iloc[1:]
        best = others.loc[others["value"].idxmax()]
        side = "not told apart from"
        if own["low"] > own["chance_high"] or own["high"] < own["chance_low"]:
            side = "above" if own["value"] > own["chance"] else "below"
        against = "not told apart by this sample from"
        if own["low"] > best["high"] or own["high"] < best["low"]:
            against = "better than" if own["value"] > best["value"] else "worse than"
        sentences.append(
            f"**{task}** ({own['cases']} cases): {own['score']} {_interval(own)}, {side} chance "
            f"({own['chance']:.2f}). It is {against} the best simple score, {best['score']}, {_interval(best)}."
        )
    return sentences


def _interval(row: pd.Series) -> str:
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
