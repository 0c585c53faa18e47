"""Natural errors: traces that models really wrote, with somebody else's labels. The paper does not test on them.

Four public sets, and files of the user's own (docs/natural_errors.md). The public sets' problems are test problems (of
GSM8K and MATH), so nothing may be trained on them.

| set | from | label |
| --- | --- | --- |
| gsm8k_solutions | openai/grade-school-math, example_model_solutions: four models per problem | answer right or not |
| processbench_gsm8k, processbench_math | Qwen/ProcessBench | first wrong step, or none |
| prmbench | hitsmy/PRMBench_Preview: a solution and a version with errors put in | all wrong steps |

Every score reads the same text: `trace_of_solution` and `plain_step` (natural_sets.py) say what is taken out of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracelift_lib.evaluation.intervals import mean_interval, percentile_interval
from tracelift_lib.evaluation.natural_sets import LABELS_OF, Labels, NaturalTrace, prefixes
from tracelift_lib.models.generation import token_log_likelihoods
from tracelift_lib.problems.files import InputError
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
GRID = 101  # thresholds tried: quantiles of the scores of the half on which one is chosen


# --- scores -----------------------------------------------------------------------------------------------------------


def score_traces(
    traces: Sequence[NaturalTrace],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: TraceScorer | None,
    style: PromptStyle,
    batch_tokens: int,
    seed: int,
) -> pd.DataFrame:
    """One row per prefix: the fields of the trace, `step` (the prefix's last, from 0), `steps` (their number in the
    whole trace), and the SCORES; q only with a scorer.

    A language model reads each different (problem, trace) once: all its prefixes' likelihoods come from that.
    """
    unique = {(t.problem, t.steps): t for t in traces}
    prompts = [as_chat(planner_prompt(t.as_problem(), style), tokenizer) for t in unique.values()]
    read = [f"{OPEN}\n" + "\n".join(t.steps) for t in unique.values()]
    logs = token_log_likelihoods(model, tokenizer, prompts, read, batch_tokens)
    starts = tokenizer(read, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    likelihoods = dict(zip(unique, map(_prefix_likelihoods, unique.values(), logs, starts)))
    cases = [(t, len(prefix), "\n".join(prefix)) for t in traces for prefix in prefixes(t)]
    rows = pd.DataFrame(
        {
            **{name: getattr(t, name) for name in ("set", "item", "part", "kind", "problem", "labels")},
            "step": length - 1,
            "steps": len(t.steps),
            "errors": list(t.errors),
            "answer_right": t.answer_right,
            **likelihoods[t.problem, t.steps].iloc[length - 1],
            "length": -float(len(text)),
        }
        for t, length, text in cases
    ).astype({"answer_right": "boolean"})
    if scorer:
        rows["q"] = scorer.score([t.as_problem() for t, *_ in cases], [text for *_, text in cases])[0]
    return rows.assign(coin=np.random.default_rng(seed).random(len(rows)))


def _prefix_likelihoods(trace: NaturalTrace, logs: np.ndarray, spans: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """Mean log-likelihood in nats per token of each prefix of a trace and of the prefix's last step, a row each.

    Args:
        logs: log-likelihood of each token. spans: (start, end) of each token; it belongs to the step it starts in.
    """
    n = len(trace.steps)
    ends = len(OPEN) + 1 + np.cumsum([len(step) + 1 for step in trace.steps])
    step_of = np.searchsorted(ends, [start for start, _ in spans], side="right").clip(max=n - 1)
    sums, counts = np.bincount(step_of, logs, n), np.bincount(step_of, minlength=n)
    last = sums / np.maximum(counts, 1)
    return pd.DataFrame({"log_likelihood": sums.cumsum() / counts.cumsum(), "step_log_likelihood": last})


# --- measures of one score --------------------------------------------------------------------------------------------


class Measure(NamedTuple):
    """One row of a table: a statistic of column sums, whose interval is a bootstrap over problems.

    Attributes:
        label: of the row, its metric or kind of error.
        counts: one row for each trace, pair or step, indexed by problem.
        statistic: column sums -> value.
        cases: number of traces, pairs or steps behind it.
    """

    label: str
    counts: pd.DataFrame
    statistic: Callable[[np.ndarray], float]
    cases: int

    def interval(self, resamples: int, seed: int) -> tuple[float, float, float]:
        """(value, low, high): 95 % percentile bootstrap over the problems (clusters of traces).

        Of a share that is 0 or 1 every resample is too: then it is that of as many trials as problems (Wilson).
        """
        values = self.counts.groupby("problem").sum().to_numpy(float)
        if self.statistic is share and self.statistic(values.sum(0)) in (0, 1):
            return mean_interval(np.full(int((values[:, 1] > 0).sum()), self.statistic(values.sum(0))))
        n = len(values)
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        low_high = percentile_interval([self.statistic(times @ values) for times in drawn])
        return self.statistic(values.sum(0)), *low_high


def share(sums: np.ndarray) -> float:
    """The first sum over the second; NaN without cases."""
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def rank_solutions(rows: pd.DataFrame, score: str, seed: int) -> Iterator[Measure]:
    """Right against wrong solutions of one problem.

    `pair accuracy` is the mean over problems of the share of (right, wrong) pairs in which the right one scores higher,
    ties half, a problem's own AUC. `AUC within problem` is that over all pairs; problems with more pairs count more.
    Cases are problems and pairs.
    """
    right = rows["answer_right"].astype(bool)
    pairs = rows[right].merge(rows[~right], on="problem", suffixes=("_right", "_wrong")).set_index("problem")
    wins = np.heaviside(pairs[f"{score}_right"] - pairs[f"{score}_wrong"], 0.5).to_frame("wins")
    means = wins.groupby("problem").mean()
    yield Measure("pair accuracy", means.assign(n=1), share, len(means))
    yield Measure("AUC within problem", wins.assign(n=1), share, len(wins))


def rank_pairs(rows: pd.DataFrame, score: str, seed: int) -> Iterator[Measure]:
    """PRMBench: the share of rows whose original process scores above the modified one (ties half), by kind.

    The kind `multi_solutions` holds no error: there 0.5 is what a fair score gives. `all kinds` is without it.
    """
    whole = rows[rows["step"] == rows["steps"] - 1]
    pairs = whole.pivot_table(index=["problem", "kind", "item"], columns="part", values=score).reset_index("kind")
    pairs = pairs.assign(win=np.heaviside(pairs["original"] - pairs["modified"], 0.5), n=1)
    for kind, part in [("all kinds", pairs[pairs["kind"] != CONTROL]), *pairs.groupby("kind")]:
        if len(part):
            yield Measure(kind, part[["win", "n"]], share, len(part))


def halves(problems: Sequence[str], seed: int) -> dict[str, int]:
    """Each problem's half, 0 or 1: a threshold is chosen on one and judged on the other."""
    unique = sorted(set(problems))
    random.Random(seed).shuffle(unique)
    return {p: i % 2 for i, p in enumerate(unique)}


