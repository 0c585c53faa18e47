"""Where the frozen executor runs: in this process, or behind OpenAI-compatible servers such as vLLM.

Both give futures, one a prompt, that end with n texts or with a `CallFailed`: a caller can verify the first answers
while the last ones are being written. Source: ours.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Protocol

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from tracelift_lib.executor.settings import ServerBackendSettings
from tracelift_lib.models.generation import Sampler, Sampling
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.prompts import as_chat, as_completion

log = logging.getLogger(__name__)
Answers = Future  # of list[str], n texts
MAX_WAIT = 60.0  # seconds between two tries of a request, at most


class CallFailed(RuntimeError):
    """An executor call that gave no answers; `kind` is what the reward engine counts."""

    def __init__(self, kind: str, message: str, retry: bool = False, retry_after: float = 0.0):
        super().__init__(f"{kind}: {message}")
        self.kind, self.retry, self.retry_after = kind, retry, retry_after


class Backend(Protocol):
    """A frozen model that can be asked."""

    name: str

    def show(self, prompt: str) -> str:
        """The text that the model reads for `prompt`, as far as it is known here."""

    def submit(self, prompts: Sequence[str], n: int, seed: int) -> list[Answers]:
        """For each prompt (a user's turn) a future of n sampled texts; it fails with `CallFailed`."""


class LocalBackend:
    """The model in this process, in batches of similar length (generation.py); batches run one after another."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self._worker = ThreadPoolExecutor(1, "executor")

    @property
    def name(self) -> str:
        return f"{self.sampler.model.num_parameters() / 1e6:.2f} million parameters, in this process"

    def show(self, prompt: str) -> str:
        return as_chat(prompt, self.sampler.tokenizer)

    def submit(self, prompts: Sequence[str], n: int, seed: int) -> list[Answers]:
        """Same seed, prompts and machine give the same texts. The futures end batch by batch."""
        futures: list[Answers] = [Future() for _ in prompts]
        self._worker.submit(self._run, [self.show(p) for p in prompts], n, seed, futures)
        return futures

    def _run(self, prompts: list[str], n: int, seed: int, futures: list[Answers]) -> None:
        def deliver(i: int, texts: list[str]) -> None:
            futures[i].set_result(texts)  # raises if it was cancelled: whoever asked has gone, so the model stops

        try:
            self.sampler.sample(prompts, n, seed, deliver=deliver)
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(CallFailed("executor", f"{type(error).__name__}: {error}"))


class ServerBackend:
    """OpenAI-compatible servers that all serve the same model; requests go where the fewest are waiting.

    A request that fails for a passing reason (time-out, lost connection, status 408, 409, 429 or 5xx, a reply that
    is no completion) is tried again, on another server if there is one, with growing waits. A server that gives fewer
    texts than asked for (`transformers serve` ignores n) is asked again for the rest. All requests run on one event
    loop in a thread of its own, so notebooks and TRL's own loop can both wait for them.
    """

    def __init__(self, settings: ServerBackendSettings, sampling: Sampling):
        self.settings, self.sampling = settings, sampling
        self.name = f"{settings.model} at {', '.join(settings.base_urls)}"
        self._key = _api_key(settings.api_key_env)
        self._in_flight: Counter[str] = Counter()
        self._served: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()  # failures in a row
        self._rests_until: dict[str, float] = dict.fromkeys(settings.base_urls, 0.0)
        self._short = False
        self._loop = asyncio.new_event_loop()
        self._room = asyncio.Condition()
        self._clients = {
            url: openai.AsyncOpenAI(base_url=url, api_key=self._key, max_retries=0, timeout=settings.timeout)
            for url in settings.base_urls
        }
        threading.Thread(target=self._loop.run_forever, name="executor-requests", daemon=True).start()

    def show(self, prompt: str) -> str:
        return prompt if self.settings.api == "chat" else as_completion(prompt)

    def submit(self, prompts: Sequence[str], n: int, seed: int) -> list[Answers]:
        """Each call's seed depends on `seed` and its prompt only, so chunks and order change nothing."""
        seen: Counter[str] = Counter()
        futures = []
        for prompt in prompts:
            call_seed = derived_seed(seed, prompt, seen[prompt])
            seen[prompt] += 1
            futures.append(asyncio.run_coroutine_threadsafe(self._answers(prompt, n, call_seed), self._loop))
        return futures

    def close(self) -> None:
        """Give up waiting requests and connections."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.gather(*(client.close() for client in self._clients.values()))

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _answers(self, prompt: str, n: int, seed: int) -> list[str]:
        texts: list[str] = []
        while len(texts) < n:
            asked = n - len(texts)
            got = await self._request(prompt, asked, derived_seed(seed, len(texts)))
            if len(got) < asked and not self._short:
                self._short = True
                log.warning(
                    "%s gives %d texts where n=%d are asked for: the rest is asked for in further requests",
                    self.name,
                    len(got),
                    asked,
                )
            texts += got[:asked]
        return texts

    async def _request(self, prompt: str, n: int, seed: int) -> list[str]:
        """The texts of one request, at least one and perhaps fewer than n; retried."""
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(self.settings.retries + 1),
            reraise=True,
            wait=self._wait,
            retry=retry_if_exception(lambda e: isinstance(e, CallFailed) and e.retry),
            before_sleep=self._log_retry,
        ):
            with attempt:
                async with self._server() as url:
                    return await self._once(url, prompt, n, seed)
        raise AssertionError("tenacity re-raises the last failure")

    @asynccontextmanager
    async def _server(self) -> AsyncIterator[str]:
        """A server with room, held for one request. One that failed rests: failing fast, it would draw all requests."""
        async with self._room:
            try:
                await self._room.wait_for(self._with_room)
            except asyncio.CancelledError:
                self._room.notify()  # it may have been woken just before: the place is for the next
                raise
            url = min(self._with_room(), key=lambda url: (self._in_flight[url], self._served[url]))
            self._in_flight[url] += 1
            self._served[url] += 1
            if self._with_room():
                self._room.notify()  # a server that has rested takes all that it can again
        try:
            yield url
            self._failed[url] = 0
        except CallFailed as failure:
            if failure.retry:
                rest = 10 * self.settings.backoff * 2 ** min(10, self._failed[url])  # longer than the request waits
                self._rests_until[url] = time.monotonic() + min(MAX_WAIT, rest)
                self._failed[url] += 1
            raise
        finally:
            self._in_flight[url] -= 1
            async with self._room:
                self._room.notify()

    def _with_room(self) -> list[str]:
        """Servers that may take a request now; those that rest only if all do."""
        now = time.monotonic()
        awake = [url for url, until in self._rests_until.items() if until <= now] or list(self._rests_until)
        return [url for url in awake if self._in_flight[url] < self.settings.concurrency]

    def _wait(self, state: RetryCallState) -> float:
        """Seconds until the next try: doubling with jitter, or longer if the server asks for it."""
        first = self.settings.backoff
        growing = wait_exponential_jitter(initial=first, max=MAX_WAIT, jitter=first)(state)
        return min(MAX_WAIT, max(growing, state.outcome.exception().retry_after))

    def _log_retry(self, state: RetryCallState) -> None:
        log.warning(
            "executor request, try %d of %d: %s",
            state.attempt_number,
            self.settings.retries + 1,
            state.outcome.exception(),
        )

    async def _once(self, url: str, prompt: str, n: int, seed: int) -> list[str]:
        api, text = self.settings.api, self.show(prompt)
        client = self._clients[url]
        options: dict[str, Any] = dict(
            model=self.settings.model,
            n=n,
            seed=seed,
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=self.sampling.max_new_tokens,
        )
        try:
            async with asyncio.timeout(self.settings.timeout):  # the client's own limit starts anew with every byte
                if api == "chat":
                    turns = [{"role": "user", "content": text}]
                    return _texts(await client.chat.completions.create(messages=turns, **options))
                return _texts(await client.completions.create(prompt=text, **options))
        except (TimeoutError, openai.APITimeoutError):
            raise CallFailed("executor_timeout", f"{url}: {self.settings.timeout} s", retry=True) from None
        except openai.APIStatusError as error:
            raise self._status(url, error) from None
        except openai.APIConnectionError as error:
            raise CallFailed("executor_connection", f"{url}: {error.__cause__ or error}", retry=True) from None
        except (ValueError, openai.APIError) as error:  # a body that is no JSON, or no completion
            raise CallFailed("executor_malformed", f"{url}: {error}", retry=True) from None

    def _status(self, url: str, error: openai.APIStatusError) -> CallFailed:
        """What an error status means. The server's words may repeat the key: they are cut and cleaned."""
        said = str(error).replace(self._key, "***")[:300]
        code = error.status_code
        try:
            after = float(error.response.headers.get("retry-after", 0))
        except ValueError:  # a date
            after = 0.0
        return CallFailed(f"executor_http_{code}", f"{url}: {said}", code in (408, 409, 429) or code >= 500, after)


def _texts(reply: Any) -> list[str]:
    """The texts in a completion; the client does not check what a server sends. Raises ValueError."""
    try:
        texts = [c.message.content if hasattr(c, "message") else c.text for c in reply.choices]
    except (AttributeError, TypeError):
        texts = []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"no completion: {str(reply)[:200]}")
    return texts


def _api_key(variable: str | None) -> str:
    if variable is None:
        return "none"  # a server of one's own asks for no key, the client does
    if not os.environ.get(variable):
        raise InputError(f"put the key into the environment variable {variable} (execution.backend.api_key_env)")
    return os.environ[variable]


def derived_seed(*parts: Any) -> int:
    """A seed of 31 bits (what servers take) that depends on all `parts`, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()[:4]) >> 1
