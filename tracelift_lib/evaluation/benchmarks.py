"""Planner and executor on benchmark sets: traces, answers, verdicts, each kept, so that a killed run goes on.

Three conditions: the executor alone, with the reference trace, and two-stage, with a planner's trace. Verdicts under
other answer rules, pass@k, averages and comparisons are computed afterwards from what was kept (benchmark_tables.py).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from tracelift_lib.evaluation.benchmark_sets import LoadedSet
from tracelift_lib.executor.backends import LocalBackend, derived_seed
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.models.generation import Sampler
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptLimits, Templates, as_chat, extract_trace, wrap_trace
from tracelift_lib.verifier.verdicts import Verdict, Verifier

CHUNK = 16  # problems answered between two saves
ALONE, REFERENCE = "executor_alone", "reference_trace"
NO_TRACE = "no trace"  # outcome of a completion that keeps to no format: no success, and no executor is asked


class Policy(NamedTuple):
    """Where traces come from.

    Attributes:
        name: `executor_alone`, `reference_trace`, or that of a planner; planners that differ by `seed` only share it.
        planner: None for the first two.
        revision: of the planner's weights.
    """

    name: str
    seed: int = 0
    planner: Sampler | None = None
    revision: str = ""


@dataclass
class SetExecutor(Executor):
    """An executor that is asked in the words of a benchmark set."""

    templates: Templates | None = None

    def prompt(self, problem: Problem, trace: str | None) -> str:
        """As `Executor.prompt`."""
        shown = problem.problem[: self.limits.problem]
        if trace is None:
            return self.templates.executor.format(problem=shown)
        return self.templates.executor_with_trace.format(problem=shown, trace=wrap_trace(trace[: self.limits.trace]))


def limits_of(domain: str, limits: PromptLimits | None) -> PromptLimits:
    """The cuts of prompts: the preset's, else the paper's for this domain (docs/method.md section 6)."""
    return limits or (PromptLimits(3500, 2500) if domain == "code" else PromptLimits())


def evaluate_set(
    loaded: LoadedSet,
    policy: Policy,
    executor: Executor,
    samples: int,
    seed: int,
    folder: Path,
    facts: Mapping[str, str] | None = None,
    limits: PromptLimits | None = None,
) -> pd.DataFrame:
    """One row for each problem and sample, saved in `folder` every CHUNK problems; what is there is not asked again.

    Columns: set, domain, policy, policy_seed, problem_id, sample, problem, truth; completion, trace, well_formed,
    answer; rule, success, s, outcome; trace_tokens and answer_tokens (NaN where there is no trace, or no tokenizer
    here), cut (a text ended at its limit of tokens), seconds (of the chunk, shared out), seed, planner_revision,
    and `facts` of code and executor. Outputs that another `verifier_version` judged than theirs are judged again.

    A problem's draws depend on `seed` and on the problems of its chunk only, so a run that was cut off and one that was
    not give the same. A sample is a trace and one answer with it, or one answer where there is no planner.

    Raises:
        CallFailed: an executor behind a server has no answer; run it again to go on.
    """
    spec, style = loaded.set, executor.style
    fit = limits_of(spec.domain, limits)
    asked = SetExecutor(
        executor.backend, style, fit, Verifier(spec.rule, executor.verifier.style), spec.templates(style)
    )
    parts = _all_parts(loaded, policy, asked, samples, seed, folder, facts or {})
    wanted = {p.problem_id: i for i, p in enumerate(loaded.problems)}
    rows = pd.concat(parts, ignore_index=True)
    rows = rows[rows["problem_id"].isin(wanted)].sort_values(["problem_id", "sample"], ignore_index=True)
    version = (facts or {}).get("verifier_version", "")
    stale = rows["verifier_version"] != version
    return _judged_again(rows, stale, loaded.problems, asked.verifier, version) if stale.any() else rows


def _all_parts(
    loaded: LoadedSet,
    policy: Policy,
    asked: SetExecutor,
    samples: int,
    seed: int,
    folder: Path,
    facts: Mapping[str, str],
) -> list[pd.DataFrame]:
    """The rows that `folder` has, and those of the problems that are missing there, which are asked and saved now."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = loaded.set
    parts = [pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))]
    done = {problem for part in parts for problem in part["problem_id"]}
    same = {"set": spec.name, "domain": spec.domain, "policy": policy.name, "policy_seed": policy.seed}
    same |= {"rule": spec.rule, "planner_revision": policy.revision, "verifier_version": "", **facts}
    title = f"{spec.name}, {policy.name}" + (f"/{policy.seed}" if policy.planner else "")
    with tqdm(total=len(loaded.problems), desc=title, unit=" problems") as bar:
        for start in range(0, len(loaded.problems), CHUNK):
            chunk = loaded.problems[start : start + CHUNK]
            if new := [p for p in chunk if p.problem_id not in done]:
                rows = _chunk_rows(new, policy, asked, samples, derived_seed(seed, policy.seed, new[0].problem_id))
                rows = rows.assign(**same)
                name = hashlib.sha256("\0".join(p.problem_id for p in new).encode()).hexdigest()[:12]
                _save(rows, folder / f"{name}.parquet")
                parts.append(rows)
            bar.update(len(chunk))
    return parts


def _judged_again(
    rows: pd.DataFrame, stale: pd.Series, problems: list[Problem], verifier: Verifier, version: str
) -> pd.DataFrame:
    by_id = {p.problem_id: p for p in problems}
    answers = [None if pd.isna(y) else y for y in rows.loc[stale, "answer"]]
    verdicts = judge([by_id[i] for i in rows.loc[stale, "problem_id"]], answers, verifier)
    rows.loc[stale, "success"] = [float(v.success) for v in verdicts]
    rows.loc[stale, "s"] = [v.s for v in verdicts]
    rows.loc[stale, "outcome"] = [v.outcome for v in verdicts]
    return rows.assign(verifier_version=version)


