"""The Reasoning RM: heads, losses, the checkpoint layout, scoring. Numbers are computed apart from the library."""

import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from common import CODE, MATH, group_record, story
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    TrainerCallback,
    modeling_utils,
)

from tracelift_lib.groups.group_maker import build_group
from tracelift_lib.groups.schema import Group
from tracelift_lib.models import supervised
from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.generation import seeded
from tracelift_lib.models.settings import Qwen2Shape
from tracelift_lib.problems.files import InputError
from tracelift_lib.problems.prompts import OPEN, reward_model_text, wrap_trace
from tracelift_lib.problems.tinyworld import generate_splits
from tracelift_lib.reward_model import scorer as scoring
from tracelift_lib.reward_model import training
from tracelift_lib.reward_model.losses import Scores, expected_labels, lm_loss, negatives_ranking, reward_model_loss
from tracelift_lib.reward_model.model import ReasoningRewardModel
from tracelift_lib.reward_model.scorer import Scorer, grow_trees
from tracelift_lib.reward_model.training import collate, schedule, train_reward_model
from tracelift_lib.runs.presets import load_preset

WEIGHTS = [0.1, 0.3, 0.15, 0.25, 0.2]  # not all 0.2, so that forgetting them shows
SHAPE = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
)
CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([reward_model_text(story(3, ("+", 2)), "gets 2: 3 + 2 = 5.\ngives 1: 9 - 1 = 8.")] * 3, 320)


def checkpoint(folder, kind, tokenizer, seed=0):
    """A checkpoint in the layout of docs/method.md section 5, put together by hand; returns (body, heads)."""
    vocabulary = max(320, len(tokenizer))
    config = CONFIGS[kind](
        vocab_size=vocabulary,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **SHAPE,
        **({"head_dim": 8} if kind == "qwen3" else {}),
    )
    with seeded(seed):
        body = AutoModel.from_config(config).eval()
        heads = {f"dimension_heads.{i}.weight": torch.randn(5, 32) for i in range(5)}
        heads |= {f"dimension_heads.{i}.bias": torch.randn(5) for i in range(5)}
        heads |= {"total_head.weight": torch.randn(1, 32) * 0.3, "total_head.bias": torch.randn(1)}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"model.{name}": tensor.contiguous() for name, tensor in body.state_dict().items()}
    save_file(weights | heads, folder / "model.safetensors", metadata={"format": "pt"})
    settings = config.to_dict() | {
        "architectures": ["SomeOtherClassName"],
        "rm_dimension_names": list(MATH),
        "rm_dimension_weights": WEIGHTS,
        "rm_num_labels": 5,
        "rm_use_total_head": True,
    }
    assert "auto_map" not in settings and settings["model_type"] == kind
    (folder / "config.json").write_text(json.dumps(settings))
    tokenizer.save_pretrained(folder)
    return body, heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    path = tmp_path_factory.mktemp("rm") / "qwen2"
    checkpoint(path, "qwen2", tokenizer)
    return path


def by_hand(body, heads, ids):
    """(logits (5, 5), total, q) of one unpadded text, in float64 from the last hidden state on."""
    with torch.no_grad():
        hidden = body(input_ids=torch.tensor([ids])).last_hidden_state[0, -1].double().numpy()
    head = {name: tensor.double().numpy() for name, tensor in heads.items()}
    names = [f"dimension_heads.{i}" for i in range(5)]
    logits = np.stack([head[f"{name}.weight"] @ hidden + head[f"{name}.bias"] for name in names])
    p = np.exp(logits - logits.max(1, keepdims=True))
    expected = (p / p.sum(1, keepdims=True)) @ np.arange(5)
    total = 1 / (1 + math.exp(-(head["total_head.weight"][0] @ hidden + head["total_head.bias"][0])))
    return logits, total, (np.dot(WEIGHTS, expected) / 4 + total) / 2, expected


TRACES = ["gets 2: 3 + 2 = 5.", "x", "so\n" * 30 + "3 + 2 = 6", "The result is 5.", ""]


def pairs(n=5):
    problem = story(3, ("+", 2))
    return [problem] * n, TRACES[:n]


# --- heads and checkpoint ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_checkpoint_by_hand_loads_and_every_head_is_right(tmp_path, tokenizer, kind):
    body, heads = checkpoint(tmp_path / kind, kind, tokenizer)
    model = ReasoningRewardModel.from_pretrained(tmp_path / kind).eval()
    for problem, trace in zip(*pairs()):
        ids = tokenizer(reward_model_text(problem, trace), add_special_tokens=False)["input_ids"]
        logits, total, q, expected = by_hand(body, heads, ids)
        with torch.no_grad():
            scores = model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
        assert scores.logits.shape == (1, 5, 5) and scores.total.shape == scores.q.shape == (1,)
        np.testing.assert_allclose(scores.logits[0].numpy(), logits, atol=1e-4)
        assert scores.total.item() == pytest.approx(total, abs=1e-5)
        assert scores.q.item() == pytest.approx(q, abs=1e-5)
        np.testing.assert_allclose(expected_labels(scores.logits)[0].numpy(), expected, atol=1e-4)


def test_what_is_saved_has_the_released_layout(tmp_path, folder):
    """And it loads again, to the same scores."""
    model = ReasoningRewardModel.from_pretrained(folder).eval()
    model.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(load_file(folder / "model.safetensors"))
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["rm_dimension_names"] == list(MATH) and config["rm_dimension_weights"] == WEIGHTS
    assert config["rm_num_labels"] == 5 and config["rm_use_total_head"] is True
    again = ReasoningRewardModel.from_pretrained(tmp_path / "again").eval()
    ids, mask = torch.tensor([[5, 9, 40, 7]]), torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        assert torch.equal(model(ids, mask).q, again(ids, mask).q)


