"""Sampling: batching, seeds, and that the shared prompt cache changes nothing but the speed."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tracelift_lib.models.base import new_qwen2, train_tokenizer
from tracelift_lib.models.generation import Sampler, Sampling, length_batches, seeded, token_log_likelihoods
from tracelift_lib.models.settings import Qwen2Shape

SHAPE = Qwen2Shape(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.4,  # large weights: every position and mask must matter
)
TEXTS = ["Mia has 3 coins. Mia buys 4 more coins. How many coins does Mia have now?", "Solve. Plan. Answer: 12"]
PROMPTS = [
    "How many coins does Mia have now?",
    "Hi",
    "Mia has 3 coins. " * 12,
    "Plan.\nMia buys 4 more coins.\n",
    "7 8 9",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, 300)


@pytest.fixture(scope="module")
def model(tokenizer):
    return new_qwen2(tokenizer, SHAPE, seed=1).eval()


def sampler(model, tokenizer, temperature=1.0, top_p=1.0, new=6, budget=4096):
    return Sampler(model, tokenizer, Sampling(temperature, top_p, new, budget))


# --- batches ----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300), max_size=40), st.integers(0, 1000))
def test_every_index_once_and_no_batch_above_the_budget(lengths, budget):
    batches = length_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch and (len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_no_more_batches_than_needed(lengths):
    """What fits goes together: with room for all there is one batch, and similar lengths share one."""
    assert len(length_batches(lengths, len(lengths) * max(lengths))) == 1
    spans = [(min(lengths[i] for i in b), max(lengths[i] for i in b)) for b in length_batches(lengths, 60)]
    assert all(spans[i][1] <= spans[i + 1][0] for i in range(len(spans) - 1))


# --- the same text as without padding, batching and shared cache -------------------------------


def plain_greedy(model, tokenizer, prompt, new):
    """One prompt alone, no padding, no cache at all: the definition of greedy decoding."""
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    length = ids.shape[1]
    with torch.no_grad():
        for _ in range(new):
            best = model(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, best.view(1, 1)], 1)
            if best == tokenizer.eos_token_id:
                break
    return tokenizer.decode(ids[0, length:], skip_special_tokens=True)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("budget", [100_000, 200, 1])
def test_at_very_low_temperature_each_text_is_the_greedy_one(model, tokenizer, n, budget):
    """Prompts of very different lengths, in one batch, several, or one by one: positions, mask and cache are right."""
    expected = [plain_greedy(model, tokenizer, p, 12) for p in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)  # else a mix-up of prompts would not show
    got = sampler(model, tokenizer, temperature=1e-5, new=12, budget=budget).sample(PROMPTS, n, seed=0)
    assert got == [[text] * n for text in expected]


@pytest.mark.parametrize("prompts", [["x"], ["x", "7", "?"], ["x", "Mia has 3 coins. " * 12]])
def test_prompts_of_a_single_token(model, tokenizer, prompts):
    """Nothing is left for the cache to read beforehand: alone, or beside a longer prompt (a row of padding only)."""
    expected = [plain_greedy(model, tokenizer, p, 8) for p in prompts]
    got = sampler(model, tokenizer, temperature=1e-5, new=8).sample(prompts, 2, seed=0)
    assert got == [[text] * 2 for text in expected]


def test_generation_stops_at_the_end_of_turn(model, tokenizer):
    """A model that always ends its turn writes nothing, however many tokens it may."""
    prompt = "Hi"
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    first = model(input_ids=ids).logits[0, -1].argmax().item()
    other = new_qwen2(tokenizer, SHAPE, seed=1).eval()
    other.config.eos_token_id = other.generation_config.eos_token_id = None  # the tokenizer's end of turn counts
    with torch.no_grad():  # tied weights: exchange the rows of the first greedy token and of the end of turn
        rows = other.lm_head.weight
        rows[[first, tokenizer.eos_token_id]] = rows[[tokenizer.eos_token_id, first]].clone()
    unchanged = not {first, tokenizer.eos_token_id} & set(ids[0].tolist())
    assert unchanged  # the prompt does not hold the exchanged tokens, so the model still chooses the same row
    assert sampler(other, tokenizer, temperature=1e-5, new=8).sample([prompt], 2, seed=0) == [["", ""]]


# --- the distribution -------------------------------------------------------------------------


def first_token_probabilities(model, tokenizer, prompt, temperature):
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return (model(input_ids=ids).logits[0, -1].double() / temperature).softmax(-1)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (3.0, 1.0), (2.0, 0.6)])
def test_samples_have_the_models_distribution(model, tokenizer, temperature, top_p):
    """First tokens of 3000 samples against the softmax; prompts of two lengths, so one is padded."""
    n = 3000
    drawn = sampler(model, tokenizer, temperature, top_p, new=1, budget=10**9).sample(PROMPTS[:2], n, seed=3)
    for prompt, texts in zip(PROMPTS, drawn):
        p = first_token_probabilities(model, tokenizer, prompt, temperature)
        order = p.argsort(descending=True)
        before = p[order].cumsum(0) - p[order]  # mass of the better tokens
        p[order[before >= top_p]] = 0  # the nucleus: the smallest set that holds at least top_p
        expected = Counter()
        for token, share in enumerate((p / p.sum()).tolist()):
            expected[tokenizer.decode([token], skip_special_tokens=True)] += share
        counts = Counter(texts)
        assert all(expected[text] > 0 for text in counts)
        for text, share in expected.most_common(12):
            assert abs(counts[text] / n - share) < 4.5 * math.sqrt(share * (1 - share) / n) + 1e-3, text


def test_samples_of_one_prompt_differ(model, tokenizer):
    texts = sampler(model, tokenizer, temperature=2.0).sample(["Hi"], 20, seed=0)[0]
    assert len(set(texts)) > 15


# --- seeds and shapes -------------------------------------------------------------------------


def test_same_seed_same_texts(model, tokenizer):
    s = sampler(model, tokenizer, temperature=2.0)
    first = s.sample(PROMPTS, 3, seed=7)
    torch.rand(5)
    assert s.sample(PROMPTS, 3, seed=7) == first
    assert s.sample(PROMPTS, 3, seed=8) != first


def test_the_random_numbers_outside_are_untouched(model, tokenizer):
    """The trainer draws from the same generator: sampling for a reward must not move it."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sampler(model, tokenizer).sample(PROMPTS[:2], 2, seed=7)
    assert torch.equal(torch.rand(3), expected)


