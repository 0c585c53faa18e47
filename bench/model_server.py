"""A small OpenAI-compatible server for benches and tests: a model on this machine, or answers after a fixed time.

    python -m bench.model_server --model FOLDER --max-tokens 32      (prints its address)
    python -m bench.model_server --latency 0.05 --slots 8 --answer-tokens 32

Without a model an answer takes `--latency` seconds, and no more than `--slots` are written at once (0: any number), so
its capacity is slots x answer tokens / latency tokens a second; a request for n samples takes n slots. With a model it
batches the requests that wait, up to `--sequences` samples at a time. It honours prompt and n; how to draw is set here,
once for all, and its seeds count batches. `GET /v1/stats` gives requests, samples and completion tokens so far. A
bench's measuring stick, not a product.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

GATHER = 0.01  # seconds that a batch waits for more requests


class Batcher:
    """Answers requests with one `Sampler`, together as far as they ask for the same number of samples."""

    def __init__(self, sampler, sequences: int):
        self.sampler, self.sequences = sampler, sequences
        self.waiting: asyncio.Queue = asyncio.Queue()
        self.worker = ThreadPoolExecutor(1)
        self.seeds = itertools.count()

    async def ask(self, prompt: str, n: int) -> list[str]:
        future = asyncio.get_running_loop().create_future()
        await self.waiting.put((prompt, n, future))
        return await future

    async def run(self) -> None:
        held: list = []
        while True:
            held = held or [await self.waiting.get()]
            await asyncio.sleep(GATHER)
            while not self.waiting.empty():
                held.append(self.waiting.get_nowait())
            n = held[0][1]
            same = [request for request in held if request[1] == n][: max(1, self.sequences // n)]
            held = [request for request in held if request not in same]
            prompts = [prompt for prompt, _, _ in same]
            texts = await asyncio.get_running_loop().run_in_executor(
                self.worker, self.sampler.sample, prompts, n, next(self.seeds)
            )
            for (_, _, future), answers in zip(same, texts):
                if not future.done():
                    future.set_result(answers)


def load(folder: str, max_tokens: int, temperature: float):
    import torch

    from tracelift_lib.models.generation import Sampler, Sampling
    from tracelift_lib.models.loading import load_model, load_tokenizer

    torch.set_num_threads(1)
    return Sampler(load_model(folder), load_tokenizer(folder), Sampling(temperature, 1.0, max_tokens, 1 << 20))


class Slots:
    """A server of stated capacity: `slots` answers at once (0: any number), each takes `latency` seconds."""

    def __init__(self, latency: float, slots: int):
        self.latency, self.free = latency, asyncio.Semaphore(slots) if slots else contextlib.nullcontext()

    async def ask(self, n: int) -> list[str]:
        return await asyncio.gather(*map(self._one, range(n)))

    async def _one(self, i: int) -> str:
        async with self.free:
            await asyncio.sleep(self.latency)
        return f"Answer: {i}"


def application(sampler, sequences: int, latency: float, slots: int = 0, answer_tokens: int = 4) -> web.Application:
    """Routes of the server; without a sampler it answers as `Slots` does, and counts `answer_tokens` an answer."""
    from tracelift_lib.problems.prompts import as_chat

    totals: Counter[str] = Counter()
    batcher, simulated = (Batcher(sampler, sequences) if sampler else None), Slots(latency, slots)

    async def answers(prompt: str, n: int) -> list[str]:
        if batcher:
            return await batcher.ask(as_chat(prompt, sampler.tokenizer), n)
        return await simulated.ask(n)

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        texts = await answers(body["messages"][-1]["content"], body["n"])
        tokens = sum(map(len, sampler.tokenizer(texts)["input_ids"])) if sampler else answer_tokens * len(texts)
        totals.update(requests=1, samples=len(texts), completion_tokens=tokens)
        choices = [
            {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for i, text in enumerate(texts)
        ]
        return web.json_response(
            {"id": "0", "object": "chat.completion", "created": 0, "model": body["model"], "choices": choices}
        )

    async def stats(request: web.Request) -> web.Response:
        return web.json_response(dict(totals))

    async def start(app: web.Application) -> None:
        app["batcher"] = asyncio.create_task(batcher.run()) if batcher else None

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/stats", stats)
    app.on_startup.append(start)
    return app


@contextlib.contextmanager
def serving(*arguments: str):
    """The address of a server in a process of its own; it ends with the block."""
    command = [sys.executable, "-m", "bench.model_server", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        if not url.startswith("http"):
            raise RuntimeError(f"the model server did not start (it said {url!r})")
        yield url
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a Hugging Face model")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds an answer takes, without a model")
    parser.add_argument("--slots", type=int, default=0, help="answers at once, without a model; 0: any number")
    parser.add_argument("--answer-tokens", type=int, default=4, help="that each answer counts, without a model")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--sequences", type=int, default=64, help="samples in one batch, at most")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    sampler = load(arguments.model, arguments.max_tokens, arguments.temperature) if arguments.model else None

    async def serve() -> None:
        a = arguments
        runner = web.AppRunner(application(sampler, a.sequences, a.latency, a.slots, a.answer_tokens))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", arguments.port).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
