"""The frozen executor E: from (problem, trace or none) to sampled answers and their verdicts.

Source: paper section 3; docs/method.md section 1.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from tracelift_lib.executor.backends import Backend
from tracelift_lib.executor.client import CallFailed
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptLimits, PromptStyle, executor_prompt
from tracelift_lib.verifier.verdicts import Verdict, Verifier

Trace = str | None  # None: ask without a trace
SELF_TEST_SAMPLES = 8


class SelfTestError(RuntimeError):
    """The executor does not sample, so uplift estimates would have no noise and no meaning."""


@dataclass
class Executor:
    """A frozen model that solves problems, with the verifier of its answers.

    Attributes:
        backend: where the model runs: in this process or behind servers.
        style, limits: how a problem and a trace are put into a prompt.
        verifier: V, which says whether an answer is right.
    """

    backend: Backend
    style: PromptStyle
    limits: PromptLimits
    verifier: Verifier

    # --- answers: y ~ E(. | x, z), or E(. | x, no trace) ---

    def prompt(self, problem: Problem, trace: Trace) -> str:
        """What the executor is asked, as one user's turn."""
        return executor_prompt(problem, trace, self.style, self.limits)

    def _submit(self, problems: Sequence[Problem], traces: Sequence[Trace], n: int, seed: int) -> list[Future]:
        prompts = [self.prompt(p, z) for p, z in zip(problems, traces, strict=True)]
        return self.backend.submit(prompts, n, seed)

    def answer(
        self, problems: Sequence[Problem], traces: Sequence[Trace], n: int, seed: int, progress: str | None = None
    ) -> list[list[str]]:
        """n sampled answers for each (problem, trace); `progress` names a bar.

        Raises:
            CallFailed: there is no answer for one of them; the answers of the others are dropped.
        """
        futures = self._submit(problems, traces, n, seed)
        try:
            for future in tqdm(as_completed(futures), total=len(futures), desc=progress, disable=progress is None):
                future.result()
        except BaseException:  # Ctrl-C too: nobody waits for the rest
            for future in futures:
                future.cancel()
            raise
        return [future.result() for future in futures]

    # --- verdicts: V(x, y) ---

    def verdicts(
        self, problems: Sequence[Problem], traces: Sequence[Trace], n: int, seed: int, progress: str | None = None
    ) -> np.ndarray:
        """V(x, y) of n answers for each (problem, trace): 0/1 integers of shape (len(problems), n)."""
        answers = self.answer(problems, traces, n, seed, progress)
        flat = self.successes([p for p in problems for _ in range(n)], [y for ys in answers for y in ys])
        return np.array(flat, dtype=int).reshape(len(problems), n)

    def verdict(self, problem: Problem, answer: str) -> int:
        """V(x, y): 1 if `answer` solves `problem`, else 0."""
        return self.successes([problem], [answer])[0]

    def successes(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[int]:
        """V(x, y) of each answer, 1 or 0. Raises what `Verifier.verify` raises.

        Answers whose tests cannot be judged count as not solved; a warning says how many, and why.
        """
        verdicts = self.verifier.verify(problems, answers)
        missing = {p.problem_id: v.reason for p, v in zip(problems, verdicts) if v.reason}
        if missing:
            count = sum(bool(v.reason) for v in verdicts)
            warnings.warn(
                f"{count} of {len(verdicts)} answers could not be judged (outcome unsupported), counted as not solved: "
                + "; ".join(f"problem {name}: {reason}" for name, reason in list(missing.items())[:5]),
                stacklevel=2,
            )
        return [verdict.success for verdict in verdicts]

    # --- both at once, for rewards while a planner trains ---

    async def verified(
        self, problems: Sequence[Problem], traces: Sequence[Trace], n: int, seed: int, seconds: Counter[str]
    ) -> list[list[Verdict] | CallFailed]:
        """For each (problem, trace) the verdicts of n answers, or why there are none.

        Answers are verified in threads as they come. Adds to `seconds` the wall time until the last answer (`executor`)
        and the sum over all verifier calls (`verifier`).
        """
        start = time.monotonic()

        async def one(problem: Problem, future: Future) -> list[Verdict] | CallFailed:
            try:
                answers = await asyncio.wrap_future(future)
            except CallFailed as failure:
                return failure
            seconds["executor"] = max(seconds["executor"], time.monotonic() - start)
            verdicts, took = await asyncio.to_thread(self._verify_timed, problem, answers)
            seconds["verifier"] += took
            return verdicts

        return await asyncio.gather(*map(one, problems, self._submit(problems, traces, n, seed)))

    def _verify_timed(self, problem: Problem, answers: list[str]) -> tuple[list[Verdict] | CallFailed, float]:
        """The verdicts, or the failure if one of them is missing; and the seconds that they took."""
        start = time.monotonic()
        try:
            result: list[Verdict] | CallFailed = self.verifier.verify([problem] * len(answers), answers)
            if reason := next((verdict.reason for verdict in result if verdict.reason), ""):
                result = CallFailed("verifier", f"problem {problem.problem_id}: a test cannot be judged: {reason}")
        except Exception as error:
            result = CallFailed("verifier", f"problem {problem.problem_id}: {type(error).__name__}: {error}")
        return result, time.monotonic() - start

    def self_test(self, problems: Sequence[Problem]) -> None:
        """Check that samples asked without trace differ for at least one of `problems`.

        Raises:
            SelfTestError: all samples of every problem are the same text.
            CallFailed: the executor cannot be reached or refuses the request.
        """
        answers = self.answer(problems, [None] * len(problems), SELF_TEST_SAMPLES, seed=0)
        if all(len(set(texts)) == 1 for texts in answers):
            raise SelfTestError(
                f"{SELF_TEST_SAMPLES} samples are identical for each of {len(problems)} problems: the executor "
                f"({self.backend.name}) decodes greedily. Raise execution.temperature; a server may also need "
                "do_sample=true in the model's generation_config.json (transformers serve)."
            )