def test_a_checkpoint_without_a_total_head_scores_by_its_dimensions(tmp_path, tokenizer):
    """docs/method.md section 9: q is the derived score alone, which the total's loss then fits too."""
    body, heads = checkpoint(tmp_path / "m", "qwen2", tokenizer)
    settings = json.loads((tmp_path / "m" / "config.json").read_text()) | {"rm_use_total_head": False}
    (tmp_path / "m" / "config.json").write_text(json.dumps(settings))
    weights = load_file(tmp_path / "m" / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("total_head")}
    save_file(kept, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    ReasoningRewardModel.from_pretrained(tmp_path / "m").save_pretrained(tmp_path / "again")
    model = ReasoningRewardModel.from_pretrained(tmp_path / "again").eval()
    ids = tokenizer(reward_model_text(*pairs()[0][:1], "x"), add_special_tokens=False)["input_ids"]
    *_, expected = by_hand(body, heads, ids)
    with torch.no_grad():
        scores = model(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
    assert scores.q.item() == scores.total.item() == pytest.approx(np.dot(WEIGHTS, expected) / 4, abs=1e-5)
    assert "total_head" not in dict(model.named_children())


@pytest.mark.parametrize("missing", ["total_head.weight", "dimension_heads.3.bias"])
def test_a_checkpoint_without_a_head_is_refused(tmp_path, folder, tokenizer, missing):
    """Otherwise the head would be random and every score noise, with no more than a line in the log."""
    checkpoint(tmp_path / "m", "qwen2", tokenizer)
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="head"):
        ReasoningRewardModel.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("kind", CONFIGS)
def test_padding_on_either_side_gives_the_same_scores(tmp_path, tokenizer, kind):
    checkpoint(tmp_path, kind, tokenizer)
    model = ReasoningRewardModel.from_pretrained(tmp_path).eval()
    texts = [[7, 8, 9, 10, 11, 12, 13], [20, 21, 22], [30]]
    width, pad = 9, model.config.pad_token_id
    results = []
    for left in (True, False):
        gaps = [[pad] * (width - len(t)) for t in texts]
        ids = [gap + t if left else t + gap for gap, t in zip(gaps, texts)]
        mask = [[0] * len(g) + [1] * len(t) if left else [1] * len(t) + [0] * len(g) for g, t in zip(gaps, texts)]
        with torch.no_grad():
            results.append(model(torch.tensor(ids), torch.tensor(mask)))
    for i, t in enumerate(texts):
        with torch.no_grad():
            alone = model(torch.tensor([t]), torch.ones(1, len(t), dtype=torch.long))
        for scores in results:
            torch.testing.assert_close(scores.logits[i], alone.logits[0], atol=1e-4, rtol=1e-4)
            assert scores.q[i].item() == pytest.approx(alone.q.item(), abs=1e-5)
    assert len({round(q, 4) for q in results[0].q.tolist()}) == 3  # three texts, three scores


def test_new_heads_on_a_backbone(tmp_path, folder, tokenizer):
    """The body is the backbone's, the LM head is gone, the weights are equal, the heads come from the seed."""
    base = new_qwen2(tokenizer, Qwen2Shape(**SHAPE), seed=3)
    base.save_pretrained(tmp_path / "base")
    model = ReasoningRewardModel.from_backbone(tmp_path / "base", MATH, seed=1)
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], tensor), name
    assert model.config.rm_dimension_weights == pytest.approx([0.2] * 5) and model.config.rm_num_labels == 5
    assert [tuple(h.weight.shape) for h in model.dimension_heads] == [(5, 32)] * 5
    assert not any("lm_head" in name for name in model.state_dict())
    same = ReasoningRewardModel.from_backbone(tmp_path / "base", MATH, seed=1)
    other = ReasoningRewardModel.from_backbone(tmp_path / "base", MATH, seed=2)
    assert torch.equal(same.total_head.weight, model.total_head.weight)
    assert not torch.equal(other.total_head.weight, model.total_head.weight)


def test_new_layers_stand_between_backbone_and_heads(tmp_path, folder, tokenizer):
    base = new_qwen2(tokenizer, Qwen2Shape(**SHAPE), seed=3)
    base.save_pretrained(tmp_path / "base")
    model = ReasoningRewardModel.from_backbone(tmp_path / "base", MATH, seed=1, new_layers=2)
    assert len(model.model.layers) == model.config.num_hidden_layers == len(model.config.layer_types) == 4
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], tensor), name
    model.save_pretrained(tmp_path / "rm")
    again = ReasoningRewardModel.from_pretrained(tmp_path / "rm")
    ids, mask = torch.tensor([[5, 9, 40, 7]]), torch.ones(1, 4, dtype=torch.long)
    assert torch.equal(model.eval()(ids, mask).q, again.eval()(ids, mask).q)


@pytest.fixture(scope="module")
def doubting(tmp_path_factory, base):
    """A checkpoint with doubt; its new layer is random."""
    path = tmp_path_factory.mktemp("doubt")
    ReasoningRewardModel.from_backbone(base, MATH, seed=1, new_layers=1, doubt=True).save_pretrained(path)
    return path


