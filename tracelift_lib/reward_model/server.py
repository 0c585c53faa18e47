"""Scoring over HTTP, in the public implementation's request and answer (docs/method.md section 5).

    tracelift serve-rm --model FOLDER --port N

`POST /score` takes `{"items": [{"problem", "reasoning", "task_name", "task_type"}], "max_length", "batch_size"}` and
answers `{"scores": [{"total_score", "dimensions": {NAME: expected label}}]}`, one for each item, in order;
`GET /health` says what is served. An item may have `tests` too; without a `task_name` it is of the domain of the model
that is served, without a `task_type` "unknown" (the released code trainer sends neither). A request that breaks the
format gets status 400 and an `error` that names the field. Requests that wait at the same time are scored together.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Literal

import numpy as np
from aiohttp import web
from anyio.from_thread import start_blocking_portal
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tracelift_lib.groups.schema import DIMENSIONS
from tracelift_lib.problems.problem import SHOWN_TESTS, Problem
from tracelift_lib.problems.prompts import reward_model_text
from tracelift_lib.reward_model.remote import MAX_LENGTH
from tracelift_lib.reward_model.scorer import Scorer, TraceScores

BODY_BYTES = 64 * 2**20


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    problem: str = Field(min_length=1)
    reasoning: str
    task_name: Literal["math", "code"] | None = None
    task_type: str = Field("unknown", min_length=1)
    tests: str | None = None

    def text(self, domain: str | None) -> str:
        """The RM's input for this item; `domain` where it does not say its own."""
        problem = Problem.model_construct(
            domain=self.task_name or domain,
            task_type=self.task_type,
            problem=self.problem,
            metadata={SHOWN_TESTS: self.tests},
        )
        return reward_model_text(problem, self.reasoning)


class ScoreRequest(BaseModel):
    """`max_length` (tokens of a text) may lower the server's own; `batch_size` bounds the texts of a forward pass."""

    model_config = ConfigDict(extra="forbid", strict=True)
    items: list[Item]
    max_length: int | None = Field(None, gt=0)
    batch_size: int | None = Field(None, gt=0)


class Batcher:
    """Scores all requests that came in while it was busy as one batch, in a thread."""

    batch: asyncio.Task[list[TraceScores]]  # scores those in `waiting` next

    def __init__(self, scorer: Scorer):
        self.scorer, self.busy, self.domain = scorer, asyncio.Lock(), served_domain(scorer)
        self.waiting: list[ScoreRequest] = []

    async def score(self, request: ScoreRequest) -> TraceScores:
        """(q, labels) of the request's items. The first that waits for the model starts a batch, others join it.

        Raises:
            Exception: whatever the model raised, or ValueError if it gave a score that is not a number.
        """
        if not self.waiting:
            self.batch = asyncio.create_task(self._score_waiting())
        self.waiting.append(request)
        batch, place = self.batch, len(self.waiting) - 1
        return (await asyncio.shield(batch))[place]  # a client that goes away must not cancel the others' scores

    async def _score_waiting(self) -> list[TraceScores]:
        async with self.busy:
            together, self.waiting = self.waiting, []
            return await asyncio.to_thread(self._run_model, together)

    def _run_model(self, requests: list[ScoreRequest]) -> list[TraceScores]:
        """(q, labels) of each request, in forward passes no larger than any of them allows."""
        longest = self.scorer.max_length
        encoded = [
            self.scorer.encode([i.text(self.domain) for i in r.items], r.max_length or longest) for r in requests
        ]
        batch_size = min((r.batch_size for r in requests if r.batch_size), default=None)
        q, labels = self.scorer.score_tokens(list(chain.from_iterable(encoded)), batch_size)
        if not np.isfinite(q).all():
            raise ValueError("the model gave a score that is not a number")
        ends = np.cumsum([len(part) for part in encoded])[:-1]
        return list(zip(np.split(q, ends), np.split(labels, ends)))


def served_domain(scorer: Scorer) -> str | None:
    """The domain that the names of the model's rubric dimensions belong to; None if to neither."""
    names = set(scorer.model.config.rm_dimension_names)
    return next((domain for domain, known in DIMENSIONS.items() if names == set(known)), None)


def make_app(scorer: Scorer) -> web.Application:
    """The server around a loaded RM."""
    names, batcher = list(scorer.model.config.rm_dimension_names), Batcher(scorer)

    async def score(request: web.Request) -> web.Response:
        try:
            wanted = ScoreRequest.model_validate_json(await request.read())
        except ValidationError as error:
            parts = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()[:5]]
            return _error(400, "; ".join(parts))
        unnamed = next((i for i, item in enumerate(wanted.items) if not item.task_name), None)
        if unnamed is not None and batcher.domain is None:
            return _error(400, f"items.{unnamed}.task_name: missing, and the model's dimensions are of no known domain")
        if wanted.max_length and wanted.max_length > scorer.max_length:
            return _error(400, f"max_length: {wanted.max_length} is more than this server reads ({scorer.max_length})")
        try:
            q, labels = await batcher.score(wanted)
        except Exception as error:
            return _error(500, f"{type(error).__name__}: {error}")
        scored = zip(q.tolist(), labels.tolist())
        return web.json_response({"scores": [{"total_score": s, "dimensions": dict(zip(names, x))} for s, x in scored]})

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "dimensions": names, "max_length": scorer.max_length})

    app = web.Application(client_max_size=BODY_BYTES)
    app.add_routes([web.post("/score", score), web.get("/health", health)])
    return app


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


@contextmanager
def serving(scorer: Scorer) -> Iterator[str]:
    """A server on a free local port, in a thread of this process; gives its URL."""
    runner = web.AppRunner(make_app(scorer))
    with start_blocking_portal() as portal:
        try:
            portal.call(runner.setup)
            portal.call(web.TCPSite(runner, "127.0.0.1", 0).start)
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            portal.call(runner.cleanup)


def main(arguments: list[str]) -> int:
    """The command `tracelift serve-rm`: serve until interrupted."""
    parser = argparse.ArgumentParser("tracelift serve-rm", description="Serve a Reasoning RM over HTTP.")
    parser.add_argument("--model", required=True, help="checkpoint folder, adapter folder or hub name")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every one")
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH, help="tokens of a text; the rest is cut")
    parser.add_argument("--batch-tokens", type=int, default=32768, help="padded tokens of a forward pass")
    args = parser.parse_args(arguments)
    scorer = Scorer.from_folder(args.model, args.batch_tokens, args.max_length)
    web.run_app(make_app(scorer), host=args.host, port=args.port)
    return 0
