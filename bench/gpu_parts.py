"""What bench/gpu_check.py measures, one function a part. Models have random weights, so figures are of time and memory.

The first parts compare a GPU with float32 on the CPU, at a tiny shape and on the same completions; the others time
training steps at the shapes of public models.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import pandas as pd
import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config, TrainerCallback, set_seed

from tracelift_lib.executor.backends import LocalBackend, ServerBackend
from tracelift_lib.executor.frozen import Executor
from tracelift_lib.executor.settings import ServerBackendSettings
from tracelift_lib.groups.group_maker import build_group
from tracelift_lib.groups.schema import Group, dimensions
from tracelift_lib.models import supervised
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.generation import Sampler, Sampling, token_log_likelihoods
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.planner.memory import SIZES
from tracelift_lib.planner.reward_engine import RewardEngine
from tracelift_lib.planner.settings import PlannerTraining
from tracelift_lib.planner.training import (
    grpo_config,
    load_policy,
    lora_config,
    problem_order,
    train_planner,
    trainable_model,
)
from tracelift_lib.problems.files import PROJECT
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptLimits, as_chat, planner_prompt, reward_model_text, wrap_trace
from tracelift_lib.problems.tinyworld import generate_splits
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.scorer import Scorer
from tracelift_lib.reward_model.settings import LoRA, RewardModelTraining
from tracelift_lib.reward_model.training import train_reward_model
from tracelift_lib.runs.gpu_budget import estimate
from tracelift_lib.runs.pipeline import Run
from tracelift_lib.runs.presets import load_preset
from tracelift_lib.runs.stages import with_upstream
from tracelift_lib.verifier.verdicts import Verifier

sys.path.append(str(PROJECT / "tests"))  # not as `tests.…`: an installed package of that name would come first
import same_completions  # noqa: E402

K = 3
MATH = dimensions("math")
TINY = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
)


class NotRun(Exception):
    """Something that a part needs is not there; the message says what."""


def _config(family: type[PreTrainedConfig], *sizes: int, **more: float) -> PreTrainedConfig:
    return family(**dict(zip(SIZES, sizes, strict=True)), tie_word_embeddings=True, **more)


# From the config.json of HuggingFaceTB/SmolLM2-135M and Qwen/Qwen2.5-0.5B and -1.5B; only what decides sizes.
SHAPES: dict[str, PreTrainedConfig] = {
    "135M": _config(LlamaConfig, 49152, 576, 1536, 30, 9, 3),
    "0.5B": _config(Qwen2Config, 151936, 896, 4864, 24, 14, 2),
    "1.5B": _config(Qwen2Config, 151936, 1536, 8960, 28, 12, 2),
}
DRY_SHAPES = {
    name: _config(type(config), 600, 32, 48, 2, 4, 2, max_position_embeddings=2048) for name, config in SHAPES.items()
}


@dataclass(frozen=True)
class Size:
    """One GRPO step: prompts, completions of each, tokens of each at most; how many steps; executor's tokens, batches.

    The first step is left out of the figures: it is the one in which kernels are chosen and memory is taken.
    """

    prompts: int
    generations: int
    tokens: int
    steps: int
    executor_tokens: int
    batch_tokens: int
    small_batch_tokens: int  # preset colab's
    samples: int  # of each prompt, where samples of two machines are compared

    def __str__(self) -> str:
        return f"{self.prompts} prompts x {self.generations} completions x {self.tokens} tokens"


GPU_SIZE = Size(16, 8, 128, 3, 128, 1 << 18, 1 << 15, 32)
DRY_SIZE = Size(2, 2, 6, 2, 4, 1 << 12, 1 << 10, 4)


@dataclass(frozen=True)
class Check:
    """What a part gets.

    Attributes:
        work: folder for models and other things that parts share.
        dry: on the CPU, with tiny shapes.
        record: (quantity, value, unit, settings) -> a row of the results.
    """

    work: Path
    dry: bool
    record: Callable[..., None]

    @property
    def size(self) -> Size:
        return DRY_SIZE if self.dry else GPU_SIZE

    def shape(self, name: str) -> PreTrainedConfig:
        return (DRY_SHAPES if self.dry else SHAPES)[name]

    def fresh(self, name: str) -> Path:
        """A folder that no earlier try has left anything in."""
        numbers = (self.work / f"{name}-{i}" for i in range(1000))
        folder = next(path for path in numbers if not path.exists())
        folder.mkdir(parents=True)
        return folder


def problems(n: int) -> list[Problem]:
    return generate_splits({"rl": n}, {"rl": [2, 3]}, 9, 20, seed=0)["rl"]


class AtOnce:
    """An executor that answers at once, where the model's time is not the question."""

    name = "answers at once"

    def show(self, prompt: str) -> str:
        return prompt

    def submit(self, prompts: Sequence[str], n: int, seed: int) -> list[Future[list[str]]]:
        futures: list[Future[list[str]]] = [Future() for _ in prompts]
        for future in futures:
            future.set_result(["Answer: 3"] * n)
        return futures


