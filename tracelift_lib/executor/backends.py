"""Where the frozen executor runs: in this process, or behind OpenAI-compatible servers such as vLLM.

Both give futures, one for each prompt, that end with n texts or with a `CallFailed`: a caller can verify the first
answers while the last ones are being written. Source: ours.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from tracelift_lib.executor.client import CallFailed, Client
from tracelift_lib.executor.settings import ServerBackendSettings
from tracelift_lib.models.generation import Sampler, Sampling
from tracelift_lib.problems.prompts import as_chat, as_completion

log = logging.getLogger(__name__)


class Backend(Protocol):
    """A frozen model that can be asked."""

    name: str

    def show(self, prompt: str) -> str:
        """The text that the model reads for `prompt`, as far as it is known here."""

    def submit(self, prompts: Sequence[str], n: int, seed: int) -> list[Future[list[str]]]:
        """For each prompt (a user's turn) a future of n sampled texts; it fails with `CallFailed`."""


class LocalBackend:
    """The model in this process, in batches of similar length; batches run one after another."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self.name = f"{sampler.model.num_parameters() / 1e6:.2f} million parameters, in this process"
        self._worker = ThreadPoolExecutor(1, "executor")

    def show(self, prompt: str) -> str:
        return as_chat(prompt, self.sampler.tokenizer)

    def submit(self, prompts: Sequence[str], n: int, seed: int) -> list[Future[list[str]]]:
        """Same seed, prompts and machine give the same texts. The futures end batch by batch."""
        futures: list[Future[list[str]]] = [Future() for _ in prompts]
        self._worker.submit(self._run, [self.show(p) for p in prompts], n, seed, futures)
        return futures

    def _run(self, prompts: list[str], n: int, seed: int, futures: list[Future[list[str]]]) -> None:
        try:  # `set_result` raises if the caller has cancelled the future: then the model stops
            self.sampler.sample(prompts, n, seed, deliver=lambda i, texts: futures[i].set_result(texts))
        except Exception as error:
            for future in futures:
                if not future.done():
                    future.set_exception(CallFailed("executor", f"{type(error).__name__}: {error}"))


class ServerBackend:
    """The model behind OpenAI-compatible servers.

    A server that gives fewer texts than asked for (`transformers serve` ignores n) is asked again for the rest.
    """

    def __init__(self, settings: ServerBackendSettings, sampling: Sampling):
        self.settings, self.sampling, self.client = settings, sampling, Client(settings, "executor")
        self.name = f"{settings.model} at {', '.join(settings.base_urls)}"
        self._warned = False

    def show(self, prompt: str) -> str:
        return prompt if self.settings.api == "chat" else as_completion(prompt)

    def submit(self, prompts: Sequence[str], n: int, seed: int) -> list[Future[list[str]]]:
        """The seed of a call depends on `seed` and its prompt only, so chunks and order change nothing."""
        seen: Counter[str] = Counter()
        futures = []
        for prompt in prompts:
            futures.append(self.client.submit(self._answers(prompt, n, derived_seed(seed, prompt, seen[prompt]))))
            seen[prompt] += 1
        return futures

    async def _answers(self, prompt: str, n: int, seed: int) -> list[str]:
        text, texts = self.show(prompt), []
        chat = self.settings.api == "chat"
        options = {
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_tokens": self.sampling.max_new_tokens,
            **({"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}),
            **({"extra_body": self.settings.extra_body} if self.settings.extra_body else {}),
        }
        while missing := n - len(texts):
            got = await self.client.request(_texts, n=missing, seed=derived_seed(seed, len(texts)), **options)
            if len(got) < missing and not self._warned:
                self._warned = True
                log.warning("%s gives %d texts for n=%d: the rest is asked for again", self.name, len(got), missing)
            texts += got[:missing]
        return texts

    def close(self) -> None:
        """Give up waiting requests and connections."""
        self.client.close()


def _texts(reply: Any) -> list[str]:
    """The texts in a completion, at least one; "" where the model thought until it was cut off (content: null)."""
    texts = [(choice.message.content or "") if hasattr(choice, "message") else choice.text for choice in reply.choices]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"no completion: {str(reply)[:200]}")
    return texts


def derived_seed(*parts: Any) -> int:
    """A seed of 31 bits (what servers take) that depends on all `parts`, the same in every process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).digest()[:4]) >> 1
