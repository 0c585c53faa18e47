"""Scores of traces from a scoring service: ours, or another with the same request and answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import tenacity
from tqdm.auto import trange

from tracelift_lib.executor.client import asked_wait, may_pass, patience
from tracelift_lib.groups.schema import dimensions
from tracelift_lib.problems.problem import Problem
from tracelift_lib.reward_model.scorer import TraceScores

MAX_LENGTH = 3072  # tokens of a text
REQUEST_ITEMS = 512
DIMENSIONS, TOP_LABEL = 5, 4
LISTS = ("scores", "results", "outputs", "data")
NUMBERS = ("total_score", "score", "reward", "total", "value")


class ScoringError(RuntimeError):
    """The scoring service failed or gave an answer that cannot be right. Never to be read as a score.

    Attributes:
        kind: `connection`, `http_STATUS`, `format` (not an answer of docs/method.md section 5), or `value` (a score or
            label that cannot be one).
        q: scores of the same call that did come, NaN for the others; None if there was no call.
        passing, retry_after: whether the same request may succeed later, and seconds that the service asks to wait.
    """

    def __init__(
        self, kind: str, message: str, q: np.ndarray | None = None, passing: bool = False, retry_after: float = 0.0
    ):
        super().__init__(message)
        self.kind, self.q, self.passing, self.retry_after = kind, q, passing, retry_after


class RemoteScorer:
    """`Scorer.score` by a scoring service: ours or another with the same request and answer.

    Any of the answers that docs/method.md section 5 names is taken; a wrong number of scores or a score that is not a
    number in [0, 1] raises ScoringError, whose `q` has the scores that came all the same. So does a call that failed,
    if for a passing reason (no connection, a time-out, status 408, 409, 429 or 5xx) after some more tries.
    """

    def __init__(
        self,
        url: str,
        max_length: int = MAX_LENGTH,
        batch_size: int = 64,
        timeout: float = 600.0,
        retries: int = 4,
        backoff: float = 0.5,
    ):
        """`url` with or without the path /score; `timeout` in seconds, of one request; `retries` of one that failed,
        the first after `backoff` seconds, which double."""
        self.url = url.rstrip("/").removesuffix("/score") + "/score"
        self.options = {"max_length": max_length, "batch_size": batch_size}
        self.retrying = tenacity.Retrying(**patience(retries, backoff))
        self.client = httpx.Client(timeout=timeout, trust_env=False)  # a service of one's own: no proxy

    def score(self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None) -> TraceScores:
        """(q, labels): q of shape (N,) in [0, 1]; expected labels of shape (N, 5), NaN where the service gives none."""
        items = [_item(p, z) for p, z in zip(problems, traces, strict=True)]
        q, labels = np.full(len(items), math.nan), np.full((len(items), DIMENSIONS), math.nan)
        failures: list[ScoringError] = []
        for start in trange(0, len(items), REQUEST_ITEMS, desc=progress, disable=progress is None):
            try:
                answers = self.retrying(self._ask, items[start : start + REQUEST_ITEMS])
            except ScoringError as error:  # nor would it answer the rest
                failures.append(error)
                break
            for i, answer in enumerate(answers, start):
                try:
                    q[i], labels[i] = self._read(answer, i, dimensions(problems[i].domain))
                except ScoringError as error:
                    failures.append(error)
        if failures:
            raise ScoringError(failures[0].kind, f"{self.url}: {failures[0]}", q) from failures[0]
        return q, labels

    def _ask(self, items: list[dict[str, str]]) -> list[Any]:
        """The service's answer to these items: one element each."""
        try:
            response = self.client.post(self.url, json={"items": items, **self.options})
        except httpx.HTTPError as error:
            words = f"{type(error).__name__}: {error}; is the scoring service up?"
            raise ScoringError("connection", words, passing=True) from error
        status, text = response.status_code, response.text
        if status != 200:
            raise ScoringError(
                f"http_{status}",
                f"status {status}: {text[:500]}",
                passing=may_pass(status),
                retry_after=asked_wait(response.headers),
            )
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:  # not JSON, or not even text
            raise ScoringError("format", f"the answer is not JSON: {error}: {text[:200]}") from None
        scores = _unwrap(answer, LISTS)
        if not isinstance(scores, list):
            raise ScoringError("format", f"no list of scores, bare or under {', '.join(LISTS)}: {text[:200]}")
        if len(scores) != len(items):
            raise ScoringError("format", f"{len(scores)} scores for {len(items)} items")
        return scores

    def _read(self, element: Any, i: int, names: Sequence[str]) -> tuple[float, list[float] | float]:
        """(q, labels) in the answer to item i, labels in the order of `names`; NaN if the service gives none."""
        q, given = _unwrap(element, NUMBERS), element.get("dimensions") if isinstance(element, dict) else None
        if isinstance(q, bool) or not isinstance(q, int | float):
            raise ScoringError("format", f"no number for item {i}, bare or under {', '.join(NUMBERS)}: {element!r}")
        if not 0 <= q <= 1:  # nor is NaN
            raise ScoringError("value", f"score of item {i} is not in [0, 1]: {q}")
        if given is None:
            return q, math.nan
        if not isinstance(given, dict) or not all(name in given for name in names):
            raise ScoringError("format", f"dimensions of item {i} are not {', '.join(names)}, by name: {given!r}")
        labels = [given[name] for name in names]
        if not all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x <= TOP_LABEL for x in labels):
            raise ScoringError("value", f"dimensions of item {i} are not labels in [0, 4]: {given!r}")
        return q, labels


def _item(problem: Problem, trace: str) -> dict[str, str]:
    """A trace as a request has it; `tests` only where the problem shows some, as other services know no such field."""
    item = {"problem": problem.problem, "reasoning": trace, "task_name": problem.domain, "task_type": problem.task_type}
    return item | ({"tests": problem.shown_tests} if problem.shown_tests else {})


def _unwrap(answer: Any, names: Sequence[str]) -> Any:
    """A bare value, or the one that an object has under the first of some names; None if under none of them."""
    return next((answer[name] for name in names if name in answer), None) if isinstance(answer, dict) else answer
