"""Interrupted training: nothing is lost, and the resumed run ends where the uninterrupted one ends."""

import os
import signal

import pytest
import torch
from transformers import AutoTokenizer

from tracelift_lib.models import base
from tracelift_lib.models import base as models
from tracelift_lib.models.settings import Qwen2Shape
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


def train(tokenizer, work):
    model = base.new_qwen2(tokenizer, SHAPE, seed=0)
    supervised_training(model, tokenizer, PAIRS, steps=12, batch_size=4, learning_rate=1e-2, seed=0, work=work)
    return model


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
    assert (tmp_path / "parts" / "checkpoint-5").is_dir()
    resumed = train(tokenizer, tmp_path / "parts").state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_interrupt_reaches_python_again_after_training(tokenizer, tmp_path):
    train(tokenizer, tmp_path / "work")
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_checkpoints_come_with_time(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "SAVE_SECONDS", 0)
    train(tokenizer, tmp_path / "work")
    kept = [p.name for p in (tmp_path / "work").glob("checkpoint-*")]
    assert kept == ["checkpoint-12"]  # saved at every step, only the newest kept


def test_a_tokenizer_beside_a_qwen2_model_loads_as_it_was_trained(tokenizer, tmp_path):
    """AutoTokenizer takes Qwen2's own class beside a Qwen2 model; another way to split words would be lost."""
    tokenizer.save_pretrained(tmp_path)
    base.new_qwen2(tokenizer, SHAPE, seed=0).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("- finds six: 3+16=19\n- gives two: 19-2=17\n</reasoning>", "<|im_start|>user\nPlan.\nThere are 12."):
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.chat_template == tokenizer.chat_template