# --- right or wrong: against float32 on the CPU -----------------------------------------------


def reference(check: Check) -> None:
    """What the CPU gives in float32, for the parts that compare; runs with the GPU hidden."""
    tiny = check.work / "tiny"
    if not tiny.exists():
        world = problems(200)
        texts = [reward_model_text(p, p.reference_solution) + planner_prompt(p, "short") for p in world]
        tokenizer = train_tokenizer(texts, 512)
        new_qwen2(tokenizer, Qwen2Shape(**TINY, initializer_range=0.07), seed=0).save_pretrained(tiny)
        tokenizer.save_pretrained(tiny)
    results = {
        "generation": generation_results(tiny, torch.float32, check.size.samples),
        "lora": planner_update(check, tiny, "lora", "fp32"),
        "full": planner_update(check, tiny, "full", "fp32"),
        "rm": reward_model_results(check, tiny, "fp32"),
        "rm lora": reward_model_results(check, tiny, "fp32", lora=True),
    }
    torch.save(results, check.work / "reference.pt")


def reference_of(check: Check, name: str) -> dict:
    path = check.work / "reference.pt"
    if not path.exists():
        raise NotRun("the part reference has not ended well")
    return torch.load(path, weights_only=False)[name]  # written by this bench


def generation_results(folder: Path, dtype: torch.dtype, n: int) -> dict:
    """Greedy and sampled texts of `Sampler`, and log-likelihoods of given texts, under the model in this type."""
    model, tokenizer = load_model(folder).to(dtype), load_tokenizer(folder)
    asked = [as_chat(planner_prompt(p, "short"), tokenizer) for p in problems(16)]
    greedy = Sampler(model, tokenizer, Sampling(1e-4, 1.0, 32, 1 << 14)).sample(asked, 1, seed=0)
    sampler = Sampler(model, tokenizer, Sampling(1.0, 1.0, 32, 1 << 14))
    sampled, again = (sampler.sample(asked, n, seed=0) for _ in range(2))
    given = [p.reference_solution for p in problems(16)]
    flat = [text + tokenizer.eos_token for texts in sampled for text in texts]
    of_samples = token_log_likelihoods(model, tokenizer, [a for a in asked for _ in range(n)], flat, 1 << 14)
    return {
        "greedy": [texts[0] for texts in greedy],
        "sampled": sampled,
        "repeats": sampled == again,
        "log_likelihoods": np.concatenate(token_log_likelihoods(model, tokenizer, asked, given, 1 << 14)),
        "of_samples": np.array([values.mean() for values in of_samples]),
    }


def right_generation(check: Check) -> None:
    """`Sampler` and log-likelihoods on the GPU, by type, against float32 on the CPU."""
    tiny, cpu = check.work / "tiny", reference_of(check, "generation")
    check.record("float32 products in TF32", int(torch.backends.cuda.matmul.allow_tf32), "0 or 1")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ours, settings = (
            generation_results(tiny, dtype, check.size.samples),
            f"tiny Qwen2, {dtype}; other: CPU, float32",
        )
        apart = np.abs(ours["log_likelihoods"] - cpu["log_likelihoods"])
        check.record("log-likelihood, largest difference", float(apart.max()), "nats a token", settings)
        check.record("log-likelihood, mean difference", float(apart.mean()), "nats a token", settings)
        same = np.mean([a == b for a, b in zip(ours["greedy"], cpu["greedy"])])
        check.record("greedy texts that are the same", float(same), "share", settings)
        check.record("same seed, same samples", int(ours["repeats"]), "0 or 1", settings)
        error = np.hypot(*(x["of_samples"].std() / len(x["of_samples"]) ** 0.5 for x in (ours, cpu)))
        apart = (ours["of_samples"].mean() - cpu["of_samples"].mean()) / error
        check.record("likelihood of own samples, difference", float(apart), "standard errors", settings)


