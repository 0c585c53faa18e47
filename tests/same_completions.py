"""Planner training with completions and rewards that follow from the prompts alone, so that any number of processes
trains on the same ones."""

import functools
import random
import zlib

from safetensors.torch import save_file
from trl import GRPOTrainer

from tracelift_lib.planner.log import StepTimer
from tracelift_lib.planner.reward_engine import RewardEngine
from tracelift_lib.runs import launch

score = RewardEngine.score


def completions(trainer, prompt_ids, *_):
    """Text of 1 to 40 tokens; equal prompts of a step get different ones."""
    found, before = [], []
    for ids in prompt_ids:
        draw = random.Random(f"step {ids} {before.count(ids)} {trainer.state.global_step}")
        found.append([draw.randrange(20, 120) for _ in range(draw.choice([1, 2, 5, 40]))])
        before.append(ids)
    return found, None


async def rewards(engine, texts, problem_ids, seed):
    rows, stats = await score(engine, texts, problem_ids, seed)
    return [row | {"reward": zlib.crc32(text.encode()) % 97 / 97} for row, text in zip(rows, texts)], stats


def keep(self, folder, args, state, control, model, **_):
    if state.is_world_process_zero:
        gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
        save_file(gradients, folder / f"{state.global_step}.safetensors")


def put_in(folder, put=setattr):
    """In place of what trainer and reward engine do; a test has it in its own process with monkeypatch.setattr.

    The gradients of every step, as the optimizer gets them, go into `folder`.
    """
    put(GRPOTrainer, "_generate_single_turn", completions)
    put(RewardEngine, "score", rewards)
    put(StepTimer, "on_pre_optimizer_step", functools.partialmethod(keep, folder))


def train(folder, arguments):
    """`tracelift launch` with these arguments, in a process of its own."""
    put_in(folder)
    launch.main(arguments)
