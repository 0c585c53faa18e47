"""The reward phase of a training step: our engine against the plain loop of the public implementation.

    python -m bench.reward

Same server, same K, same completions, same reward model. The plain loop asks strictly one after another, for each
completion: one run for s, K runs with the trace, K without it (the same baseline again for each completion of a
problem), and one reward model call. The loop is written here from the description of it; the engine is the library's.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

import openai
import torch

from bench.model_server import serving
from tracelift_lib.executor.backends import ServerBackend
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.executor.settings import ServerBackendSettings
from tracelift_lib.groups.schema import dimensions
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.generation import Sampling
from tracelift_lib.models.loading import load_tokenizer
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.planner.reward_engine import RewardEngine
from tracelift_lib.planner.rewards import ARMS, uplift
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptLimits, executor_prompt, wrap_trace
from tracelift_lib.problems.tinyworld import generate_splits
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.scorer import Scorer
from tracelift_lib.verifier.verdicts import Verifier

PROBLEMS, GENERATIONS, K = 8, 4, 3
SEEDS = 3  # training runs that share one baseline, as in the paper and in preset `tiny`
REPEATS = 3  # of the engine's runs; the median counts
LATENCY = 0.05  # seconds an answer of the fixed-latency server takes
MAX_TOKENS, TEMPERATURE = 64, 1.0
SHAPE = Qwen2Shape(
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    initializer_range=0.07,
)


def batch() -> tuple[list[Problem], list[str]]:
    """GENERATIONS completions of each problem, no two alike."""
    problems = generate_splits({"rl": PROBLEMS}, {"rl": [2, 3]}, 9, 20, 0)["rl"]
    pairs = [(p, wrap_trace(f"{p.reference_solution}\nTry {i}.")) for p in problems for i in range(GENERATIONS)]
    return [p for p, _ in pairs], [text for _, text in pairs]


def models(folder: Path) -> Scorer:
    """A random executor in `folder` and a random reward model: times do not depend on what a model has learned."""
    problems, completions = batch()
    tokenizer = train_tokenizer([p.problem for p in problems] + completions, 512)
    new_qwen2(tokenizer, SHAPE, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = ReasoningRewardModel.from_backbone(folder, dimensions("math"), 0, 1).eval()
    return Scorer(model, load_tokenizer(folder), 32768, 3072)


def executor(url: str) -> Executor:
    settings = ServerBackendSettings(kind="server", base_urls=[url], model="m")
    return Executor(
        ServerBackend(settings, Sampling(TEMPERATURE, 1.0, MAX_TOKENS, 1)), "short", PromptLimits(), Verifier()
    )


def plain_loop(url: str, scorer: Scorer, problems: list[Problem], completions: list[str]) -> list[float]:
    """One call after another, as the public implementation makes them."""
    client = openai.OpenAI(base_url=url, api_key="none")
    verifier = Verifier()

    def run(problem: Problem, trace: str | None) -> int:
        reply = client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": executor_prompt(problem, trace, "short")}],
            n=1,
            temperature=TEMPERATURE,
            max_tokens=MAX_TOKENS,
        )
        return verifier.verify([problem], [reply.choices[0].message.content])[0].success

    rewards = []
    for problem, completion in zip(problems, completions):
        trace = completion.removeprefix("<reasoning>\n").removesuffix("\n</reasoning>")
        s = run(problem, trace)
        with_trace = [run(problem, trace) for _ in range(K)]
        without = [run(problem, None) for _ in range(K)]
        q = float(scorer.score([problem], [trace])[0][0])
        rewards.append(ARMS["tracelift"](s, q, uplift(with_trace, without), 0.0))
    return rewards


def engine_run(url: str, scorer: Scorer, problems: list[Problem], completions: list[str], s_run: str) -> dict:
    """Median wall seconds of a step, and completion tokens a completion: of the step, and of the baseline."""
    asker = executor(url)
    by_id = {p.problem_id: p for p in problems}
    start = stats(url)
    verdicts = asker.verdicts(list(by_id.values()), [None] * len(by_id), K, seed=1)  # M = K: the same standard error
    baseline = dict(zip(by_id, verdicts.tolist()))
    drawn = stats(url)
    engine = RewardEngine(
        arm="tracelift",
        k=K,
        executor=asker,
        scorer=scorer,
        problems=by_id,
        baseline=baseline,
        seed=0,
        max_failure_rate=0.0,
        log_folder=Path(),
        s_run=s_run,
    )
    seconds = []
    for seed in range(1 + REPEATS):
        rows, figures = asyncio.run(engine.score(completions, [p.problem_id for p in problems], seed))
        if any(row["failure"] for row in rows):
            raise RuntimeError(f"failures: {dict(engine.failures)}")
        seconds.append(figures["seconds"])
    tokens = (stats(url) - drawn) / len(seconds), drawn - start
    asker.backend.close()
    step, once = (count / len(completions) for count in tokens)
    return {"seconds": statistics.median(seconds[1:]), "step": step, "baseline": once}  # the first opens connections


def stats(url: str) -> int:
    """Completion tokens that the server has written so far."""
    with urllib.request.urlopen(f"{url}/stats") as reply:
        return json.load(reply).get("completion_tokens", 0)


def saturated(url: str, problems: list[Problem], completions: list[str]) -> tuple[float, float]:
    """(tokens a second under three times the step's load, seconds of the longest of the step's calls made alone)."""
    asker = executor(url)
    traces = [c.removeprefix("<reasoning>\n").removesuffix("\n</reasoning>") for c in completions]
    before, start = stats(url), time.monotonic()
    asker.answer(problems * 3, traces * 3, K + 1, seed=2)
    rate = (stats(url) - before) / (time.monotonic() - start)
    alone = []
    for problem, trace in list(zip(problems, traces))[::GENERATIONS]:
        start = time.monotonic()
        asker.answer([problem], [trace], K + 1, seed=3)
        alone.append(time.monotonic() - start)
    asker.backend.close()
    return rate, max(alone)


def verifier_seconds(problems: list[Problem]) -> float:
    """CPU seconds that the verdicts of one step take, on answers of the usual form."""
    verifier, start = Verifier(), cpu()
    verifier.verify(problems * (K + 1), [f"Answer: {i}" for i in range(len(problems) * (K + 1))])
    return cpu() - start


def cpu() -> float:
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


def timed(work, *arguments) -> float:
    start = time.monotonic()
    work(*arguments)
    return time.monotonic() - start


def row(name: str, ours: float, other: float, ratio: float, unit: str, note: str) -> dict:
    return {
        "name": name,
        "ours": round(ours, 3),
        "other": round(other, 3),
        "ratio": round(ratio, 3),
        "unit": unit,
        "note": note,
    }


def run() -> list[dict]:
    """The four figures; `other` is the plain loop, or the lower bound."""
    torch.set_num_threads(1)
    problems, completions = batch()
    size = f"{PROBLEMS} problems x {GENERATIONS} completions, K = {K}"
    with tempfile.TemporaryDirectory() as folder:
        scorer = models(Path(folder))
        with serving("--latency", str(LATENCY)) as url:
            ours = engine_run(url, scorer, problems, completions, "separate")["seconds"]
            other = timed(plain_loop, url, scorer, problems, completions)
        rows = [
            row(
                "reward_wall_fixed_latency",
                ours,
                other,
                other / ours,
                "s",
                f"{size}, {LATENCY * 1000:.0f} ms a call; ratio: plain loop / ours, goal at least 10",
            )
        ]
        server = ("--model", folder, "--max-tokens", str(MAX_TOKENS), "--temperature", str(TEMPERATURE))
        with serving(*server) as url:
            separate = engine_run(url, scorer, problems, completions, "separate")
            merged = engine_run(url, scorer, problems, completions, "merged")
            rate, longest = saturated(url, problems, completions)
            before = stats(url)
            other = timed(plain_loop, url, scorer, problems, completions)
            plain = (stats(url) - before) / len(completions)
    rows.append(
        row(
            "reward_wall_real_server",
            separate["seconds"],
            other,
            other / separate["seconds"],
            "s",
            f"{size}, random Qwen2 of 0.6 M parameters on one core, {MAX_TOKENS} tokens an answer; "
            "ratio: plain loop / ours",
        )
    )
    return rows + [tokens_row(plain, separate, merged), bound_row(separate, rate, longest, problems)]


def tokens_row(plain: float, separate: dict, merged: dict) -> dict:
    """û has K runs on either side everywhere, so its standard error is the same."""
    ways = {
        f"{name}, {runs} run{'s' * (runs > 1)}": way["step"] + way["baseline"] / runs
        for name, way in (("merged", merged), ("separate", separate))
        for runs in (SEEDS, 1)
    }
    ours = ways[f"merged, {SEEDS} runs"]
    note = "; ".join(f"{name}: {tokens / plain:.2f}" for name, tokens in ways.items())
    return row(
        "reward_executor_tokens",
        ours,
        plain,
        ours / plain,
        "tokens a completion",
        f"ours: s_run merged, a baseline of M = K shared by {SEEDS} training runs; ratio: ours / plain loop, "
        f"goal at most 0.5; by s_run and number of training runs: {note}",
    )


def bound_row(separate: dict, rate: float, longest: float, problems: list[Problem]) -> dict:
    tokens = separate["step"] * len(problems)
    parts = {
        "tokens / saturated throughput": tokens / rate,
        "longest single call": longest,
        "verifier CPU / cores": verifier_seconds(problems) / (os.cpu_count() or 1),
    }
    bound = max(parts.values())
    said = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in parts.items())
    return row(
        "reward_over_lower_bound",
        separate["seconds"],
        bound,
        separate["seconds"] / bound,
        "s",
        f"real server; {said}; {rate:.0f} tokens/s; ratio: ours / bound, goal at most 1.3",
    )


if __name__ == "__main__":
    for line in run():
        print(json.dumps(line))