def training_settings(**changed) -> PlannerTraining:
    common = {
        "arms": ["exec_only"],
        "seeds": [0],
        "steps": 3,
        "problems_per_step": 4,
        "generations": 4,
        "learning_rate": 1e-3,
        "temperature": 1.0,
        "max_completion": 40,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "warmup_steps": 0,
        "collapse": None,
    }
    return PlannerTraining(**common | changed)


def engine_at_once(out: Path, n: int, kind: type[RewardEngine] = RewardEngine) -> RewardEngine:
    """The reward engine with an executor that answers at once, no reward model."""
    executor = Executor(AtOnce(), "instruct", PromptLimits(), Verifier())
    world = {p.problem_id: p for p in problems(n)}
    return kind("exec_only", K, executor, None, world, None, 0, 0.02, out / "work" / "rollouts")


def planner_update(check: Check, folder: Path, parameters: str, precision: str) -> dict:
    """What three steps of GRPO on given completions and rewards change: name -> difference of weights; the losses."""
    out = check.fresh(f"planner-{parameters}-{precision}")
    settings = training_settings(parameters=parameters, precision=precision)
    with (
        mock.patch.object(trl.GRPOTrainer, "_generate_single_turn", same_completions.completions),
        mock.patch.object(RewardEngine, "score", same_completions.rewards),
    ):
        engine, tokenizer = engine_at_once(out, 16), load_tokenizer(folder)
        train_planner(folder, tokenizer, engine, settings, "short", PromptLimits(), 0, out)
    start, trained = (load_policy(folder, of).float().cpu().state_dict() for of in (None, out))
    losses = pd.read_csv(out / "steps.csv")["loss"].tolist()
    return {"update": {name: trained[name] - start[name] for name in start}, "losses": losses}


def compare_updates(check: Check, ours: dict, cpu: dict, settings: str) -> None:
    """How far two updates are apart, as a share of the second one's length; that there is one, and a finite loss."""
    apart, length = (
        sum(float((ours["update"][n] * sign - cpu["update"][n]).square().sum()) for n in cpu["update"]) ** 0.5
        for sign in (1, 0)
    )
    check.record("update, distance over length", apart / length, "share", settings)
    check.record(
        "losses finite, weights move", int(np.isfinite(ours["losses"]).all() and length > 0), "0 or 1", settings
    )
    check.record(
        "losses, largest difference", float(np.abs(np.subtract(ours["losses"], cpu["losses"])).max()), "", settings
    )


def right_planner(check: Check) -> None:
    """GRPO on the GPU in float32 against the CPU: LoRA and full."""
    for parameters in ("lora", "full"):
        cpu, ours = reference_of(check, parameters), planner_update(check, check.work / "tiny", parameters, "fp32")
        compare_updates(check, ours, cpu, f"tiny Qwen2, GRPO {parameters}, 3 steps, same completions, float32; CPU")


def groups() -> list[Group]:
    return [build_group(p, 0) for p in problems(24)]


def reward_model_results(
    check: Check, folder: Path, precision: str, lora: bool = False, four_bit: bool = False, merged: bool = False
) -> dict:
    """Losses of an RM's training on tiny-world groups, and its scores of their traces after it.

    `merged`: the scores come from the adapter merged into the backbone as it is on disk, as the pipeline does it.
    """
    out, tokenizer = check.fresh(f"rm-{precision}"), load_tokenizer(folder)
    settings = RewardModelTraining(
        backbone="executor",
        negatives=2,
        groups_per_step=4,
        accumulation=1,
        epochs=3,
        learning_rate=1e-3,
        max_length=512,
        precision=precision,
        four_bit=four_bit,
        lora=LoRA(r=16, alpha=32, dropout=0.0) if lora else None,
    )
    model = ReasoningRewardModel.from_backbone(folder, MATH, 0, four_bit=four_bit)
    log = train_reward_model(model, tokenizer, groups(), groups()[:4], settings, 0, out / "t", out / "adapter")
    results = {"losses": [row["loss"] for row in log if "loss" in row], "scores": scores_of_groups(model, tokenizer)}
    if merged:
        whole = ReasoningRewardModel.from_adapter(out / "adapter", folder).to(model.device)
        results["merged"] = scores_of_groups(whole, tokenizer)
    return results


