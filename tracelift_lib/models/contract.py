"""The sampling contract: which tokens a model reads, how the next ones are drawn, and where a completion ends.

Training (TRL's rollouts), evaluation, the executor in this process and a server must agree on these, or else the policy
that is trained is another one than the policy that is judged. So they are decided here only, and nothing is left to
what a checkpoint suggests for itself: Qwen2.5-Instruct, for one, ships a repetition penalty of 1.05 to 1.1, which
punishes an executor for copying numbers from the trace. A server needs the same (`--generation-config vllm`,
docs/running.md). Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

# Draw from the model's own distribution: nothing cut off, nothing punished. GenerationConfig fields, all that a
# checkpoint may set otherwise and that `Sampling` has no say in.
NEUTRAL = {
    "top_k": 0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
}


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of whole texts as they stand: `prompts.as_chat` has put in every special token, BOS too."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """All tokens that end a completion: the tokenizer's end of sequence and those of the checkpoint (gemma has two)."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *own) if i is not None))


def neutralise(model: PreTrainedModel) -> PreTrainedModel:
    """`model` without the sampling settings of its checkpoint; its special tokens stay.

    `generate` fills whatever its caller leaves open from them, whoever calls it.
    """
    kept = {name: getattr(model.generation_config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**kept)
    return model


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, temperature: float, top_p: float, max_new_tokens: int
) -> GenerationConfig:
    """All that `generate` is told; temperature 0 takes the likeliest token."""
    drawing = {"do_sample": True, "temperature": temperature, "top_p": top_p, **NEUTRAL}
    greedy = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1}
    return GenerationConfig(
        **(drawing if temperature else greedy),
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stop_ids(model, tokenizer),
    )


def up_to_stop(completion: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The tokens up to the first that ends a completion, with it; all of them if none does."""
    ends = [position for position, token in enumerate(completion) if token in stops]
    return list(completion[: ends[0] + 1] if ends else completion)


def can_share_prompt(cache: Cache) -> bool:
    """Whether what a model keeps of a prompt can be copied for several completions.

    Hybrid models (Qwen3-Next, Falcon-H1) also keep a recurrent state, which transformers cannot copy.
    """
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