def decide(
    rows: pd.DataFrame,
    score: str,
    outcome: Callable[[pd.DataFrame, pd.Series], pd.DataFrame],
    statistic: Callable[[np.ndarray], float],
    seed: int,
) -> pd.DataFrame:
    """`outcome` of flagging each step whose prefix scores below a threshold.

    The threshold is the one that is best by `statistic` on the *other* half of problems.

    Args:
        outcome: (rows, which of them are flagged) -> counts to sum for each trace or step, indexed by problem.
    """
    half = rows["problem"].map(halves(rows["problem"], seed))
    results = []
    for judged in (0, 1):
        chosen_on, reported = rows[half != judged], rows[half == judged]
        if chosen_on.empty or reported.empty:
            raise InputError(
                "one problem only: a threshold cannot be chosen on other problems than it is judged on; "
                "raise the number of problems in natural_errors.sets"
            )
        thresholds = np.append(np.unique(np.quantile(chosen_on[score], np.linspace(0, 1, GRID))), np.inf)
        found = [statistic(outcome(chosen_on, chosen_on[score] < t).to_numpy().sum(0)) for t in thresholds]
        results.append(outcome(reported, reported[score] < thresholds[np.argmax(found)]))
    return pd.concat(results)


def harmonic_f1(sums: np.ndarray) -> float:
    """ProcessBench's F1: harmonic mean of the accuracies on erroneous and on correct traces.

    Args:
        sums: first error found exactly, erroneous, left alone, correct; further sums are ignored.
    """
    wrong, right = (sums[i] / sums[i + 1] if sums[i + 1] else 0.0 for i in (0, 2))
    return float(2 * wrong * right / (wrong + right)) if wrong + right else 0.0


def _first_error_outcome(rows: pd.DataFrame, flagged: pd.Series) -> pd.DataFrame:
    """Of each trace: is its first flagged step its first error, or is a correct trace left alone. No step: infinity."""
    traces = rows.loc[rows["step"] == 0, ["problem", "first_error", "lucky"]].set_index("problem")
    found = np.minimum.reduceat(np.where(flagged, rows["step"], np.inf), np.flatnonzero(rows["step"] == 0))
    wrong, hit, lucky = np.isfinite(traces["first_error"]), found == traces["first_error"], traces["lucky"]
    counts = {"hit_wrong": hit & wrong, "wrong": wrong, "hit_right": hit & ~wrong, "right": ~wrong}
    return pd.DataFrame(
        counts | {"flagged_lucky": np.isfinite(found) & lucky, "hit_lucky": hit & lucky, "lucky": lucky}
    )