def scores_of_groups(model: ReasoningRewardModel, tokenizer) -> np.ndarray:
    pairs = [(g.as_problem(), c.reasoning) for g in groups() for c in g.candidates]
    scorer = Scorer(model.eval(), tokenizer, 1 << 14, 512)
    return scorer.score([p for p, _ in pairs], [z for _, z in pairs])[0]


def compare_scores(check: Check, ours: dict, cpu: dict, settings: str) -> None:
    for name in ("scores", "merged"):
        if name in ours:
            apart = float(np.abs(ours[name] - cpu["scores"]).max())
            check.record(f"q of traces, largest difference ({name})", apart, "of 0 to 1", settings)
    check.record(
        "losses, largest difference", float(np.abs(np.subtract(ours["losses"], cpu["losses"])).max()), "", settings
    )
    check.record("loss, first and last", "{:.4f} to {:.4f}".format(*np.take(ours["losses"], [0, -1])), "", settings)


def right_reward_model(check: Check) -> None:
    """RM training and scoring on the GPU in float32 against the CPU: all weights, and LoRA with merging."""
    for name, lora in (("rm", False), ("rm lora", True)):
        cpu = reference_of(check, name)
        ours = reward_model_results(check, check.work / "tiny", "fp32", lora, merged=lora)
        settings = f"tiny Qwen2, {name}, 18 steps, float32; CPU"
        compare_scores(check, ours, cpu, settings)


def precision(check: Check) -> None:
    """The paths in 16 bits: how far from float32 on the CPU."""
    tiny = check.work / "tiny"
    for kind in ("bf16", "fp16") if torch.cuda.is_available() else ("bf16",):
        for parameters in ("lora", "full"):
            cpu, ours = reference_of(check, parameters), planner_update(check, tiny, parameters, kind)
            compare_updates(check, ours, cpu, f"tiny Qwen2, GRPO {parameters}, 3 steps, same completions, {kind}; CPU")
    for name, lora in (("rm", False), ("rm lora", True)):
        ours = reward_model_results(check, tiny, "bf16", lora)
        compare_scores(check, ours, reference_of(check, name), f"tiny Qwen2, {name}, 18 steps, bf16; CPU, float32")


def four_bit(check: Check) -> None:
    """RM training with the backbone in 4 bits, then the adapter merged into the backbone as it is on disk."""
    if not importlib.util.find_spec("bitsandbytes"):
        raise NotRun("bitsandbytes is not installed")
    if not torch.cuda.is_available():
        raise NotRun("4-bit loading needs a GPU")
    cpu = reference_of(check, "rm lora")
    ours = reward_model_results(check, check.work / "tiny", "bf16", lora=True, four_bit=True, merged=True)
    settings = "tiny Qwen2, LoRA on NF4, 18 steps, bf16; CPU, float32, no quantization"
    compare_scores(check, ours, cpu, settings)
    apart = float(np.abs(ours["merged"] - ours["scores"]).max())
    check.record("q of traces, merged against 4-bit", apart, "of 0 to 1", settings)


# --- models of public shapes ------------------------------------------------------------------


