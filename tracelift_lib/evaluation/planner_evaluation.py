"""Two-stage evaluation of a planner: it writes traces, and the executor answers with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tracelift_lib.executor.frozen import Executor
from tracelift_lib.groups.habits import habit_of
from tracelift_lib.groups.truth import corrupted, has_truth, is_faithful, is_sufficient
from tracelift_lib.models.generation import Sampler
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptLimits, PromptStyle, as_chat, extract_trace, planner_prompt
from tracelift_lib.problems.tinyworld import ask_between
from tracelift_lib.reward_model.scorer import TraceScorer


def evaluate_planner(
    planner: Sampler,
    executor: Executor,
    scorer: TraceScorer,
    problems: Sequence[Problem],
    traces: int,
    style: PromptStyle,
    limits: PromptLimits,
    seed: int,
    second: Executor | None = None,
) -> pd.DataFrame:
    """One row per sampled trace: problem_id, sample, trace, success, quality, tokens (a count), well_formed.

    For each problem `traces` completions are drawn as in training; the executor answers once per trace. A completion
    without a well-formed trace is no success and has quality 0.

    Where the true steps of the problems are known also: faithful, habit (groups/habits.py), sufficient, and corrupted,
    the success with the trace once one step is falsified. With a `second` executor, which has never seen the planner:
    second, its success, and for stories intermediate, its success at what comes after the first event.
    """
    prompts = [as_chat(planner_prompt(p, style, limits), planner.tokenizer) for p in problems]
    completions = planner.sample(prompts, traces, seed, progress="planner")
    rows = pd.DataFrame(
        {"problem_id": p.problem_id, "sample": i, "trace": extract_trace(text)}
        for p, texts in zip(problems, completions)
        for i, text in enumerate(texts)
    )
    written = rows[rows["trace"].notna()]
    by_id = {p.problem_id: p for p in problems}
    asked, texts = [by_id[i] for i in written["problem_id"]], written["trace"].tolist()
    truth = all(has_truth(p) for p in problems)
    measures = _measures(executor, scorer, second, asked, texts, truth, seed)
    rows = rows.join(pd.DataFrame(measures, written.index, dtype=float).reindex(rows.index, fill_value=0.0))
    if truth:
        rows["habit"] = [habit_of(by_id[i], z) for i, z in zip(rows["problem_id"], rows["trace"])]
    rows["tokens"] = [len(ids) for ids in planner.tokenizer(rows["trace"].fillna("").tolist())["input_ids"]]
    return rows


def _measures(
    executor: Executor,
    scorer: TraceScorer,
    second: Executor | None,
    problems: list[Problem],
    traces: list[str],
    truth: bool,
    seed: int,
) -> dict[str, Sequence[float]]:
    """Values of well-formed traces by measure, as `evaluate_planner` names them."""
    measures = {
        "success": executor.verdicts(problems, traces, 1, seed + 1, progress="executor")[:, 0],
        "quality": scorer.score(problems, traces, progress="reward model")[0],
    }
    if truth:
        measures["faithful"] = [is_faithful(p, z) for p, z in zip(problems, traces)]
        measures["sufficient"] = [is_sufficient(p, z) for p, z in zip(problems, traces)]
        measures["corrupted"] = executor.verdicts(problems, [corrupted(z) for z in traces], 1, seed + 2)[:, 0]
    if second:
        measures["second"] = second.verdicts(problems, traces, 1, seed + 3)[:, 0]
        if truth and all(p.domain == "math" for p in problems):
            measures["intermediate"] = second.verdicts([ask_between(p) for p in problems], traces, 1, seed + 4)[:, 0]
    return measures | {"well_formed": [1.0] * len(traces)}


def per_problem(rows: pd.DataFrame, column: str) -> np.ndarray:
    """Mean of `column` over a problem's sampled traces, in order of problem_id."""
    return rows.groupby("problem_id")[column].mean().sort_index().to_numpy(float)