def test_doubt_is_what_the_language_model_would_not_have_written(base, doubting):
    """In a trace, against the causal LM's own probabilities token by token; a problem gives no reason for it."""
    language_model = AutoModelForCausalLM.from_pretrained(base).eval()
    model = ReasoningRewardModel.from_pretrained(doubting).eval()
    opening = model.config.rm_doubt_after
    ids = torch.tensor([[5, 9, *opening, 40, 7, 7]])
    start, seen = 2 + len(opening), []
    model.model.layers[2].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    with torch.no_grad():
        log_p = model(ids, torch.ones_like(ids)).log_p
        p = language_model(ids).logits.softmax(-1)
    expected = torch.tensor([1.0] * start + [p[0, i, ids[0, i + 1]].item() for i in range(start - 1, start + 2)])
    torch.testing.assert_close(log_p[0].exp(), expected, atol=1e-7, rtol=1e-4)
    below = hidden_before_the_norm(language_model, ids)[0]
    size = below.square().mean(-1, keepdim=True).sqrt()
    by_hand = below + (1 - expected)[:, None] * size * model.doubt.direction
    torch.testing.assert_close(seen[0][0], by_hand, atol=1e-4, rtol=1e-3)


def test_where_traces_begin(doubting):
    """Behind the first opening tag, padded or not; a text that is cut before its end has no trace."""
    model = ReasoningRewardModel.from_pretrained(doubting)
    model.config.rm_doubt_after = [1, 2]
    ids = torch.tensor([[4, 1, 2, 9, 1, 2, 8], [0, 0, 4, 1, 2, 9, 9], [4, 4, 4, 4, 4, 4, 1], [1, 2, 9, 9, 0, 0, 0]])
    n = -1
    expected = [[n, n, n, 2, 3, 4, 5], [n, n, n, n, n, 4, 5], [n] * 7, [n, n, 1, 2, 3, 4, 5]]
    assert model.trace_parents(ids).tolist() == expected


def hidden_before_the_norm(language_model, ids):
    """What its last layer gives."""
    given = []
    handle = language_model.model.norm.register_forward_pre_hook(lambda norm, args: given.append(args[0]))
    with torch.no_grad():
        language_model(ids)
    handle.remove()
    return given[0]


def test_doubt_needs_tied_embeddings(tmp_path, base):
    shutil.copytree(base, tmp_path / "untied")
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "untied" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="lm_weight needs an LM head tied"):
        ReasoningRewardModel.from_backbone(tmp_path / "untied", MATH, 0, new_layers=1, doubt=True)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_config_is_the_backbones_and_flat_on_disk(tmp_path, tokenizer, kind):
    checkpoint(tmp_path, kind, tokenizer)
    config = ReasoningRewardModel.from_pretrained(tmp_path).config
    assert type(config) is CONFIGS[kind] and config.hidden_size == 32
    config.save_pretrained(tmp_path / "again")
    before, after = (json.loads((f / "config.json").read_text()) for f in (tmp_path, tmp_path / "again"))
    assert after["model_type"] == kind
    for name in ("rope_parameters", "vocab_size", "pad_token_id", "rm_dimension_weights"):
        assert after[name] == before[name]
    AutoConfig.from_pretrained(tmp_path / "again").save_pretrained(tmp_path / "third")
    assert json.loads((tmp_path / "third" / "config.json").read_text()) == after


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rm_num_labels": None}, "no rm_num_labels"),
        ({"rm_dimension_weights": [0.5, 0.5]}, "must be 5 numbers"),
        ({"rm_dimension_weights": [1.0] * 5}, "add up to 1"),
        ({"rm_dimension_weights": [-0.2, 0.4, 0.4, 0.2, 0.2]}, "from 0"),
        ({"rm_dimension_names": ["a", "a", "b", "c", "d"]}, "different names"),
        ({"rm_num_labels": 1}, "at least 2"),
        ({"rm_use_total_head": "yes"}, "rm_use_total_head"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, folder, change, message):
    shutil.copytree(folder, tmp_path / "m")
    settings = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "m" / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    with pytest.raises(InputError, match=message):
        ReasoningRewardModel.from_pretrained(tmp_path / "m")


