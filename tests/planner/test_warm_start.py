"""Planners to start from: the mix of habits, and the trace of each habit."""

import random

import pytest
from common import story

from tracelift_lib.groups.habits import write_habit
from tracelift_lib.groups.truth import is_faithful
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.planner import warm_start as module
from tracelift_lib.planner.settings import WarmStart
from tracelift_lib.planner.warm_start import warm_start
from tracelift_lib.problems.tinyworld import generate_splits, read_calculations

SHAPE = Qwen2Shape(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    initializer_range=0.2,
)


@pytest.fixture(scope="module")
def problems():
    return generate_splits({"a": 40}, {"a": [2, 3, 4]}, 9, 18, seed=4)["a"]


def test_a_warm_start_mixes_its_habits(monkeypatch, problems, tmp_path):
    """What it hands over to be learned from the folder's model and tokenizer: a prompt, and a trace of either habit."""
    tokenizer = train_tokenizer(["Mia has 12 coins. 12 + 345 = 357."] * 20, 300)
    new_qwen2(tokenizer, SHAPE, seed=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    given = []
    monkeypatch.setattr(module, "supervised_training", lambda *arguments: given.append(arguments))
    habits = {"full": 0.5, "bare_answer": 0.5}
    source = WarmStart(source="executor", steps=10, batch_size=8, learning_rate=0.1, habits=habits)
    warm_start(source, tmp_path, problems, "short", 0, tmp_path / "out")
    [(model, loaded, pairs, *rest)] = given
    assert model.config.hidden_size == 16 and loaded("12")["input_ids"] == tokenizer("12")["input_ids"]
    assert rest == [source, 0, tmp_path / "out"] and len(pairs) == 80
    known = {f"<|im_start|>user\nPlan.\n{p.problem}<|im_end|>\n<|im_start|>assistant\n": p for p in problems}
    full = 0
    for context, target in pairs:
        p = known[context]
        assert target.startswith("<reasoning>\n") and target.endswith("\n</reasoning>")
        trace = target.removeprefix("<reasoning>\n").removesuffix("\n</reasoning>")
        assert trace == p.reference_solution or (read_calculations(trace) == [] and p.answer in trace)
        full += trace == p.reference_solution
    assert 27 <= full <= 53  # 40 of 80 expected


# --- habits -----------------------------------------------------------------------------------


def test_full_habit_is_the_reference(problems):
    assert all(write_habit(p, "full", random.Random(0)) == p.reference_solution for p in problems)


def test_bare_answer_states_the_answer_and_no_calculation(problems):
    for p in problems:
        trace = write_habit(p, "bare_answer", random.Random(0))
        assert p.answer in trace and read_calculations(trace) == []


def test_skipped_step_leaves_out_one_line_and_keeps_the_value(problems):
    for p in problems:
        rows = p.reference_solution.split("\n")
        trace = write_habit(p, "skipped_step", random.Random(0))
        assert trace in ["\n".join(rows[:i] + rows[i + 1 :]) for i in range(len(rows) - 1)]
        assert str(read_calculations(trace)[-1].after) == p.answer


def test_wrong_operation_leads_elsewhere_or_has_no_place(problems):
    traces = [(p, write_habit(p, "wrong_operation", random.Random(0))) for p in problems]
    changed = [(p, z) for p, z in traces if z != p.reference_solution]
    assert len(changed) > len(problems) / 2
    assert all(not is_faithful(p, z) and str(read_calculations(z)[-1].after) != p.answer for p, z in changed)
    without_place = story(2, ("+", 5))  # 2 - 5 is below zero
    assert write_habit(without_place, "wrong_operation", random.Random(0)) == without_place.reference_solution
