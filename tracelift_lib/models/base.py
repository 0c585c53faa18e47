"""Small Qwen2 models that the pipeline trains itself, from random weights, to plan and to solve."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, set_seed

from tracelift_lib.models.settings import Qwen2Shape, TrainedModel
from tracelift_lib.models.supervised import Pair, supervised_training
from tracelift_lib.problems import prompts
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.tinyworld import ask_between

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAMPLE_TEXTS = 2000  # problems that the tokenizer learns from


def train_base(source: TrainedModel, problems: list[Problem], style: prompts.PromptStyle, seed: int, out: Path) -> None:
    """Train a small Qwen2 from random weights to plan and to solve; `out` becomes its folder.

    Three kinds of examples, by `source.mix`: write the reference trace for a problem, answer with the reference trace
    given, answer without a trace. Flawed traces are never shown: that the executor follows them is measured, not
    taught. Where the trace stands in the prompt it is a target too, which makes the model learn to look things up
    several times sooner than the few answer tokens would. Source: ours.
    """
    texts = (text for p in problems[:SAMPLE_TEXTS] for text in _vocabulary_texts(p, style))
    tokenizer = train_tokenizer(texts, source.vocab_size)
    model = new_qwen2(tokenizer, source.shape, seed)
    rng = random.Random(seed)
    kinds = rng.choices(list(source.mix), list(source.mix.values()), k=source.steps * source.batch_size)
    pairs = [_base_pair(kind, p, style, tokenizer) for kind, p in zip(kinds, endlessly(problems, rng))]
    supervised_training(model, tokenizer, pairs, source, seed, out)


def endlessly(problems: list[Problem], rng: random.Random) -> Iterator[Problem]:
    """The problems over and over, shuffled anew each time."""
    while True:
        yield from rng.sample(problems, len(problems))


def answer_text(problem: Problem) -> str:
    """The right answer as the executor is to write it: a line with the number, or the program."""
    return f"Answer: {problem.answer}" if problem.domain == "math" else problem.answer


def _vocabulary_texts(p: Problem, style: prompts.PromptStyle) -> list[str]:
    """Every kind of text that the model or its reward model will read about a problem."""
    solving = prompts.executor_prompt(p, p.reference_solution, style) + f"user\nassistant\n{answer_text(p)}"
    return [prompts.reward_model_text(p, p.reference_solution), prompts.planner_prompt(p, style), solving]


def _base_pair(kind: str, p: Problem, style: prompts.PromptStyle, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """One training example of `train_base`."""
    if kind == "plan":
        return prompts.as_chat(prompts.planner_prompt(p, style), tokenizer), prompts.wrap_trace(p.reference_solution)
    trace = None if kind == "solve_without_trace" else p.reference_solution
    p = ask_between(p) if kind == "solve_between" else p
    prompt = prompts.as_chat(prompts.executor_prompt(p, trace, style), tokenizer)
    cut = prompt.index(prompts.OPEN) if trace else len(prompt)
    return prompt[:cut], prompt[cut:] + answer_text(p)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """A Qwen2 tokenizer (byte-level BPE, single digits, no unknown token) with its own small vocabulary.

    It is Qwen2's own class because AutoTokenizer loads any tokenizer beside a Qwen2 model as that class, with that
    class's way to split words, whatever the files say: another way would be lost without a warning on loading.
    """
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts, vocab_size=vocab_size, new_special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.padding_side, tokenizer.chat_template = "left", CHAT_TEMPLATE
    return tokenizer


def new_qwen2(tokenizer: PreTrainedTokenizerBase, shape: Qwen2Shape, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2 model with random weights, the same for the same seed."""
    set_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **shape.model_dump(),
    )
    return Qwen2ForCausalLM(config)
