"""A real HTTP server on loopback that speaks the OpenAI protocol, and misbehaves as a test scripts it."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

Script = Callable[[int, dict], Any]  # (number of the request, its body) -> texts, or one of the faults below


class Status:
    """Answer with an error status."""

    def __init__(self, code: int, message: str = "scripted", headers: dict[str, str] | None = None):
        self.code, self.message, self.headers = code, message, headers


class Raw:
    """Answer 200 with these bytes as the body."""

    def __init__(self, body: str):
        self.body = body


class Trickle:
    """Answer 200 and then, for ever, one byte at a time."""


HANG_UP = object()  # close the connection without an answer


class LoopbackServer:
    """`with LoopbackServer(script) as server:` serves at `server.url`; every request is in `server.bodies`."""

    def __init__(self, script: Script, latency: float = 0.0):
        self.script, self.latency = script, latency
        self.bodies: list[dict] = []
        self.keys: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self._numbers = itertools.count()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> LoopbackServer:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: Any) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_post("/v1/completions", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body, number = await request.json(), next(self._numbers)
        body["path"] = request.path
        self.bodies.append(body)
        self.keys.append(request.headers.get("Authorization", ""))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.latency)
            reply = self.script(number, body)
            if asyncio.iscoroutine(reply):
                reply = await reply
        finally:
            self.in_flight -= 1
        if reply is HANG_UP:
            request.transport.close()
            return web.Response()
        if isinstance(reply, Status):
            return web.json_response({"error": {"message": reply.message}}, status=reply.code, headers=reply.headers)
        if isinstance(reply, Trickle):
            return await self._trickle(request)
        if isinstance(reply, Raw):
            return web.Response(text=reply.body, content_type="application/json")
        return web.Response(text=json.dumps(completion(body, reply)), content_type="application/json")

    async def _trickle(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while not request.transport.is_closing():
            await response.write(b" ")
            await asyncio.sleep(0.02)
        return response


def completion(body: dict, texts: list[str | None]) -> dict:
    """The reply to `body` with these texts, in the form of its endpoint."""
    chat = "messages" in body
    said = [{"message": {"role": "assistant", "content": t}} if chat else {"text": t} for t in texts]
    choices = [{"index": i, "finish_reason": "stop", **one} for i, one in enumerate(said)]
    return {
        "id": "x",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": body["model"],
        "choices": choices,
    }


def question(body: dict) -> str:
    """The prompt of a request, whatever its endpoint."""
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


def numbered(number: int, body: dict) -> list[str]:
    """A well-behaved sampler: n texts that differ and depend on the request's seed only."""
    return [f"Answer: {(body['seed'] + i) % 1000}" for i in range(body["n"])]