def find_first_errors(rows: pd.DataFrame, score: str, seed: int) -> Iterator[Measure]:
    """F1 and its two accuracies, and, where answers are labelled, LUCKY traces alone: final answer right, a step wrong.

    Exact: the first wrong step found; flagged: any step. Of PRMBench's modified processes those count that have labels,
    or (CONTROL) no error.
    """
    known = rows["errors"].map(len) > 0
    first_error = rows["errors"].map(lambda errors: errors[0] if len(errors) else np.inf)
    rows = rows.assign(first_error=first_error, lucky=known & rows["answer_right"].fillna(False).astype(bool))
    rows = rows[known | (rows["part"] != "modified") | (rows["kind"] == CONTROL)].sort_values(["item", "part", "step"])
    traces = decide(rows, score, _first_error_outcome, harmonic_f1, seed)
    yield Measure("F1", traces[["hit_wrong", "wrong", "hit_right", "right"]], harmonic_f1, len(traces))
    shares = {"accuracy on erroneous": ["hit_wrong", "wrong"], "accuracy on correct": ["hit_right", "right"]}
    if rows["answer_right"].notna().any():
        shares |= {f"{LUCKY}: exact": ["hit_lucky", "lucky"], f"{LUCKY}: flagged": ["flagged_lucky", "lucky"]}
    for label, columns in shares.items():
        yield Measure(label, traces[columns], share, int(traces[columns[1]].sum()))


def step_f1(sums: np.ndarray) -> float:
    """Mean of the F1 of finding wrong steps and of finding right ones, as PRMBench weighs them.

    Args:
        sums: wrong and flagged, wrong and not, right and flagged, right and not (counts of steps).
    """
    hit, miss, false, quiet = sums
    return float(np.mean([2 * a / (2 * a + miss + false) if a + miss + false else 0.0 for a in (hit, quiet)]))


def _step_outcome(rows: pd.DataFrame, flagged: pd.Series) -> pd.DataFrame:
    wrong = rows["wrong"]
    counts = {"hit": wrong & flagged, "miss": wrong & ~flagged, "false": ~wrong & flagged, "quiet": ~wrong & ~flagged}
    return pd.DataFrame(counts).set_index(rows["problem"])


def find_error_steps(rows: pd.DataFrame, score: str, seed: int) -> Iterator[Measure]:
    """PRMBench: is a step of the modified processes wrong? Cases are steps."""
    rows = rows[(rows["part"] == "modified") & (rows["kind"] != CONTROL) & (rows["errors"].map(len) > 0)]
    rows = rows.assign(wrong=[step in errors for step, errors in zip(rows["step"], rows["errors"])])
    steps = decide(rows, score, _step_outcome, step_f1, seed)
    yield Measure("step F1", steps, step_f1, len(steps))


# --- tables -----------------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A table of `all_results` and the one of its numbers that is a headline."""

    labels: tuple[Labels, ...]  # sets that it is of, by what is labelled in them
    measures: Callable[[pd.DataFrame, str, int], Iterator[Measure]]  # (rows of a set, score, seed) -> rows of the table
    column: str  # name of the column that names the rows
    headline: str  # row
    chance: float | None  # what a coin gets; None: as measured, by the score `coin`


TABLES = {
    "ranking": Table(("answer",), rank_solutions, "metric", "pair accuracy", 0.5),
    "first_errors": Table(("pairs", "first_error"), find_first_errors, "metric", "F1", None),
    "pairs": Table(("pairs",), rank_pairs, "kind", "all kinds", 0.5),
    "error_steps": Table(("pairs",), find_error_steps, "metric", "step F1", None),
}


def results(name: str, rows: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """One of the TABLES for each set and score in `rows`: set, score, label, value, low, high (95 %), cases."""
    table, records = TABLES[name], []
    labels = rows["labels"] if "labels" in rows else rows["set"].map(LABELS_OF)  # an older table of scores has none
    for of, part in rows[labels.isin(table.labels)].groupby("set"):
        for score in [score for score in SCORES if score in part]:
            for measure in table.measures(part, score, seed):
                interval = measure.interval(resamples, seed)
                records.append((of, SCORES[score], measure.label, *interval, measure.cases))
    return pd.DataFrame(records, columns=["set", "score", table.column, "value", "low", "high", "cases"])


def all_results(rows: pd.DataFrame, resamples: int, seed: int) -> dict[str, pd.DataFrame]:
    """Those of the TABLES that have a set in `rows`, by name."""
    tables = {name: results(name, rows, resamples, seed) for name in TABLES}
    return {name: table for name, table in tables.items() if len(table)}


CHANCE = {"value": "chance", "low": "chance_low", "high": "chance_high"}


def headlines(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One number per (set, score) of each table of `all_results`: task, score, value, low, high, cases, chance.

    Other tables that the caller has added are left out.
    """
    parts = []
    for name in [name for name in TABLES if name in tables]:
        *_, label, wanted, chance = TABLES[name]
        part = tables[name][tables[name][label] == wanted]
        part = part.assign(task=part["set"] + ": " + ("original above modified" if name == "pairs" else wanted))
        coin = part[part["score"] == SCORES["coin"]].set_index("set")[list(CHANCE)].rename(columns=CHANCE)
        parts.append(part.join(coin if chance is None else coin.assign(**dict.fromkeys(coin, chance)), on="set"))
    return pd.concat(parts, ignore_index=True)[["task", "score", *CHANCE, "cases", *CHANCE.values()]]


def in_words(headline: pd.DataFrame) -> list[str]:
    """A sentence per task of `headlines`: the first score (the RM, if there is one) against chance and the next."""
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
