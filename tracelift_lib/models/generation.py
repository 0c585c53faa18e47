"""Sampling from a causal LM in this process: batched by length, each prompt read once for all its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How to draw; `batch_tokens` bounds the padded prompt tokens (times samples) of one batch."""

    temperature: float
    top_p: float
    max_new_tokens: int
    batch_tokens: int


@dataclass
class Sampler:
    """A model with its tokenizer (left padding) and its way to draw."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling

    def sample(
        self,
        prompts: Sequence[str],
        n: int,
        seed: int,
        progress: str | None = None,
        deliver: Callable[[int, list[str]], None] | None = None,
    ) -> list[list[str]]:
        """n completions for each prompt (chat text as `prompts.as_chat` makes it), in the order of `prompts`.

        Same seed, prompts and machine give the same completions. `progress` names a progress bar; `deliver` is
        called with (index of the prompt, its completions) as soon as its batch is done. Each batch has a seed of its
        own, so that the outer random state is back before anyone who waits for a completion goes on.
        """
        completions: list[list[str]] = [[] for _ in prompts]
        encoded = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"] if prompts else []
        batches = length_batches([len(ids) for ids in encoded], self.sampling.batch_tokens // n)
        seeds = np.random.SeedSequence(seed).generate_state(len(batches)).tolist()
        with tqdm(total=len(prompts), desc=progress, disable=progress is None) as bar:
            for batch, batch_seed in zip(batches, seeds):
                with seeded(batch_seed):
                    texts = self._generate([encoded[i] for i in batch], n)
                for row, i in enumerate(batch):
                    completions[i] = texts[row * n : (row + 1) * n]
                    if deliver:
                        deliver(i, completions[i])
                bar.update(len(batch))
        return completions

    @torch.inference_mode()
    def _generate(self, encoded: list[list[int]], n: int) -> list[str]:
        """n completions for each token list, sample by sample of the first, then of the second, ..."""
        inputs = self.tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self.model.device)
        cache = DynamicCache(config=self.model.config)
        if inputs["input_ids"].shape[1] > 1:  # a lone token leaves nothing to read beforehand
            self._read(inputs["input_ids"], inputs["attention_mask"], cache)
            cache.batch_repeat_interleave(n)
        out = self.model.generate(
            **{name: tensor.repeat_interleave(n, 0) for name, tensor in inputs.items()},
            past_key_values=cache,
            generation_config=GenerationConfig(
                do_sample=True,
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                top_k=0,
                max_new_tokens=self.sampling.max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
            ),
        )
        return self.tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def _read(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, cache: DynamicCache) -> None:
        """Fill `cache` with all but the last prompt token; `generate` reads that one itself."""
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        self.model(
            input_ids=input_ids[:, :-1],
            attention_mask=attention_mask[:, :-1],
            position_ids=positions[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )


def mean_log_likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    batch_tokens: int,
) -> np.ndarray:
    """Mean log-probability of each completion's tokens given its prompt, in nats a token: shape (N,)."""
    values = token_log_likelihoods(model, tokenizer, prompts, completions, batch_tokens)
    return np.array([value.mean() for value in values])


@torch.inference_mode()
def token_log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    batch_tokens: int,
) -> list[np.ndarray]:
    """Log-probability of each token of each completion given what stands before it, in nats."""
    before = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    after = tokenizer(list(completions), add_special_tokens=False)["input_ids"]
    values: list[np.ndarray] = [np.zeros(0)] * len(before)
    for batch in length_batches([len(b) + len(a) for b, a in zip(before, after)], batch_tokens):
        padded = tokenizer.pad({"input_ids": [before[i] + after[i] for i in batch]}, return_tensors="pt")
        padded = padded.to(model.device)
        positions = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        log_probabilities = model(**padded, position_ids=positions).logits[:, :-1].float().log_softmax(-1)
        chosen = log_probabilities.gather(-1, padded["input_ids"][:, 1:, None]).squeeze(-1)
        for row, i in enumerate(batch):  # padding stands on the left, so the completion is at the end
            values[i] = chosen[row, -len(after[i]) :].double().cpu().numpy()
    return values


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch random numbers from `seed` inside, the outer state untouched."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches of similar length; a batch's padded size stays within `budget` tokens.

    Every index appears once; an item longer than the budget gets a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[i] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
