"""Structured answers from a language model: an OpenAI-compatible endpoint or a model in this process.

Each answer must fit a JSON schema; one that does not is asked for again with the fault named. Finished requests lie in
a ledger on disk, so a run that was cut off pays for nothing twice, and a cap on tokens holds over all its parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import time
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from tracelift_lib.models.generation import Sampler
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.prompts import as_chat

Schema = TypeVar("Schema", bound=BaseModel)
KEY_VARIABLE = "OPENAI_API_KEY"
CHARACTERS_PER_TOKEN = 3  # a cautious guess of a prompt's size, for the cap


class BudgetSpent(RuntimeError):
    """The next request could go over the cap on tokens. Finished requests are kept; raise the cap to go on."""


class EndpointError(RuntimeError):
    """The endpoint cannot be used (wrong address, key or model, or down too long). Finished requests are kept."""


class Reply(NamedTuple):
    """What a model said: its text, or None with the reason why there is none; and the tokens it cost."""

    text: str | None
    tokens: int
    reason: str = ""


class Failure(NamedTuple):
    """No usable answer; `reason` is one of a few words, for counting."""

    reason: str


class Model(Protocol):
    """Something that answers a prompt, if it can by the given JSON schema."""

    name: str
    max_tokens: int

    def complete(self, prompt: str, schema: dict, seed: int) -> Reply: ...


class OpenAIModel:
    """A model behind an OpenAI-compatible chat endpoint. The key comes from $OPENAI_API_KEY, if one is needed."""

    def __init__(
        self,
        url: str,
        name: str,
        max_tokens: int = 1024,
        temperature: float = 0.7,
        timeout: float = 60.0,
        tries: int = 5,
        pause: float = 1.0,
    ):
        """`tries` and `pause` (seconds, doubled each time) are for overload, time-outs and failures of the server."""
        import openai

        self.name, self.max_tokens, self.temperature, self.tries, self.pause = (
            name,
            max_tokens,
            temperature,
            tries,
            pause,
        )
        key = os.environ.get(KEY_VARIABLE, "none")
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=timeout)

    def complete(self, prompt: str, schema: dict, seed: int) -> Reply:
        import openai

        for attempt in range(self.tries):
            try:
                return self._once(prompt, schema, seed)
            except (openai.RateLimitError, openai.InternalServerError, openai.APIConnectionError) as error:
                if attempt == self.tries - 1:
                    raise EndpointError(
                        f"{self._client.base_url}: still failing after {self.tries} tries ({error})"
                    ) from None
                time.sleep(self.pause * 2**attempt * random.uniform(0.75, 1.25))
            except openai.APIStatusError as error:  # asking again would not help
                raise EndpointError(
                    f"{self._client.base_url} refused the request with status {error.status_code} ({error.message}); "
                    f"check the address, the model name {self.name!r} and ${KEY_VARIABLE}"
                ) from None
            except (openai.APIError, ValueError, IndexError, AttributeError, TypeError):  # a body that is no completion
                return Reply(None, 0, "malformed reply")
        raise AssertionError("unreachable")

    def _once(self, prompt: str, schema: dict, seed: int) -> Reply:
        done = self._client.chat.completions.create(
            model=self.name,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=seed,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": schema["title"], "schema": schema, "strict": True},
            },
        )
        choice = done.choices[0]
        tokens = done.usage.total_tokens if done.usage else (len(prompt) + len(choice.message.content or "")) // 2
        if getattr(choice.message, "refusal", None) or choice.finish_reason == "content_filter":
            return Reply(None, tokens, "refused")
        if choice.finish_reason == "length":
            return Reply(None, tokens, "cut off")
        return Reply(choice.message.content or "", tokens)


class LocalModel:
    """A model in this process. Nothing forces its text into the schema, so expect more failures."""

    def __init__(self, sampler: Sampler, name: str):
        self.sampler, self.name, self.max_tokens = sampler, name, sampler.sampling.max_new_tokens

    def complete(self, prompt: str, schema: dict, seed: int) -> Reply:
        text = self.sampler.sample([as_chat(prompt, self.sampler.tokenizer)], 1, seed)[0][0]
        return Reply(text, sum(len(self.sampler.tokenizer(t)["input_ids"]) for t in (prompt, text)))


class Asker:
    """Asks a model for answers that fit a schema, and remembers them in `ledger` (.jsonl)."""

    def __init__(self, model: Model, ledger: Path, token_cap: int, attempts: int = 3):
        self.model, self.token_cap, self.attempts = model, token_cap, attempts
        ledger.parent.mkdir(parents=True, exist_ok=True)
        self.spent, self._known = _read_ledger(ledger)
        self._ledger = ledger

    def ask(self, prompt: str, schema: type[Schema], seed: int = 0) -> Schema | Failure:
        """An answer that fits `schema`, or why there is none after all attempts.

        Raises:
            BudgetSpent, EndpointError: nothing more can be asked now; what is finished is kept.
        """
        wanted = schema.model_json_schema()
        recipe = json.dumps([self.model.name, prompt, wanted, seed], sort_keys=True)
        key = hashlib.sha256(recipe.encode()).hexdigest()[:24]
        if key not in self._known:
            self._finish(key, *self._try(prompt, schema, wanted, seed))
        with self._ledger.open("rb") as file:
            file.seek(self._known[key])
            record = json.loads(file.readline())
        return Failure(record["reason"]) if record["answer"] is None else schema.model_validate(record["answer"])

    def _try(self, prompt: str, schema: type[Schema], wanted: dict, seed: int) -> tuple[dict | None, str]:
        rule = f"\n\nAnswer with one JSON object of this schema:\n{json.dumps(wanted)}"
        text, reason = prompt + rule, ""
        for attempt in range(self.attempts):
            self._check_cap(text)
            reply = self.model.complete(text, wanted, seed + 1000 * attempt)
            self._pay(reply.tokens)
            if reply.text is None:
                reason = reply.reason
                if reason == "refused":
                    break  # it will refuse again
                continue
            try:
                return schema.model_validate_json(_object_in(reply.text)).model_dump(), ""
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                reason = "not JSON" if first["type"] == "json_invalid" else "breaks the schema"
                fault = f"{where}: {first['msg']}" if where else first["msg"]
                text = f"{prompt}\n\nYour last answer could not be used ({fault}).{rule}"
        return None, reason

    def _check_cap(self, text: str) -> None:
        if self.spent + len(text) // CHARACTERS_PER_TOKEN + self.model.max_tokens > self.token_cap:
            raise BudgetSpent(
                f"{self.spent} of {self.token_cap} tokens are spent, and the next request may go over; finished "
                f"requests are in {self._ledger}. Raise the cap and run again to go on."
            )

    def _pay(self, tokens: int) -> None:
        """Cost is noted at once, also of answers that are of no use: the cap must hold over interruptions."""
        self.spent += tokens
        self._append({"tokens": tokens})

    def _finish(self, key: str, answer: dict | None, reason: str) -> None:
        self._known[key] = self._append({"key": key, "answer": answer, "reason": reason})

    def _append(self, record: dict) -> int:
        """The offset at which the record stands."""
        with self._ledger.open("ab") as file:
            offset = file.tell()
            file.write(json.dumps(record).encode() + b"\n")
        return offset


def _read_ledger(path: Path) -> tuple[int, dict[str, int]]:
    """(tokens spent, offset of each finished request); a last line that was cut off is removed."""
    spent, known, offset = 0, {}, 0
    if not path.exists():
        return spent, known
    with path.open("r+b") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                file.truncate(offset)
                break
            try:
                record = json.loads(line)
            except ValueError:
                raise InputError(f"{path}:{number}: not valid JSON; remove this line or the file") from None
            spent += record.get("tokens", 0)
            if "key" in record:
                known[record["key"]] = offset
            offset += len(line)
    return spent, known


def _object_in(text: str) -> str:
    """The JSON object in an answer that may wrap it in a fence or a sentence."""
    found = re.search(r"\{.*\}", text, re.DOTALL)
    return found[0] if found else text