def tokenizers(check: Check) -> None:
    """A tokenizer for each size of vocabulary, trained on the problems' texts and on made-up words.

    So every token that a random model draws is a piece of a word: its text is about as many tokens again when the
    executor reads it.
    """
    for vocabulary in sorted({check.shape(name).vocab_size for name in SHAPES}):
        if (check.work / f"tokenizer-{vocabulary}").exists():
            continue
        texts = [planner_prompt(p, "instruct") + reward_model_text(p, p.reference_solution) for p in problems(200)]
        words = made_up_words(50 if vocabulary < 1000 else int(1.05 * vocabulary))
        texts += [" ".join(words[i : i + 50]) for i in range(0, len(words), 50)] * 2
        tokenizer = train_tokenizer(texts, vocabulary)
        tokenizer.save_pretrained(check.work / f"tokenizer-{vocabulary}")
        check.record("tokenizer", len(tokenizer), "tokens", f"vocabulary {vocabulary}")


def made_up_words(n: int) -> list[str]:
    """n different words of two or three syllables, the same in every process."""
    draw = random.Random(0)
    syllables = [c + v for c in "bcdfghjklmnpqrstvwxyz" for v in "aeiou"]
    return list(dict.fromkeys("".join(draw.choices(syllables, k=draw.choice((2, 3)))) for _ in range(2 * n)))[:n]


def model_folder(check: Check, name: str) -> Path:
    """A model of this shape with random weights in bfloat16 and its tokenizer; made once."""
    folder, config = check.work / f"model-{name}", check.shape(name)
    tokens = check.work / f"tokenizer-{config.vocab_size}"
    if not tokens.exists():
        raise NotRun("the part tokenizers has not ended well")
    if not (folder / "config.json").exists():
        tokenizer = load_tokenizer(tokens)
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
        config.bos_token_id = None
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        model.generation_config.update(do_sample=True, **ends)  # for `transformers serve`
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


class Wrapping(RewardEngine):
    """The reward engine on a planner with random weights: its completions get the tags, so that each holds a trace."""

    async def score(self, completions, problem_ids, seed):
        return await super().score([wrap_trace(text) for text in completions], problem_ids, seed)


def engine_of(check: Check, folder: Path, out: Path, batch_tokens: int, cached: bool = True) -> Wrapping:
    """The reward engine of arm `tracelift`, executor and RM (float32, as the pipeline keeps it) in this process."""
    size, tokenizer, world = check.size, load_tokenizer(folder), problems(check.size.prompts * check.size.steps)
    sampling = Sampling(0.5, 1.0, size.executor_tokens, batch_tokens)
    executor = Executor(
        LocalBackend(Sampler(load_model(folder), tokenizer, sampling)), "instruct", PromptLimits(), Verifier()
    )
    model = ReasoningRewardModel.from_backbone(folder, MATH, 0).eval().to(executor.backend.sampler.model.device)
    return Wrapping(
        arm="tracelift",
        k=K,
        executor=executor,
        scorer=Scorer(model, tokenizer, 1 << 15, 1536),
        problems={p.problem_id: p for p in world},
        baseline={p.problem_id: [0] * 8 for p in world} if cached else None,
        seed=0,
        max_failure_rate=0.02,
        log_folder=out / "work" / "rollouts",
    )


def step_settings(check: Check, parameters: str) -> PlannerTraining:
    size = check.size
    return training_settings(
        arms=["tracelift"],
        steps=size.steps,
        problems_per_step=size.prompts,
        generations=size.generations,
        max_completion=size.tokens,
        learning_rate=5e-6,
        temperature=0.7,
        parameters=parameters,
    )


class Clock(TrainerCallback):
    """Seconds of each step, and between steps; with `save` those of a checkpoint at the end."""

    def __init__(self, save: bool):
        self.begins, self.ends, self.save, self.checkpoint = [], [], save, None

    def now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic()

    def on_step_begin(self, args, state, control, **kwargs):
        self.begins.append(self.now())

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(self.now())
        control.should_save = self.save and state.global_step == state.max_steps

    def on_save(self, args, state, control, **kwargs):
        self.checkpoint = self.now() - self.ends[-1]

    def seconds(self) -> list[float]:
        """Of the steps after the first."""
        return [end - begin for begin, end in zip(self.begins, self.ends)][1:]

    def between(self) -> list[float]:
        """From the end of a step to the begin of the next one."""
        return [begin - end for begin, end in zip(self.begins[1:], self.ends)]