def test_heads_of_a_bf16_checkpoint_compute_in_fp32(tmp_path, folder):
    """In bf16 two scores closer than 1/256 would be equal."""
    ReasoningRewardModel.from_pretrained(folder).to(torch.bfloat16).save_pretrained(tmp_path / "m")
    model = ReasoningRewardModel.from_pretrained(tmp_path / "m", dtype=torch.bfloat16).eval()
    assert model.model.dtype == torch.bfloat16 and model.total_head.weight.dtype == torch.float32
    ids = torch.randint(10, 300, (40, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = model(ids, torch.ones_like(ids))
    assert scores.q.dtype == scores.logits.dtype == torch.float32
    assert (scores.q != scores.q.bfloat16().float()).any()


# --- the loss ---------------------------------------------------------------------------------


def scores_and_gold(seed, groups=2, size=3):
    rng = np.random.default_rng(seed)
    b = groups * size
    return rng.normal(0, 2, (b, 5, 5)), rng.random(b), rng.random(b), rng.integers(0, 5, (b, 5)), rng.random(b)


def loss_by_hand(logits, total, q, labels, gold, size, kind):
    """Method section 5 in plain loops and float64."""
    b = len(q)
    dimensions = 0.0
    for i in range(5):
        mean = 0.0
        for n in range(b):
            p = np.exp(logits[n, i]) / np.exp(logits[n, i]).sum()
            if kind == "ce":
                mean += -math.log(p[labels[n, i]]) / b
            else:
                mean += (sum(k * p[k] for k in range(5)) - labels[n, i]) ** 2 / b
        dimensions += mean
    huber = sum(0.5 * e * e if abs(e) <= 1 else abs(e) - 0.5 for e in total - gold) / b
    ranking = 0.0
    for g in range(0, b, size):
        terms = [-math.log(1 / (1 + math.exp(-(q[g] - q[g + k])))) for k in range(1, size)]
        ranking += sum(terms) / len(terms) / (b // size)
    return dimensions, huber, ranking, 1.0 * dimensions + 0.5 * huber + 0.7 * ranking


@pytest.mark.parametrize("kind", ["ce", "mse"])
@pytest.mark.parametrize("groups, size", [(2, 3), (1, 2), (3, 5)])
def test_loss_against_plain_loops(kind, groups, size):
    logits, total, q, labels, gold = scores_and_gold(0, groups, size)
    scores = Scores(torch.tensor(logits), torch.tensor(total), torch.tensor(q))
    parts = reward_model_loss(scores, torch.tensor(labels), torch.tensor(gold), size, kind)
    expected = loss_by_hand(logits, total, q, labels, gold, size, kind)
    found = [parts[name].item() for name in ("dimensions", "total", "ranking", "loss")]
    assert found == pytest.approx(expected, rel=1e-9)


def test_ranking_loss_by_hand():
    """Group 1: q 0.9 against 0.4 and 0.9; group 2: q 0.2 against 0.7 and 0.2. -log sigmoid of 0.5, 0, -0.5, 0."""
    q = torch.tensor([0.9, 0.4, 0.9, 0.2, 0.7, 0.2], dtype=torch.float64)
    zeros = torch.zeros(6, 5, 5, dtype=torch.float64)
    parts = reward_model_loss(Scores(zeros, q * 0, q), torch.zeros(6, 5, dtype=torch.long), q * 0, 3)
    softplus = [math.log(1 + math.exp(-0.5)), math.log(2), math.log(1 + math.exp(0.5)), math.log(2)]
    assert parts["ranking"].item() == pytest.approx((sum(softplus[:2]) / 2 + sum(softplus[2:]) / 2) / 2)
    assert parts["dimensions"].item() == pytest.approx(5 * math.log(5))  # five even guesses among five labels
    assert parts["total"].item() == 0


def test_the_positive_is_the_first_of_each_group():
    """Raising the first score of a group must lower the loss, raising another must not."""
    logits, total, q, labels, gold = scores_and_gold(3)
    q = torch.tensor(q, requires_grad=True)
    scores = Scores(torch.tensor(logits), torch.tensor(total), q)
    reward_model_loss(scores, torch.tensor(labels), torch.tensor(gold), 3)["ranking"].backward()
    assert [g < 0 for g in q.grad.tolist()] == [True, False, False, True, False, False]


def test_expected_labels_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.5, 1e-30, 1e-30, 1e-30], [1e-30, 1e-30, 1e-30, 0.25, 0.75]]]))
    assert expected_labels(logits)[0].tolist() == pytest.approx([0.5, 3.75])


def test_ranking_among_negatives_by_hand():
    """Three groups of three negatives: one pair whose gold totals are just far enough apart; none; all three."""
    gold = torch.tensor([[0.6, 0.45, 0.5], [0.5, 0.4, 0.6 - 0.06], [0.9, 0.1, 0.5]], dtype=torch.float64)
    q = torch.tensor([[0.3, 0.7, 0.9], [0.1, 0.2, 0.3], [0.8, 0.6, 0.7]], dtype=torch.float64)
    cost = lambda better, worse: math.log(1 + math.exp(-(better - worse)))  # noqa: E731
    third = (cost(0.8, 0.6) + cost(0.8, 0.7) + cost(0.7, 0.6)) / 3
    assert negatives_ranking(q, gold).item() == pytest.approx((cost(0.3, 0.7) + third) / 2, rel=1e-9)
    assert negatives_ranking(q[1:2], gold[1:2]).item() == 0
    assert negatives_ranking(q[:, :1], gold[:, :1]).item() == 0


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_ranking_among_negatives_enters_with_its_weight(weight):
    logits, total, q, labels, gold = scores_and_gold(4, 3, 5)
    scores = Scores(torch.tensor(logits), torch.tensor(total), torch.tensor(q))
    parts = reward_model_loss(scores, torch.tensor(labels), torch.tensor(gold), 5, negatives_weight=weight)
    among = 0.0
    for g in range(0, 15, 5):
        pairs = [(i, j) for i in range(g + 1, g + 5) for j in range(g + 1, g + 5) if gold[i] - gold[j] >= 0.15]
        among += sum(-math.log(1 / (1 + math.exp(q[j] - q[i]))) for i, j in pairs) / len(pairs) / 3
    assert parts["negatives"].item() == pytest.approx(among, rel=1e-9)
    expected = loss_by_hand(logits, total, q, labels, gold, 5, "ce")[-1] + weight * among
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-9)


# --- the training data ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups():
    problems = generate_splits({"a": 30}, {"a": [2, 3, 4]}, 9, 18, seed=2)["a"]
    return [build_group(p, 0) for p in problems]


def settings(**change):
    return load_preset("check", overrides={f"reward_model.{k}": v for k, v in change.items()}).reward_model


def test_schedule_is_fixed_by_the_seed(groups):
    """A resumed run must see what the interrupted one would have seen."""
    first, again = (schedule(groups, settings(epochs=2), 5) for _ in range(2))
    assert first == again and first != schedule(groups, settings(epochs=2), 6)


