"""The frozen executor E: from (problem, trace or none) to sampled answers and their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tracelift_lib.generation import Sampler, Sampling
from tracelift_lib.models import load_model, load_tokenizer
from tracelift_lib.presets import Preset
from tracelift_lib.problems import Problem
from tracelift_lib.prompts import PromptLimits, PromptStyle, as_chat, executor_prompt
from tracelift_lib.verify import AnswerRule, verify_math

Trace = str | None  # None: ask without a trace


class SelfTestError(RuntimeError):
    """The executor does not sample, so uplift estimates would have no noise and no meaning."""


@dataclass
class Executor:
    """A frozen model that solves problems, with the rule by which its answers are read."""

    sampler: Sampler
    style: PromptStyle
    limits: PromptLimits
    rule: AnswerRule

    @classmethod
    def from_folder(cls, folder: Path | str, preset: Preset) -> Executor:
        """The executor in a Hugging Face folder, drawing as `preset.execution` says."""
        e = preset.execution
        sampling = Sampling(e.temperature, e.top_p, e.max_new_tokens, e.batch_tokens)
        sampler = Sampler(load_model(folder), load_tokenizer(folder), sampling)
        return cls(sampler, preset.prompt_style, preset.limits, e.answer)

    def answer(
        self, problems: Sequence[Problem], traces: Sequence[Trace], n: int, seed: int,
        progress: str | None = None,
    ) -> list[list[str]]:
        """n sampled answers for each (problem, trace)."""
        prompts = [
            as_chat(executor_prompt(p.problem, z, self.style, self.limits), self.sampler.tokenizer)
            for p, z in zip(problems, traces, strict=True)
        ]
        return self.sampler.sample(prompts, n, seed, progress)

    def verdict(self, problem: Problem, answer: str) -> int:
        """V(x, y): 1 if `answer` solves `problem`, else 0."""
        return verify_math(answer, problem.answer, self.rule)

    def verdicts(
        self, problems: Sequence[Problem], traces: Sequence[Trace], n: int, seed: int,
        progress: str | None = None,
    ) -> np.ndarray:
        """V(x, y) of n answers for each (problem, trace): 0/1 integers of shape (len(problems), n)."""
        answers = self.answer(problems, traces, n, seed, progress)
        return np.array(
            [[self.verdict(p, y) for y in ys] for p, ys in zip(problems, answers)],
            dtype=int,
        ).reshape(len(problems), n)

    def self_test(self, problems: Sequence[Problem]) -> None:
        """Check that 8 samples asked without trace differ for at least one of `problems`.

        Raises:
            SelfTestError: all samples of every problem are the same text.
        """
        answers = self.answer(problems, [None] * len(problems), 8, seed=0)
        if all(len(set(texts)) == 1 for texts in answers):
            raise SelfTestError(
                f"8 samples at temperature {self.sampler.sampling.temperature} are identical for each of "
                f"{len(problems)} problems: the executor decodes greedily. Raise execution.temperature."
            )
