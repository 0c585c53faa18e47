"""What a preset will take, stage by stage, without making anything: calls, tokens, GPU hours, memory and disk.

    tracelift plan --preset paper --gpu H100
    tracelift plan --preset paper --override planner_training.parameters=full --trace 300

Arithmetic, ours. Reading a token costs 2 floating-point operations a weight, learning from it 6 (4 where the weights
are frozen under an adapter). Writing goes step by step for many sequences at once: a step takes as long as its
operations, as reading all weights from memory, or as starting its kernels, whichever is longest.
The constants are from one H200 (paper_figures/gpu/gpu_check.csv); docs/running.md holds the estimate against it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from transformers import PreTrainedConfig, Qwen2Config

from tracelift_lib.models.settings import ModelSource, TrainedModel
from tracelift_lib.planner.memory import CONFIGS, SMALLER, parameter_count
from tracelift_lib.planner.rewards import NEEDS, compares
from tracelift_lib.problems.files import InputError
from tracelift_lib.runs import gpu_budget
from tracelift_lib.runs.presets import Preset, load_preset, read_override
from tracelift_lib.runs.report import markdown_table
from tracelift_lib.runs.stages import Instance, stage_graph

HOUR, GB = 3600.0, 1e9


class Gpu(NamedTuple):
    """Peak figures of its data sheet: operations a second in 16 bits (dense), bytes a second, bytes."""

    operations: float
    bandwidth: float
    memory: float


GPUS = {
    "T4": Gpu(65e12, 0.32e12, 15.6e9),
    "A100": Gpu(312e12, 2.04e12, 80e9),
    "H100": Gpu(989e12, 3.35e12, 80e9),
    "H200": Gpu(989e12, 4.8e12, 141e9),
}
USED = 0.3  # share of the peak that reading and learning reach; beside an adapter less, whose own kernels are small
USED_ADAPTER = 0.11
STEP = {
    "local": 1.5e-3,
    "server": 0.4e-3,
}  # s a layer to start one step's kernels: transformers (measured), vLLM (assumed)


@dataclass(frozen=True)
class Lengths:
    """Tokens of a text, on average: a problem with its instructions, a trace, an answer."""

    problem: int = 200
    trace: int = 150
    answer: int = 30

    @classmethod
    def at_most(cls, preset: Preset) -> Lengths:
        """What the preset's cuts allow."""
        t, e = preset.planner_training, preset.execution
        return cls(preset.limits.problem // 4, t.max_completion if t else preset.limits.trace // 4, e.max_new_tokens)


class Work(NamedTuple):
    """Of one result: sequences written, tokens read, written and learned from; seconds of one GPU; bytes on disk."""

    calls: float = 0
    read: float = 0
    written: float = 0
    learned: float = 0
    seconds: float = 0
    disk: float = 0

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(*(a + b for a, b in zip(self, other)))


def shape_of(source: ModelSource) -> PreTrainedConfig:
    """The configuration of a model, from what is known without a download.

    Raises:
        InputError: a hub model whose shape is not in planner/memory.py.
    """
    if isinstance(source, TrainedModel):
        return Qwen2Config(vocab_size=source.vocab_size, tie_word_embeddings=True, **source.shape.model_dump())
    known = CONFIGS | SMALLER
    name = getattr(source, "model_id", "SmolLM2-135M").split("/")[-1].removesuffix("-Instruct")
    if name not in known:
        raise InputError(f"{name}: its shape is not known; add it to planner/memory.py, which has {', '.join(known)}")
    return known[name]


class Model(NamedTuple):
    """A shape, and how many weights it has."""

    shape: PreTrainedConfig
    weights: int


class Estimate:
    """The work of each stage of a preset on one kind of GPU."""

    def __init__(self, preset: Preset, gpu: Gpu, lengths: Lengths):
        self.preset, self.gpu, self.tokens = preset, gpu, lengths
        self.executor = self.planner = self._model(preset.executor)
        if hasattr(preset.planner, "model_id"):  # else it starts from the executor
            self.planner = self._model(preset.planner)

    @staticmethod
    def _model(source: ModelSource) -> Model:
        shape = shape_of(source)
        return Model(shape, parameter_count(shape))

    def read(self, model: Model, tokens: float) -> Work:
        return Work(read=tokens, seconds=2 * model.weights * tokens / (self.gpu.operations * USED))

    def learn(self, model: Model, tokens: float, all_weights: bool) -> Work:
        operations, used = (6, USED) if all_weights else (4, USED_ADAPTER)
        return Work(learned=tokens, seconds=operations * model.weights * tokens / (self.gpu.operations * used))

    def write(self, model: Model, texts: float, prompt: int, length: int, rows: float, kind: str) -> Work:
        """`texts` sequences of `length` tokens, `rows` at a time, each after a prompt that is read first."""
        n = model.weights
        step = max(
            2 * n * rows / (self.gpu.operations * USED),
            2 * n / self.gpu.bandwidth,
            STEP[kind] * model.shape.num_hidden_layers,
        )
        steps = -(-texts // rows) * length
        return self.read(model, texts * prompt) + Work(texts, 0, texts * length, 0, steps * step)

    def answers(self, texts: float) -> Work:
        """Answers of the executor to a problem with a trace."""
        e, t = self.preset.execution, self.tokens
        prompt, kind = t.problem + t.trace, e.backend.kind
        rows = e.backend.concurrency if kind == "server" else max(1, e.batch_tokens // (prompt + t.answer))
        return self.write(self.executor, texts, prompt, t.answer, min(rows, max(1, texts)), kind)

    def traces(self, texts: float, rows: float) -> Work:
        return self.write(self.planner, texts, self.tokens.problem, self.tokens.trace, rows, "local")

    def training(self, arm: str) -> Work:
        """One planner: drawing, rewards, update."""
        p, t = self.preset, self.tokens
        settings, k = p.planner_training, p.execution.k
        rows = settings.problems_per_step * settings.generations
        completions = settings.steps * rows
        runs = k + (p.execution.s_run == "separate") if compares(arm) else 1  # as RewardEngine has it
        runs += k * (compares(arm) and p.execution.baseline == "fresh")
        text, full = t.problem + t.trace, settings.parameters == "full"
        score = self.read(self.executor, completions * text) if "q" in NEEDS[arm] else Work()
        update = self.learn(self.planner, completions * text, full)
        disk = Work(disk=3 * 2 * self.planner.weights if full else 0.03 * self.planner.weights)
        return (
            self.traces(completions, rows / settings.processes)
            + self.answers(completions * runs)
            + score
            + update
            + disk
        )

    def of(self, name: str, instance: Instance) -> Work:
        """The work of one result; stages that need no model take none."""
        p, text = self.preset, self.tokens.problem + self.tokens.trace
        sizes = p.problems.sizes
        if name in ("executor", "planner"):
            source = p.executor if name == "executor" else p.planner
            model = self.executor if name == "executor" else self.planner
            weights = Work(disk=2 * model.weights)
            steps = getattr(source, "steps", 0) * getattr(source, "batch_size", 0)
            return weights + self.learn(model, steps * (text + self.tokens.answer), True)
        if name == "reward_model":
            r = p.reward_model
            groups = 0.9 * p.groups.sizes["train"] * (1 + r.negatives) * r.epochs
            return self.learn(self.executor, groups * text, r.lora is None) + Work(disk=2 * self.executor.weights)
        if name == "rm_scores":
            return self.read(self.executor, 2 * 8 * (p.groups.sizes["test"] + 0.1 * p.groups.sizes["train"]) * text)
        if name == "uplift":
            return self.answers(2 * p.execution.problems * p.execution.baseline_samples)
        if name == "baseline":
            return self.answers(sizes[p.planner_training.split] * p.execution.baseline_samples)
        if name == "planner_training":
            return self.training(instance["arm"])
        if name == "evaluation":
            texts = p.evaluation.traces * sum(sizes[s] for s in p.evaluation.splits)
            return self.traces(texts, 64) + self.answers(texts) + self.read(self.executor, texts * text)
        return Work()


def plan(preset: Preset, gpu: Gpu, lengths: Lengths) -> pd.DataFrame:
    """A row for each stage that the preset's notebooks make, summed over its results, and the sum of all."""
    estimate, work, results = Estimate(preset, gpu, lengths), {}, {}
    for name, instance in stage_graph(preset).values():
        work[name] = work.get(name, Work()) + estimate.of(name, instance)
        results[name] = results.get(name, 0) + 1
    work["all"] = sum(work.values(), Work())
    rows = [
        {
            "stage": name,
            "results": results.get(name, sum(results.values())),
            "calls": f"{w.calls:,.0f}",
            "tokens read": f"{w.read / 1e6:,.1f} M",
            "written": f"{w.written / 1e6:,.1f} M",
            "learned from": f"{w.learned / 1e6:,.1f} M",
            "GPU hours": f"{w.seconds / HOUR:,.2f}",
            "disk": f"{w.disk / GB:,.1f} GB",
        }
        for name, w in work.items()
    ]
    return pd.DataFrame(rows)


def memory_lines(preset: Preset, gpu: Gpu) -> Iterator[str]:
    """Memory of planner training on one GPU, part by part, and whether it fits."""
    estimate = Estimate(preset, gpu, Lengths())
    executor = estimate.executor.shape if preset.local_executor else None
    parts = gpu_budget.estimate_of(preset, estimate.planner.shape, executor)
    for name, size in parts.items():
        yield f"  {name}: {size / GB:.1f} GB"
    fits = "fits" if parts["total"] <= gpu.memory else "DOES NOT FIT: notebook 06 has ZeRO stages and more GPUs"
    yield f"  this GPU has {gpu.memory / GB:.1f} GB: {fits}"


def main(arguments: list[str] | None = None) -> int:
    """`tracelift plan`."""
    parser = argparse.ArgumentParser(
        prog="tracelift plan", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--gpu", choices=GPUS, default="H100")
    for name, value in vars(Lengths()).items():
        parser.add_argument(f"--{name}", type=int, default=value, metavar="TOKENS", help=f"of a {name}, on average")
    o = parser.parse_args(arguments)
    preset = load_preset(o.preset, overrides=dict(map(read_override, o.override)))
    gpu, lengths = GPUS[o.gpu], Lengths(o.problem, o.trace, o.answer)
    texts = f"{lengths.problem} + {lengths.trace} + {lengths.answer} tokens of problem, trace, answer"
    print(f"Preset {preset.name} on {o.gpu}, {texts}:\n")
    print(markdown_table(plan(preset, gpu, lengths)))
    worst = plan(preset, gpu, Lengths.at_most(preset)).iloc[-1]
    print(f"\nIf every text were as long as the preset's cuts allow: {worst['GPU hours']} GPU hours.")
    if preset.planner_training:
        print(f"\nMemory of planner training on one {o.gpu}:")
        print("\n".join(memory_lines(preset, gpu)))
    print("\nCommands for one GPU, several, and several nodes: notebook 06, docs/running.md.")
    return 0
