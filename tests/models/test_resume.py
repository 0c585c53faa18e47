"""Interrupted training: nothing is lost, and the resumed run ends where the uninterrupted one ends."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tracelift_lib.models import base, supervised
from tracelift_lib.models.loading import load_model, load_tokenizer
from tracelift_lib.models.settings import Qwen2Shape, SupervisedTraining
from tracelift_lib.models.supervised import CheckpointCallback, supervised_training

SHAPE = Qwen2Shape(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    initializer_range=0.1,
)
PAIRS = [(f"{a}+{b}=", str(a + b)) for a in range(10) for b in range(10)]


@pytest.fixture(scope="module")
def tokenizer():
    return base.train_tokenizer([a + b for a, b in PAIRS], vocab_size=300)


def train(tokenizer, out):
    model = base.new_qwen2(tokenizer, SHAPE, seed=0)
    supervised_training(model, tokenizer, PAIRS, SupervisedTraining(steps=12, batch_size=4, learning_rate=1e-2), 0, out)
    return model


def checkpoints(out):
    return [path.name for path in out.rglob("checkpoint-*")]


def interrupt_at(monkeypatch, step):
    """Sends the process Ctrl-C in the middle of training, once."""
    original, sent = CheckpointCallback.on_step_end, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, args, state, control, **kwargs)

    monkeypatch.setattr(CheckpointCallback, "on_step_end", on_step_end)


def test_interrupted_and_resumed_equals_uninterrupted(tokenizer, tmp_path, monkeypatch):
    whole = train(tokenizer, tmp_path / "whole").state_dict()
    interrupt_at(monkeypatch, step=5)
    with pytest.raises(KeyboardInterrupt, match="after step 5"):
        train(tokenizer, tmp_path / "parts")
    assert checkpoints(tmp_path / "parts") == ["checkpoint-5"] and not (tmp_path / "parts" / "log.json").exists()
    resumed = train(tokenizer, tmp_path / "parts").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    saved = load_model(tmp_path / "parts").state_dict()
    assert all(torch.equal(whole[name], saved[name]) for name in whole)
    assert load_tokenizer(tmp_path / "parts")("1+2")["input_ids"] == tokenizer("1+2")["input_ids"]
    log = json.loads((tmp_path / "parts" / "log.json").read_text())
    assert [row["step"] for row in log if "loss" in row] == list(range(1, 13))


def test_a_half_written_checkpoint_is_not_resumed_from(tokenizer, tmp_path, monkeypatch):
    """A process that is killed while it writes one leaves a folder without the trainer's state."""
    interrupt_at(monkeypatch, step=5)
    with pytest.raises(KeyboardInterrupt):
        train(tokenizer, tmp_path)
    (folder,) = tmp_path.rglob("checkpoint-5")
    half = folder.with_name("checkpoint-6")
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    train(tokenizer, tmp_path)
    assert not half.exists() and (tmp_path / "model.safetensors").exists()


def test_outside_the_main_thread_training_goes_on_without_a_handler(tokenizer, tmp_path):
    with ThreadPoolExecutor(1) as thread:
        thread.submit(train, tokenizer, tmp_path).result()
    assert (tmp_path / "model.safetensors").exists()


def test_an_interrupt_reaches_python_again_after_training(tokenizer, tmp_path):
    train(tokenizer, tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_checkpoints_come_with_time(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "SAVE_SECONDS", 0)
    monkeypatch.setattr(supervised, "SAVE_SHARE", 1.0)
    train(tokenizer, tmp_path)
    assert checkpoints(tmp_path) == ["checkpoint-12"]  # saved at every step, only the newest kept


@pytest.mark.parametrize("save, step", [(0.1, 1.0), (60.0, 20.0), (300.0, 30.0), (2.0, 0.01)])
def test_checkpoints_take_a_twentieth_of_the_time_at_most(monkeypatch, save, step):
    """A clock of our own; what a checkpoint costs decides how often there is one, and never more than every 15 s."""
    now, saves, steps = [0.0], [], 4000
    monkeypatch.setattr(supervised.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(supervised, "gather_object", list)
    callback = CheckpointCallback()
    for _ in range(steps):
        now[0] += step
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        callback.on_step_end(None, None, control)
        if control.should_save:
            now[0] += save
            saves.append(now[0])
            callback.on_save(None, None, control)
    assert len(saves) * save <= 0.05 * now[0] + save  # the first is taken before its cost is known
    between = max(15.0, 19 * save) + save
    assert saves and all(gap <= between + 2 * step for gap in np.diff(saves))
    assert all(gap >= 15.0 for gap in np.diff(saves))


def test_a_tokenizer_beside_a_qwen2_model_loads_as_it_was_trained(tokenizer, tmp_path):
    """AutoTokenizer takes Qwen2's own class beside a Qwen2 model; another way to split words would be lost."""
    tokenizer.save_pretrained(tmp_path)
    base.new_qwen2(tokenizer, SHAPE, seed=0).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("- finds six: 3+16=19\n- gives two: 19-2=17\n</reasoning>", "<|im_start|>user\nPlan.\nThere are 12."):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
