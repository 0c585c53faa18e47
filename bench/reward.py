"""The reward phase of a training step: our engine against the plain loop of the public implementation.

    python -m bench.reward          (all; `python -m bench.reward shapes` the table alone, in a minute)

Same server, same K, same completions, same reward model. The plain loop asks strictly one after another, for each
completion: one run for s, K runs with the trace, K without it (the same baseline again for each completion of a
problem), and one reward model call; its client is the standard library's, one connection a call, as there. The loop is
written here from the description of it; the engine is the library's.

The table has one process with 1, 4 and 32 completions a step (the paper's launch has 1 in each of 8 processes), in
front of a server of stated capacity, of which it has the eighth part. The engine's baseline is `fresh` (K runs without
a trace for each completion, timed in), or `cached`: drawn once for each problem, in bulk before the training, with the
problem's part of that timed in (as if every problem came once, in one training) and out.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

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
from tracelift_lib.runs import store
from tracelift_lib.runs.presets import load_preset
from tracelift_lib.verifier.verdicts import Verifier

PROBLEMS, GENERATIONS, K = 8, 4, 3
SEEDS = 3  # training runs that share one baseline, as in the paper and in preset `tiny`
REPEATS = 3  # of the engine's runs; the median counts
SHAPES = {1: (1, 1), 4: (1, 4), 32: (8, 4)}  # completions a process -> problems x completions of each
PROCESSES = 8  # of the paper's launch; they share the server
SLOTS, LATENCY, ANSWER = 64, 0.2, 32  # answers written at once, seconds and tokens of each: 10,240 tokens a second
BULK = 64  # problems whose baselines are drawn together
ENGINE = {"fresh": "baseline fresh, timed in", "in": "baseline cached, timed in", "out": "baseline cached, not timed"}
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


def batch(n: int = PROBLEMS, generations: int = GENERATIONS) -> tuple[list[Problem], list[str]]:
    """So many completions of each of n problems, no two alike."""
    problems = generate_splits({"rl": max(n, PROBLEMS)}, {"rl": [2, 3]}, 9, 20, 0)["rl"][:n]
    pairs = [(p, wrap_trace(f"{p.reference_solution}\nTry {i}.")) for p in problems for i in range(generations)]
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
    opener, verifier = urllib.request.build_opener(urllib.request.ProxyHandler({})), Verifier()

    def run(problem: Problem, trace: str | None) -> int:
        message = {"role": "user", "content": executor_prompt(problem, trace, "short")}
        asked = {"model": "m", "messages": [message], "n": 1, "temperature": TEMPERATURE, "max_tokens": MAX_TOKENS}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/chat/completions", json.dumps(asked).encode(), headers)
        with opener.open(request, timeout=600) as reply:
            text = json.load(reply)["choices"][0]["message"]["content"]
        return verifier.verify([problem], [text])[0].success

    rewards = []
    for problem, completion in zip(problems, completions):
        trace = completion.removeprefix("<reasoning>\n").removesuffix("\n</reasoning>")
        s = run(problem, trace)
        with_trace = [run(problem, trace) for _ in range(K)]
        without = [run(problem, None) for _ in range(K)]
        q = float(scorer.score([problem], [trace])[0][0])
        rewards.append(ARMS["tracelift"](s, q, uplift(with_trace, without), 0.0))
    return rewards


def engine_of(
    asker: Executor, scorer: Scorer, problems: list[Problem], baseline: dict | None, s_run: str
) -> RewardEngine:
    return RewardEngine(
        arm="tracelift",
        k=K,
        executor=asker,
        scorer=scorer,
        problems={p.problem_id: p for p in problems},
        baseline=baseline,
        seed=0,
        max_failure_rate=0.0,
        log_folder=Path(),
        s_run=s_run,
    )


def draw_baseline(asker: Executor, problems: list[Problem], seed: int) -> dict[str, list[int]]:
    """K verdicts without a trace for each problem: as many as the plain loop has, so the same standard error."""
    by_id = {p.problem_id: p for p in problems}
    return dict(zip(by_id, asker.verdicts(list(by_id.values()), [None] * len(by_id), K, seed).tolist()))


def score_step(engine: RewardEngine, problems: list[Problem], completions: list[str], seed: int) -> dict:
    """Stats of one step's rewards. Raises RuntimeError if any failed."""
    rows, figures = asyncio.run(engine.score(completions, [p.problem_id for p in problems], seed))
    if any(row["failure"] for row in rows):
        raise RuntimeError(f"failures: {dict(engine.failures)}")
    return figures


def engine_run(url: str, scorer: Scorer, problems: list[Problem], completions: list[str], s_run: str) -> dict:
    """Median wall seconds of a step, and completion tokens a completion: of the step, and of the baseline."""
    asker = executor(url)
    start = stats(url)
    engine = engine_of(asker, scorer, problems, draw_baseline(asker, problems, 1), s_run)
    drawn = stats(url)
    seconds = [score_step(engine, problems, completions, seed)["seconds"] for seed in range(1 + REPEATS)]
    tokens = (stats(url) - drawn) / len(seconds), drawn - start
    asker.backend.close()
    step, once = (count / len(completions) for count in tokens)
    return {"seconds": statistics.median(seconds[1:]), "step": step, "baseline": once}  # the first opens connections