@pytest.mark.parametrize("epochs, negatives", [(1, 4), (3, 4), (1, 6)])
def test_schedule_shows_every_usable_group_once_an_epoch(groups, epochs, negatives):
    usable = {g.problem_id: g for g in groups if len(g.negative_bank) >= negatives}
    assert 0 < len(usable) < len(groups) or negatives == 4
    samples, size = schedule(groups, settings(epochs=epochs, negatives=negatives), 0), len(usable)
    for epoch in range(epochs):
        assert sorted(s.problem_id for s in samples[epoch * size : (epoch + 1) * size]) == sorted(usable)
    assert len(samples) == epochs * size
    for sample in samples:
        g = usable[sample.problem_id]
        assert len(sample.positive_pool) == 1 and len(sample.negative_bank) == negatives
        assert all(c in g.positive_pool for c in sample.positive_pool)
        assert all(c in g.negative_bank for c in sample.negative_bank)
        assert len({c.reasoning for c in sample.negative_bank}) == negatives


def test_groups_left_out_of_training_are_counted_aloud(groups, capsys):
    few = [groups[0].model_copy(update={"negative_bank": groups[0].negative_bank[:1]})] * 3
    schedule(few + groups[:2], settings(negatives=2), 0)
    assert "3 of 5 groups have fewer than 2 flawed traces" in capsys.readouterr().out
    schedule(groups[:2], settings(negatives=2), 0)
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="lower reward_model.negatives"):
        schedule(few, settings(negatives=2), 0)


def test_negatives_are_drawn_anew_each_epoch(groups):
    samples = schedule(groups, settings(epochs=8, negatives=2), 0)
    one = [s for s in samples if s.problem_id == samples[0].problem_id]
    assert len({tuple(c.reasoning for c in s.negative_bank) for s in one}) > 1


def sample(group, *negatives):
    """The group as a step sees it: its first positive and these negatives."""
    return group.model_copy(update={"positive_pool": group.positive_pool[:1], "negative_bank": list(negatives)})