@contextmanager
def clocked(save: bool = False):
    """A `Clock` in every GRPOTrainer that is made inside; no checkpoints by the timer."""
    clock = Clock(save)

    class Clocked(trl.GRPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(clock)

    with mock.patch.object(trl, "GRPOTrainer", Clocked), mock.patch.object(supervised, "SAVE_SECONDS", float("inf")):
        yield clock


def step(check: Check, shape: str, parameters: str) -> None:
    """GRPO steps of the project, executor and RM of the same shape in the same process: time by phase, memory."""
    folder, out, size = model_folder(check, shape), check.fresh(f"step-{shape}-{parameters}"), check.size
    settings, engine = step_settings(check, parameters), engine_of(check, folder, out, size.batch_tokens)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with clocked(save=shape == "0.5B") as clock:
        train_planner(folder, load_tokenizer(folder), engine, settings, "instruct", PromptLimits(), 0, out)
    text = f"{shape} {parameters}, {size}, K={K} separate, executor {size.executor_tokens} tokens, RM float32"
    steps = pd.read_csv(out / "steps.csv").iloc[1:].median(numeric_only=True)
    whole, n = median(clock.seconds()), size.prompts * size.generations
    phases = {"generation": steps["generation_seconds"], "rewards": steps["seconds"], "update": steps["update_seconds"]}
    check.record("step", whole, "s", text)
    for name, seconds in phases.items():
        check.record(f"{name}, share of a step", seconds / whole, "share", text)
        check.record(name, seconds, "s", text)
    check.record("executor", steps["executor_seconds"], "s", text)
    check.record("reward model", steps["rm_seconds"], "s", text)
    check.record("verifier, summed over calls", steps["verifier_seconds"], "s", text)
    check.record("between steps", median(clock.between()), "s", text)
    if clock.checkpoint:
        check.record("checkpoint", clock.checkpoint, "s", text)
    check.record("completion tokens", steps["tokens"] * n / phases["generation"], "a second of generation", text)
    check.record("completion tokens", steps["tokens"] * n / whole, "a second of a step", text)
    check.record("executor samples", n * (K + 1) / steps["executor_seconds"], "a second", text)
    record_memory(check, folder, parameters, text)


def record_memory(check: Check, folder: Path, parameters: str, text: str) -> None:
    """The peak, and for LoRA what runs/gpu_budget.py says beforehand for texts of this length."""
    if torch.cuda.is_available():
        check.record("peak memory, allocated", torch.cuda.max_memory_allocated() / 1e9, "GB", text)
        check.record("peak memory, reserved", torch.cuda.max_memory_reserved() / 1e9, "GB", text)
    if parameters != "lora":
        return
    size, tokenizer = check.size, load_tokenizer(folder)
    prompt = max(len(tokenizer(as_chat(planner_prompt(p, "instruct"), tokenizer))["input_ids"]) for p in problems(48))
    lengths = {"limits.problem": 3 * prompt, "limits.trace": 3 * size.tokens}  # it counts three characters a token
    step_size = {"problems_per_step": size.prompts, "generations": size.generations, "max_completion": size.tokens}
    changed = {f"planner_training.{name}": value for name, value in step_size.items()}
    execution = {"execution.batch_tokens": size.batch_tokens, "execution.max_new_tokens": size.executor_tokens}
    preset = load_preset("colab", overrides={**changed, **execution, **lengths})
    for name, value in estimate(preset, folder, folder).items():
        check.record(f"estimate of gpu_budget: {name}", value / 1e9, "GB", text)


# --- the reward phase alone -------------------------------------------------------------------


def made_up_completions(check: Check, folder: Path) -> tuple[list[str], list[str]]:
    """(texts, problem ids) of one step: random tokens, as many as a completion has."""
    tokenizer, size, draw = load_tokenizer(folder), check.size, random.Random(0)
    ids = [p.problem_id for p in problems(size.prompts) for _ in range(size.generations)]
    texts = [tokenizer.decode([draw.randrange(300, len(tokenizer)) for _ in range(size.tokens)]) for _ in ids]
    return texts, ids


def reward(check: Check, shape: str) -> None:
    """Rewards of one step's completions: with the baseline cached or not, in large batches or in preset colab's."""
    folder, out, size = model_folder(check, shape), check.fresh(f"reward-{shape}"), check.size
    texts, ids = made_up_completions(check, folder)
    engine = engine_of(check, folder, out, size.batch_tokens)
    asyncio.run(engine.score(texts[:4], ids[:4], 0))  # the first kernels
    cached = engine.baseline
    for baseline, batch_tokens in (
        ("cached", size.batch_tokens),
        ("fresh", size.batch_tokens),
        ("cached", size.small_batch_tokens),
    ):
        engine.baseline = cached if baseline == "cached" else None
        sampler = engine.executor.backend.sampler
        sampler.sampling = Sampling(0.5, 1.0, size.executor_tokens, batch_tokens)
        _, stats = asyncio.run(engine.score(texts, ids, 1))
        calls = len(texts) * (K + 1 + K * (baseline == "fresh"))
        text = f"{shape}, {len(texts)} traces, K={K}, baseline {baseline}, batch_tokens {batch_tokens}, in-process"
        check.record("reward phase", stats["seconds"], "s", text)
        check.record("executor", stats["executor_seconds"], "s", text)
        check.record("executor samples", calls / stats["executor_seconds"], "a second", text)
        check.record("reward model", stats["rm_seconds"], "s", f"{text}; float32, beside the executor")
    time_reward_model(check, engine.scorer, [engine.problems[i] for i in ids], texts, shape)


def time_reward_model(check: Check, scorer: Scorer, asked: list[Problem], texts: list[str], shape: str) -> None:
    """The RM alone: as the pipeline keeps it, in float32, and in bfloat16, with the largest difference of scores."""
    scores = {}
    for dtype in (torch.float32, torch.bfloat16):
        scorer.model.model.to(dtype)  # the heads stay in float32
        scorer.score(asked[:4], texts[:4])
        start = time.monotonic()
        scores[dtype] = scorer.score(asked, texts)[0]
        check.record("reward model alone", time.monotonic() - start, "s", f"{shape}, {len(texts)} traces, {dtype}")
    apart = float(np.abs(np.subtract(*scores.values())).max())
    check.record("q of traces, bfloat16 against float32", apart, "of 0 to 1", f"{shape}, random weights")


# --- against TRL ------------------------------------------------------------------------------


def against_trl(check: Check, shape: str) -> None:
    """Steps of TRL's own trainer with a plain reward function, and of ours with an executor that answers at once.

    Same model, data, settings and seed: what differs is our loop, with tags, verifier, log and checkpoints in it.
    """
    folder, size, settings = model_folder(check, shape), check.size, step_settings(check, "lora")
    text = f"{shape} lora, {size}, no executor, no RM"
    seconds: dict[str, list[float]] = {"TRL": [], "ours": []}
    first: dict[str, list[str]] = {}
    for name, train in (("TRL", train_with_trl), ("ours", train_with_ours), ("TRL", train_with_trl)):
        out, texts = check.fresh(f"trl-{name}"), []
        with clocked() as clock:
            train(folder, settings, out, texts)
        seconds[name] += clock.seconds()
        first[name] = texts[: size.prompts * size.generations]
        check.record(f"step, {name}", median(clock.seconds()), "s", text)
        check.record(f"between steps, {name}", median(clock.between()), "s", text)
    ours, plain = median(seconds["ours"]), median(seconds["TRL"])
    check.record("overhead of our loop", ours - plain, "s a step", text)
    check.record("overhead of our loop", ours / plain - 1, "share of TRL's step", text)
    check.record("spread of TRL's steps", max(seconds["TRL"]) / min(seconds["TRL"]) - 1, "share", text)
    check.record("first step draws the same completions", int(first["ours"] == first["TRL"]), "0 or 1", text)


def train_with_trl(folder: Path, settings: PlannerTraining, out: Path, texts: list[str]) -> None:
    """GRPO as TRL's documentation has it: model, data, one reward function."""

    def reward_of(completions: list[str], **_) -> list[float]:
        texts.extend(completions)
        return [len(set(text)) / 100 for text in completions]

    set_seed(0)  # as ours does, for the adapter's first weights
    tokenizer, world = load_tokenizer(folder), problems(settings.problems_per_step * settings.steps)
    order = problem_order(len(world), settings.problems_per_step, settings.steps, 0)
    prompts = [as_chat(planner_prompt(world[i], "instruct"), tokenizer) for i in order]
    trl.GRPOTrainer(
        model=trainable_model(folder, settings),
        args=grpo_config(settings, 0, out),
        processing_class=tokenizer,
        reward_funcs=[reward_of],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        peft_config=lora_config(settings),
    ).train()


def train_with_ours(folder: Path, settings: PlannerTraining, out: Path, texts: list[str]) -> None:
    """`train_planner` with the whole reward engine but no model behind it."""

    class Watched(Wrapping):
        async def score(self, completions, problem_ids, seed):
            texts.extend(completions)
            return await super().score(completions, problem_ids, seed)

    engine = engine_at_once(out, settings.problems_per_step * settings.steps, Watched)
    train_planner(folder, load_tokenizer(folder), engine, settings, "instruct", PromptLimits(), 0, out)


# --- behind a server --------------------------------------------------------------------------

TRANSFORMERS = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
SERVERS = {  # command, and how many traces it is asked for: without batching one request follows another
    "transformers": (TRANSFORMERS, 8),
    "transformers-batching": ([*TRANSFORMERS, "--continuous-batching"], 128),
    "vllm": (["vllm", "serve", "--generation-config", "vllm", "--max-model-len", "2048"], 128),
}


def server(check: Check, kind: str, shape: str) -> None:
    """Executor samples a second through `ServerBackend`, and that samples of one prompt differ."""
    needed = "vllm" if kind == "vllm" else "uvicorn"
    if not importlib.util.find_spec(needed):
        raise NotRun(f"{needed} is not installed")
    folder, (command, traces) = model_folder(check, shape), SERVERS[kind]
    texts, ids = made_up_completions(check, folder)
    world = {p.problem_id: p for p in problems(check.size.prompts)}
    with serving(command, folder) as url:
        settings = ServerBackendSettings(kind="server", base_urls=[url], model=str(folder), retries=0, timeout=60.0)
        backend = ServerBackend(settings, Sampling(0.5, 1.0, check.size.executor_tokens, 1))
        executor = Executor(backend, "instruct", PromptLimits(), Verifier())
        asked = [world[i] for i in ids][:traces]
        executor.self_test(asked[:1])
        start = time.monotonic()
        answers = executor.answer(asked, texts[:traces], K + 1, seed=0)
        seconds = time.monotonic() - start
        backend.close()
    text = f"{shape}, {len(asked)} traces, K={K}, {check.size.executor_tokens} tokens, {' '.join(command[-2:])}"
    check.record("executor samples", sum(map(len, answers)) / seconds, "a second", text)
    check.record("executor", seconds, "s", text)


@contextmanager
def serving(command: list[str], folder: Path) -> Iterator[str]:
    """The address of a server of this model; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, str(folder), "--host", "127.0.0.1", "--port", str(port)])
    try:
        while not answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with code {process.returncode}; its log is above")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()  # asked to end, `transformers serve` waits for requests that hang
        process.wait()


def answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


# --- a training -------------------------------------------------------------------------------


def training(check: Check) -> None:
    """Three seeds of the arm `tracelift` at preset tiny, with all that they are made from; only if asked for."""
    if os.environ.get("GPU_CHECK_TRAIN") != "1":
        raise NotRun("it takes minutes; set GPU_CHECK_TRAIN=1")
    os.environ["TRACELIFT_HOME"] = str(check.work / "home")
    run = Run("check" if check.dry else "tiny")
    for seed in range(2 if check.dry else 3):
        start = time.monotonic()
        policy = {"arm": "tracelift", "seed": seed}
        *_, made = (run.make(name, **of) for name, of in with_upstream(run.preset, "planner_training", policy))
        steps = pd.read_csv(made.path / "steps.csv")
        text = f"preset {run.preset.name}, arm tracelift, seed {seed}"
        check.record("training with what it lacked", time.monotonic() - start, "s", text)
        for part in ("reward", "s", "q", "u"):
            ends = steps[part].head(5).mean(), steps[part].tail(5).mean()
            check.record(f"{part}, first and last five steps", "{:.3f} to {:.3f}".format(*ends), "", text)