# --- one process of a launch, and its part of a server --------------------------------------------


def engine_seconds(
    url: str, scorer: Scorer, problems: list[Problem], completions: list[str], baseline: dict | None
) -> float:
    """Median wall seconds of the rewards of a step; without a baseline it is drawn for each completion."""
    asker, seconds = executor(url), []
    for seed in range(1 + REPEATS):
        start = time.monotonic()
        score_step(engine_of(asker, scorer, problems, baseline, "separate"), problems, completions, seed)
        seconds.append(time.monotonic() - start)
    asker.backend.close()
    return statistics.median(seconds[1:])  # the first opens connections


def engine_times(url: str, scorer: Scorer, problems: list[Problem], completions: list[str]) -> dict[str, float]:
    """Seconds of a step for each way of ENGINE; `in` adds the step's problems' part of drawing BULK problems."""
    asker, many, start = executor(url), batch(BULK, 1)[0], time.monotonic()
    baseline = draw_baseline(asker, many, 1)
    each = (time.monotonic() - start) / BULK
    asker.backend.close()
    fresh, out = (engine_seconds(url, scorer, problems, completions, known) for known in (None, baseline))
    return {"fresh": fresh, "in": out + each * len({p.problem_id for p in problems}), "out": out}


def shapes(scorer: Scorer, completions_a_process: Sequence[int] = tuple(SHAPES)) -> list[dict]:
    """A row for each number of completions a process, and each way to have the baseline."""
    slots, rows = SLOTS // PROCESSES, []
    capacity = f"{slots} slots, {slots * ANSWER / LATENCY:,.0f} tokens/s: 1/{PROCESSES} of {SLOTS} slots"
    server = ("--latency", str(LATENCY), "--slots", str(slots), "--answer-tokens", str(ANSWER))
    for n in completions_a_process:
        problems, completions = batch(*SHAPES[n])
        with serving(*server) as url:
            times = [timed(plain_loop, url, scorer, problems, completions) for _ in range(1 if n > 4 else REPEATS)]
            other = statistics.median(times)
            for way, ours in engine_times(url, scorer, problems, completions).items():
                words = ENGINE[way]
                note = f"{n} completions a process, K = {K}, {words}; server: {capacity}; ratio: plain loop / ours"
                rows.append(row(f"reward_{n}_{way}", ours, other, other / ours, "s", note))
    return rows


def shape_table(rows: list[dict]) -> str:
    """The rows of `shapes` as Markdown: seconds of a step, and in brackets how many times the plain loop takes."""
    by_name = {r["name"]: r for r in rows}
    head = ["completions a process", "plain loop, s", *(f"{words}, s" for words in ENGINE.values())]
    lines = [head, ["---"] * len(head)]
    for n in [n for n in SHAPES if f"reward_{n}_fresh" in by_name]:
        cells = [by_name[f"reward_{n}_{way}"] for way in ENGINE]
        lines.append([str(n), f"{cells[0]['other']:.2f}", *(f"{c['ours']:.2f} ({c['ratio']:.1f}x)" for c in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_shapes(rows: list[dict]) -> None:
    """Print the table, and write it to build/bench_reward.md."""
    capacity = f"{SLOTS} slots of {ANSWER / LATENCY:,.0f} tokens/s, {ANSWER} tokens an answer, shared by {PROCESSES}"
    text = f"One process of {PROCESSES}; server: {capacity} processes; K = {K}.\n\n{shape_table(rows)}\n"
    path = store.home() / "build" / "bench_reward.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text, flush=True)


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
    """The table's rows, and three figures of a real server; `other` is the plain loop, or the lower bound."""
    torch.set_num_threads(1)
    problems, completions = batch()
    size = f"{PROBLEMS} problems x {GENERATIONS} completions, K = {K}"
    with tempfile.TemporaryDirectory() as folder:
        scorer = models(Path(folder))
        rows = shapes(scorer)
        write_shapes(rows)
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
    """û has K runs on either side everywhere, so its standard error is the same; ours is what preset paper does."""
    paper = load_preset("paper")
    ways = {
        f"{name}, {runs} run{'s' * (runs > 1)}": way["step"] + way["baseline"] / runs
        for name, way in (("merged", merged), ("separate", separate))
        for runs in (SEEDS, 1)
    }
    chosen = f"{paper.execution.s_run}, {len(paper.planner_training.seeds)} runs"
    ours = plain if paper.execution.baseline == "fresh" else ways[chosen]
    note = "; ".join(f"{name}: {tokens / plain:.2f}" for name, tokens in ways.items())
    return row(
        "reward_executor_tokens",
        ours,
        plain,
        ours / plain,
        "tokens a completion",
        f"ours: preset paper, baseline {paper.execution.baseline}, s_run {chosen}; ratio: ours / plain loop, goal at "
        f"most 0.5; with a cached baseline of M = K, by s_run and number of training runs that share it: {note}",
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
    if sys.argv[1:] == ["shapes"]:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            write_shapes(shapes(models(Path(folder))))
    else:
        for line in run():
            print(json.dumps(line))
