"""Sections of a preset: the frozen executor and how it is asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from tracelift_lib.problems.settings import Positive, Section, Share
from tracelift_lib.sandbox.host import PACKAGES, PRELUDE
from tracelift_lib.verifier.verify_code import ExecStyle
from tracelift_lib.verifier.verify_math import AnswerRule


def http_url_without_credentials(url: str) -> str:
    """An http address without credentials in it; raises ValueError otherwise."""
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("an address must not hold a key: name an environment variable in api_key_env")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no http address; write one such as http://localhost:8000/v1")
    return url


Address = Annotated[str, AfterValidator(http_url_without_credentials)]
AboveZero = Annotated[float, Field(gt=0)]


class LocalBackendSettings(Section):
    """The executor runs in this process, in batches (backends.py)."""

    kind: Literal["local"] = "local"


class ServerBackendSettings(Section):
    """The executor runs behind OpenAI-compatible servers, such as `vllm serve` (client.py)."""

    kind: Literal["server"]
    base_urls: list[Address] = Field(min_length=1, description="http://localhost:8000/v1, ...; all serve `model`")
    model: str
    api: Literal["chat", "completion"] = "chat"
    api_key_env: str | None = Field(None, description="environment variable that holds the key; null: no key")
    extra_body: dict[str, Any] = Field(
        {}, description="further fields of every request; vLLM: {chat_template_kwargs: {enable_thinking: false}}"
    )
    concurrency: Positive = Field(64, description="requests in flight at each server, at most")
    timeout: AboveZero = Field(120.0, description="seconds that one request may take")
    retries: Annotated[int, Field(ge=0)] = Field(4, description="further tries of a request that failed")
    backoff: AboveZero = Field(0.5, description="seconds before the first retry; they double")


BackendSettings = Annotated[LocalBackendSettings | ServerBackendSettings, Field(discriminator="kind")]


class ScorerSettings(Section):
    """A reward model behind reward_model/server.py, or another service with the same request and answer."""

    url: Address = Field(description="such as http://localhost:8100")
    model: str = Field(description="what is served there, a name for the results: scores of another model are others")
    max_length: Positive = Field(3072, description="tokens of a text; the rest is cut")
    batch_size: Positive = Field(64, description="texts of one forward pass")
    timeout: AboveZero = Field(600.0, description="seconds that one request may take")
    retries: Annotated[int, Field(ge=0)] = Field(4, description="further tries of a request that failed")
    backoff: AboveZero = Field(0.5, description="seconds before the first retry; they double")


class Execution(Section):
    """The frozen executor and the uplift (docs/method.md sections 1 and 6).

    planner/reward_engine.py says what each mode of `baseline` and `s_run` means.
    """

    k: Positive
    temperature: AboveZero
    top_p: Share = 1.0
    max_new_tokens: Positive
    baseline_samples: Positive = Field(description="no-trace samples for each problem, drawn once")
    answer: AnswerRule = Field(description="which final answer of a text counts (docs/answers.md)")
    style: ExecStyle = Field("hybrid", description="s of a program (docs/method.md section 4); math is right or wrong")
    packages: list[str] = Field(list(PACKAGES), description="that programs may import, where they are installed")
    prelude: str = Field(PRELUDE, description="imports that every program finds done, as public harnesses do; '': none")
    batch_tokens: Positive
    problems: Positive = Field(description="test problems that notebook 03 measures")
    max_failure_rate: Share = Field(0.02, description="share of failed rewards that stops a run")
    min_failures: Positive = Field(10, description="failed rewards, at least, before their share stops a run")
    failed: Literal["no_reward", "released_code"] = Field("no_reward", description="reward of a trace if a call failed")
    backend: BackendSettings = LocalBackendSettings()
    scorer: ScorerSettings | None = Field(None, description="q from this service; null: from the trained reward model")
    baseline: Literal["cached", "fresh"] = Field("cached", description="no-trace runs: M once, or K for each trace")
    s_run: Literal["separate", "merged"] = Field("separate", description="s: a run of its own, or the mean of the K")
    ties: list[float] | None = Field(None, description="released_code: bonus of a tie of 0..K successes; null: its own")

    @model_validator(mode="after")
    def _one_tie_each(self) -> Execution:
        if self.ties is not None and len(self.ties) != self.k + 1:
            raise ValueError(f"ties: K = {self.k} needs {self.k + 1} values, for 0..{self.k} successes")
        return self
