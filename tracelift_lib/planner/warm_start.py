"""Planners to start from: the executor's weights, fine-tuned on traces."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

from tracelift_lib.groups.habits import WRITERS, write_habit
from tracelift_lib.models.base import endlessly
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.models.supervised import supervised_training
from tracelift_lib.planner.settings import ReferenceStart, WarmStart
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import PromptStyle, as_chat, planner_prompt, wrap_trace


def warm_start(
    source: WarmStart | ReferenceStart, start: Path, problems: list[Problem], style: PromptStyle, seed: int, out: Path
) -> None:
    """Fine-tune all weights of the model in `start` on traces of `problems`; `out` becomes its folder. Source: ours.

    `WarmStart` mixes good and bad habits. An example's habit is drawn independently of its problem, so the planner can
    do it right but does not always: reinforcement learning has something to select. `ReferenceStart` takes the
    reference traces: a small pretrained model keeps neither to the planner's format nor to the problem, so that
    reinforcement learning would have nothing but failures to compare.
    """
    rng, n = random.Random(seed), source.steps * source.batch_size
    if isinstance(source, WarmStart):
        shares = [source.habits.get(habit, 0.0) for habit in WRITERS]  # not in the order of a file
        habits = rng.choices(list(WRITERS), shares, k=n)
        examples = [(p, write_habit(p, habit, rng)) for habit, p in zip(habits, endlessly(problems, rng))]
    else:
        examples = [(p, p.reference_solution) for p in islice(endlessly(problems, rng), n)]
    tokenizer, model = load_tokenizer(start), load_model(start)
    pairs = [(as_chat(planner_prompt(p, style), tokenizer), wrap_trace(trace)) for p, trace in examples]
    supervised_training(model, tokenizer, pairs, source, seed, out)
