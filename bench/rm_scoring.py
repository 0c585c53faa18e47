"""Traces a second of the RM: in batches, by the service object and over HTTP, against one after another.

python -m bench.rm_scoring          # the pipeline's RM shape
python -m bench.rm_scoring smollm2  # also SmolLM2-135M's shape; minutes
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tracelift_lib.groups.group_maker import build_group
from tracelift_lib.groups.schema import dimensions
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import reward_model_text
from tracelift_lib.problems.tinyworld import generate_splits
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.remote import RemoteScorer
from tracelift_lib.reward_model.scorer import Scorer
from tracelift_lib.reward_model.server import serving
from tracelift_lib.runs.presets import load_preset

ROUNDS = 5
MAX_LENGTH = 512
TOLERANCE = 1e-4
SMOLLM2 = dict(  # SmolLM2-135M's config, with a small vocabulary
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
)

Score = Callable[[Sequence[Problem], Sequence[str]], np.ndarray]


def run(with_smollm2: bool = False) -> list[dict]:
    """Rows for build/bench.json: name, ours and other (traces a second), ratio, unit, note.

    Raises:
        AssertionError: the ways to score differ by more than 1e-4.
    """
    problems, traces = _groups(60)
    shapes = {"rm_scoring": (_qwen2, len(traces), ROUNDS)}
    if with_smollm2:
        shapes["rm_scoring_smollm2_size"] = (_smollm2, 56, 1)
    rows = []
    for name, (make, n, rounds) in shapes.items():
        with tempfile.TemporaryDirectory() as folder:
            scorer = _scorer(make, problems, traces, Path(folder))
        rows += _compare(name, scorer, problems[:n], traces[:n], rounds)
    return rows


def _compare(name: str, scorer: Scorer, problems: list[Problem], traces: list[str], rounds: int) -> list[dict]:
    """Every way in turn, `rounds` times over; ratios are taken within a round, where the load is the most alike."""
    with serving(scorer) as url:
        remote = RemoteScorer(url, MAX_LENGTH, batch_size=512)
        ways = {
            "batched": lambda p, z: scorer.score(p, z)[0],
            "one by one": lambda p, z: np.concatenate([scorer.score([x], [y])[0] for x, y in zip(p, z)]),
            "batched over HTTP": lambda p, z: remote.score(p, z)[0],
            "one by one over HTTP": lambda p, z: np.concatenate([remote.score([x], [y])[0] for x, y in zip(p, z)]),
        }
        for way in ways.values():  # warm up
            way(problems[:8], traces[:8])
        measured = [{way: _rate(f, problems, traces) for way, f in ways.items()} for _ in range(rounds)]
    q = {way: measured[0][way][1] for way in ways}
    difference = max(float(abs(q[way] - q["one by one"]).max()) for way in ways)
    assert difference < TOLERANCE, f"scores differ by {difference}"
    assert np.ptp(q["one by one"]) > 100 * TOLERANCE, "all scores alike: equality would say nothing"
    note = (
        f"{len(traces)} traces of tiny-world groups, {sum(p.numel() for p in scorer.model.parameters()) / 1e6:.1f} M "
        f"parameters, {torch.get_num_threads()} threads, {rounds} alternating rounds; "
        f"largest score difference {difference:.1e}"
    )
    return [
        _row(name, "batched", "one by one", measured, note),
        _row(f"{name}_http", "batched over HTTP", "one by one over HTTP", measured, note),
    ]


def _row(name: str, ours: str, other: str, measured: list[dict], note: str) -> dict:
    ratios = [round_[ours][0] / round_[other][0] for round_ in measured]
    return {
        "name": name,
        "ours": statistics.median(r[ours][0] for r in measured),
        "other": statistics.median(r[other][0] for r in measured),
        "ratio": statistics.median(ratios),
        "unit": "traces/s",
        "note": f"{ours} against {other}; {note}; ratios {min(ratios):.1f} to {max(ratios):.1f}",
    }


def _rate(score: Score, problems: list[Problem], traces: list[str]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    q = score(problems, traces)
    return len(traces) / (time.perf_counter() - start), q


def _groups(n: int) -> tuple[list[Problem], list[str]]:
    """The traces of n tiny-world groups, as preset tiny makes them, with their problems."""
    p = load_preset("tiny").problems
    problems = generate_splits({"a": n}, {"a": p.steps["test"]}, p.max_number, p.max_value, seed=0)["a"]
    groups = [build_group(problem, 0) for problem in problems]
    pairs = [(g.as_problem(), c.reasoning) for g in groups for c in g.candidates]
    return [problem for problem, _ in pairs], [trace for _, trace in pairs]


def _scorer(make: Callable, problems: list[Problem], traces: list[str], folder: Path) -> Scorer:
    """A scorer on a model with random weights."""
    texts = (reward_model_text(p, z) for p, z in zip(problems, traces))
    tokenizer = train_tokenizer(texts, load_preset("tiny").executor.vocab_size)
    make(tokenizer).save_pretrained(folder)
    new_layers = load_preset("tiny").reward_model.new_layers if make is _qwen2 else 0
    model = ReasoningRewardModel.from_backbone(folder, dimensions("math"), 0, new_layers)
    return Scorer(model, tokenizer, load_preset("tiny").execution.batch_tokens, MAX_LENGTH)


def _qwen2(tokenizer):
    return new_qwen2(tokenizer, load_preset("tiny").executor.shape, seed=0)


def _smollm2(tokenizer):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.07,
            **SMOLLM2,
        )
    )


if __name__ == "__main__":
    for row in run(with_smollm2="smollm2" in sys.argv[1:]):
        print(
            f"{row['name']}: {row['ours']:.0f} against {row['other']:.0f} {row['unit']}, {row['ratio']:.1f} times; "
            f"{row['note']}"
        )
