"""The one client for OpenAI-compatible servers: shares out requests, tries failed ones again, names their failures.

Source: ours. The openai library sends the requests, tenacity repeats them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any

import tenacity

from tracelift_lib.executor.settings import ServerBackendSettings
from tracelift_lib.problems.files import InputError

# openai is imported where it is used: it takes over a second, which only those wait for who ask a server.
log = logging.getLogger(__name__)
MAX_WAIT = 60.0  # seconds between two tries of a request, at most
CHECK = (
    " (check the address, the model's name and the key: execution.backend.api_key_env, or $OPENAI_API_KEY for groups)"
)
REST = 20  # a server that failed gets fewer requests for so many times `backoff`, longer than requests usually wait


class CallFailed(RuntimeError):
    """A call that gave no answer.

    Attributes:
        kind: for counting. Of a request: CALLER_timeout, CALLER_connection, CALLER_http_STATUS, or CALLER_malformed (a
            reply that cannot be read), such as `executor_timeout`.
        passing: whether the same call may succeed later.
        retry_after: seconds that the server asks to wait before that; 0.0 if it does not say.
    """

    def __init__(self, kind: str, message: str, passing: bool = False, retry_after: float = 0.0):
        super().__init__(f"{kind}: {message}")
        self.kind, self.passing, self.retry_after = kind, passing, retry_after


class Client:
    """OpenAI-compatible servers that all serve the same model.

    A request that fails for a passing reason (time-out, lost connection, status 408, 409, 429 or 5xx, a malformed
    reply) is tried again, on another server if there is one, with growing waits. All requests run on one event loop in
    a thread of its own, so notebooks and TRL's own loop can both wait for them. No message holds the key.
    """

    def __init__(self, settings: ServerBackendSettings, caller: str, retry_malformed: bool = True):
        """`caller` begins the kinds of failures.

        Raises:
            InputError: the environment variable that should hold the key is not set.
        """
        import openai

        self.settings, self.caller, self.retry_malformed = settings, caller, retry_malformed
        variable = settings.api_key_env
        if variable and not os.environ.get(variable):
            raise InputError(f"put the key into the environment variable {variable} (execution.backend.api_key_env)")
        self._key = os.environ[variable] if variable else "no-key-needed"  # the library insists on one
        self._servers = {
            url: openai.AsyncOpenAI(base_url=url, api_key=self._key, max_retries=0, timeout=None)
            for url in settings.base_urls
        }
        # Room for one request each: (number, turn, address). The lowest number is taken first, so requests go to the
        # server with the fewest; of equal numbers the one that has been free for longest.
        self._free_slots: asyncio.PriorityQueue[tuple[int, int, str]] = asyncio.PriorityQueue()
        self._turns = itertools.count()
        for number, url in itertools.product(range(settings.concurrency), settings.base_urls):
            self._free_slots.put_nowait((number, next(self._turns), url))
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run_loop, name="model-requests", daemon=True)
        self._thread.start()

    def _run_loop(self) -> None:
        with self._runner:  # at its end it cancels what still waits, and closes the loop
            self._loop.run_forever()
            for server in self._servers.values():
                self._runner.run(server.close())

    def close(self) -> None:
        """Give up waiting requests and connections."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def submit(self, work: Coroutine) -> Future:
        """Run a coroutine that awaits `request` on the client's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def request(self, read: Callable[[Any], Any], **options: Any) -> Any:
        """What `read` takes from the reply to a request with these options (of the openai library).

        With `messages` among the options it goes to the chat endpoint, else to the one for completions. `read` raises
        ValueError for a malformed reply.

        Raises:
            CallFailed: the last failure, after all tries.
        """
        retrying = tenacity.AsyncRetrying(**patience(self.settings.retries, self.settings.backoff))
        return await retrying(self._try_once, read, options)

    async def _try_once(self, read: Callable[[Any], Any], options: dict[str, Any]) -> Any:
        number, _, url = await self._free_slots.get()
        rest = 0.0
        try:
            return await self._send(url, read, options)
        except CallFailed as failure:
            if failure.passing and len(self._servers) > 1:  # failing fast, this server would draw all requests
                rest = min(MAX_WAIT, REST * self.settings.backoff)
            raise
        finally:
            self._loop.call_later(rest, self._free_slots.put_nowait, (number, next(self._turns), url))

    async def _send(self, url: str, read: Callable[[Any], Any], options: dict[str, Any]) -> Any:
        import openai

        server = self._servers[url]
        endpoint = server.chat.completions if "messages" in options else server.completions
        try:
            async with asyncio.timeout(self.settings.timeout):  # of the whole reply, however slowly its bytes come
                reply = await endpoint.create(model=self.settings.model, **options)
            try:
                return read(reply)
            except (AttributeError, IndexError, TypeError):  # the library does not check what a server sends
                raise ValueError(f"no completion: {reply}") from None
        except TimeoutError:
            raise self._failure(url, "timeout", f"no reply within {self.settings.timeout} s") from None
        except openai.APIStatusError as error:
            code, passing = error.status_code, may_pass(error.status_code)
            message = f"status {code} for model {self.settings.model!r}{'' if passing else CHECK}: {error}"
            raise self._failure(url, f"http_{code}", message, passing, asked_wait(error.response.headers)) from None
        except openai.APIConnectionError as error:
            raise self._failure(url, "connection", error.__cause__ or error) from None
        except (ValueError, openai.APIError) as error:  # a body that is no JSON, or no completion
            raise self._failure(url, "malformed", error, self.retry_malformed) from None

    def _failure(self, url: str, kind: str, message: object, passing=True, retry_after=0.0) -> CallFailed:
        text = str(message).replace(self._key, "***")  # the server may repeat the key
        return CallFailed(f"{self.caller}_{kind}", f"{url}: {text[:500]}", passing, retry_after)


# --- how a failed request is tried again; reward_model/remote.py does it in the same way --------


def patience(retries: int, backoff: float) -> dict[str, Any]:
    """Arguments of tenacity's Retrying: errors whose `passing` is true are tried again up to `retries` times.

    `backoff`: seconds before the first retry; they double, with jitter, or are what the server asks for
    (`retry_after` of the error). The last error is raised in the end, its message says after how many tries.
    """

    def wait(state: tenacity.RetryCallState) -> float:
        growing = tenacity.wait_exponential_jitter(initial=backoff, max=MAX_WAIT, jitter=backoff)(state)
        return min(MAX_WAIT, max(growing, state.outcome.exception().retry_after))

    return {
        "stop": tenacity.stop_after_attempt(retries + 1),
        "wait": wait,
        "retry": tenacity.retry_if_exception(lambda error: getattr(error, "passing", False)),
        "before_sleep": tenacity.before_sleep_log(log, logging.WARNING),
        "retry_error_callback": _give_up,
    }


def may_pass(status: int) -> bool:
    """Whether the same request may succeed later, by the HTTP status of a refusal."""
    return status in (408, 409, 429) or status >= 500


def asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait (`retry-after`); 0.0 if it does not say, or gives a date."""
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _give_up(state: tenacity.RetryCallState) -> None:
    failure = state.outcome.exception()
    failure.args = (f"{failure} (given up after {state.attempt_number} tries)",)
    raise failure
