"""Scores of traces from a scoring service: ours, or another with the same request and answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import httpx
import numpy as np
from pydantic import AliasChoices, BaseModel, Field, ValidationError, model_validator
from tqdm.auto import trange

from tracelift_lib.problems.problem import Problem

MAX_LENGTH = 3072  # tokens of a text
REQUEST_ITEMS = 512
DIMENSIONS = 5
LISTS = ("scores", "results", "outputs", "data")
NUMBERS = ("total_score", "score", "reward", "total", "value")


class ScoringError(RuntimeError):
    """The scoring service failed or gave an answer that cannot be right. Never to be read as a score.

    Attributes:
        kind: `connection`, `http_STATUS`, `format` (not an answer of docs/method.md section 5), or `value` (a score or
            label that cannot be one).
        q: scores of the same call that did come, NaN for the others; None if there was no call.
    """

    def __init__(self, kind: str, message: str, q: np.ndarray | None = None):
        super().__init__(message)
        self.kind, self.q = kind, q


class Answer(BaseModel):
    """What a service says of one item: a number, or an object with the number under one of `NUMBERS`."""

    q: Annotated[float, Field(strict=True, ge=0, le=1, validation_alias=AliasChoices(*NUMBERS))]
    dimensions: dict[str, Annotated[float, Field(ge=0, le=4)]] | None = Field(
        None, min_length=DIMENSIONS, max_length=DIMENSIONS
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_number(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {NUMBERS[0]: value}


class RemoteScorer:
    """`Scorer.score` by a scoring service: ours or another with the same request and answer.

    Any of the answers that docs/method.md section 5 names is taken; a failed call, a wrong number of scores or a score
    that is not a number in [0, 1] raises ScoringError, whose `q` has the scores that came all the same.
    """

    def __init__(self, url: str, max_length: int = MAX_LENGTH, batch_size: int = 64, timeout: float = 600.0):
        """`url` with or without the path /score; `timeout` in seconds, of one request."""
        self.url = url.rstrip("/").removesuffix("/score") + "/score"
        self.max_length, self.batch_size = max_length, batch_size
        self.client = httpx.Client(timeout=timeout, trust_env=False)  # a service of one's own: no proxy

    def score(
        self, problems: Sequence[Problem], traces: Sequence[str], progress: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(q, labels): q of shape (N,) in [0, 1]; expected labels of shape (N, 5), NaN where the service gives none."""
        items = [
            {"problem": p.problem, "reasoning": z, "task_name": p.domain, "task_type": p.task_type}
            for p, z in zip(problems, traces, strict=True)
        ]
        q, labels = np.full(len(items), math.nan), np.full((len(items), DIMENSIONS), math.nan)
        failures: list[ScoringError] = []
        for start in trange(0, len(items), REQUEST_ITEMS, desc=progress, disable=progress is None):
            try:
                answers = self._ask(items[start : start + REQUEST_ITEMS])
            except ScoringError as error:  # nor would it answer the rest
                failures.append(error)
                break
            for i, answer in enumerate(answers, start):
                try:
                    q[i], labels[i] = self._read(answer, i)
                except ScoringError as error:
                    failures.append(error)
        if failures:
            raise ScoringError(failures[0].kind, f"{self.url}: {failures[0]}", q) from failures[0]
        return q, labels

    def _ask(self, items: list[dict[str, str]]) -> list[Any]:
        """The service's answer to these items: one element each."""
        try:
            response = self.client.post(
                self.url, json={"items": items, "max_length": self.max_length, "batch_size": self.batch_size}
            )
        except httpx.HTTPError as error:
            raise ScoringError("connection", f"{type(error).__name__}: {error}; is the scoring service up?") from error
        status, text = response.status_code, response.text
        if status != 200:
            raise ScoringError(f"http_{status}", f"status {status}: {text[:500]}")
        try:
            answer = response.json()
        except ValueError as error:  # not JSON, or not even text
            raise ScoringError("format", f"the answer is not JSON: {error}: {text[:200]}") from None
        found = next((answer[name] for name in LISTS if name in answer), None) if isinstance(answer, dict) else answer
        if not isinstance(found, list):
            raise ScoringError("format", f"no list of scores, bare or under {', '.join(LISTS)}: {text[:200]}")
        if len(found) != len(items):
            raise ScoringError("format", f"{len(found)} scores for {len(items)} items")
        return found

    def _read(self, element: Any, i: int) -> tuple[float, list[float] | float]:
        """(q, labels) of item i; the labels are NaN if the service gives none."""
        try:
            answer = Answer.model_validate(element)
        except ValidationError as error:
            first = error.errors()[0]
            where, message = first["loc"][0], f"item {i}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
            if where == "dimensions":
                raise ScoringError("value", f"{message}; dimensions are five labels in [0, 4]: {element!r}") from None
            kind = "value" if first["type"] in ("greater_than_equal", "less_than_equal") else "format"
            names = ", ".join(NUMBERS)
            raise ScoringError(
                kind, f"{message}; a score is a number in [0, 1], bare or under {names}: {element!r}"
            ) from None
        return answer.q, list(answer.dimensions.values()) if answer.dimensions else math.nan
