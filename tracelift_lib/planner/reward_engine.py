"""Rewards of sampled completions while a planner trains: all parts computed concurrently, logged, and never guessed.

Two choices of the preset decide what is drawn from the executor (docs/method.md sections 1 and 8):

- `baseline: cached` (default): runs without a trace do not depend on it, so each problem has M of them, drawn once
  before training. The error of this estimate, variance p0 (1 - p0) / M, is common to all completions of a problem and
  to all visits: more visits do not average it out, a larger M makes it small. `fresh` is the paper's: K anew per trace.
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
from tracelift_lib.planner.rewards import ARMS, NEEDS, code_coefficient, compares, uplift
from tracelift_lib.problems.files import write_json
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import extract_trace
from tracelift_lib.reward_model.remote import ScoringError
from tracelift_lib.reward_model.scorer import TraceScorer
from tracelift_lib.verifier.verdicts import Verdict

log = logging.getLogger(__name__)
Runs = list[Verdict] | CallFailed  # verdicts of some executor runs, or why there are none
Score = float | CallFailed
PARTS = ("s", "q", "u", "j", "c", "t")  # in the order in which the arms take them
BASELINE = "baseline_success"  # mean verdict without a trace
FORMAT_ERRORS = "format_errors"  # share of completions without a trace
FAILED_SCORE = 0.5  # of the released code's reward model, if the call fails
STEPS = "steps"  # folder of each step's stats, beside the files of rollouts


class TooManyFailures(RuntimeError):
    """More reward computations failed than the preset allows; training on the rest would be biased."""


@dataclass
class RewardEngine:
    """Rewards of sampled completions, every part of them logged.

    A completion without a well-formed trace gets reward 0 in every arm: it cannot have helped. If any part that the
    arm needs fails (executor, verifier, RM, judge), the reward is None, which TRL leaves out of the group; the failure
    is counted by its kind. A failure is never a reward, unless `failed` is `released_code`: then runs that failed are
    attempts without success, and a score that failed is 0.5 (docs/method.md section 9).

    The run stops when `min_failures` rewards or more have failed and their share is above `max_failure_rate`: early in
    a run, one lost call is a large share and says nothing. With a rate of 0 the first failure stops it.

    Attributes:
        baseline: problem id -> no-trace verdicts, drawn once from the frozen executor; None: drawn anew (`fresh`).
        ties: bonus coefficients of `released_code` for a tie of 0..K successes; None: those of the released code.
        scorer, judge: who gives q, and j (judges.py); called in threads.
        n_rewards: number of rewards so far, failed ones too.
        failures: kind -> number of failed rewards so far.
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
    judge: TraceScorer | None = None
    min_failures: int = 10
    failed: Literal["no_reward", "released_code"] = "no_reward"
    n_rewards: int = 0
    failures: Counter[str] = field(default_factory=Counter)
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
    ) -> list[float | None]:
        """TRL's reward function: the reward (or None) of each completion; logs the step's rollouts and stats."""
        self.began, step = time.monotonic(), trainer_state.global_step
        if not self.n_rewards:
            self._recall_failures(before=step)
        rows, stats = await self.score(completions, problem_id, seed=self.seed * 1_000_003 + step)
        for row, ids in zip(rows, completion_ids or []):
            row["tokens"] = len(ids)
        if log_metric:
            log_metric(FORMAT_ERRORS, sum(row["trace"] is None for row in rows) / len(rows))
        (self.log_folder / STEPS).mkdir(exist_ok=True)
        write_json(self.log_folder / STEPS / f"{step:06d}.json", {"step": step, **stats})
        write_json(self.log_folder / f"{step:06d}.json", [{"step": step, **row} for row in rows])
        self._check_failures()
        self.ended = time.monotonic()
        return [row["reward"] for row in rows]

    async def score(
        self, completions: Sequence[str], problem_ids: Sequence[str], seed: int
    ) -> tuple[list[dict], dict[str, Any]]:
        """(rows, stats): for each completion its trace, parts, reward and failure; the batch's stats.

        In a row a part that failed is NaN, one that the arm does not need 0.0; `baseline_success`, the mean of the
        no-trace verdicts, is NaN where the arm does not compare; `malformed` is a completion that contains no trace.

        Stats: seconds by phase, which overlap (wall time of the batch and of the executor, summed time of verifier
        calls, time of the RM); share of traces that repeat another of their problem.
        """
        start, seconds = time.monotonic(), Counter()
        cached = self.baseline if compares(self.arm) and self.baseline else {}
        traces = [extract_trace(text) for text in completions]
        written = [(i, trace) for i, trace in zip(problem_ids, traces, strict=True) if trace]
        distinct = list(dict.fromkeys(written))
        parts = dict(zip(distinct, await self._parts(distinct, seed, seconds)))
        rows = [
            {
                "problem_id": problem_id,
                "trace": trace,
                "malformed": None if trace else text,
                "completion_characters": len(text),
                "reward": 0.0,
                "failure": None,
                **dict.fromkeys(PARTS, 0.0),
                BASELINE: _mean(cached.get(problem_id, ())),
                **parts.get((problem_id, trace), {}),
            }
            for problem_id, trace, text in zip(problem_ids, traces, completions)
        ]
        self._reward(rows)
        self._count(rows)
        return rows, {
            "seconds": time.monotonic() - start,
            "executor_seconds": seconds["executor"],
            "verifier_seconds": seconds["verifier"],
            "rm_seconds": seconds["reward_model"],
            "repeated_traces": 1 - len(distinct) / len(written) if written else 0.0,
            "baseline": "fresh" if self.baseline is None else "cached",
        }

    async def _parts(self, keys: list[tuple[str, str]], seed: int, seconds: Counter[str]) -> list[dict]:
        """Parts, or failure, of each (problem id, trace); executor, RM and judge work at the same time."""
        problems, traces = [self.problems[i] for i, _ in keys], [trace for _, trace in keys]
        verified = self.executor.verified
        k = self.k + (self.s_run == "separate") if compares(self.arm) else 1
        calls = {"runs": verified(problems, traces, k, seed, seconds)}
        if compares(self.arm) and self.baseline is None:
            no_traces, other_seed = [None] * len(keys), derived_seed(seed, "baseline")
            calls["without"] = verified(problems, no_traces, self.k, other_seed, seconds)
        for part, name, scorer in (("q", "reward_model", self.scorer), ("j", "judge", self.judge)):
            if part in NEEDS[self.arm]:
                calls[part] = self._scores(name, scorer, problems, traces, seconds)
        results = await asyncio.gather(*calls.values())
        return [self._part(problem, **dict(zip(calls, row))) for problem, *row in zip(problems, *results)]

    def _part(self, problem: Problem, runs: Runs, without: Runs | None = None, q: Score = 0.0, j: Score = 0.0) -> dict:
        """One trace's parts, or the first failure. Of separate runs the first is s."""
        failure = next((result for result in (runs, without, q, j) if isinstance(result, CallFailed)), None)
        if failure:
            log.warning("a reward of problem %s: %s", problem.problem_id, failure)
            if self.failed == "no_reward":
                return {**dict.fromkeys(PARTS, math.nan), "reward": None, "failure": failure.kind}
            runs, without = _as_attempts(runs, self.k + 1), _as_attempts(without, self.k)
            q, j = (FAILED_SCORE if isinstance(score, CallFailed) else score for score in (q, j))
        parts = dict.fromkeys(PARTS, 0.0) | {"s": runs[0].s, "q": q, "j": j}
        if compares(self.arm):
            merged = self.s_run == "merged"
            if merged:
                parts["s"] = _mean([r.s for r in runs])
            with_trace = [r.success for r in (runs if merged else runs[1:])]
            no_trace = [r.success for r in without] if without else self.baseline[problem.problem_id]
            parts |= {"u": uplift(with_trace, no_trace), BASELINE: _mean(no_trace)}
            if "c" in NEEDS[self.arm]:
                parts["c"] = float(code_coefficient(sum(with_trace), sum(no_trace), self.k, self.ties))
        return parts | ({"failure": failure.kind} if failure else {})

    def _reward(self, rows: list[dict]) -> None:
        """Put the rewards in, once all of a problem's completions have their parts; a failed one has None already."""
        outcomes: dict[str, set[float]] = {}
        for row in rows:
            outcomes.setdefault(row["problem_id"], set()).add(row["s"])
        for row in (row for row in rows if row["trace"] and row["reward"] is not None):
            row["t"] = float("t" in NEEDS[self.arm] and len(outcomes[row["problem_id"]]) == 1)
            row["reward"] = ARMS[self.arm](*(row[name] for name in PARTS))

    async def _scores(
        self, name: str, scorer: TraceScorer, problems: list[Problem], traces: list[str], seconds: Counter[str]
    ) -> list[Score]:
        """Score of each trace, from one call in a thread; a service may fail for some of the traces only."""
        start, scores = time.monotonic(), [math.nan] * len(traces)
        failure = CallFailed(name, "the score is NaN or infinite")
        try:
            scores = (await asyncio.to_thread(scorer.score, problems, traces))[0] if traces else []
        except ScoringError as error:
            scores, failure = scores if error.q is None else error.q, CallFailed(f"{name}_{error.kind}", str(error))
        except Exception as error:
            log.exception("%s failed", name)
            failure = CallFailed(name, f"{type(error).__name__}: {error}")
        seconds[name] += time.monotonic() - start
        return [float(x) if math.isfinite(x) else failure for x in scores]

    def _count(self, rows: list[dict]) -> None:
        self.n_rewards += len(rows)
        self.failures.update(row["failure"] for row in rows if row["failure"])

    def _recall_failures(self, before: int) -> None:
        """Count what the log has of the steps before: a resumed run must not forget the failures of its first part."""
        for path in self.log_folder.glob("*.json"):
            if int(path.stem) < before:
                self._count(json.loads(path.read_text()))

    def _check_failures(self) -> None:
        failed, least = self.failures.total(), self.min_failures if self.max_failure_rate else 1
        if failed >= least and failed > self.max_failure_rate * self.n_rewards:
            kinds = ", ".join(f"{kind} {n}" for kind, n in self.failures.most_common())
            raise TooManyFailures(
                f"{failed} of {self.n_rewards} rewards failed ({kinds}), more than the allowed share "
                f"{self.max_failure_rate} (execution.max_failure_rate); see {self.log_folder}"
            )


def _as_attempts(runs: Runs | None, n: int) -> list[Verdict] | None:
    """Runs, or if they failed n attempts without success."""
    return [Verdict(0, 0.0, "failed")] * n if isinstance(runs, CallFailed) else runs


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