def test_the_random_numbers_outside_are_back_when_a_batch_is_delivered(model, tokenizer):
    """Whoever waits for the last text goes on in another thread at once, and may draw."""
    torch.manual_seed(5)
    outer, seen = torch.get_rng_state(), []
    s = sampler(model, tokenizer, budget=80)
    s.sample(PROMPTS, 2, seed=7, deliver=lambda i, texts: seen.append((i, torch.equal(torch.get_rng_state(), outer))))
    assert sorted(i for i, _ in seen) == list(range(len(PROMPTS)))
    assert all(untouched for _, untouched in seen)


def test_batches_of_a_call_draw_different_numbers(model, tokenizer):
    texts = sampler(model, tokenizer, new=8, budget=1).sample(["Hi"] * 4, 1, seed=7)
    assert len({text for [text] in texts}) > 1


def test_seeded_restores_even_after_an_error():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pytest.raises(RuntimeError), seeded(1):
        torch.rand(9)
        raise RuntimeError
    assert torch.equal(torch.rand(3), expected)


def test_the_shape_is_prompts_by_samples(model, tokenizer):
    s = sampler(model, tokenizer, temperature=2.0, new=2, budget=3)  # fewer tokens than samples: one prompt a batch
    texts = s.sample(PROMPTS, 4, seed=0)
    assert [len(t) for t in texts] == [4] * len(PROMPTS)
    assert s.sample([], 4, seed=0) == []


def test_completions_hold_only_new_text(model, tokenizer):
    for text in sampler(model, tokenizer, new=3).sample(["Plan.\nMia has 3 coins."], 5, seed=0)[0]:
        assert "Plan." not in text and "<|" not in text


# --- likelihood -------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [100_000, 60, 1])
def test_log_likelihoods_against_one_text_at_a_time(model, tokenizer, budget):
    """Each completion token's log-probability given all before it; no padding, no batch, float64."""
    completions = ["Answer: 12", "3", "Mia buys 4 more coins. " * 5, "x y z", "?"]
    expected = []
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        before, after = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, completion))
        with torch.no_grad():
            p = model(input_ids=torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        expected.append([p[len(before) + i - 1, token].item() for i, token in enumerate(after)])
    got = token_log_likelihoods(model, tokenizer, PROMPTS, completions, budget)
    assert [values.tolist() for values in got] == [pytest.approx(values, abs=1e-4) for values in expected]
    assert len({values.mean().round(3) for values in got}) == len(completions)
