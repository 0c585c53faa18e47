"""The Reasoning RM: heads, losses, the checkpoint layout, scoring. Numbers are computed apart from the library."""

import json
import math

import numpy as np
import pytest
import torch
from common import CODE, MATH, group_record, story
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaConfig, Qwen2Config

from tracelift_lib import rm_training
from tracelift_lib.generation import seeded
from tracelift_lib.groups import Group, build_group
from tracelift_lib.models import train_tokenizer
from tracelift_lib.presets import load_preset
from tracelift_lib.prompts import reward_model_text
from tracelift_lib.reward_model import (
    ReasoningRewardModel,
    Scorer,
    Scores,
    departure_loss,
    expected_labels,
    reward_model_loss,
)
from tracelift_lib.rm_training import GroupSample, _schedule, collate, train_reward_model
from tracelift_lib.tinyworld import generate_splits

WEIGHTS = [0.1, 0.3, 0.15, 0.25, 0.2]  # not all 0.2, so that forgetting them shows
SHAPE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, initializer_range=0.3,
)
CONFIGS = {"qwen2": Qwen2Config, "llama": LlamaConfig}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([reward_model_text(story(3, ("+", 2)), "gets 2: 3 + 2 = 5.\ngives 1: 9 - 1 = 8.")] * 3, 320)


