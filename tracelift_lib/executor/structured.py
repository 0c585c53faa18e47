"""Structured answers from a language model: an OpenAI-compatible endpoint or a model in this process.

Each answer must fit a JSON schema; one that does not is asked for again with the fault named. Finished requests lie in
a ledger on disk, so a run that was cut off pays for nothing twice, and a cap on tokens holds over all its parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from tracelift_lib.executor.client import CallFailed, Client
from tracelift_lib.executor.settings import ServerBackendSettings
from tracelift_lib.models.generation import Sampler
from tracelift_lib.problems.files import InputError, count_lines, read_jsonl
from tracelift_lib.problems.prompts import as_chat

Schema = TypeVar("Schema", bound=BaseModel)
KEY_VARIABLE = "OPENAI_API_KEY"
TEMPERATURE = 0.7
CHARACTERS_PER_TOKEN = 3  # a cautious guess of a prompt's size, for the cap


class BudgetSpent(RuntimeError):
    """The next request could go over the cap on tokens. Finished requests are kept; raise the cap to go on."""


class Reply(NamedTuple):
    """What a model said: its text, or None with the reason why there is none; and the tokens it cost."""

    text: str | None
    tokens: int
    reason: str = ""


class Failure(NamedTuple):
    """No usable answer; `reason` is one of a few words, for counting."""

    reason: str


class OpenAIModel:
    """A model behind an OpenAI-compatible chat endpoint. The key comes from $OPENAI_API_KEY, if one is needed."""

    def __init__(self, url: str, name: str, max_tokens: int = 1024, **connection: Any):
        """`connection`: retries, backoff and timeout, as in ServerBackendSettings.

        Raises:
            InputError: `url` is no http address, or holds credentials.
        """
        self.name, self.max_tokens = name, max_tokens
        if os.environ.get(KEY_VARIABLE):
            connection["api_key_env"] = KEY_VARIABLE
        try:
            settings = ServerBackendSettings(kind="server", base_urls=[url], model=name, **connection)
        except ValidationError as error:
            raise InputError(f"the endpoint's address: {error.errors()[0]['msg']}") from None
        self._client = Client(settings, "endpoint", retry_malformed=False)  # `Asker` asks again, with another seed

    def complete(self, prompt: str, schema: dict, seed: int) -> Reply:
        """One answer. Raises CallFailed if the server is down for too long or refuses the request."""

        def read(reply: Any) -> Reply:
            choice = reply.choices[0]
            text = choice.message.content or ""
            tokens = reply.usage.total_tokens if reply.usage else (len(prompt) + len(text)) // 2
            if getattr(choice.message, "refusal", None) or choice.finish_reason == "content_filter":
                return Reply(None, tokens, "refused")
            return Reply(None, tokens, "cut off") if choice.finish_reason == "length" else Reply(text, tokens)

        json_schema = {"name": schema["title"], "schema": schema, "strict": True}
        request = self._client.request(
            read,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=self.max_tokens,
            temperature=TEMPERATURE,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": json_schema},
        )
        try:
            return self._client.submit(request).result()
        except CallFailed as failure:
            if failure.kind == "endpoint_malformed":
                return Reply(None, 0, "malformed reply")
            raise


class LocalModel:
    """A model in this process. Nothing forces its text into the schema, so expect more failures."""

    def __init__(self, sampler: Sampler, name: str):
        self.sampler, self.name, self.max_tokens = sampler, name, sampler.sampling.max_new_tokens

    def complete(self, prompt: str, schema: dict, seed: int) -> Reply:
        text = self.sampler.sample([as_chat(prompt, self.sampler.tokenizer)], 1, seed)[0][0]
        return Reply(text, sum(len(self.sampler.tokenizer(t)["input_ids"]) for t in (prompt, text)))


class Asker:
    """Asks a model for answers that fit a schema, and remembers them in `ledger` (.jsonl)."""

    def __init__(self, model: OpenAIModel | LocalModel, ledger: Path, token_cap: int, attempts: int = 3):
        self.model, self.token_cap, self.attempts, self._ledger = model, token_cap, attempts, ledger
        ledger.parent.mkdir(parents=True, exist_ok=True)
        records = _read_ledger(ledger)
        self.spent = sum(record.get("tokens", 0) for record in records)
        self._finished = {record["key"]: record for record in records if "key" in record}

    def ask(self, prompt: str, schema: type[Schema], seed: int = 0) -> Schema | Failure:
        """An answer that fits `schema`, or why there is none after all attempts.

        Raises:
            BudgetSpent, CallFailed: nothing more can be asked now; what is finished is kept.
        """
        wanted = schema.model_json_schema()
        recipe = json.dumps([self.model.name, prompt, wanted, seed], sort_keys=True)
        key = hashlib.sha256(recipe.encode()).hexdigest()[:24]
        if key not in self._finished:
            answer, reason = self._try(prompt, schema, wanted, seed)
            self._finished[key] = self._append({"key": key, "answer": answer, "reason": reason})
        record = self._finished[key]
        return Failure(record["reason"]) if record["answer"] is None else schema.model_validate(record["answer"])

    def _try(self, prompt: str, schema: type[Schema], wanted: dict, seed: int) -> tuple[dict | None, str]:
        """(answer, "") or (None, the last reason why there is none)."""
        rule = f"\n\nAnswer with one JSON object of this schema:\n{json.dumps(wanted)}"
        text, reason = prompt + rule, ""
        for attempt in range(self.attempts):
            if self.spent + len(text) // CHARACTERS_PER_TOKEN + self.model.max_tokens > self.token_cap:
                raise BudgetSpent(
                    f"{self.spent} of {self.token_cap} tokens are spent, and the next request may go over; finished "
                    f"requests are in {self._ledger}. Raise the cap and run again to go on."
                )
            reply = self.model.complete(text, wanted, seed + 1000 * attempt)
            self.spent += self._append({"tokens": reply.tokens})["tokens"]  # at once: the cap holds over interruptions
            if reply.text is None:
                reason = reply.reason
                if reason == "refused":
                    break  # it will refuse again
                continue
            found = re.search(r"\{.*\}", reply.text, re.DOTALL)  # a fence or a sentence may stand around it
            try:
                return schema.model_validate_json(found[0] if found else reply.text).model_dump(), ""
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                reason = "not JSON" if first["type"] == "json_invalid" else "breaks the schema"
                fault = f"{where}: {first['msg']}" if where else first["msg"]
                text = f"{prompt}\n\nYour last answer could not be used ({fault}).{rule}"
        return None, reason

    def _append(self, record: dict) -> dict:
        with self._ledger.open("a") as file:
            file.write(json.dumps(record) + "\n")
        return record


def _read_ledger(path: Path) -> list[dict]:
    """The records of a ledger, after removing a last line that was cut off from the file."""
    if not count_lines(path):
        return []
    try:
        return [record for _, record in read_jsonl(path)]
    except InputError as error:
        raise InputError(f"{error} Remove this line or the file.") from None
