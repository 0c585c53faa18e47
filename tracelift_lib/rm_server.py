"""Scoring over HTTP in the public implementation's request and answer (method.md section 5): server and client.

    python -m tracelift_lib.rm_server --model FOLDER --port N

`POST /score` takes `{"items": [{"problem", "reasoning", "task_name", "task_type"}], "max_length", "batch_size"}` and
answers `{"scores": [{"total_score", "dimensions": {NAME: expected label}}]}`, one an item, in order; `GET /health` says
what is served. A request that breaks the format gets a 400 whose `error` names the field. Requests that wait at the
same time are scored together.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import httpx
import numpy as np
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm.auto import tqdm

from tracelift_lib.problems import Problem
from tracelift_lib.prompts import reward_model_text
from tracelift_lib.reward_model import Scorer

MAX_LENGTH = 3072  # tokens of a text
BODY_BYTES = 64 * 2**20
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


class Item(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    problem: str = Field(min_length=1)
    reasoning: str
    task_name: Literal["math", "code"]
    task_type: str = Field(min_length=1)

    def text(self) -> str:
        """The RM's input for this item."""
        problem = Problem(
            problem_id="", source="", domain=self.task_name, task_type=self.task_type, problem=self.problem,
            reference_solution="", answer="",
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
        return web.json_response({"scores": [
            {"total_score": float(total), "dimensions": dict(zip(names, map(float, row)))}
            for total, row in zip(q, labels)
        ]})

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