def checkpoint(folder, kind, tokenizer, seed=0):
    """A checkpoint in the layout of method.md section 5, put together by hand; returns (body, heads)."""
    vocabulary = max(320, len(tokenizer))
    config = CONFIGS[kind](
        vocab_size=vocabulary, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, **SHAPE,
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
        "rm_dimension_names": list(MATH), "rm_dimension_weights": WEIGHTS, "rm_num_labels": 5,
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


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
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


@pytest.mark.parametrize("missing", ["total_head.weight", "dimension_heads.3.bias"])
def test_a_checkpoint_without_a_head_is_refused(tmp_path, folder, tokenizer, missing):
    """Otherwise the head would be random and every score noise, with no more than a line in the log."""
    checkpoint(tmp_path / "m", "qwen2", tokenizer)
    weights = load_file(tmp_path / "m" / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="head"):
        ReasoningRewardModel.from_pretrained(tmp_path / "m")


def test_padding_on_either_side_gives_the_same_scores(folder):
    model = ReasoningRewardModel.from_pretrained(folder).eval()
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
    from tracelift_lib.models import new_qwen2
    from tracelift_lib.presets import Qwen2Shape

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
    from tracelift_lib.models import new_qwen2
    from tracelift_lib.presets import Qwen2Shape

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


# --- the training data ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def groups():
    problems = generate_splits({"a": 30}, {"a": [2, 3, 4]}, 9, 18, seed=2)["a"]
    return [build_group(p, 0) for p in problems]


def settings(**change):
    return load_preset("check", overrides={f"reward_model.{k}": v for k, v in change.items()}).reward_model


def test_schedule_is_fixed_by_the_seed(groups):
    """A resumed run must see what the interrupted one would have seen."""
    first, again = (_schedule(groups, settings(epochs=2), 5) for _ in range(2))
    assert first == again and first != _schedule(groups, settings(epochs=2), 6)


@pytest.mark.parametrize("epochs, negatives", [(1, 4), (3, 4), (1, 6)])
def test_schedule_shows_every_usable_group_once_an_epoch(groups, epochs, negatives):
    usable = {g.problem_id: g for g in groups if len(g.negative_bank) >= negatives}
    assert 0 < len(usable) < len(groups) or negatives == 4
    schedule = _schedule(groups, settings(epochs=epochs, negatives=negatives), 0)
    size = len(usable)
    for epoch in range(epochs):
        part = schedule[epoch * size : (epoch + 1) * size]
        assert sorted(s.problem.problem_id for s in part) == sorted(usable)
    assert len(schedule) == epochs * size
    for sample in schedule:
        g = usable[sample.problem.problem_id]
        positive, *rest = sample.candidates
        assert positive in g.positive_pool and len(rest) == negatives
        assert all(c in g.negative_bank for c in rest) and len({c.reasoning for c in rest}) == negatives


def test_negatives_are_drawn_anew_each_epoch(groups):
    schedule = _schedule(groups, settings(epochs=8, negatives=2), 0)
    one = [s for s in schedule if s.problem.problem_id == schedule[0].problem.problem_id]
    assert len({tuple(c.reasoning for c in s.candidates[1:]) for s in one}) > 1


def test_collate_keeps_texts_labels_and_totals_together(groups, tokenizer):
    """Behind the problem's tokens come those of each of its traces: together the wire format, token by token."""
    items = [GroupSample(g.as_problem(), [g.positive_pool[0], *g.negative_bank[:2]]) for g in groups[:3]]
    batch = collate(items, tokenizer, 512)
    candidates = [(i.problem, c) for i in items for c in i.candidates]
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
    batch = collate([GroupSample(g.as_problem(), [*g.positive_pool, g.negative_bank[0]])], tokenizer, longest - 5)
    assert batch["problem_mask"].sum() + batch["attention_mask"][0].sum() == longest - 5
    assert batch["departures"].shape == batch["input_ids"].shape


def test_departures_by_hand(groups, tokenizer):
    """0 on what a trace shares with the start of the reference, 1 on the first other token, unknown after it."""
    g = groups[0]
    reference = g.positive_pool[0]
    first_line = reference.reasoning.split("\n")[0]
    flawed = reference.model_copy(update={"reasoning": first_line + "\nand so on", "negative_kind": "other"})
    batch = collate([GroupSample(g.as_problem(), [reference, flawed])], tokenizer, 512)
    width = batch["attention_mask"].sum(1).tolist()
    shared = len(tokenizer(first_line + "\n", add_special_tokens=False)["input_ids"])
    expected = [[0] * width[0], [0] * shared + [1]]
    for row, labels in enumerate(batch["departures"].tolist()):
        assert labels == expected[row] + [-1] * (len(labels) - len(expected[row]))


def test_departure_loss_by_hand():
    """Logit 0 costs log 2 either way, logit 2 where there is a departure log(1 + e^-2); the rest does not count."""
    logits = torch.tensor([[0.0, 0.0, 9.0], [0.0, 2.0, -9.0]])
    labels = torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    assert departure_loss(logits, labels).item() == pytest.approx((3 * math.log(2) + math.log(1 + math.exp(-2))) / 4)


def test_reading_a_problem_once_for_its_traces_changes_nothing(folder, groups, tokenizer):
    """Problems and traces of different lengths, so that both sides are padded; gradients too."""
    items = [GroupSample(g.as_problem(), [g.positive_pool[0], *g.negative_bank[:2]]) for g in groups[:3]]
    batch = collate(items, tokenizer, 512)
    assert not batch["problem_mask"].all() and not batch["attention_mask"].all()
    model = ReasoningRewardModel.from_pretrained(folder).eval()
    shared = model(**{k: v for k, v in batch.items() if k.endswith(("ids", "mask"))})
    gradient = torch.autograd.grad(shared.q.sum(), model.model.embed_tokens.weight)[0]
    whole = torch.zeros_like(gradient)
    for row in range(9):
        item = items[row // 3]
        text = reward_model_text(item.problem, item.candidates[row % 3].reasoning)
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
        g = Group.model_validate(record)
        return GroupSample(g.as_problem(), [*g.positive_pool, *g.negative_bank])

    expected = [[0, 1, 2, 3, 4]] * 3
    assert collate([item(names)], tokenizer, 512)["labels"].tolist() == expected
    assert collate([item(sorted(names))], tokenizer, 512)["labels"].tolist() == expected
    assert collate([item(names[::-1])], tokenizer, 512)["labels"].tolist() == expected


def test_a_few_steps_of_training_lower_the_loss(tmp_path, folder, groups, tokenizer):
    """The smallest proof that gradients reach heads and body: six repeated steps on the same two groups."""
    model = ReasoningRewardModel.from_pretrained(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    few = [g for g in groups if len(g.negative_bank) >= 4][:2]
    chosen = settings(epochs=6, groups_per_step=2, learning_rate=0.01, new_layers=0)
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
    assert set(model.state_dict()) == set(before)  # the departure head is gone: checkpoints have the released layout


def test_departures_are_learned_from_every_token(tmp_path, folder, groups, tokenizer, monkeypatch):
    """With a weight their loss falls; without one, no such head is there."""
    seen = {0.0: [], 5.0: []}
    for weight, losses in seen.items():
        def noted(logits, departures, losses=losses):
            losses.append(departure_loss(logits, departures))
            return losses[-1]

        monkeypatch.setattr(rm_training, "departure_loss", noted)
        few = [g for g in groups if len(g.negative_bank) >= 4][:2]
        chosen = settings(epochs=12, groups_per_step=2, learning_rate=0.01, new_layers=0, departure_weight=weight)
        model = ReasoningRewardModel.from_pretrained(folder)
        train_reward_model(model, tokenizer, few, few, chosen, 0, tmp_path / f"work-{weight}")
    assert not seen[0.0] and len(seen[5.0]) == 12 and seen[5.0][-1] < 0.7 * seen[5.0][0]


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
