"""Scoring over HTTP in the public implementation's request and answer (method.md section 5): server and client.

    tracelift serve-rm --model FOLDER --port N

`POST /score` takes `{"items": [{"problem", "reasoning", "task_name", "task_type"}], "max_length", "batch_size"}` and
answers `{"scores": [{"total_score", "dimensions": {NAME: expected label}}]}`, one an item, in order; `GET /health` says
what is served. A request that breaks the format gets a 400 whose `error` names the field. Requests that wait at the
same time are scored together.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import reward_model_text
from tracelift_lib.reward_model.remote import MAX_LENGTH, ScoringError
from tracelift_lib.reward_model.scorer import Scorer

BODY_BYTES = 64 * 2**20


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    problem: str = Field(min_length=1)
    reasoning: str
    task_name: Literal["math", "code"]
    task_type: str = Field(min_length=1)

    def text(self) -> str:
        """The RM's input for this item."""
        problem = Problem(
            problem_id="",
            source="",
            domain=self.task_name,
            task_type=self.task_type,
            problem=self.problem,
            reference_solution="",
            answer="",
        )
        return reward_model_text(problem, self.reasoning)


class ScoreRequest(BaseModel):
    """`max_length` (tokens of a text) may lower the server's own; `batch_size` bounds the texts of a forward pass."""

    model_config = ConfigDict(extra="forbid", strict=True)
    items: list[Item]
    max_length: int | None = Field(None, gt=0)
    batch_size: int | None = Field(None, gt=0)


@dataclass
class Job:
    """A request on its way through the batcher."""

    request: ScoreRequest
    done: asyncio.Future[tuple[np.ndarray, np.ndarray]]


class Batcher:
    """Scores, in a thread of its own, all requests that have come in while it was busy, as one batch."""

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.waiting: asyncio.Queue[Job] = asyncio.Queue()

    async def score(self, request: ScoreRequest) -> tuple[np.ndarray, np.ndarray]:
        """(q, labels) of the request's items, as `Scorer.score` gives them."""
        job = Job(request, asyncio.get_running_loop().create_future())
        await self.waiting.put(job)
        return await job.done

    async def run(self) -> None:
        """Serve the queue until cancelled."""
        while True:
            jobs = [await self.waiting.get()]
            while not self.waiting.empty():
                jobs.append(self.waiting.get_nowait())
            jobs.sort(key=lambda job: job.request.batch_size or 0)
            for _, together in groupby(jobs, key=lambda job: job.request.batch_size):
                await self._serve(list(together))

    async def _serve(self, jobs: list[Job]) -> None:
        try:
            parts = await asyncio.to_thread(self._score, [job.request for job in jobs])
        except Exception as error:  # whatever it was, the clients have to hear of it and the server goes on
            for job in jobs:
                job.done.set_exception(ScoringError("model", f"{type(error).__name__}: {error}"))
            return
        for job, part in zip(jobs, parts):
            job.done.set_result(part)

    def _score(self, requests: list[ScoreRequest]) -> list[tuple[np.ndarray, np.ndarray]]:
        encoded = [
            self.scorer.encode([item.text() for item in r.items], r.max_length or self.scorer.max_length)
            for r in requests
        ]
        q, labels = self.scorer.score_tokens([ids for part in encoded for ids in part], requests[0].batch_size)
        if not np.isfinite(q).all():
            raise ScoringError("model", "the model gave a score that is not a number")
        ends = np.cumsum([len(part) for part in encoded])[:-1]
        return list(zip(np.split(q, ends), np.split(labels, ends)))


BATCHER = web.AppKey("batcher", Batcher)


def make_app(scorer: Scorer) -> web.Application:
    """The server around a loaded RM."""
    names = list(scorer.model.config.rm_dimension_names)

    async def score(request: web.Request) -> web.Response:
        try:
            wanted = ScoreRequest.model_validate_json(await request.read())
        except ValidationError as error:
            return web.json_response({"error": _explain(error)}, status=400)
        if wanted.max_length and wanted.max_length > scorer.max_length:
            message = f"max_length: {wanted.max_length} is more than this server reads ({scorer.max_length})"
            return web.json_response({"error": message}, status=400)
        try:
            q, labels = await request.app[BATCHER].score(wanted)
        except ScoringError as error:
            return web.json_response({"error": str(error)}, status=500)
        return web.json_response(
            {
                "scores": [
                    {"total_score": float(total), "dimensions": dict(zip(names, map(float, row)))}
                    for total, row in zip(q, labels)
                ]
            }
        )

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "dimensions": names, "max_length": scorer.max_length})

    async def batching(app: web.Application):
        app[BATCHER] = Batcher(scorer)
        task = asyncio.create_task(app[BATCHER].run())
        yield
        task.cancel()

    app = web.Application(client_max_size=BODY_BYTES)
    app.add_routes([web.post("/score", score), web.get("/health", health)])
    app.cleanup_ctx.append(batching)
    return app


def _explain(error: ValidationError) -> str:
    """What is wrong with a request, a field a part."""
    parts = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()[:5]]
    return "; ".join(parts)


@contextmanager
def serving(scorer: Scorer) -> Iterator[str]:
    """A server on a free local port, in a thread of this process; gives its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    runner = web.AppRunner(make_app(scorer))
    try:
        run(runner.setup())
        run(web.TCPSite(runner, "127.0.0.1", 0).start())
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a Reasoning RM over HTTP.")
    parser.add_argument("--model", required=True, help="checkpoint folder, adapter folder or hub name")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every one")
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH, help="tokens of a text; the rest is cut")
    parser.add_argument("--batch-tokens", type=int, default=32768, help="padded tokens of a forward pass")
    args = parser.parse_args()
    web.run_app(
        make_app(Scorer.from_folder(args.model, args.batch_tokens, args.max_length)), host=args.host, port=args.port
    )


if __name__ == "__main__":
    main()
