"""Sampling from a causal LM in this process, and log-likelihoods under it.

Prompts go through the model in batches of similar length, and each prompt is read once for all its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from tracelift_lib.models import contract

OPEN_THINKING = "<think>"


@dataclass(frozen=True)
class Sampling:
    """How to sample.

    Attributes:
        temperature, top_p: of the distribution that each token is drawn from; temperature 0 takes the likeliest.
        max_new_tokens: where a completion is cut off if it has not ended.
        batch_tokens: bound on the padded prompt tokens of one batch, counted once for each sample.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    batch_tokens: int


@dataclass
class Sampler:
    """A model with its tokenizer (which pads on the left) and the way to sample from it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling

    def sample(
        self,
        prompts: Sequence[str],
        n: int,
        seed: int,
        progress: str | None = None,
        deliver: Callable[[int, list[str]], object] = lambda i, texts: None,
    ) -> list[list[str]]:
        """n completions for each prompt, in the order of `prompts`; same seed, prompts and machine, same completions.

        Args:
            prompts: whole texts, with chat template (`prompts.as_chat`).
            (A template may open the thinking at the end of the prompt; then each completion begins with it, so that a
            reader sees where it ends, if it does.)
            progress: name of a progress bar; None: no bar.
            deliver: called with (index of the prompt, its completions) as soon as its batch is done.

        Each batch has a seed of its own: the caller's random state is restored before a completion is delivered, so
        whoever waits for it in another thread can go on and draw.
        """
        token_ids = contract.token_ids(self.tokenizer, prompts)
        thinking = [OPEN_THINKING if prompt.rstrip().endswith(OPEN_THINKING) else "" for prompt in prompts]
        batches = length_batches([len(ids) for ids in token_ids], self.sampling.batch_tokens // n)
        batch_seeds = np.random.SeedSequence(seed).generate_state(len(batches)).tolist()
        completions: list[list[str]] = [[] for _ in prompts]
        with tqdm(total=len(prompts), desc=progress, disable=progress is None) as bar:
            for batch, batch_seed in zip(batches, batch_seeds):
                with seeded(batch_seed):
                    texts = self._generate([token_ids[i] for i in batch], n)
                for row, i in enumerate(batch):
                    completions[i] = [thinking[i] + text for text in texts[row * n : (row + 1) * n]]
                    deliver(i, completions[i])
                bar.update(len(batch))
        return completions

    @torch.inference_mode()
    def _generate(self, token_ids: list[list[int]], n: int) -> list[str]:
        """n completions of the first prompt, then n of the second, and so on.

        The model reads each prompt once, up to its last token; what it keeps of it (the key-value cache) is then
        copied n times, and `generate` goes on from the last prompt token. Where that cannot be copied, `generate` reads
        each prompt n times.
        """
        inputs = self.tokenizer.pad({"input_ids": token_ids}, return_tensors="pt").to(self.model.device)
        input_ids, mask = inputs["input_ids"], inputs["attention_mask"]
        prompt_length = input_ids.shape[1]
        cache = DynamicCache(config=self.model.config)
        shared = contract.can_share_prompt(cache)
        if shared and prompt_length > 1:  # a lone token leaves nothing to read beforehand
            self.model(
                input_ids=input_ids[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=_positions(mask)[:, :-1],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache.batch_repeat_interleave(n)
        sampling = self.sampling
        sequences = self.model.generate(
            input_ids=input_ids.repeat_interleave(n, 0),
            attention_mask=mask.repeat_interleave(n, 0),
            generation_config=contract.generation_config(
                self.model, self.tokenizer, sampling.temperature, sampling.top_p, sampling.max_new_tokens
            ),
            **({"past_key_values": cache} if shared else {}),
        )
        return self.tokenizer.batch_decode(sequences[:, prompt_length:], skip_special_tokens=True)


@torch.inference_mode()
def token_log_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    batch_tokens: int,
) -> list[np.ndarray]:
    """Log-probability, in nats, of each token of each completion given its prompt and the tokens before it."""
    before, after = contract.token_ids(tokenizer, prompts), contract.token_ids(tokenizer, completions)
    whole = [prompt + completion for prompt, completion in zip(before, after)]
    values: list[np.ndarray] = [np.zeros(0)] * len(whole)
    for batch in length_batches([len(ids) for ids in whole], batch_tokens):
        inputs = tokenizer.pad({"input_ids": [whole[i] for i in batch]}, return_tensors="pt").to(model.device)
        logits = model(**inputs, position_ids=_positions(inputs["attention_mask"])).logits
        log_probabilities = logits[:, :-1].float().log_softmax(-1)
        chosen = log_probabilities.gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
        for row, i in enumerate(batch):  # padding stands on the left, so the completion is at the end
            values[i] = chosen[row, chosen.shape[1] - len(after[i]) :].double().cpu().numpy()
    return values


def _positions(mask: torch.Tensor) -> torch.Tensor:
    """Position of each token in its own text, padding on the left not counted."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


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
