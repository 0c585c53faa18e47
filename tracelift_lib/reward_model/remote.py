"""Scores of traces from a scoring service."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from tqdm.auto import tqdm

from tracelift_lib.problems.problem import Problem

MAX_LENGTH = 3072  # tokens of a text
REQUEST_ITEMS = 512
DIMENSIONS, TOP_LABEL = 5, 4
LISTS = ("scores", "results", "outputs", "data")
NUMBERS = ("total_score", "score", "reward", "total", "value")


class ScoringError(RuntimeError):
    """The scoring service failed or gave an answer that cannot be right. Never to be read as a score.

    Attributes:
        kind: `model`, `connection`, `http_STATUS`, `format` (not an answer of method.md section 5), or `value` (a
            score or label that cannot be one).
        q: scores of the same call that did come, nan for the others; None if there was no call.
    """

    def __init__(self, kind: str, message: str, q: np.ndarray | None = None):
        super().__init__(message)
        self.kind, self.q = kind, q


class RemoteScorer:
    """`Scorer.score` by a scoring service: ours or another with the same request and answer.

    Any of the answers that method.md section 5 names is taken; a failed call, a wrong number of scores or a score that
    is not a number in [0, 1] raises ScoringError, whose `q` has the scores that came all the same.
    """

    def __init__(self, url: str, max_length: int = MAX_LENGTH, batch_size: int = 64, timeout: float = 600.0):
        """`url` with or without the path /score; `timeout` in seconds, of one request."""
        self.url = url.rstrip("/").removesuffix("/score") + "/score"
        self.max_length, self.batch_size = max_length, batch_size
        self.client = httpx.Client(timeout=timeout, trust_env=False)  # a service of one's own: no proxy

    def score(
        self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(q, labels): q of shape (N,) in [0, 1]; expected labels of shape (N, 5), nan where the service gives none."""
        items = [
            {"problem": p.problem, "reasoning": z, "task_name": p.domain, "task_type": p.task_type}
            for p, z in zip(problems, traces, strict=True)
        ]
        q, labels = np.full(len(items), math.nan), np.full((len(items), DIMENSIONS), math.nan)
        failure: ScoringError | None = None
        with tqdm(total=len(items), desc=progress, disable=progress is None) as bar:
            for start in range(0, len(items), REQUEST_ITEMS):
                part = items[start : start + REQUEST_ITEMS]
                try:
                    answers = self._ask(part)
                except ScoringError as error:  # nor would it answer the rest
                    failure = failure or error
                    break
                for i, answer in enumerate(answers, start):
                    try:
                        labels[i] = self._labels(answer, i)
                        q[i] = self._number(answer, i)
                    except ScoringError as error:
                        failure = failure or error
                bar.update(len(part))
        if failure:
            raise ScoringError(failure.kind, str(failure), q) from failure
        return q, labels

    def _ask(self, items: list[dict[str, str]]) -> list[Any]:
        """The service's answer to these items: one element each."""
        body = {"items": items, "max_length": self.max_length, "batch_size": self.batch_size}
        try:
            response = self.client.post(self.url, json=body)
        except httpx.HTTPError as error:
            message = f"{self.url}: {type(error).__name__}: {error}; is the scoring service up?"
            raise ScoringError("connection", message) from error
        if response.status_code != 200:
            message = f"{self.url}: status {response.status_code}: {response.text[:500]}"
            raise ScoringError(f"http_{response.status_code}", message)
        try:
            answer = response.json()
        except ValueError as error:  # not JSON, or not even text
            message = f"{self.url}: the answer is not JSON: {error}: {response.text[:200]}"
            raise ScoringError("format", message) from None
        found = next((answer[name] for name in LISTS if name in answer), None) if isinstance(answer, dict) else answer
        if not isinstance(found, list):
            message = f"{self.url}: no list of scores, bare or under {', '.join(LISTS)}: {str(answer)[:200]}"
            raise ScoringError("format", message)
        if len(found) != len(items):
            raise ScoringError("format", f"{self.url}: {len(found)} scores for {len(items)} items")
        return found

    def _number(self, answer: Any, i: int) -> float:
        value = next((answer[n] for n in NUMBERS if n in answer), None) if isinstance(answer, dict) else answer
        if isinstance(value, bool) or not isinstance(value, int | float):
            message = f"{self.url}: no number for item {i}, bare or under {', '.join(NUMBERS)}: {answer!r}"
            raise ScoringError("format", message)
        if not 0 <= value <= 1:  # nor is nan
            raise ScoringError("value", f"{self.url}: score of item {i} is not in [0, 1]: {value}")
        return float(value)

    def _labels(self, answer: Any, i: int) -> list[float]:
        dimensions = answer.get("dimensions") if isinstance(answer, dict) else None
        if dimensions is None:
            return [math.nan] * DIMENSIONS
        values = list(dimensions.values()) if isinstance(dimensions, dict) else []
        numbers = [v for v in values if isinstance(v, int | float) and 0 <= v <= TOP_LABEL]
        if not len(numbers) == len(values) == DIMENSIONS:
            message = f"{self.url}: dimensions of item {i} are not five labels in [0, 4]: {dimensions!r}"
            raise ScoringError("value", message)
        return values
