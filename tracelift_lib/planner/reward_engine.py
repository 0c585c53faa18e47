"""Rewards of sampled completions while a planner trains: every part computed at once, kept, and never guessed.

Two choices of the preset decide what is drawn from the executor (method.md sections 1 and 8):

- `baseline: cached` (default): runs without a trace do not depend on it, so each problem has M of them, drawn once
  before training. The error of this estimate, variance p0 (1 - p0) / M, is common to all completions of a problem and
  to all visits: more visits do not average it out, a larger M makes it small. `fresh` is the paper's: K anew a trace.
- `s_run: separate` (default) is the paper's: s is one run of its own. `merged`: s is the mean of the K runs, one run
  fewer. Both have the expectation p_z, so arms that are linear in s and û keep their expected reward. But s and û move
  together: the variance that these runs give 0.5 s + 0.5 q û is p_z (1 - p_z) (1 + q)² / 4K where separate runs give
  p_z (1 - p_z) (1 + q² / K) / 4. That is never more for K >= 3; for K = 1 and 2 it can be. `released_code` is not
  linear (sign, clip), so merging changes what it pays on average.

Identical traces of one problem in a batch are computed once and share all parts: other luck for the same trace would
only be noise in the group's advantages. Their errors are correlated, the expected reward of each is unchanged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tracelift_lib.executor.backends import CallFailed, derived_seed
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.groups.truth import true_rubric
from tracelift_lib.planner.rewards import ARMS, NEEDS, code_coefficient, compares, uplift
from tracelift_lib.problems.files import write_json
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import extract_trace
from tracelift_lib.reward_model.remote import ScoringError
from tracelift_lib.reward_model.scorer import TraceScorer
from tracelift_lib.verifier.verdicts import Verdict

log = logging.getLogger(__name__)
PARTS = ("s", "q", "u", "j", "c")  # in the order in which the arms take them
BASELINE = "baseline_success"
FORMAT_ERRORS = "format_errors"  # share of completions without a trace
STEPS = "steps"  # folder of figures a step, beside the files of rows


class TooManyFailures(RuntimeError):
    """More reward computations failed than the preset allows; training on the rest would be biased."""


@dataclass
class RewardEngine:
    """Rewards of sampled completions, every part of them kept.

    A completion without a well-formed trace gets reward 0 in every arm: it cannot have helped. If any part that the
    arm needs fails (executor, verifier, RM, judge), the reward is None, which TRL leaves out of the group; the failure
    is counted by its kind and stops the run above `max_failure_rate`. A failure is never a reward.

    Attributes:
        baseline: problem id -> no-trace verdicts, drawn once from the frozen executor; None: drawn anew (`fresh`).
        ties: bonus coefficients of `released_code` for a tie of 0..K successes; None: those of the released code.
        judge: rubric total of an LLM judge, for the arm `llm_judge`; called in threads.
        failures: kind -> failed rewards so far.
        began, ended: when the newest batch came and was done (time.monotonic).
    """

    arm: str
    k: int
    executor: Executor
    scorer: TraceScorer | None
    problems: dict[str, Problem]
    baseline: dict[str, list[int]] | None
    seed: int
    max_failure_rate: float
    log_folder: Path
    s_run: Literal["separate", "merged"] = "separate"
    ties: Sequence[float] | None = None
    judge: Callable[[Problem, str], float] | None = None
    failures: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    began: float = 0.0
    ended: float = 0.0

    async def reward(
        self,
        completions: list[str],
        problem_id: list[str],
        trainer_state: Any,
        completion_ids: list[list[int]] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list:
        """TRL's reward function: one reward (or None) a completion; logs the step's rows and figures."""
        self.began, step = time.monotonic(), trainer_state.global_step
        if not self.calls:
            self._recall_failures(before=step)
        rows, figures = await self.score(completions, problem_id, seed=self.seed * 1_000_003 + step)
        for row, ids in zip(rows, completion_ids or []):
            row["tokens"] = len(ids)
        if log_metric:
            log_metric(FORMAT_ERRORS, sum(row["trace"] is None for row in rows) / len(rows))
        (self.log_folder / STEPS).mkdir(exist_ok=True)
        write_json(self.log_folder / STEPS / f"{step:06d}.json", {"step": step, **figures})
        write_json(self.log_folder / f"{step:06d}.json", [{"step": step, **row} for row in rows])
        self._check_failures()
        self.ended = time.monotonic()
        return [row["reward"] for row in rows]

    async def score(
        self, completions: Sequence[str], problem_ids: Sequence[str], seed: int
    ) -> tuple[list[dict], dict[str, Any]]:
        """(rows, figures): a row a completion (trace, parts, reward, failure), and what the batch took.

        A part that failed or was not needed is NaN or 0.0; `baseline_success`, the mean of the no-trace verdicts, is
        NaN where the arm compares with none; `malformed` is a completion that holds no trace. Figures: seconds by
        phase, which overlap: wall time of the batch and of the executor, summed time of verifier calls, time of the
        RM; share of traces that repeat another of their problem; failures by kind.
        """
        start, seconds = time.monotonic(), Counter()
        keys = [(i, extract_trace(text)) for i, text in zip(problem_ids, completions, strict=True)]
        traces = list(dict.fromkeys(key for key in keys if key[1]))
        parts = dict(zip(traces, await self._parts(traces, seed, seconds)))
        rows = [
            {
                "problem_id": key[0],
                "trace": key[1],
                "malformed": None if key[1] else text,
                "completion_characters": len(text),
                "reward": 0.0,
                "failure": None,
                **dict.fromkeys(PARTS, 0.0),
                BASELINE: self._cached_baseline(key[0]),
                **parts.get(key, {}),
            }
            for key, text in zip(keys, completions)
        ]
        failed = Counter(row["failure"] for row in rows if row["failure"])
        self.failures += failed
        self.calls += len(rows)
        written = sum(trace is not None for _, trace in keys)
        return rows, {
            "seconds": time.monotonic() - start,
            "executor_seconds": seconds["executor"],
            "verifier_seconds": seconds["verifier"],
            "rm_seconds": seconds["rm"],
            "repeated_traces": 1 - len(traces) / written if written else 0.0,
            "baseline": "fresh" if self.baseline is None else "cached",
            "failures": dict(failed),
        }

    async def _parts(self, keys: list[tuple[str, str]], seed: int, seconds: Counter[str]) -> list[dict]:
        """Parts, reward and failure of each (problem id, trace); whatever does not wait for another part overlaps."""
        problems, traces = [self.problems[i] for i, _ in keys], [trace for _, trace in keys]
        needs = NEEDS[self.arm]
        runs = 1 if not compares(self.arm) else self.k + (self.s_run == "separate")
        fresh = compares(self.arm) and self.baseline is None
        results = await asyncio.gather(
            self.executor.verified(problems, traces, runs, seed, seconds),
            self.executor.verified(problems, [None] * len(keys), self.k, derived_seed(seed, "baseline"), seconds)
            if fresh
            else _constant(len(keys), None),
            self._quality(problems, traces, seconds) if "q" in needs else _constant(len(keys), 0.0),
            self._judge_all(problems, traces) if "j" in needs else _constant(len(keys), 0.0),
        )
        return [self._part(*row) for row in zip(problems, *results)]

    def _part(self, problem: Problem, runs: Any, without: Any, q: Any, j: Any) -> dict:
        """One trace's parts, or the first failure among them."""
        for value in (runs, without, q, j):
            if isinstance(value, CallFailed):
                log.warning("no reward for a trace of problem %s: %s", problem.problem_id, value)
                return {**dict.fromkeys(PARTS, math.nan), "reward": None, "failure": value.kind}
        part = {**dict.fromkeys(PARTS, 0.0), **self._from_runs(problem, runs, without), "q": q, "j": j}
        return {**part, "reward": ARMS[self.arm](*(part[name] for name in PARTS))}

    def _from_runs(self, problem: Problem, runs: list[Verdict], without: list[Verdict] | None) -> dict:
        """s, and û or c if the arm compares. Of the separate runs the first is s."""
        if not compares(self.arm):
            return {"s": runs[0].s}
        merged = self.s_run == "merged"
        s = sum(r.s for r in runs) / len(runs) if merged else runs[0].s
        with_trace = [r.success for r in (runs if merged else runs[1:])]
        no_trace = [r.success for r in without] if without is not None else self.baseline[problem.problem_id]
        part = {"s": s, "u": uplift(with_trace, no_trace), BASELINE: sum(no_trace) / len(no_trace)}
        if "c" in NEEDS[self.arm]:
            part["c"] = float(code_coefficient(sum(with_trace), sum(no_trace), self.k, self.ties))
        return part

    def _cached_baseline(self, problem_id: str) -> float:
        """Mean of the no-trace verdicts of a problem; NaN if they are drawn anew, or not at all."""
        if self.baseline is None or not compares(self.arm):
            return math.nan
        return sum(self.baseline[problem_id]) / len(self.baseline[problem_id])

    async def _quality(self, problems: list[Problem], traces: list[str], seconds: Counter[str]) -> list:
        """q of each trace, from one call in length-sorted batches, in a thread; a service may fail for some of them."""
        start = time.monotonic()
        try:
            scores = (await asyncio.to_thread(self.scorer.score, problems, traces))[0] if traces else []
        except ScoringError as error:
            log.warning("the reward model's service failed: %s", error)
            failed = CallFailed(f"reward_model_{error.kind}", str(error))
            scores = [math.nan] * len(traces) if error.q is None else error.q
            return [float(q) if math.isfinite(q) else failed for q in scores]
        except Exception as error:
            log.exception("the reward model failed")
            return [CallFailed("reward_model", f"{type(error).__name__}: {error}")] * len(traces)
        seconds["rm"] += time.monotonic() - start
        return [_finite(float(q), "reward_model") for q in scores]

    async def _judge_all(self, problems: list[Problem], traces: list[str]) -> list:
        async def one(problem: Problem, trace: str) -> float | CallFailed:
            try:
                return _finite(float(await asyncio.to_thread(self.judge, problem, trace)), "judge")
            except Exception as error:
                return CallFailed("judge", f"{type(error).__name__}: {error}")

        return await asyncio.gather(*(one(p, z) for p, z in zip(problems, traces)))

    def _recall_failures(self, before: int) -> None:
        """Count what the log has of the steps before: a resumed run must not forget the failures of its first part."""
        for path in self.log_folder.glob("*.json"):
            rows = json.loads(path.read_text())
            if int(path.stem) < before:
                self.calls += len(rows)
                self.failures += Counter(row["failure"] for row in rows if row["failure"])

    def _check_failures(self) -> None:
        failed = self.failures.total()
        if failed > self.max_failure_rate * self.calls:
            kinds = ", ".join(f"{kind} {n}" for kind, n in self.failures.most_common())
            raise TooManyFailures(
                f"{failed} of {self.calls} rewards failed ({kinds}), more than the allowed share "
                f"{self.max_failure_rate} (execution.max_failure_rate); see {self.log_folder}"
            )


async def _constant(n: int, value: Any) -> list:
    return [value] * n


def _finite(value: float, kind: str) -> float | CallFailed:
    return value if math.isfinite(value) else CallFailed(kind, f"the score is {value}")


def truth_judge(problem: Problem, trace: str) -> float:
    """The ground truth's rubric total, standing in for an LLM judge in the tiny world."""
    return true_rubric(problem, trace).total
