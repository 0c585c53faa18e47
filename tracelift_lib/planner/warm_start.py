"""Planners to start from: the executor's weights, fine-tuned on traces."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

from tracelift_lib.groups.tiny_groups import perturb
from tracelift_lib.models.base import endlessly
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.models.supervised import supervised_training
from tracelift_lib.planner.settings import ReferenceStart, WarmStart
from tracelift_lib.problems import tinycode
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptStyle, as_chat, planner_prompt, wrap_trace


def warm_start(
    source: WarmStart, start: Path, problems: list[Problem], style: PromptStyle, seed: int, out: Path
) -> None:
    """Fine-tune the model in `start` on traces that mix good and bad habits; `out` becomes its folder.

    The habit of an example is drawn independently of its problem, so the planner can do it right but does
    not always: reinforcement learning has something to select.
    """
    rng = random.Random(seed)
    habits = rng.choices(list(source.habits), list(source.habits.values()), k=source.steps * source.batch_size)
    examples = [(p, habitual_trace(p, habit, rng)) for habit, p in zip(habits, endlessly(problems, rng))]
    _learn_to_plan(source, start, examples, style, seed, out)


def reference_start(
    source: ReferenceStart, start: Path, problems: list[Problem], style: PromptStyle, seed: int, out: Path
) -> None:
    """Fine-tune all weights of the model in `start` on the problems' reference traces; `out` becomes its folder.

    A small pretrained model keeps neither to the planner's format nor to the problem; reinforcement learning would
    have nothing but failures to compare.
    """
    drawn = islice(endlessly(problems, random.Random(seed)), source.steps * source.batch_size)
    _learn_to_plan(source, start, [(p, p.reference_solution) for p in drawn], style, seed, out)


def _learn_to_plan(
    source: WarmStart | ReferenceStart,
    start: Path,
    examples: list[tuple[Problem, str]],
    style: PromptStyle,
    seed: int,
    out: Path,
) -> None:
    """Supervised training of the model in `start` on (problem, trace) examples, in this order."""
    tokenizer, model = load_tokenizer(start), load_model(start)
    pairs = [(as_chat(planner_prompt(p, style), tokenizer), wrap_trace(z)) for p, z in examples]
    supervised_training(model, tokenizer, pairs, source, seed, out)


def habitual_trace(problem: Problem, habit: str, rng: random.Random) -> str:
    """A trace as a planner with this habit writes it; the full trace where the habit has no place."""
    if habit == "bare_answer":
        return f"The result is {problem.answer}." if problem.domain == "math" else tinycode.bare_plan(problem)
    operation = "wrong_operation" if problem.domain == "math" else "wrong_algorithm_choice"
    kind = {"skipped_step": "unsupported_leap", "wrong_operation": operation}.get(habit)
    return (perturb(problem, kind, rng) if kind else None) or problem.reference_solution