def test_collate_keeps_texts_labels_and_totals_together(groups, tokenizer):
    """Behind the problem's tokens come those of each of its traces: together the wire format, token by token."""
    items = [sample(g, *g.negative_bank[:2]) for g in groups[:3]]
    batch = collate(items, tokenizer, settings(max_length=512))
    candidates = [(i.as_problem(), c) for i in items for c in [*i.positive_pool, *i.negative_bank]]
    assert len(batch["problem_ids"]) == 3 and len(batch["input_ids"]) == len(candidates) == 9
    for row, (problem, c) in enumerate(candidates):
        kept = batch["problem_ids"][row // 3][batch["problem_mask"][row // 3].bool()].tolist()
        kept += batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        assert kept == tokenizer(reward_model_text(problem, c.reasoning), add_special_tokens=False)["input_ids"]
        assert batch["labels"][row].tolist() == [c.rubric.labels[name] for name in MATH]
        assert batch["totals"][row].item() == pytest.approx(c.rubric.total)


def test_collate_cuts_traces_at_max_length(groups, tokenizer):
    g = groups[0]
    longest = len(tokenizer(reward_model_text(g.as_problem(), g.reference_solution))["input_ids"])
    batch = collate([sample(g, g.negative_bank[0])], tokenizer, settings(max_length=longest - 5))
    assert batch["problem_mask"].sum() + batch["attention_mask"][0].sum() == longest - 5


def test_collate_leaves_a_token_of_each_trace_behind_a_problem_of_any_length(groups, tokenizer):
    g = groups[0]
    batch = collate([sample(g, g.negative_bank[0])], tokenizer, settings(max_length=4))
    assert batch["problem_ids"].shape == (1, 3) and batch["input_ids"].shape == (2, 1)


def test_lm_loss_by_hand():
    """-log of 1/2, 1/4 and 1/8; the padded token does not count."""
    log_p = torch.tensor([[0.5, 0.25], [0.125, 0.9]]).log()
    assert lm_loss(log_p, torch.tensor([[1, 1], [1, 0]])).item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("made", ["folder", "doubting"])
def test_reading_a_problem_once_for_its_traces_changes_nothing(request, made, groups, tokenizer):
    """Problems and traces of different lengths, so that both sides are padded; gradients too."""
    items = [sample(g, *g.negative_bank[:2]) for g in groups[:3]]
    batch = collate(items, tokenizer, settings(max_length=512))
    assert not batch["problem_mask"].all() and not batch["attention_mask"].all()
    model = ReasoningRewardModel.from_pretrained(request.getfixturevalue(made)).eval()
    shared = model(**{k: v for k, v in batch.items() if k.endswith(("ids", "mask"))})
    gradient = torch.autograd.grad(shared.q.sum(), model.model.embed_tokens.weight)[0]
    whole = torch.zeros_like(gradient)
    for row in range(9):
        item = items[row // 3]
        trace = [*item.positive_pool, *item.negative_bank][row % 3].reasoning
        text = reward_model_text(item.as_problem(), trace)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        alone = model(ids["input_ids"], ids["attention_mask"])
        assert shared.q[row].item() == pytest.approx(alone.q.item(), abs=1e-5)
        torch.testing.assert_close(shared.logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)
        whole += torch.autograd.grad(alone.q.sum(), model.model.embed_tokens.weight)[0]
    torch.testing.assert_close(gradient, whole, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("names", [MATH, CODE])
def test_labels_go_to_their_heads_whatever_their_order_in_the_file(tokenizer, names):
    """A file may list the dimensions in any order (sorted keys, say); head i is dimension i all the same."""

    def item(order):
        record = group_record()
        rubric = {name: names.index(name) % 5 for name in order} | {"total": 0.5}
        for c in [*record["positive_pool"], *record["negative_bank"]]:
            c["rubric"] = rubric
        return Group.model_validate(record)

    expected = [[0, 1, 2, 3, 4]] * 3
    assert collate([item(names)], tokenizer, settings(max_length=512))["labels"].tolist() == expected
    assert collate([item(sorted(names))], tokenizer, settings(max_length=512))["labels"].tolist() == expected
    assert collate([item(names[::-1])], tokenizer, settings(max_length=512))["labels"].tolist() == expected


def test_a_few_steps_of_training_lower_the_loss(tmp_path, folder, groups, tokenizer):
    """The smallest proof that gradients reach heads and body: six repeated steps on the same two groups."""
    model = ReasoningRewardModel.from_pretrained(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    few = [g for g in groups if len(g.negative_bank) >= 4][:2]
    chosen = settings(epochs=6, groups_per_step=2, learning_rate=0.01, new_layers=0, lm_weight=0.0)
    log = train_reward_model(model, tokenizer, few, few, chosen, 0, tmp_path / "work")
    scorer, shares = Scorer(model, tokenizer, 1000, 512), []
    for g in few:
        traces = [g.positive_pool[0].reasoning, *(c.reasoning for c in g.negative_bank)]
        q, _ = scorer.score([g.as_problem()] * len(traces), traces)
        shares.append(sum(q[0] > other for other in q[1:]) / (len(q) - 1))
    measured = [(row["step"], row["dev_pair_accuracy"]) for row in log if "dev_pair_accuracy" in row]
    assert [step for step, _ in measured] == [1, 2, 3, 4, 5, 6]
    assert measured[-1][1] == pytest.approx(sum(shares) / 2)
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 6 and losses[-1] < 0.7 * losses[0]
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor.cpu(), before[name])]
    assert any(name.startswith("model.layers.0") for name in moved)
    assert {"total_head.weight", *(f"dimension_heads.{i}.weight" for i in range(5))} <= set(moved)
    assert set(model.state_dict()) == set(before)


def test_the_backbone_goes_on_learning_the_references_alone(tmp_path, base, tokenizer, groups, monkeypatch):
    """Its loss falls, and reads a group's positive; without a weight there is none."""
    losses, few = [], [g for g in groups if len(g.negative_bank) >= 4][:2]
    traces = [wrap_trace(g.reference_solution).removeprefix(OPEN + "\n") for g in few]
    lengths = sorted(len(ids) for ids in tokenizer(traces, add_special_tokens=False)["input_ids"])

    def noted(log_p, mask):
        assert sorted(mask.sum(1).tolist()) == lengths
        losses.append(lm_loss(log_p, mask))
        return losses[-1]

    monkeypatch.setattr(training, "lm_loss", noted)
    for weight, epochs in ((0.0, 1), (5.0, 12)):
        assert not losses
        chosen = settings(epochs=epochs, groups_per_step=2, learning_rate=0.01, new_layers=1, lm_weight=weight)
        model = ReasoningRewardModel.from_backbone(base, MATH, seed=1, new_layers=1, doubt=weight > 0)
        train_reward_model(model, tokenizer, few, few[:1], chosen, 0, tmp_path / f"work-{weight}")
    assert len(losses) == 12 and losses[-1] < 0.7 * losses[0]


# --- ways to train ----------------------------------------------------------------------------

LORA = {"r": 4, "alpha": 8, "dropout": 0.0}
RESUMED_LORA = {"lora": LORA | {"dropout": 0.3}}
DOUBT = {"new_layers": 1, "lm_weight": 3.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    """A causal LM to build on."""
    path = tmp_path_factory.mktemp("base")
    new_qwen2(tokenizer, Qwen2Shape(**SHAPE), seed=3).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def trained(base, tokenizer, groups, work, **change):
    """(the RM after a few steps on six groups, its log); LoRA's adapter goes to work/adapter."""
    few = [g for g in groups if len(g.negative_bank) >= 4][:6]
    chosen = settings(
        **{"epochs": 2, "groups_per_step": 2, "learning_rate": 0.01, "new_layers": 0, "lm_weight": 0.0, **change}
    )
    doubt = chosen.lm_weight > 0
    model = ReasoningRewardModel.from_backbone(base, MATH, seed=1, new_layers=chosen.new_layers, doubt=doubt)
    log = train_reward_model(model, tokenizer, few, few[:2], chosen, 0, work / "trainer", work / "adapter")
    return model, log


@pytest.fixture(scope="module")
def once(base, tokenizer, groups, tmp_path_factory):
    """(model, log, folder) of a training that several tests look at; they leave all three as they are."""
    done = {}

    def train(**change):
        key = json.dumps(change)
        if key not in done:
            folder = tmp_path_factory.mktemp("once")
            done[key] = *trained(base, tokenizer, groups, folder, **change), folder
        return done[key]

    return train


def same_weights(one, other, atol=0.0):
    one, other = one.state_dict(), other.state_dict()
    assert set(one) == set(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("change", [{"lora": LORA}, RESUMED_LORA], ids=["plain", "dropout"])
def test_lora_trains_adapter_and_heads_and_merges(tmp_path, base, tokenizer, groups, once, change):
    model, _, folder = once(**change)
    start = ReasoningRewardModel.from_backbone(base, MATH, seed=1).state_dict()
    merged = Scorer.from_folder(folder / "adapter", 1000, 512).model
    assert set(merged.state_dict()) == set(start)
    moved = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, start[name])}
    projections = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    expected = {n for n in start if n.endswith(tuple(f"{p}.weight" for p in projections)) or "_head" in n}
    assert moved == expected  # every projection and every head; embeddings, norms and biases stay as they were
    args = [g.as_problem() for g in groups[:8]], [g.reference_solution for g in groups[:8]]
    live, _ = Scorer(model, tokenizer, 1000, 512).score(*args)
    after, _ = Scorer(merged, tokenizer, 1000, 512).score(*args)
    np.testing.assert_allclose(live, after, atol=1e-5)
    merged.save_pretrained(tmp_path / "whole")
    whole, _ = Scorer(ReasoningRewardModel.from_pretrained(tmp_path / "whole"), tokenizer, 1000, 512).score(*args)
    np.testing.assert_allclose(whole, after, atol=1e-6)


def test_an_adapter_with_its_heads_in_a_file_of_their_own(tmp_path, base, once):
    """Heads are found by their names in whatever safetensors file; without one of them the folder is refused."""
    adapter = once(lora=LORA)[-1] / "adapter"
    expected = ReasoningRewardModel.from_adapter(adapter)
    other = shutil.copytree(adapter, tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    heads = {name: weights.pop(name) for name in list(weights) if "_head" in name}
    settings = json.loads((other / "adapter_config.json").read_text()) | {"modules_to_save": None}
    settings["base_model_name_or_path"] = "no/such/model"
    (other / "adapter_config.json").write_text(json.dumps(settings))
    save_file(weights, other / "adapter_model.safetensors", metadata={"format": "pt"})
    save_file({n.removeprefix("base_model.model."): t for n, t in heads.items()}, other / "rm_heads.safetensors")
    same_weights(ReasoningRewardModel.from_pretrained(other, backbone=base), expected)
    heads.pop("base_model.model.dimension_heads.2.bias")
    save_file(heads, other / "rm_heads.safetensors")
    with pytest.raises(InputError, match="dimension_heads.2.bias"):
        ReasoningRewardModel.from_adapter(other, backbone=base)


@pytest.mark.parametrize("change", [{"learning_rate": 0.01}, {"lora": LORA}], ids=["full", "lora"])
def test_gradient_checkpointing_trains_the_same_weights(tmp_path, base, tokenizer, groups, change, monkeypatch, once):
    """It reads each text whole, where the other way reads a group's problem once."""
    _, plain_log, _ = once(**change)
    used = []
    original = modeling_utils.checkpoint
    monkeypatch.setattr(modeling_utils, "checkpoint", lambda *a, **k: used.append(1) or original(*a, **k))
    _, saving_log = trained(base, tokenizer, groups, tmp_path / "saving", gradient_checkpointing=True, **change)
    losses = [[row["loss"] for row in log if "loss" in row] for log in (plain_log, saving_log)]
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=5e-3)
    assert used


def test_accumulation_sees_the_same_step(tmp_path, base, tokenizer, groups):
    """Six groups at once or one after another: the same loss and gradient. With four negatives each, none is drawn."""
    six = [g.model_copy(update={"negative_bank": g.negative_bank[:4]}) for g in groups if len(g.negative_bank) >= 4][:6]
    logs = [
        trained(base, tokenizer, six, tmp_path / str(n), groups_per_step=n, accumulation=6 // n, epochs=1)[1]
        for n in (6, 1)
    ]
    (large,), (small,) = ([row for row in log if "loss" in row] for log in logs)
    assert small["loss"] == pytest.approx(large["loss"], rel=1e-4)
    assert small["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-3)


def test_precision_is_the_presets(tmp_path, base, tokenizer, groups):
    """bf16 on request also without a GPU: near fp32, and not it."""
    losses = {}
    for precision in (None, "fp32", "bf16"):
        _, log = trained(base, tokenizer, groups, tmp_path / str(precision), precision=precision, epochs=1)
        losses[precision] = [row["loss"] for row in log if "loss" in row]
    assert losses[None] == losses["fp32"] != losses["bf16"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


class KillAt(TrainerCallback):
    """kill -9, as an out-of-memory killer or a closed Colab does it."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("change", [DOUBT, RESUMED_LORA], ids=["doubt", "lora"])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, base, tokenizer, groups, monkeypatch, change, once):
    """With dropout, so that the random state has to come back too."""
    whole, whole_log, _ = once(**change)
    child = os.fork()
    if not child:
        monkeypatch.setattr(supervised, "SAVE_SECONDS", 0)
        monkeypatch.setattr(supervised, "SAVE_SHARE", 1.0)
        original = training.GroupTrainer.__init__

        def with_killer(self, *args, **kwargs):
            original(self, *args, **kwargs)
            self.add_callback(KillAt(4))

        monkeypatch.setattr(training.GroupTrainer, "__init__", with_killer)
        try:
            trained(base, tokenizer, groups, tmp_path / "parts", **change)
        finally:
            os._exit(1)  # not reached: a child must not go on with the test run
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [p.name for p in (tmp_path / "parts" / "trainer").iterdir()] == ["checkpoint-3"]
    half = tmp_path / "parts" / "trainer" / "checkpoint-4"  # as a kill in the middle of writing leaves it
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"cut off")
    resumed, log = trained(base, tokenizer, groups, tmp_path / "parts", **change)
    same_weights(whole, resumed)
    metrics = [[row for row in rows if "dev_pair_accuracy" in row] for rows in (whole_log, log)]
    assert metrics[0] == metrics[1] and len(metrics[0]) == 6


def test_four_bits_without_a_gpu_are_refused(base):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(InputError, match="four_bit.* needs a CUDA GPU"):
        ReasoningRewardModel.from_backbone(base, MATH, seed=0, four_bit=True)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lora": LORA}, "new_layers to 0"),
        ({"four_bit": True}, "four_bit needs lora"),
        ({"new_layers": 0}, "lm_weight needs new_layers"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing: false"),
        ({"precision": "fp8"}, "precision"),
        ({"negatives_weight": -0.1}, "negatives_weight"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        settings(**change)


# --- scoring ----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [10_000, 150, 1])
def test_scores_in_batches_are_those_one_by_one(folder, tokenizer, batch_tokens):
    body, heads = checkpoint(folder.parent / "same", "qwen2", tokenizer)
    problems, traces = pairs()
    q, labels = Scorer.from_folder(folder, batch_tokens, 512).score(problems, traces)
    assert q.shape == (5,) and labels.shape == (5, 5)
    for i, (problem, trace) in enumerate(zip(problems, traces)):
        ids = tokenizer(reward_model_text(problem, trace), add_special_tokens=False)["input_ids"]
        _, _, expected_q, expected = by_hand(body, heads, ids)
        assert q[i] == pytest.approx(expected_q, abs=1e-4)
        np.testing.assert_allclose(labels[i], expected, atol=1e-3)
    assert len(set(q.round(4))) == 5 and (0 <= q).all() and (q <= 1).all()


def test_nothing_to_score(folder):
    q, labels = Scorer.from_folder(folder, 1000, 512).score([], [])
    assert q.shape == (0,) and labels.shape == (0, 5)


def test_problems_and_traces_must_pair(folder):
    with pytest.raises(ValueError):
        Scorer.from_folder(folder, 1000, 512).score([story(3, ("+", 2))], [])


def test_texts_are_cut_at_max_length(folder, tokenizer):
    """Two traces that differ only beyond the limit score the same; without the cut they differ."""
    problems = [story(3, ("+", 2))] * 2
    traces = ["go on " * 200 + "a", "go on " * 200 + "b"]
    q, _ = Scorer.from_folder(folder, 10_000, 100).score(problems, traces)
    assert q[0] == pytest.approx(q[1], abs=1e-6)
    q, _ = Scorer.from_folder(folder, 10_000, 4000).score(problems, traces)
    assert abs(q[0] - q[1]) > 1e-6


# --- what traces share is read once -----------------------------------------------------------


def test_trees_by_hand():
    """Text 3 has nothing in common with the next one, so it stands alone; text 0 shares two tokens with text 1."""
    texts = [[7, 8, 9], [7, 8, 5, 9], [7, 8], [4]]
    alone, tree = grow_trees(texts, [3, 2, 1, 0])
    assert (alone.ids, alone.paths) == ([4], {3: [0]})
    assert tree.ids == [7, 8, 5, 9, 9] and tree.paths == {2: [0, 1], 1: [0, 1, 2, 3], 0: [0, 1, 4]}
    seen = [np.flatnonzero(row).tolist() for row in tree.visible()]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4]]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=12))
def test_every_text_is_a_path_of_its_tree(texts):
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    trees = grow_trees(texts, order)
    assert [i for tree in trees for i in tree.paths] == order
    for tree in trees:
        distinct = {tuple(texts[i][:n]) for i in tree.paths for n in range(1, len(texts[i]) + 1)}
        assert len(tree.ids) == len(distinct)
        for i, path in tree.paths.items():
            assert [tree.ids[node] for node in path] == texts[i]
            assert np.flatnonzero(tree.visible()[path[-1]]).tolist() == path


def test_a_tree_stays_within_its_size(monkeypatch):
    monkeypatch.setattr(scoring, "TREE_TOKENS", 12)
    texts = [[1] * 9 + [i] for i in range(6)]
    assert [list(tree.paths) for tree in grow_trees(texts, range(6))] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("kind", [*CONFIGS, "doubt"])
def test_shared_prefixes_change_no_score(tmp_path, tokenizer, groups, kind, monkeypatch, doubting):
    """Against the plain padded batches, which a backbone that is not known to allow it gets."""
    if kind == "doubt":
        shutil.copytree(doubting, tmp_path, dirs_exist_ok=True)
        tokenizer.save_pretrained(tmp_path)
    else:
        checkpoint(tmp_path, kind, tokenizer)
    scorer = Scorer.from_folder(tmp_path, 2000, 512)
    traces = [(g.as_problem(), c.reasoning) for g in groups[:6] for c in [*g.positive_pool, *g.negative_bank]]
    problems, written = [p for p, _ in traces], [z for _, z in traces]
    read = []
    original = scorer.model.model.forward
    monkeypatch.setattr(scorer.model.model, "forward", lambda **k: read.append(k["input_ids"].numel()) or original(**k))
    q, labels = scorer.score(problems, written)
    in_trees = sum(read)
    read.clear()
    monkeypatch.setattr(scoring, "TREE_BACKBONES", ())
    plain_q, plain_labels = scorer.score(problems, written)
    assert 2 * in_trees < sum(read)
    np.testing.assert_allclose(q, plain_q, atol=1e-5)
    np.testing.assert_allclose(labels, plain_labels, atol=1e-4)
    assert np.ptp(q) > 0.05


@pytest.mark.parametrize("shared", [True, False])
def test_batch_size_bounds_the_texts_of_a_forward_pass(folder, tokenizer, monkeypatch, shared):
    if not shared:
        monkeypatch.setattr(scoring, "TREE_BACKBONES", ())
    scorer = Scorer.from_folder(folder, 10_000, 512)
    encoded = [[5, 6, 7, 8, 9, 20 + i] for i in range(10)]
    seen = []
    original = scorer.model.heads
    monkeypatch.setattr(scorer.model, "heads", lambda pooled: seen.append(len(pooled)) or original(pooled))
    few, _ = scorer.score_tokens(encoded, batch_size=3)
    assert seen == [3, 3, 3, 1]
    np.testing.assert_allclose(few, scorer.score_tokens(encoded)[0], atol=1e-6)
    assert seen[4:] == [10]
