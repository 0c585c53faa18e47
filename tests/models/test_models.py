"""Base models: the tokenizer, the training pairs, and model folders from elsewhere."""

import itertools
import unicodedata
from types import SimpleNamespace

import pytest
import torch
import trl
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.models import base, loading
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.loading import fetch, load_model, load_tokenizer
from tracelift_lib.models.settings import HubModel, Qwen2Shape, TrainedModel
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.tinyworld import generate_splits

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
def tokenizer():
    return train_tokenizer(["Mia has 12 coins. 12 + 345 = 357."] * 20, 300)


@pytest.fixture(scope="module")
def problems():
    return generate_splits({"a": 40}, {"a": [2, 3, 4]}, 9, 18, seed=4)["a"]


# --- tokenizer and new models -----------------------------------------------------------------


def test_digits_stay_single(tokenizer):
    """Even numbers that stood twenty times in the training text are never merged."""
    ids = tokenizer("12 345 = 357")["input_ids"]
    pieces = [tokenizer.decode([i]) for i in ids]
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("12345357")


@given(st.text(max_size=60))
def test_any_text_comes_back(tokenizer, text):
    """Byte level: no text is unknown, whatever its alphabet. Qwen2's tokenizers compose accents (NFC)."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_special_tokens(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.padding_side) == ("<|im_end|>", "<|endoftext|>", "left")
    assert tokenizer.eos_token_id != tokenizer.pad_token_id  # else the end of a turn would be masked as padding
    assert len(tokenizer("<|im_start|><|im_end|>")["input_ids"]) == 2


def test_new_models_come_from_the_seed(tokenizer):
    a, b, c = (new_qwen2(tokenizer, SHAPE, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.model.embed_tokens.weight, b.model.embed_tokens.weight)
    assert not torch.equal(a.model.embed_tokens.weight, c.model.embed_tokens.weight)
    assert a.config.eos_token_id == tokenizer.eos_token_id and a.config.vocab_size == len(tokenizer)
    assert a.model.embed_tokens.weight.std().item() == pytest.approx(0.2, rel=0.1)


def test_a_folder_loads_with_padding_on_the_left_and_a_pad_token(tmp_path, tokenizer):
    new_qwen2(tokenizer, SHAPE, seed=1).save_pretrained(tmp_path)
    other = train_tokenizer(["x"], 280)
    other.padding_side, other.pad_token = "right", None
    other.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.padding_side == "left" and loaded.pad_token == loaded.eos_token
    assert not load_model(tmp_path).training


# --- what the models are trained on -----------------------------------------------------------


class FakeTrainer:
    """Keeps the data that TRL's trainer would train on."""

    state = SimpleNamespace(log_history=[{"loss": 1.0}])

    def __init__(self, train_dataset, args, **_):
        type(self).data, self.args = train_dataset, args

    def add_callback(self, callback):
        pass

    def train(self, **_):
        pass


@pytest.fixture
def examples(monkeypatch, problems, tmp_path):
    """A function: mix of kinds -> [(text that is given, [pieces to be learned], whole text)] of a base model's data."""
    monkeypatch.setattr(trl, "SFTTrainer", FakeTrainer)

    def make(mix):
        source = TrainedModel(
            source="train", vocab_size=400, shape=SHAPE, steps=6, batch_size=8, learning_rate=0.1, mix=mix
        )
        base.train_base(source, problems, "short", 0, tmp_path)
        return decoded(load_tokenizer(tmp_path))

    return make


def decoded(tokenizer):
    result = []
    for row in FakeTrainer.data:
        ids, marks = row["input_ids"], row["labels"]
        assert len(ids) == len(marks) and all(m in (-100, i) for i, m in zip(ids, marks))
        runs = [
            (learned, [i for i, _ in pairs])
            for learned, pairs in (
                (k, list(g)) for k, g in itertools.groupby(zip(ids, marks), key=lambda pair: pair[1] != -100)
            )
        ]
        assert not runs[0][0] and runs[-1][0]
        pieces = [tokenizer.decode(run) for learned, run in runs if learned]
        result.append((tokenizer.decode(runs[0][1]), pieces, tokenizer.decode(ids)))
    return result


def asked(prompt):
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def test_planning_is_learned_from_problem_to_reference(examples, problems):
    known = {asked(f"Plan.\n{p.problem}"): p for p in problems}
    rows = examples({"plan": 1.0})
    assert len(rows) == 48 and len({context for context, _, _ in rows}) == len(problems)  # 48 draws of 40 problems
    for context, learned, _ in rows:
        assert learned == [f"<reasoning>\n{known[context].reference_solution}\n</reasoning><|im_end|>"]


def test_solving_without_a_trace_is_learned_on_the_answer_alone(examples, problems):
    known = {asked(f"Solve.\n{p.problem}"): p for p in problems}
    for context, learned, _ in examples({"solve_without_trace": 1.0}):
        assert learned == [f"Answer: {known[context].answer}<|im_end|>"]


def test_solving_with_a_trace_shows_reference_traces_only(examples, problems):
    """That a flawed trace misleads the executor is to be measured, so it must not be taught."""
    whole = {
        asked(f"Solve.\n{p.problem}\n<reasoning>\n{p.reference_solution}\n</reasoning>")
        + f"Answer: {p.answer}<|im_end|>"
        for p in problems
    }
    for context, learned, text in examples({"solve_with_trace": 1.0}):
        assert text in whole and "<reasoning>" not in context
        assert learned[-1].endswith("<|im_end|>") and "Answer: " in learned[-1]


def test_the_mix_decides_how_often_each_kind_occurs(examples):
    rows = examples({"plan": 0.75, "solve_without_trace": 0.25})
    plans = sum("Plan." in context for context, _, _ in rows)
    assert 26 <= plans <= 46 and plans < len(rows)  # 36 of 48 expected, three standard deviations are 9


# --- models from elsewhere --------------------------------------------------------------------


def test_a_local_model_folder_is_taken_over(tmp_path, tokenizer):
    source = tmp_path / "local"
    new_qwen2(tokenizer, SHAPE, seed=1).save_pretrained(source)
    tokenizer.save_pretrained(source)
    out = tmp_path / "out"
    out.mkdir()
    fetch(HubModel(source="hub", model_id="org/name", revision="main", folder=str(source)), out)
    assert torch.equal(load_model(out).model.embed_tokens.weight, load_model(source).model.embed_tokens.weight)
    assert load_tokenizer(out)("12")["input_ids"] == tokenizer("12")["input_ids"]


def test_a_relative_model_folder_counts_from_the_project(tmp_path, monkeypatch):
    """As data folders do; a notebook's working directory is another."""
    (tmp_path / "project" / "models" / "mine").mkdir(parents=True)
    (tmp_path / "project" / "models" / "mine" / "config.json").write_text("{}")
    monkeypatch.setattr(loading, "PROJECT", tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    fetch(HubModel(source="hub", model_id="org/name", revision="main", folder="models/mine"), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(InputError, match="config.json"):
        fetch(HubModel(source="hub", model_id="org/name", revision="main", folder=str(tmp_path / "none")), tmp_path)