def _save(rows: pd.DataFrame, path: Path) -> None:
    """By rename: a killed run leaves no half file."""
    rows.to_parquet(path.with_suffix(".tmp"), index=False)
    path.with_suffix(".tmp").rename(path)


def _chunk_rows(problems: list[Problem], policy: Policy, asked: SetExecutor, samples: int, seed: int) -> pd.DataFrame:
    start = time.monotonic()
    each = [p for p in problems for _ in range(samples)]
    completions, traces = _traces(problems, policy, asked, samples, seed)
    answers: list[str | None] = [None] * len(each)
    if policy.planner is None:  # one prompt, several answers
        given = [traces[i * samples] for i in range(len(problems))]
        texts = asked.answer(problems, given, samples, derived_seed(seed, "answers"))
        answers = [y for ys in texts for y in ys]
    elif written := [i for i, trace in enumerate(traces) if trace is not None]:
        texts = asked.answer([each[i] for i in written], [traces[i] for i in written], 1, derived_seed(seed, "answers"))
        for i, (y,) in zip(written, texts):
            answers[i] = y
    verdicts = judge(each, answers, asked.verifier)
    local = asked.backend.sampler if isinstance(asked.backend, LocalBackend) else None
    trace_tokens, trace_cut = _tokens(completions, policy.planner)
    answer_tokens, answer_cut = _tokens(answers, local)
    return pd.DataFrame(
        {
            "problem_id": [p.problem_id for p in each],
            "sample": list(range(samples)) * len(problems),
            "problem": [p.problem for p in each],
            "truth": [p.answer for p in each],
            "completion": completions,
            "trace": traces,
            "well_formed": [z is not None for z in traces] if policy.planner else True,
            "answer": answers,
            "success": np.array([v.success for v in verdicts], float),
            "s": [v.s for v in verdicts],
            "outcome": [v.outcome for v in verdicts],
            "trace_tokens": [n if z is not None else np.nan for n, z in zip(trace_tokens, traces)],
            "answer_tokens": answer_tokens,
            "cut": np.array(trace_cut) | np.array(answer_cut),
            "seconds": (time.monotonic() - start) / len(each),
            "seed": seed,
        }
    ).astype({"completion": "string", "trace": "string", "answer": "string"})


def _traces(
    problems: list[Problem], policy: Policy, asked: SetExecutor, samples: int, seed: int
) -> tuple[list[str | None], list[str | None]]:
    """(what the planner wrote, the trace in it or given) of each problem and sample."""
    if policy.planner is None:
        with_reference = policy.name == REFERENCE
        return [None] * len(problems) * samples, [
            p.reference_solution if with_reference else None for p in problems for _ in range(samples)
        ]
    planner = policy.planner
    texts = [asked.templates.planner.format(problem=p.problem[: asked.limits.problem]) for p in problems]
    drawn = planner.sample([as_chat(text, planner.tokenizer) for text in texts], samples, seed)
    completions: list[str | None] = [text for one in drawn for text in one]
    return completions, [extract_trace(text) for text in completions]


def _tokens(texts: Sequence[str | None], sampler: Sampler | None) -> tuple[list[float], list[bool]]:
    """(length in tokens, whether it is as long as it may be) of each text; NaN and False without text or tokenizer."""
    if sampler is None:
        return [np.nan] * len(texts), [False] * len(texts)
    ids = sampler.tokenizer([text or "" for text in texts], add_special_tokens=False)["input_ids"]
    lengths = [np.nan if text is None else float(len(i)) for text, i in zip(texts, ids)]
    return lengths, [n >= sampler.sampling.max_new_tokens for n in lengths]


def judge(problems: Sequence[Problem], answers: Sequence[str | None], verifier: Verifier) -> list[Verdict]:
    """A verdict for every answer; None gets NO_TRACE, and one that the verifier cannot judge says why.

    Such an answer counts as no success; its outcome starts with `not judged`.
    """
    found = [Verdict(0, 0.0, NO_TRACE)] * len(answers)
    given = [i for i, y in enumerate(answers) if y is not None]
    try:
        verdicts = verifier.verify([problems[i] for i in given], [answers[i] for i in given])
    except (ValueError, RuntimeError):  # one of them; the others have theirs
        verdicts = [_judge_one(problems[i], answers[i], verifier) for i in given]
    for i, verdict in zip(given, verdicts):
        found[i] = verdict
    return found


def _judge_one(problem: Problem, answer: str, verifier: Verifier) -> Verdict:
    try:
        return verifier.verify([problem], [answer])[0]
    except (ValueError, RuntimeError) as error:
        return Verdict(0, 0.0, f"not judged: {error}")


def usable(loaded: LoadedSet, policy: Policy) -> LoadedSet:
    """The set for this policy. Raises InputError where it has no reference traces and one is to be given."""
    if policy.name != REFERENCE:
        return loaded
    with_trace = [p for p in loaded.problems if p.reference_solution.strip()]
    if not with_trace:
        raise InputError(
            f"set {loaded.set.name}: has no reference traces; leave `reference` out of --planner for it, or name the "
            "field that holds them (fields.reference)"
        )
    return replace(loaded, problems=with_trace)


def sampling_facts(sampler: Sampler | None) -> dict[str, Any]:
    """The effective settings of one model, for a manifest."""
    if sampler is None:
        return {}
    s = sampler.sampling
    facts = {
        "temperature": s.temperature,
        "top_p": s.top_p,
        "max_new_tokens": s.max_new_tokens,
        "greedy": s.temperature == 0,
    }
    return facts | {"dtype": str(sampler.model.dtype), "parameters": sampler.model.num_parameters()}
