"""Base models: small Qwen2 models trained here, and Hugging Face folders from elsewhere.

Whatever its origin, a base model ends as a folder that `from_pretrained` loads, so TRL, PEFT,
the Reasoning RM and the executor see the same thing at every size.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from tracelift_lib.models.settings import Qwen2Shape, TrainedModel
from tracelift_lib.models.supervised import Pair, supervised_training
from tracelift_lib.problems.files import WORK, write_json
from tracelift_lib.problems.problem import Problem
from tracelift_lib.problems.prompts import (
    OPEN,
    PromptStyle,
    as_chat,
    executor_prompt,
    planner_prompt,
    reward_model_text,
    wrap_trace,
)

if TYPE_CHECKING:
    pass
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
transformers_logging.disable_progress_bar()  # one bar a shard and a load buries the bars that matter
SAMPLE_TEXTS = 2000  # problems that the tokenizer learns from


def train_base(source: TrainedModel, problems: list[Problem], style: PromptStyle, seed: int, out: Path) -> None:
    """Train a small Qwen2 from random weights to plan and to solve; `out` becomes its folder.

    Three kinds of examples, by `source.mix`: write the reference trace for a problem, answer with the reference trace
    given, answer without a trace. Flawed traces are never shown: that the executor follows them is measured, not
    taught. Where the trace stands in the prompt it is a target too, which makes the
    model learn to look things up several times sooner than the few answer tokens would.
    """
    work = out / WORK
    tokenizer = train_tokenizer(
        (text for p in problems[:SAMPLE_TEXTS] for text in _vocabulary_texts(p, style)), source.vocab_size
    )
    tokenizer.save_pretrained(out)
    model = new_qwen2(tokenizer, source.shape, seed)
    rng = random.Random(seed)
    kinds = rng.choices(list(source.mix), list(source.mix.values()), k=source.steps * source.batch_size)
    pairs = [_base_pair(kind, p, style, tokenizer) for kind, p in zip(kinds, _endless(problems, rng))]
    log = supervised_training(
        model,
        tokenizer,
        pairs,
        steps=source.steps,
        batch_size=source.batch_size,
        learning_rate=source.learning_rate,
        seed=seed,
        work=work / "trainer",
    )
    model.save_pretrained(out)
    write_json(out / "log.json", log)


def answer_text(problem: Problem) -> str:
    """The right answer as the executor is to write it: a line with the number, or the program."""
    return f"Answer: {problem.answer}" if problem.domain == "math" else problem.answer


def _endless(problems: list[Problem], rng: random.Random) -> Iterator[Problem]:
    """The problems over and over, shuffled anew each time."""
    while True:
        yield from rng.sample(problems, len(problems))


def _vocabulary_texts(p: Problem, style: PromptStyle) -> list[str]:
    return [
        reward_model_text(p, p.reference_solution),
        planner_prompt(p, style),
        executor_prompt(p, p.reference_solution, style) + f"user\nassistant\n{answer_text(p)}",
    ]


def _base_pair(kind: str, p: Problem, style: PromptStyle, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """One training example of `train_base`."""
    if kind == "plan":
        return as_chat(planner_prompt(p, style), tokenizer), wrap_trace(p.reference_solution)
    trace = p.reference_solution if kind == "solve_with_trace" else None
    prompt = as_chat(executor_prompt(p, trace, style), tokenizer)
    cut = prompt.index(OPEN) if trace else len(prompt)
    return prompt[:cut], prompt[cut:] + answer_text(p)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """A Qwen2 tokenizer (byte-level BPE, single digits, no unknown token) with its own small vocabulary.

    It is Qwen2's own class because AutoTokenizer loads any tokenizer beside a Qwen2 model as that class, with that
    class's way to split words, whatever the files say: another way would be lost without a word on loading.
    """
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts, vocab_size=vocab_size, new_special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.padding_side, tokenizer.chat_template = "left", CHAT_TEMPLATE
    return tokenizer


def new_qwen2(tokenizer: PreTrainedTokenizerBase, shape: Qwen2Shape, seed: int) -> PreTrainedModel:
    """A Qwen2 model with random weights."""
    set_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        use_cache=True,
        **shape.model_dump(),
    )
    return Qwen2ForCausalLM(config)
